"""Editing spans: what is kept is kept to the last sample, and what is made meets it without a seam."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_utils_for_tests import sampling_expansion, seeded, tiny_pipeline
from testing_utils import assert_error

from melreformer_hf.audio.io import read_audio
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.idea_unet.unet_idea import make_scheduler
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.pipelines.splicing import FADE_FRAMES

RATE, HOP = 22050, 256
FADE = FADE_FRAMES * HOP
FEW = {"num_inference_steps": 3}
PRELUDE = Path(__file__).parents[2] / "spaces" / "melreformer" / "prelude.ogg"
needs_checkpoint = pytest.mark.skipif(
    not (BUNDLED / "piano-tiny").is_dir(), reason="no checkpoint is bundled in this tree"
)


def song(seconds: float = 3.0) -> tuple[torch.Tensor, int]:
    time = torch.arange(round(seconds * RATE)) / RATE
    return 0.3 * torch.sin(6.2832 * 220 * time) * (1 + torch.sin(6.2832 * 3 * time)), RATE


def frames_of(seconds: float) -> int:
    return round(seconds * RATE / HOP)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("span", [(1.0, 2.0), (0.0, 0.5), (2.2, 3.0), (1.5, 1.52)])
def test_outside_the_span_every_sample_is_kept(span, kind):
    pipe, (waveform, rate) = tiny_pipeline(scheduler=make_scheduler("dpm", kind)), song()
    total = len(waveform) // HOP
    begin, end = (min(frames_of(second), total) for second in span)
    output = pipe.inpaint((waveform, rate), *span, **FEW, generator=seeded())
    assert output.num_frames.tolist() == [total] and output.audios.shape == (1, 1, total * HOP)
    audio, kept = output.audios[0, 0], waveform[: total * HOP]
    before, after = max(begin * HOP - FADE, 0), end * HOP + FADE
    assert torch.equal(audio[:before], kept[:before]) and torch.equal(audio[after:], kept[after:])
    assert not torch.equal(audio[begin * HOP : end * HOP], kept[begin * HOP : end * HOP])
    mel = log_mel_spectrogram(kept, pipe.mel_config)
    assert torch.equal(output.mels[0, :, :begin], mel[:, :begin])
    assert torch.equal(output.mels[0, :, end:], mel[:, end:])
    other = pipe.inpaint((waveform, rate), *span, **FEW, generator=seeded(1)).audios[0, 0]
    assert not torch.equal(other[begin * HOP : end * HOP], audio[begin * HOP : end * HOP])


def test_a_gap_is_filled_whatever_was_in_it(pipe):
    """At full strength; at less some of it shines through; at none the span is the expansion of what was there."""
    waveform, rate = song()
    noisy = waveform.clone()
    # A frame's window reaches 384 samples beyond the frame.
    noisy[RATE + 640 : 2 * RATE - 640] = 0.1 * torch.randn(RATE - 1280, generator=seeded())
    free = [pipe.inpaint((sound, rate), 1.0, 2.0, 1.0, **FEW, generator=seeded()).mels for sound in (waveform, noisy)]
    torch.testing.assert_close(*free, rtol=0, atol=1e-4)
    bound = [pipe.inpaint((sound, rate), 1.0, 2.0, 0.5, **FEW, generator=seeded()).mels for sound in (waveform, noisy)]
    assert (bound[0] - bound[1]).abs().max() > 0.1
    none = pipe.inpaint((waveform, rate), 1.0, 2.0, 0.0, context_in_s=9.0)
    middle = slice(frames_of(1.0) + 30, frames_of(2.0) - 30)  # far from the borders, where nothing is taken off
    expanded = pipe.expand(waveform, rate).mels.clamp(min=pipe.mel_config.floor_value)
    torch.testing.assert_close(none.mels[..., middle], expanded[..., middle], rtol=0, atol=1e-3)


def test_what_is_drawn_fits_to_as_much_as_is_asked_for(pipe):
    waveform, rate = song()
    other = waveform.clone()
    other[: RATE // 2] = 0.0
    near, far = (
        [
            pipe.inpaint((sound, rate), 2.0, 2.5, 1.0, context, **FEW, generator=seeded()).mels
            for sound in (waveform, other)
        ]
        for context in (0.5, 5.0)
    )
    inside = slice(frames_of(2.0), frames_of(2.5))
    assert torch.equal(near[0][..., inside], near[1][..., inside])
    assert not torch.equal(far[0][..., inside], far[1][..., inside])


@pytest.mark.parametrize("parts", [{}, {"expansion": None}], ids=["", "sampling"])
def test_streams_equal_the_whole_and_tell_the_mel_first(parts):
    pipe = tiny_pipeline(**{name: sampling_expansion() for name in parts})
    edits = {
        pipe.inpaint: (pipe.inpaint_stream, (song(), 1.0, 2.0)),
        pipe.extend: (pipe.extend_stream, (song(), 0.5, 1.0)),
    }
    for call, (stream, arguments) in edits.items():
        whole, mels, chunks = call(*arguments, **FEW, generator=seeded()), [], []
        for chunk in stream(*arguments, **FEW, generator=seeded(), callback_on_mel=mels.append):
            chunks.append(chunk)
            assert sum(mel.shape[-1] for mel in mels) * HOP >= sum(done.shape[-1] for done in chunks)
        assert len(chunks) > 3
        torch.testing.assert_close(torch.cat(chunks, dim=-1), whole.audios, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.cat(mels, dim=-1), whole.mels, rtol=0, atol=1e-5)
    first = next(pipe.inpaint_stream(song(), 1.0, 2.0, **FEW))  # what is kept need not wait for what is made
    assert first.shape[-1] == (frames_of(1.0) - FADE_FRAMES) * HOP


@pytest.mark.parametrize(("left", "right"), [(0.0, 0.7), (0.4, 0.0), (0.4, 0.7), (0.0, 9.0)])
def test_an_extension_holds_the_piece(pipe, left, right):
    waveform, rate = song()
    output = pipe.extend((waveform, rate), left, right, **FEW, generator=seeded())
    before, total, after = frames_of(left), len(waveform) // HOP, frames_of(right)
    assert output.num_frames.tolist() == [before + total + after]
    audio = output.audios[0, 0, before * HOP : (before + total) * HOP]
    begin, end = FADE * (left > 0), total * HOP - FADE * (right > 0)
    assert torch.equal(audio[begin:end], waveform[begin:end])
    mel = log_mel_spectrogram(waveform[: len(waveform) // HOP * HOP], pipe.mel_config)
    assert torch.equal(output.mels[0, :, before : before + total], mel)
    if right:
        added = output.audios[0, 0, (before + total) * HOP :]
        assert added.isfinite().all() and added.abs().max() > 0
    if left and right:  # each side is drawn by itself
        alone = pipe.extend((waveform, rate), left, 0.0, **FEW, generator=seeded()).audios
        torch.testing.assert_close(alone[..., : before * HOP], output.audios[..., : before * HOP], rtol=0, atol=1e-4)


def test_a_weak_extension_is_the_mirrored_piece(pipe):
    waveform, rate = song()
    still = pipe.extend((waveform, rate), 0.0, 2.0, 0.0, 2.0, generator=seeded())
    total = len(waveform) // HOP
    mel = log_mel_spectrogram(waveform[: len(waveform) // HOP * HOP], pipe.mel_config)
    kept = frames_of(2.0)
    window = torch.cat([mel[:, total - kept :], mel[:, total - kept :].flip(1)], dim=1)
    idea = resize_mel(window[None], 32)
    expected = pipe.render_idea(idea, torch.tensor([2 * kept]), output_type="mel").mels.clamp(
        min=pipe.mel_config.floor_value
    )
    torch.testing.assert_close(still.mels[..., total + 30 :], expected[..., kept + 30 :], rtol=0, atol=1e-4)


def test_a_loop_has_no_seam_and_keeps_its_middle(pipe):
    waveform, rate = song()
    output = pipe.loop((waveform, rate), 0.8, **FEW, generator=seeded())
    total = len(waveform) // HOP
    assert output.num_frames.tolist() == [total]
    audio, seam = output.audios[0, 0], frames_of(0.8)
    first, last = (seam - seam // 2) * HOP + FADE, (total - seam // 2) * HOP - FADE
    assert torch.equal(audio[first:last], waveform[first:last])
    assert not torch.equal(audio[: HOP * 8], waveform[: HOP * 8])
    assert seams(audio, pipe.mel_config)["jump"] <= 1.0
    # What is heard over the seam is one piece of sound: that of the turned recording.
    turned = waveform[: total * HOP].roll(-(total // 2) * HOP)
    meeting = (total - total // 2) * HOP / RATE
    begin = meeting - seam // 2 * HOP / RATE
    middle = pipe.inpaint((turned, rate), begin, begin + seam * HOP / RATE, 0.8, **FEW, generator=seeded())
    torch.testing.assert_close(middle.audios[0, 0].roll(total // 2 * HOP), audio, rtol=0, atol=1e-4)


def seams(audio: torch.Tensor, config) -> dict[str, float]:
    """How large sample steps and changes of the mel at the seam of a loop are, in those that occur elsewhere."""
    twice = torch.cat([audio, audio])
    steps, here = twice.diff().abs(), len(audio)
    mel = log_mel_spectrogram(twice, config)
    changes, frame = mel.diff(dim=1).abs().mean(0), here // HOP
    inside = torch.cat([changes[8 : frame - 8], changes[frame + 8 : -8]])
    return {
        "jump": (steps[here - 2 : here + 1].max() / steps[: here - 4].max()).item(),
        "change": (changes[frame - 2 : frame + 2].max() / inside.quantile(0.99)).item(),
    }


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda pipe, source: pipe.inpaint(source, 1.0, 5.0), ["end_in_s", "within the piece", "5.0"]),
        (lambda pipe, source: pipe.inpaint(source, -0.5, 1.0), ["start_in_s", "-0.5"]),
        (lambda pipe, source: pipe.inpaint(source, float("nan"), 1.0), ["start_in_s", "nan"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, float("inf")), ["end_in_s", "inf"]),
        (lambda pipe, source: pipe.inpaint(source, 2.0, 1.0), ["end_in_s must lie after start_in_s", "2.0 to 1.0"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 1.0), ["end_in_s must lie after", "1.0 to 1.0"]),
        (lambda pipe, source: pipe.inpaint(source, 0.0, 3.0), ["leave something", "vary"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 2.0, 2.0), ["strength", "2.0"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 2.0, 1.0, 0.0), ["context_in_s", "0.0"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 2.0, 1.0, 0.01), ["leave no column", "make less at once"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 2.0, num_inference_steps=0), ["num_inference_steps", "0"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 2.0, output_type="wav"), ["output_type", "'wav'"]),
        (lambda pipe, source: pipe.inpaint(source, 1.0, 2.0, generator=[]), ["generator", "[]"]),
        (lambda pipe, source: pipe.extend(source), ["left_in_s or right_in_s"]),
        (lambda pipe, source: pipe.extend(source, -1.0), ["left_in_s", "-1.0"]),
        (lambda pipe, source: pipe.extend(source, 0.0, float("nan")), ["right_in_s", "nan"]),
        (lambda pipe, source: pipe.extend(source, 0.0, 21600.0), ["length of the result", "21600"]),
        (lambda pipe, source: pipe.extend(source, 0.0, 600.0), ["leave no column", "600.0"]),
        (lambda pipe, source: pipe.extend((source[0][:1000], RATE), 0.0, 0.1), ["at least 0.09 s", "got 0.03"]),
        (lambda pipe, source: pipe.loop(source, 3.0), ["seam_in_s must be less than", "3.0"]),
        (lambda pipe, source: pipe.loop(source, 0.0), ["seam_in_s", "0.0"]),
        (lambda pipe, source: pipe.loop((source[0][:1000], RATE), 0.1), ["at least 0.09 s", "got 0.03"]),
        (lambda pipe, source: pipe.inpaint((source[0][:9], RATE), 0.1, 0.2), ["at least 0.09 s", "got 0.00"]),
    ],
)
def test_spans_of_the_wrong_kind(pipe, call, fragments):
    with pytest.raises(ValueError) as error:
        call(pipe, song())
    assert_error(error, *fragments)


def chroma(ear: MidiGenerationPipeline, audio: torch.Tensor) -> np.ndarray:
    """Seconds that the ear hears of each pitch class, of length 1."""
    heard = np.zeros(12)
    for note in ear.transcribe(audio, RATE).notes:
        heard[note.pitch % 12] += min(note.duration or 50, 300)
    return heard / max(np.linalg.norm(heard), 1e-9)


@needs_checkpoint
def test_an_extended_song_stays_recognisable_and_has_no_seam():
    """Its notes by the ear: the extension has the piece's pitch classes, and not those of the piece in other keys."""
    pipe, ear = (kind.from_pretrained("piano-tiny") for kind in (MelReformerPipeline, MidiGenerationPipeline))
    pipe.set_progress_bar_config(disable=True)
    waveform = read_audio(PRELUDE, RATE)[0]
    output, total = pipe.extend((waveform, RATE), right_in_s=6.0, generator=seeded()), len(waveform) // HOP
    audio = output.audios[0, 0]
    own, added = chroma(ear, waveform), chroma(ear, audio[total * HOP :])
    keys = [float(np.roll(own, step) @ added) for step in range(12)]
    assert keys[0] > 0.6 and keys[0] > np.mean(keys[1:]) + 0.15, keys
    mel = log_mel_spectrogram(audio, pipe.mel_config)
    changes = mel.diff(dim=1).abs().mean(0)
    assert changes[total - 3 : total + 3].max() < changes.quantile(0.98)
    steps = audio.diff().abs()
    assert steps[total * HOP - FADE : total * HOP + 8].max() <= steps.max()
    level = [10 * part.square().mean().log10() for part in (waveform, audio[total * HOP :])]
    assert abs(level[0] - level[1]) < 6.0


@needs_checkpoint
def test_a_loop_of_a_real_recording_is_seamless():
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    pipe.set_progress_bar_config(disable=True)
    waveform = read_audio(PRELUDE, RATE)[0][: 8 * RATE]
    plain = seams(waveform[: len(waveform) // HOP * HOP], pipe.mel_config)
    looped = seams(pipe.loop((waveform, RATE), generator=seeded()).audios[0, 0], pipe.mel_config)
    # The expansion draws: a seam's frames differ as those of neighbors do, give or take a tenth of the largest changes.
    assert plain["change"] > 1.0 and looped["change"] < 1.15, (plain, looped)
    assert looped["jump"] < 0.1 < plain["jump"]
    assert all(np.isfinite(list(itertools.chain(plain.values(), looped.values()))))
