"""The pipeline: seeds, batches, streams, folders, refusals."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from midi_pipeline_for_tests import piece
from pipeline_utils_for_tests import MEL, sampling_expansion, seeded, tiny_parts, tiny_pipeline
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.pipelines import pipeline_mel_reformer
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_utils import check_count, row_generators
from melreformer_hf.processing.midi.notes import write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi
from melreformer_hf.processing.midi.sounding import sounding_notes

RATE, HOP = 22050, 256
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def generate(pipe, **arguments):
    return pipe(**{"num_inference_steps": 3, "audio_length_in_s": 1.0, "generator": seeded(), **arguments})


def test_length_sampling_rate_and_fields(pipe):
    output = generate(pipe, audio_length_in_s=1.3)
    frames = round(1.3 * RATE / HOP)
    assert output.audios.shape == (1, 1, frames * HOP) and output.mels.shape == (1, 16, frames)
    assert output.ideas.shape == (1, 16, 32) and output.sampling_rate == RATE
    assert output.durations == [frames * HOP / RATE] and output.peak_db == -1.0
    assert output.audios.isfinite().all() and output.audios.any()


def test_one_generator_drives_everything(pipe):
    first, second = generate(pipe), generate(pipe)
    assert torch.equal(first.audios, second.audios)
    other = generate(pipe, generator=seeded(1))
    assert not torch.allclose(first.audios, other.audios, atol=1e-3)


def test_rows_do_not_change_when_others_join(pipe):
    rows = [generate(pipe, generator=seeded(seed)).audios for seed in (0, 1)]
    together = generate(pipe, num_waveforms_per_prompt=2, generator=[seeded(0), seeded(1)]).audios
    torch.testing.assert_close(together, torch.cat(rows), **CLOSE)
    shared = generate(pipe, num_waveforms_per_prompt=2, generator=seeded(0)).audios
    torch.testing.assert_close(shared[:1], rows[0], **CLOSE)


def test_an_expansion_that_samples_is_driven_by_the_same_generator():
    pipe = tiny_pipeline(expansion=sampling_expansion())
    whole = generate(pipe, num_waveforms_per_prompt=2)
    assert torch.equal(whole.mels, generate(pipe, num_waveforms_per_prompt=2).mels)
    torch.testing.assert_close(generate(pipe).mels, whole.mels[:1], **CLOSE)
    plain = generate(tiny_pipeline(), num_waveforms_per_prompt=2)
    assert torch.equal(plain.ideas, whole.ideas) and not torch.allclose(plain.mels, whole.mels, atol=0.5)
    arguments = {"num_inference_steps": 3, "audio_length_in_s": 1.0}
    streamed = pipe.stream(**arguments, generator=seeded(), chunk_length_in_s=0.2)
    torch.testing.assert_close(torch.cat(list(streamed), dim=-1), whole.audios[:1], **CLOSE)
    rows = row_generators(seeded(), 1)
    drawn = pipe.sample_idea(**arguments, generator=rows)
    torch.testing.assert_close(pipe.render_idea(*drawn, generator=rows).mels, whole.mels[:1], **CLOSE)
    tone = torch.sin(torch.arange(RATE) * 0.1) * 0.3
    first, again, other = (pipe.expand(tone, RATE, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.mels, again.mels) and not torch.allclose(first.mels, other.mels, atol=0.5)
    streamed = torch.cat(list(pipe.expand_stream(tone, RATE, generator=seeded())), dim=-1)
    torch.testing.assert_close(streamed, first.audios, **CLOSE)


def test_durations_are_drawn_and_rows_end_in_silence(pipe):
    output = generate(pipe, audio_length_in_s=None, num_waveforms_per_prompt=3)
    assert len(set(output.num_frames.tolist())) > 1
    assert all(64 <= frames <= 128 for frames in output.num_frames.tolist())
    for audio, samples in zip(output.audios, output.num_samples.tolist(), strict=True):
        assert not audio[:, samples:].any()


@pytest.mark.parametrize("chunk", [0.1, 0.75, 10.0])
def test_stream_equals_the_whole(pipe, chunk):
    whole = generate(pipe).audios
    pieces = list(
        pipe.stream(num_inference_steps=3, audio_length_in_s=1.0, generator=seeded(), chunk_length_in_s=chunk)
    )
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, **CLOSE)
    assert len(pieces) > 1 or chunk > 1


# A process of its own: tensors that other tests have left in caches and threads would be counted, too.
_HELD = """
import gc
import torch
from pipeline_utils_for_tests import tiny_pipeline

def held():
    gc.collect()
    return sum(thing.numel() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

pipe = tiny_pipeline()
weights = sum(sum(part.numel() for part in module.parameters()) for module in (pipe.idea, pipe.expansion, pipe.vocoder))
generator = torch.Generator().manual_seed(0)
for number, _ in enumerate(pipe.stream(num_inference_steps=1, audio_length_in_s=60.0, generator=generator)):
    if number in (4, 12, 30):
        print(held() - weights)
"""


def test_a_stream_holds_no_more_after_a_minute_than_after_seconds():
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    run = subprocess.run(
        [sys.executable, "-c", _HELD], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    sizes = [int(line) for line in run.stdout.split()]
    assert len(sizes) == 3 and 0 < max(sizes) <= 1.01 * sizes[0]


def test_streaming_an_idea_tells_the_mel_before_it_sounds(pipe):
    whole = generate(pipe)
    order: list[torch.Tensor] = []
    chunks = []
    for chunk in pipe.stream_idea(whole.ideas, whole.num_frames, 0.2, callback_on_mel=order.append):
        assert sum(mel.shape[-1] for mel in order) * HOP >= sum(done.shape[-1] for done in [*chunks, chunk])
        chunks.append(chunk)
    torch.testing.assert_close(torch.cat(order, dim=-1), whole.mels, **CLOSE)
    torch.testing.assert_close(torch.cat(chunks, dim=-1), whole.audios, **CLOSE)
    steps = []
    next(pipe.stream(num_inference_steps=3, callback_on_step_end=lambda p, i, t, x: steps.append(i) or x))
    assert steps == [0, 1, 2]


def test_expand_keeps_length_streams_and_stretches(pipe):
    waveform = torch.sin(torch.arange(RATE) * 0.1) * 0.3
    output = pipe.expand(waveform, RATE)
    assert output.num_frames.tolist() == [RATE // HOP]
    streamed = torch.cat(list(pipe.expand_stream(waveform, RATE)), dim=-1)
    torch.testing.assert_close(streamed, output.audios, **CLOSE)
    longer = pipe.expand(waveform.numpy(), RATE, audio_length_in_s=2.0, output_type="np")
    assert isinstance(longer.audios, np.ndarray) and abs(longer.durations[0] - 2.0) < 0.02


def test_a_live_gain_makes_the_summary_sound_at_a_third_of_full_scale(pipe, monkeypatch):
    summary = torch.full((1, 16, 32), -3.0)
    peak = pipe.vocoder(summary).waveform.abs().max().item()
    assert pipe.live_gain(summary) == pytest.approx(0.35 / peak)
    for level, gain in ((0.5, 0.7), (-0.7, 0.5), (0.0035, 100.0), (1e-4, 100.0), (0.0, 100.0)):
        made = SimpleNamespace(waveform=torch.tensor([[0.0, level]]))
        monkeypatch.setattr(pipe.vocoder, "forward", lambda mel, return_dict, made=made: made)
        assert pipe.live_gain(summary) == pytest.approx(gain)


def test_seconds_become_whole_frames(pipe):
    assert [pipe.frames_of(seconds) for seconds in (1e-9, 0.4 * HOP / RATE, 1.4 * HOP / RATE)] == [1, 1, 1]
    assert pipe.frames_of(1.6 * HOP / RATE) == 2 and pipe.frames_of(6 * 3600) == round(6 * 3600 * RATE / HOP)
    assert pipe.chunk_frames_of(None) == 128 and pipe.chunk_frames_of(10 * HOP / RATE) == 10
    for refused in (0, -1.0, 6 * 3600 + 0.1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="above 0 and at most 21600"):
            pipe.frames_of(refused)
    check_count("steps", 1), check_count("steps", 5, 5)
    for refused in (0, 6, True, 1.0, "1"):
        with pytest.raises(ValueError, match="steps must be"):
            check_count("steps", refused, 5)


def test_a_sketch_in_notes_becomes_an_idea(pipe, tmp_path):
    """That of what the sampled piano plays."""
    score = piece()
    write_midi(piece_to_midi(*score), tmp_path / "sketch.mid")
    drawn = pipe.idea_of_midi(tmp_path / "sketch.mid")
    played = SampledInstrument().render(sounding_notes(*score), 0, int(drawn.num_frames[0]) * HOP)
    expected = pipe.idea_of(played[0], RATE)
    torch.testing.assert_close(drawn.ideas, expected.ideas, **CLOSE)
    assert drawn.num_frames.tolist() == expected.num_frames.tolist() == [round((2.7 + 1.0) * RATE / HOP)]
    longer = pipe.render_idea(*pipe.idea_of_midi(score, 5.0))
    assert longer.durations[0] == pytest.approx(5.0, abs=0.02) and longer.audios.any()
    with pytest.raises(ValueError, match="holds no notes"):
        pipe.idea_of_midi([])


def test_output_types_and_callback(pipe):
    assert torch.equal(generate(pipe, output_type="mel").audios, generate(pipe).mels)
    for name in ("idea", "latent"):
        assert torch.equal(generate(pipe, output_type=name).audios, generate(pipe).ideas)
    assert isinstance(generate(pipe, return_dict=False), tuple)
    seen = []

    def stop_early(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        pipe._interrupt = step == 1
        return tensors

    generate(pipe, num_inference_steps=5, callback_on_step_end=stop_early)
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] == 999


def test_folder_round_trip(pipe, tmp_path):
    expected = generate(pipe).audios
    pipe.save_pretrained(tmp_path, card={"data": "sines"})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vocoder"] == ["melreformer_hf", "HifiVocoderModel"]
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".md"}
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: text-to-audio" in card and "sines" in card
    loaded = MelReformerPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(loaded).audios, expected, **CLOSE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.2)], ids=str)
def test_half_precision_runs_and_stays_close(pipe, tmp_path, dtype, tolerance):
    pipe.save_pretrained(tmp_path)
    half = MelReformerPipeline.from_pretrained(tmp_path, dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert {half.idea.dtype, half.expansion.dtype, half.vocoder.dtype} == {dtype}
    output, expected = generate(half).audios, generate(pipe).audios
    assert output.dtype == torch.float32 and output.isfinite().all()
    assert (output - expected).abs().mean() < tolerance * expected.abs().mean()
    streamed = list(half.stream(num_inference_steps=3, audio_length_in_s=1.0, generator=seeded()))
    assert torch.cat(streamed, dim=-1).shape == expected.shape


def test_the_progress_bar_counts_the_steps(pipe, capsys):
    pipe.set_progress_bar_config(disable=False, desc="idea")
    try:
        generate(pipe)
    finally:
        pipe.set_progress_bar_config(disable=True)
    shown = capsys.readouterr().err
    assert "idea" in shown and "3/3" in shown


def test_saving_wav_files(pipe, tmp_path):
    output = generate(pipe, num_waveforms_per_prompt=2)
    paths = output.save(tmp_path / "a.wav")
    assert [path.name for path in paths] == ["a-0.wav", "a-1.wav"]
    data, rate = soundfile.read(paths[0])
    assert rate == RATE and data.size == output.num_samples[0]
    for path in output.save(tmp_path / "b.wav", peak_db=-6.0):
        assert abs(soundfile.read(path)[0]).max() == pytest.approx(10 ** (-6 / 20), abs=1e-3)
    for level in (0.5, float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="peak_db must be a number of at most 0"):
            output.save(tmp_path / "c.wav", peak_db=level)
    assert not list(tmp_path.glob("c*"))


@pytest.mark.parametrize("seconds", [0, -3, float("nan"), float("inf"), 10**9, "20", True])
def test_absurd_durations_are_refused(pipe, seconds):
    with pytest.raises(ValueError, match="audio_length_in_s"):
        generate(pipe, audio_length_in_s=seconds)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps.*got 0"),
        ({"num_waveforms_per_prompt": -1}, "num_waveforms_per_prompt.*got -1"),
        ({"output_type": "wav"}, "output_type.*wav"),
        ({"num_waveforms_per_prompt": 2, "generator": [torch.Generator()]}, "list of 2"),
        ({"generator": 7}, "torch.Generator.*got 7"),
    ],
)
def test_wrong_arguments_are_refused(pipe, arguments, match):
    with pytest.raises(ValueError, match=match):
        generate(pipe, **arguments)


@pytest.mark.parametrize(
    ("waveform", "rate", "match"),
    [
        (torch.zeros(RATE), 44100, "22050.*44100"),
        (torch.zeros(0), RATE, "empty"),
        (torch.zeros(1), RATE, "at least"),
        (torch.zeros(8, RATE), RATE, "mono"),
        (torch.full((RATE,), float("nan")), RATE, "NaN"),
        (torch.zeros(RATE, dtype=torch.int16), RATE, "int16"),
    ],
)
def test_bad_recordings_are_refused(pipe, waveform, rate, match):
    with pytest.raises(ValueError, match=match):
        pipe.expand(waveform, rate)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_ideas_and_mels_that_are_not_finite_are_refused(pipe, value):
    idea, mel = torch.zeros(1, 16, 32), torch.zeros(1, 16, 64)
    idea[0, 3, 5] = mel[0, 2, 40] = value
    with pytest.raises(ValueError, match="ideas must be finite"):
        next(pipe.stream_idea(idea, torch.tensor([64])))
    with pytest.raises(ValueError, match="finite"):
        list(pipe.vocoder.stream(mel.split(16, dim=-1)))
    broken = tiny_pipeline()
    with torch.no_grad():
        next(broken.idea.parameters()).fill_(value)
    with pytest.raises(ValueError, match="finite"):
        generate(broken)


@pytest.mark.parametrize("seconds", [0, -0.5, float("nan"), "long"])
def test_absurd_chunks_are_refused_by_name(pipe, seconds):
    with pytest.raises(ValueError, match="chunk_length_in_s"):
        next(pipe.stream(num_inference_steps=1, audio_length_in_s=1.0, chunk_length_in_s=seconds))
    with pytest.raises(ValueError, match="chunk_length_in_s"):
        next(pipe.expand_stream(torch.zeros(RATE), RATE, chunk_length_in_s=seconds))


@pytest.mark.parametrize("frames", [0, -5])
def test_ideas_of_no_length_are_refused(pipe, frames):
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        next(pipe.stream_idea(torch.zeros(1, 16, 32), torch.tensor([frames])))


def _change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_folders_that_would_load_as_random_weights_are_refused(pipe, tmp_path):
    from safetensors.torch import load_file, save_file

    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="No pipeline 'no_pipeline'"):
        MelReformerPipeline.from_pretrained("no_pipeline")
    with pytest.raises(ValueError, match="model_index.json"):
        MelReformerPipeline.from_pretrained(tmp_path / "whole" / "vocoder")
    weights = tmp_path / "whole" / "vocoder" / "model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name}' is missing"):
        MelReformerPipeline.from_pretrained(tmp_path / "whole")
    wrong = {**tensors, name: tensors[name].new_zeros(3)}
    save_file(wrong, weights, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="shape|size"):
        MelReformerPipeline.from_pretrained(tmp_path / "whole")
    save_file(tensors, weights, metadata={"format": "pt"})
    assert MelReformerPipeline.from_pretrained(tmp_path / "whole").sampling_rate == RATE
    _change(tmp_path / "whole" / "idea" / "config.json", mel_mean_of_all=0.0)
    with pytest.raises(ValueError, match="mel_mean_of_all"):
        MelReformerPipeline.from_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "vocoder" / "config.json").unlink()
    with pytest.raises(ValueError, match="vocoder/config.json is missing"):
        MelReformerPipeline.from_pretrained(tmp_path / "whole")


def test_silence_expands_to_something_finite(pipe):
    assert pipe.expand(torch.zeros(RATE), RATE).audios.isfinite().all()


def test_parts_of_different_contracts_are_refused():
    parts = tiny_parts()
    other = MelConfig.from_dict({**MEL, "hop_length": 128}).to_dict()
    parts["vocoder"] = HifiVocoderModel(
        HifiVocoderConfig(mel=other, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    )
    with pytest.raises(ValueError) as error:
        MelReformerPipeline(**parts)
    assert_error(error, "hop_length: expansion has 256, vocoder has 128")


@pytest.mark.skipif(not (BUNDLED / "piano-tiny").is_dir(), reason="no checkpoint is bundled in this tree")
def test_docstring_example():
    results = doctest.testmod(pipeline_mel_reformer)
    assert results.attempted and not results.failed


@pytest.mark.skipif(not (BUNDLED / "piano-tiny").is_dir(), reason="no checkpoint is bundled in this tree")
def test_bundled_checkpoint_makes_music_that_changes():
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=8, audio_length_in_s=8.0, generator=seeded(3))
    audio = output.audios[0, 0]
    seconds = audio[: 7 * RATE].reshape(7, RATE)
    loudness = seconds.square().mean(-1).sqrt()
    assert (loudness > 1e-3).all()  # no silence
    spectrum = torch.fft.rfft(seconds * torch.hann_window(RATE)).abs()
    flatness = (spectrum + 1e-9).log().mean(-1).exp() / spectrum.mean(-1)
    assert (flatness < 0.3).all()  # no noise
    shape = torch.nn.functional.normalize(spectrum, dim=-1)
    assert (shape @ shape.T - 2 * torch.eye(7)).max() < 0.98  # no window repeats
    total = sum(file.stat().st_size for file in (BUNDLED / "piano-tiny").rglob("*") if file.is_file())
    assert total <= 38e6


@pytest.mark.skipif(not (BUNDLED / "piano-tiny").is_dir(), reason="no checkpoint is bundled in this tree")
@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0, 3.0])
def test_bundled_checkpoint_keeps_its_range_at_short_lengths(seconds):
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=4, audio_length_in_s=seconds, generator=seeded(3))
    assert output.mels[0].min() > -16 and output.mels[0].max() < 4
    assert output.audios[0].isfinite().all() and output.audios[0].abs().max() <= 1.5
