"""The ear's contract; that it hears a stream as it hears the whole; what it may see of the future; its losses."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassError
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.audio.io import resample
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.decoding_note_ear import NoteDecoder
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel

MEL = MelConfig(sampling_rate=8000, n_fft=128, win_length=128, hop_length=32, num_mel_bins=12).to_dict()


def build(**overrides) -> NoteEarModel:
    torch.manual_seed(0)
    return NoteEarModel(NoteEarConfig.preset("test", **{"mel": MEL, "num_keys": 10, **overrides})).eval()


def excitable(**overrides) -> NoteEarModel:
    """An ear that hears notes in noise."""
    ear = build(**overrides)
    with torch.no_grad():
        ear.head.weight.copy_(torch.randn(ear.head.weight.shape, generator=torch.Generator().manual_seed(3)))
        ear.head.bias.zero_()
    return ear


def some_mel(batch: int, frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 12, frames, generator=torch.Generator().manual_seed(seed))[:batch] * 3 - 6


def some_sound(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(2)) * 0.1


class TestNoteEarContract(ModelContractMixin):
    model_class = NoteEarModel
    main_output = "onset_logits"
    takes_other_types = True

    def config(self):
        return build().config

    def inputs(self, batch):
        labels = torch.rand(4, 7, 10, 4, generator=torch.Generator().manual_seed(5))
        return {"input_features": some_mel(batch, 13), "labels": labels[:batch]}


def test_sizes():
    with torch.device("meta"):
        counts = {name: NoteEarModel(NoteEarConfig.preset(name)).num_parameters() for name in ("tiny", "small")}
    assert 1.0e6 < counts["tiny"] < 2.0e6 and 15e6 < counts["small"] < 25e6


@pytest.mark.parametrize("overrides", ({}, {"fold_size": 1}, {"fold_size": 3, "look_ahead": (0, 3)}))
def test_a_step_sees_exactly_its_receptive_field(overrides):
    ear, fold = build(**overrides), overrides.get("fold_size", 2)
    before, after = ear.receptive_field_steps
    steps = before + after + 9
    mel = some_mel(1, steps * fold).requires_grad_()
    middle = before + 4
    ear(mel).onset_logits[0, middle].square().sum().backward()
    seen = mel.grad[0].abs().sum(0).reshape(steps, fold).sum(1).nonzero().flatten()
    assert (int(seen[0]), int(seen[-1])) == (middle - before, middle + after)


def test_the_reach_is_what_the_layers_say():
    # Layers: taps 4, dilations 1 and 2, one tap ahead in the first: (2, 1) and (6, 0); the stem's 3 frames are two steps.
    assert build().receptive_field_steps == (2 + 2 + 6, 2 + 1 + 0)
    # Windows of 128 begin 48 samples before a frame of 32: one step of 64.
    assert build().waveform_reach_steps == (11, 4)
    assert build(fold_size=1).waveform_reach_steps == (2 + 8 + 2, 2 + 1 + 2)


def test_silence_is_added_up_to_a_whole_step():
    ear, mel = build(), some_mel(1, 11)
    filled = torch.nn.functional.pad(mel, (0, 1), value=ear.config.mel_config.floor_value)
    assert torch.equal(ear(mel).onset_logits, ear(filled).onset_logits)


@pytest.mark.parametrize("sizes", ([700] * 6, [1, 5, 4000, 3, 191], [4200]))
@pytest.mark.parametrize("block", (0.008, 0.1, 100.0))
def test_streams_of_sound_equal_the_whole(sizes, block):
    ear, sound = excitable(), some_sound(sum(sizes))
    filled = torch.nn.functional.pad(sound, (0, -len(sound) % 64))
    expected = ear(log_mel_spectrogram(filled[None], ear.config.mel_config))
    heard = torch.stack([getattr(expected, f"{name}_logits").sigmoid() for name in ("onset", "frame", "offset")])
    heard = torch.cat([heard, expected.velocities[None]]).squeeze(1).permute(1, 0, 2).detach().numpy()
    whole = sorted(NoteDecoder(ear.config).feed(heard, last=True))
    assert len(whole) > 20
    streamed = list(ear.transcribe_stream(sound.split(sizes), 8000, block_length_in_s=block))
    assert sorted(streamed) == whole
    assert sorted(ear.transcribe(sound, 8000)) == whole
    mels = log_mel_spectrogram(filled[None], ear.config.mel_config)
    assert sorted(ear.transcribe_mel(mels)) == whole == sorted(ear.transcribe_mel(mels.split(5, dim=-1)))


def test_notes_come_in_order_and_as_soon_as_they_end():
    ear, sound = excitable(), some_sound(8000)
    notes = ear.transcribe(sound, 8000)
    assert notes == sorted(notes, key=lambda note: (note.onset, note.pitch))
    given, told = [], []
    for note in ear.transcribe_stream((given.append(1) or piece for piece in sound.split(80)), 8000, None, 0.02):
        told.append((len(given) * 80, note))
    ends = [(note.onset + note.duration) * 80 for _, note in told]
    # The reach is 4 steps of 64 samples, a peak is known 2 steps later, a block has 3 steps; a tick has 80 samples.
    late = [heard - end for (heard, _), end in zip(told, ends, strict=True) if heard < 8000]
    assert max(late) <= (4 + 2 + 3 + 1) * 64 + 160


def test_what_is_held_does_not_grow_with_the_length():
    ear, held = excitable(), []

    def listening(mel, **kwargs):
        held.append(mel.shape[-1])
        return ear(mel, **kwargs)

    for count in (50, 500):
        held.clear()
        list(ear.transcribe_stream((some_sound(640) for _ in range(count)), 8000, listening, 0.05))
        assert max(held) == 2 * (7 + 3 + 10 + 9) or max(held) <= 64


def test_long_recordings_are_heard_piece_by_piece():
    ear, held = build(), []

    def listening(mel, **kwargs):
        held.append(mel.shape[-1])
        return ear(mel, **kwargs)

    ear.transcribe(some_sound(8000 * 90), 8000, listening)
    # Pieces of 20 s have 5000 frames; one is waited for beside the one at hand, with their context.
    assert len(held) > 2 and max(held) <= 2 * 5000 + 2 * (11 + 4 + 1)


def test_an_untrained_ear_expects_silence():
    assert (build().head.bias == -4).all() and build()(some_mel(1, 40)).onset_logits.sigmoid().mean() < 0.03


def test_other_sampling_rates_are_resampled():
    ear, sound = excitable(), some_sound(16000)
    notes = ear.transcribe(sound, 16000)
    there = ear.transcribe(torch.from_numpy(resample(sound.numpy(), 16000, 8000)), 8000)
    # Streamed resampling equals the whole up to rounding, which can move a value over a threshold.
    assert len(set(notes) & set(there)) > 0.95 * max(len(notes), len(there)) > 50


@pytest.mark.parametrize("samples", (1, 40, 64, 65, 130))
def test_short_recordings_are_heard(samples):
    assert isinstance(excitable().transcribe(some_sound(samples), 8000), list)


def test_nothing_to_hear():
    assert list(excitable().transcribe_stream([], 8000)) == []
    for bad, words in ((torch.zeros(2, 9), "mono"), (torch.zeros(0), "empty"), (np.zeros(9, dtype=int), "floating")):
        with pytest.raises(ValueError, match=words):
            build().transcribe(bad, 8000)
    with pytest.raises(ValueError, match="block_length_in_s must be positive, got 0"):
        list(build().transcribe_stream([torch.zeros(9)], 8000, block_length_in_s=0))
    with pytest.raises(ValueError, match="original must be a positive"):
        build().transcribe(torch.zeros(9), 0)
    with pytest.raises(ValueError, match=r"mel_chunks must be \(1, 12, frames\), got \(2, 12, 9\)"):
        build().transcribe_mel(torch.zeros(2, 12, 9))


def test_losses_are_what_their_formulas_say():
    ear, mel = build(num_keys=1, onset_weight=3.0, velocity_weight=5.0), some_mel(1, 4)
    labels = torch.tensor([[[[0.5, 1.0, 0.0, 0.75]], [[0.0, 1.0, 1.0, 0.25]]]])  # (1, 2, 1, 4)
    output = ear(mel, labels=labels)

    def entropy(logit: torch.Tensor, wanted: float) -> float:
        chance = 1 / (1 + math.exp(-logit.item()))
        return -(wanted * math.log(chance) + (1 - wanted) * math.log(1 - chance))

    onsets, frames, offsets = (getattr(output, f"{name}_logits")[0, :, 0] for name in ("onset", "frame", "offset"))
    expected = {
        "onset_loss": (2 * entropy(onsets[0], 0.5) + entropy(onsets[1], 0)) / 2,
        "frame_loss": (entropy(frames[0], 1) + entropy(frames[1], 1)) / 2,
        "offset_loss": (entropy(offsets[0], 0) + 3 * entropy(offsets[1], 1)) / 2,
        "velocity_loss": 5 * 0.5 * (output.velocities[0, 0, 0].item() - 0.75) ** 2 / 2,
    }
    for name, value in expected.items():
        assert getattr(output, name).item() == pytest.approx(value, rel=1e-5), name
    assert output.loss.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError) as error:
        build()(torch.zeros(12, 9))
    assert_error(error, "input_features", "(batch, 12, frames)", "(12, 9)")
    with pytest.raises(ValueError) as error:
        build()(torch.zeros(1, 12, 9), labels=torch.zeros(1, 4, 10, 4))
    assert_error(error, "labels", "(1, 5, 10, 4)", "(1, 4, 10, 4)")


@pytest.mark.parametrize(
    "field, value",
    (
        ("fold_size", 0),
        ("num_keys", 108),
        ("lowest_pitch", -1),
        ("stem_channels", (4,)),
        ("dilations", ()),
        ("look_ahead", (1, 4)),
        ("look_ahead", (1,)),
        ("onset_threshold", 1.0),
        ("frame_threshold", 0.0),
        ("onset_weight", 0.0),
        ("input_std", 0.0),
        ("velocity_weight", -1.0),
        ("label_reach", 0.5),
        ("mel", {**MEL, "center": True}),
    ),
)
def test_configurations_that_cannot_be_are_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        NoteEarConfig.preset("test", **{field: value})


def test_borders_of_the_configuration():
    inside, outside = from_one("fold_size", "num_keys", "hidden_size", "intermediate_size")
    thresholds = ("onset_threshold", "frame_threshold", "offset_threshold")
    inside |= dict.fromkeys(thresholds, (0.01, 0.99)) | {
        "lowest_pitch": (0, {"lowest_pitch": 20, "num_keys": 108}),
        "stem_channels": ((1, 1),),
        "dilations": ((1, 1),),
        "kernel_size": ({"kernel_size": 1, "look_ahead": (0, 0)},),
        "look_ahead": ((3, 0),),
        "onset_weight": (0.01,),
        "input_std": (0.01,),
        "label_reach": (1.0,),
        "velocity_weight": (0.0,),
    }
    outside |= dict.fromkeys(thresholds, (0.0, 1.0)) | {
        "lowest_pitch": (-1, {"lowest_pitch": 20, "num_keys": 109}),
        "stem_channels": ((1,), (1, 0), (1, 1, 1)),
        "dilations": ((1, 0), ()),
        "kernel_size": (0,),
        "look_ahead": ((4, 0), (-1, 0), (0,)),
        "onset_weight": (0.0,),
        "input_std": (0.0,),
        "label_reach": (0.99,),
        "velocity_weight": (-0.01,),
    }
    check_borders(partial(NoteEarConfig.preset, "test"), inside, outside)
