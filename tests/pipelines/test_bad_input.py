"""What users get wrong: recordings, numbers, callbacks and tensors of every wrong kind; each a clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pipeline_utils_for_tests import seeded, tiny_pipeline
from testing_utils import assert_error

from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

RATE = 22050
BINS, COLUMNS = 16, 32


@pytest.fixture(scope="module")
def pipe() -> MelReformerPipeline:
    return tiny_pipeline()


def generate(pipe: MelReformerPipeline, **arguments):
    return pipe(**{"num_inference_steps": 2, "audio_length_in_s": 0.3, "generator": seeded(), **arguments})


@pytest.mark.parametrize(
    ("waveform", "fragments"),
    [
        ("song.wav", ["array", "str", "read_audio"]),
        (["a", "b"], ["array", "list", "read_audio"]),
        (None, ["array", "NoneType"]),
        ({"waveform": 1}, ["array", "dict"]),
        ([[0.1], [0.1, 0.2]], ["array", "list"]),
        (np.array([None] * 9), ["array", "object"]),
        ([], ["empty"]),
        (np.float32(1.0), ["shape ()"]),
        ([0.5], ["at least 385", "got 1"]),
        (np.ones(RATE, dtype=bool), ["floating point", "bool"]),
        (np.zeros(RATE, dtype=np.int16), ["int16", "Divide it by 32768"]),
        (np.zeros(RATE, dtype=np.int32), ["int32", "Divide it by 2147483648"]),
        (np.zeros(RATE, dtype=complex), ["floating point", "complex"]),
        (np.zeros((2, RATE), dtype=np.float32), ["mono", "waveform.mean(0)"]),
        (np.zeros((RATE, 2), dtype=np.float32), ["mono", "waveform.mean(1)"]),
        (torch.zeros(8, RATE), ["mono", "(8, 22050)", "waveform.mean(0)"]),
        (torch.zeros(1, 1, RATE), ["mono", "(1, 1, 22050)"]),
        (np.full(RATE, np.inf), ["finite"]),
        (np.full(RATE, -np.nan), ["NaN"]),
        (np.full(RATE, 1e300), ["full scale", "larger"]),
        (np.full(RATE, 1e30), ["finite"]),
    ],
    ids=lambda value: str(value)[:16] if isinstance(value, (str, list)) else type(value).__name__,
)
def test_recordings_of_the_wrong_kind(pipe, waveform, fragments):
    for ask in (lambda: pipe.expand(waveform, RATE), lambda: next(pipe.expand_stream(waveform, RATE))):
        with pytest.raises(ValueError) as error:
            ask()
        assert_error(error, *fragments)


@pytest.mark.parametrize("rate", [None, "22050", 44100, 0, -22050, True])
def test_sampling_rates_of_the_wrong_kind(pipe, rate):
    with pytest.raises(ValueError) as error:
        pipe.expand(torch.zeros(RATE), rate)
    assert_error(error, "sampling_rate must be 22050", f"got {rate}", "read_audio")


def test_recordings_of_every_floating_kind_are_accepted(pipe):
    tone = np.sin(np.arange(4000) * 0.1) * 0.3
    whole = pipe.expand(tone, RATE).audios
    for same in (tone.astype(np.float32), torch.from_numpy(tone), tone.tolist(), tone[::-1].copy()[::-1]):
        torch.testing.assert_close(pipe.expand(same, RATE).audios, whole, rtol=0, atol=1e-4)
    assert pipe.expand(tone.astype(np.float16), RATE).audios.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"num_inference_steps": 1001}, ["num_inference_steps", "at most 1000", "1001"]),
        ({"num_inference_steps": 2.0}, ["num_inference_steps", "whole number", "2.0"]),
        ({"num_inference_steps": True}, ["num_inference_steps", "True"]),
        ({"num_waveforms_per_prompt": "2"}, ["num_waveforms_per_prompt", "'2'"]),
        ({"audio_length_in_s": [1.0, 2.0]}, ["audio_length_in_s", "[1.0, 2.0]"]),
        ({"audio_length_in_s": -0.5}, ["audio_length_in_s", "-0.5"]),
        ({"output_type": None}, ["output_type", "None"]),
        ({"callback_on_step_end": 3}, ["callback_on_step_end", "function", "3"]),
        ({"callback_on_step_end": lambda *_: None}, ["callback_on_step_end", "return the dictionary", "None"]),
        ({"callback_on_step_end": lambda p, i, t, x: {"latents": x["latents"][:, :, 1:]}}, ["keep the shape"]),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ["tensor_inputs", "latents", "noise"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_of_the_wrong_kind(pipe, arguments, fragments):
    with pytest.raises(ValueError) as error:
        generate(pipe, **arguments)
    assert_error(error, *fragments)
    streamed = {key: value for key, value in arguments.items() if key != "output_type"}
    if streamed:
        with pytest.raises(ValueError) as error:
            next(pipe.stream(**{"num_inference_steps": 2, "audio_length_in_s": 0.3, **streamed}))
        assert_error(error, *fragments)


def test_numbers_of_numpy_are_numbers(pipe):
    plain = generate(pipe, audio_length_in_s=0.5).audios
    numpy = generate(pipe, audio_length_in_s=np.float32(0.5), num_inference_steps=np.int64(2)).audios
    assert torch.equal(plain, numpy)
    assert generate(pipe, audio_length_in_s=1e-9).num_frames.tolist() == [1]


def test_callbacks_change_the_tensors_that_they_ask_for(pipe):
    told = []

    def half_as_long(pipe, step, timestep, tensors):
        told.append({name: tuple(value.shape) for name, value in tensors.items()})
        return {"num_frames": tensors["num_frames"] // (2 if step == 0 else 1)}

    names = ["latents", "num_frames"]
    asked = {"callback_on_step_end": half_as_long, "callback_on_step_end_tensor_inputs": names}
    frames = generate(pipe).num_frames
    assert generate(pipe, **asked).num_frames.tolist() == (frames // 2).tolist()
    assert told == [{"latents": (1, 1, BINS, COLUMNS), "num_frames": (1,)}] * 2
    silent = generate(pipe, output_type="idea", callback_on_step_end=lambda p, i, t, x: {"latents": x["latents"] - 99})
    assert torch.equal(silent.ideas, torch.full_like(silent.ideas, pipe.mel_config.floor_value))


@pytest.mark.parametrize(
    ("ideas", "frames", "fragment"),
    [
        (np.zeros((1, BINS, COLUMNS), np.float32), [64], "floating point tensor"),
        (torch.zeros(1, BINS, COLUMNS).long(), [64], "int64"),
        (torch.zeros(BINS, COLUMNS), [64], "shape"),
        (torch.zeros(0, BINS, COLUMNS), [], "shape"),
        (torch.zeros(2, BINS, COLUMNS), [64], "one integer per idea"),
        (torch.zeros(1, BINS, COLUMNS), [64.0], "one integer per idea"),
        (torch.zeros(1, BINS, COLUMNS), [True], "one integer per idea"),
        (torch.zeros(1, BINS, COLUMNS), [-64], "at least 1"),
        (torch.full((1, BINS, COLUMNS), 1e38), [64], "finite"),
    ],
)
def test_ideas_of_the_wrong_kind(pipe, ideas, frames, fragment):
    with pytest.raises(ValueError, match=fragment):
        list(pipe.stream_idea(ideas, torch.tensor(frames)))


def test_lengths_in_a_list_are_lengths(pipe):
    idea = torch.zeros(1, BINS, COLUMNS)
    chunks = [torch.cat(list(pipe.stream_idea(idea, frames)), dim=-1) for frames in ([40], torch.tensor([40]))]
    assert chunks[0].shape == (1, 1, 40 * 256) and torch.equal(*chunks)


def test_models_refuse_tensors_of_the_wrong_kind(pipe):
    idea, frames, mel = torch.zeros(2, BINS, COLUMNS), torch.tensor([8, 6]), torch.zeros(2, BINS, 8)
    expansion, vocoder, unet = pipe.expansion, pipe.vocoder, pipe.idea
    noisy, infinite = torch.zeros(2, 1, BINS, COLUMNS), torch.full((2, BINS, COLUMNS), float("inf"))
    cases = {
        "labels must have shape": lambda: expansion(idea, frames, mel[..., :4], mel),
        "decoder_input_features must have": lambda: expansion(idea, frames, torch.zeros(2, BINS + 1, 8)),
        "start_frames must have": lambda: expansion(idea, frames, mel, start_frames=torch.tensor([1])),
        "previous_features must have": lambda: expansion(idea, frames, mel, previous_features=mel[..., :3]),
        "needs labels or decoder": lambda: expansion(idea, frames),
        "chunk_frames must be": lambda: expansion.generate(idea, frames, chunk_frames=0),
        "must be finite ideas": lambda: expansion.generate(infinite, frames),
        "input_features must be floating": lambda: expansion.generate(idea.long(), frames),
        "floating point log-mels": lambda: vocoder(mel.long()),
        "with at least one frame": lambda: vocoder(mel[..., :0]),
        "mel chunk must be floating": lambda: next(vocoder.stream([mel.long()])),
        "needs a batch axis": lambda: vocoder(mel[0]),
        "sample must have shape": lambda: unet(noisy[0], 1),
        "log2_num_frames must have": lambda: unet(noisy, 1, torch.zeros(3)),
    }
    for fragment, call in cases.items():
        with pytest.raises(ValueError, match=fragment):
            call()
