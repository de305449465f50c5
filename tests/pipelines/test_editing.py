"""Editing whole pieces: strengths, blends and durations mean what they say, of every kind of source."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from audio_files import tone
from midi_pipeline_for_tests import piece
from pipeline_utils_for_tests import sampling_expansion, seeded, tiny_adversarial_idea, tiny_pipeline
from testing_utils import assert_error

from melreformer_hf.models.idea_unet.unet_idea import make_scheduler
from melreformer_hf.nn.ideas import IdeaSample
from melreformer_hf.pipelines.splicing import slerp
from melreformer_hf.processing.midi.notes import write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi

RATE, HOP = 22050, 256
CLOSE = {"rtol": 0, "atol": 1e-4}
FEW = {"num_inference_steps": 4}


def recording(frequency: float = 220.0, seconds: float = 2.0) -> tuple[torch.Tensor, int]:
    time = torch.arange(round(seconds * RATE)) / RATE
    return 0.3 * torch.sin(6.2832 * frequency * time) * (1 + torch.sin(6.2832 * 3 * time)), RATE


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_strength_goes_from_the_own_expansion_to_independence(kind):
    pipe, song = tiny_pipeline(scheduler=make_scheduler("dpm", kind)), recording()
    assert torch.equal(pipe.vary(song, 0, generator=seeded()).audios, pipe.expand(*song).audios)
    few = {**FEW, "generator": seeded(), "output_type": "idea"}  # an untrained network's noise is too loud to be heard
    free = pipe.vary(song, 1.0, **few)
    other = pipe.vary(recording(555.0), 1.0, **{**few, "generator": seeded()})
    drawn = pipe(free.durations[0], **{**few, "generator": seeded()})
    assert torch.equal(free.ideas, other.ideas) and torch.equal(free.ideas, drawn.ideas)
    own = pipe.idea_of(*song).ideas
    away = [
        (pipe.vary_idea(song, strength, **FEW, generator=seeded()).ideas - own).abs().mean()
        for strength in (0.1, 0.4, 0.7)
    ]
    assert 0 < away[0] and (kind == "sample" or away[0] < away[1] < away[2])
    assert free.peak_db is None and free.num_frames.tolist() == [2 * RATE // HOP]


def test_variations_have_rows_lengths_and_seeds(pipe):
    song = recording()
    both = pipe.vary(song, 0.6, 1.3, 2, **FEW, generator=[seeded(0), seeded(1)])
    assert both.num_frames.tolist() == [112, 112]
    for seed in (0, 1):
        alone = pipe.vary(song, 0.6, 1.3, **FEW, generator=seeded(seed))
        torch.testing.assert_close(both.audios[seed : seed + 1], alone.audios, **CLOSE)
    assert not torch.allclose(both.ideas[0], both.ideas[1], atol=0.1)
    drawn = pipe.vary_idea(song, 0.6, 1.3, **FEW, generator=seeded(0))
    streamed = torch.cat(list(pipe.stream_idea(*drawn, 0.2)), dim=-1)
    torch.testing.assert_close(streamed, both.audios[:1], **CLOSE)


def test_blends_end_at_the_two_pieces(pipe):
    first, second = recording(220.0, 1.0), recording(555.0, 3.0)
    for weight, end in ((0, first), (1, second)):
        assert torch.equal(pipe.blend(first, second, weight).audios, pipe.expand(*end).audios)
    lengths = [len(end[0]) // HOP for end in (first, second)]
    quarter = pipe.blend_ideas(first, second, 0.25)
    assert quarter.num_frames.tolist() == [round(0.75 * lengths[0] + 0.25 * lengths[1])]
    ideas = [pipe.idea_of(*end).ideas for end in (first, second)]
    expected = slerp(*ideas, 0.25).clamp(min=pipe.mel_config.floor_value)
    assert torch.equal(quarter.ideas, expected)
    assert pipe.blend_ideas(first, second, 0.25, audio_length_in_s=1.3).num_frames.tolist() == [112]
    varied = [pipe.blend_ideas(first, second, 0.25, 0.5, **FEW, generator=seeded(seed)).ideas for seed in (0, 0, 1)]
    assert torch.equal(varied[0], varied[1]) and not torch.equal(varied[0], varied[2])
    assert torch.equal(varied[0], pipe.vary_idea(quarter, 0.5, **FEW, generator=seeded(0)).ideas)


def test_the_same_idea_lasts_as_long_as_it_is_asked_to(pipe):
    song = recording()
    longer = pipe.stretch(song, 3.1)
    assert longer.num_frames.tolist() == [round(3.1 * RATE / HOP)]
    assert torch.equal(longer.audios, pipe.expand(*song, 3.1).audios)
    drawn = pipe.sample_idea(1.0, **FEW, generator=seeded())
    shorter = pipe.stretch(drawn, 0.5)
    assert torch.equal(shorter.ideas, drawn.ideas) and shorter.num_frames.tolist() == [43] and shorter.peak_db == -1.0
    same = pipe.stretch(drawn, drawn.num_frames.item() * HOP / RATE)
    assert torch.equal(same.audios, pipe.render_idea(*drawn).audios)


def test_a_sweep_is_what_each_seed_gives(pipe):
    swept = pipe.sweep([3, 4, 9], audio_length_in_s=1.0, **FEW)
    for row, seed in enumerate((3, 4, 9)):
        alone = pipe(1.0, **FEW, generator=seeded(seed))
        torch.testing.assert_close(swept.audios[row : row + 1], alone.audios, **CLOSE)
    song = recording()
    varied = pipe.sweep(range(2), song, 0.7, **FEW, output_type="idea").audios
    alone = pipe.vary(song, 0.7, **FEW, generator=seeded(1), output_type="idea").audios
    torch.testing.assert_close(varied[1:], alone, **CLOSE)


def test_sources_are_recordings_files_notes_and_ideas(pipe, tmp_path):
    waveform = torch.from_numpy(tone(1.0)).float()
    soundfile.write(tmp_path / "song.WAV", waveform.numpy(), RATE, subtype="FLOAT", format="WAV")
    soundfile.write(tmp_path / "high.flac", tone(1.0, rate=44100), 44100)
    expected = pipe.expand(waveform, RATE).audios
    for source in (
        (waveform, RATE),
        (waveform.numpy(), RATE),
        tmp_path / "song.WAV",
        str(tmp_path / "song.WAV"),
        pipe.idea_of(waveform, RATE),
    ):
        torch.testing.assert_close(pipe.vary(source, 0).audios, expected, **CLOSE)
        assert pipe.inpaint(source, 0.3, 0.6, **FEW).num_frames.tolist() == [86]
    assert pipe.vary(tmp_path / "high.flac", 0).num_frames.tolist() == [86]
    score = piece()
    write_midi(piece_to_midi(*score), tmp_path / "sketch.mid")
    played = pipe.render_idea(*pipe.idea_of_midi(score)).audios
    for source in (score, tmp_path / "sketch.mid", (tmp_path / "sketch.mid").read_bytes()):
        torch.testing.assert_close(pipe.vary(source, 0).audios, played, **CLOSE)
    both = tuple(score.notes[:2])
    assert pipe.heard(both).shape == pipe.heard(list(both)).shape
    held = pipe.heard(pipe.sample_idea(1.0, **FEW, generator=seeded()))
    assert held.shape == (86 * HOP,) and held.isfinite().all()


def test_an_expansion_that_samples_follows_the_generator():
    pipe, song = tiny_pipeline(expansion=sampling_expansion()), recording()
    calls = {
        "vary": lambda **seed: pipe.vary(song, 0.5, **FEW, **seed),
        "blend": lambda **seed: pipe.blend(song, recording(300.0), 0.5, **seed),
        "stretch": lambda **seed: pipe.stretch(song, 1.0, **seed),
        "inpaint": lambda **seed: pipe.inpaint(song, 0.5, 1.0, **FEW, **seed),
        "extend": lambda **seed: pipe.extend(song, 0.3, 0.3, **FEW, **seed),
        "loop": lambda **seed: pipe.loop(song, 0.5, **FEW, **seed),
    }
    for name, call in calls.items():
        first, again, other = (call(generator=seeded(seed)).mels for seed in (0, 0, 1))
        assert torch.equal(first, again), name
        assert (first - other).abs().max() > 0.5, name


def test_models_without_steps_do_what_needs_none():
    pipe = tiny_pipeline(idea=tiny_adversarial_idea(), scheduler=None)
    song = recording()
    assert torch.equal(pipe.vary(song, 0.0).audios, pipe.expand(*song).audios)
    assert pipe.blend(song, recording(300.0), 0.5).audios.isfinite().all()
    assert pipe.stretch(song, 1.0).num_frames.tolist() == [86]
    assert pipe.sweep([1, 2], audio_length_in_s=1.0).audios.shape == (2, 1, 86 * HOP)
    for call in (
        lambda: pipe.vary(song, 0.5),
        lambda: pipe.blend(song, song, 0.5, 0.5),
        lambda: pipe.inpaint(song, 0.5, 1.0),
        lambda: pipe.extend(song, right_in_s=0.5),
        lambda: pipe.loop(song, 0.5),
    ):
        with pytest.raises(ValueError, match="IdeaStyleGan2Model, which draws ideas in one step.*IdeaUNetModel"):
            call()


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda pipe, song: pipe.vary(song, 1.5), ["strength must be a number from 0 to 1", "1.5"]),
        (lambda pipe, song: pipe.vary(song, -0.1), ["strength", "-0.1"]),
        (lambda pipe, song: pipe.vary(song, float("nan")), ["strength", "nan"]),
        (lambda pipe, song: pipe.vary(song, "0.5"), ["strength", "'0.5'"]),
        (lambda pipe, song: pipe.vary(song, True), ["strength", "True"]),
        (lambda pipe, song: pipe.vary(song, 0.5, -1.0), ["audio_length_in_s", "-1.0"]),
        (lambda pipe, song: pipe.vary(song, 0.5, None, 0), ["num_waveforms_per_prompt", "0"]),
        (lambda pipe, song: pipe.vary(song, 0.5, num_inference_steps=0), ["num_inference_steps", "0"]),
        (lambda pipe, song: pipe.vary((song[0], 44100), 0.5), ["sampling_rate must be 22050", "44100"]),
        (lambda pipe, song: pipe.vary((song[0][:9], RATE), 0.5), ["at least 385", "got 9"]),
        (lambda pipe, song: pipe.vary((song[0] * np.nan, RATE), 0.5), ["NaN"]),
        (lambda pipe, song: pipe.vary([], 0.5), ["holds no notes"]),
        (lambda pipe, song: pipe.vary(IdeaSample(torch.zeros(2, 16, 32), torch.ones(2)), 0.5), ["(2, 16, 32)"]),
        (lambda pipe, song: pipe.blend(song, song, 1.1), ["weight must be a number from 0 to 1", "1.1"]),
        (lambda pipe, song: pipe.blend(song, song, 0.5, 2), ["strength", "got 2"]),
        (lambda pipe, song: pipe.stretch(song, 0.0), ["audio_length_in_s", "0.0"]),
        (lambda pipe, song: pipe.stretch(song, None), ["audio_length_in_s", "None"]),
        (lambda pipe, song: pipe.sweep([]), ["seeds", "none"]),
        (lambda pipe, song: pipe.vary(song, 0.5, output_type="wav"), ["output_type", "'wav'"]),
    ],
)
def test_what_cannot_be_edited_is_refused(pipe, call, fragments):
    with pytest.raises(ValueError) as error:
        call(pipe, recording(seconds=1.0))
    assert_error(error, *fragments)


def test_files_that_are_not_there(pipe, tmp_path):
    for name in ("song.wav", "song.mid"):
        with pytest.raises(FileNotFoundError):
            pipe.vary(tmp_path / name, 0.5)
