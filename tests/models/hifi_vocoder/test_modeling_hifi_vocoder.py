"""The vocoder family: contract of the three architectures, exact streaming, published sizes, errors."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.audio import griffin_lim as griffin_lim_module
from melreformer_hf.audio import stft as stft_module
from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.metrics import log_mel_l1
from melreformer_hf.models.hifi_vocoder import modeling_hifi_vocoder
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel

MEL = MelConfig(sampling_rate=8000, n_fft=64, win_length=64, hop_length=16, num_mel_bins=10).to_dict()
ISTFT = {"mel": MEL, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
GAN = {"mel": MEL, "upsample_initial_channels": 16, "upsample_rates": (4, 4), "upsample_kernel_sizes": (8, 8)}
ODD_MEL = {**MEL, "hop_length": 15}
TINY = {
    "istft": {**ISTFT, "refine_steps": 2},
    "istft_unaligned_hop": {**ISTFT, "mel": ODD_MEL, "num_oscillators": 4},
    "istft_oscillators": {**ISTFT, "num_oscillators": 3},
    "istft_corrected": {
        **ISTFT,
        "refine_steps": 3,
        "mel_corrections": 2,
        "refine_momentum": 0.6,
        "refine_feedback": 0.5,
    },
    "istft_corrected_power": {
        **ISTFT,
        "mel": {**MEL, "power": 2.0, "log_base": "10"},
        "mel_corrections": 1,
        "refine_feedback": 1.0,
    },
    "istft_narrow_window": {**ISTFT, "mel": {**MEL, "win_length": 48}, "kernel_size": 3},
    "istft_power": {**ISTFT, "mel": {**MEL, "power": 2.0, "log_base": "10"}, "refine_steps": 0, "num_oscillators": 0},
    "hifigan": {**GAN, "architecture": "hifigan", "initializer_range": 0.1},
    "hifigan_2": {
        **GAN,
        "architecture": "hifigan",
        "resblock_type": "2",
        "resblock_dilations": ((1, 2), (2, 6), (3, 12)),
        "initializer_range": 0.1,
    },
    "hifigan_odd": {
        **GAN,
        "mel": ODD_MEL,
        "architecture": "hifigan",
        "upsample_rates": (5, 3),
        "upsample_kernel_sizes": (11, 8),
        "initializer_range": 0.1,
    },
    "hifihybrid": {**GAN, "architecture": "hifihybrid", "resblock_dilations": ((1, 1), (3, 1), (5, 1))},
    "hifihybrid_odd": {
        **GAN,
        "mel": ODD_MEL,
        "architecture": "hifihybrid",
        "upsample_rates": (3, 5),
        "upsample_kernel_sizes": (6, 10),
    },
}


def tiny_model(name: str) -> HifiVocoderModel:
    torch.manual_seed(0)
    model = HifiVocoderModel(HifiVocoderConfig(**TINY[name])).eval()
    if name.startswith("hifihybrid"):  # tame a snake whose alpha is near zero
        for key, value in model.named_parameters():
            if key.endswith("alpha"):
                value.data = value.data.abs() + 0.5
    return model


def some_mel(batch: int, frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(64, 10, frames, generator=torch.Generator().manual_seed(seed))[:batch] * 2 - 4


class VocoderContract(ModelContractMixin):
    model_class = HifiVocoderModel
    main_output = "waveform"
    takes_other_types = True
    variant: str

    def config(self):
        return HifiVocoderConfig(**TINY[self.variant])

    def model(self):
        return tiny_model(self.variant)

    def inputs(self, batch):
        return {"input_features": some_mel(batch, 12)}

    def steps(self, model):
        return {"first": (model.generator, (some_mel(2, 9), 0)), "later": (model.generator, (some_mel(2, 9), 37))}


class TestIstft(VocoderContract):
    variant = "istft"


class TestHifigan(VocoderContract):
    variant = "hifigan"


class TestHifihybrid(VocoderContract):
    variant = "hifihybrid"


@pytest.mark.parametrize("name", TINY)
def test_frames_times_hop_samples(name):
    model = tiny_model(name)
    for frames in (1, 2, 7):
        samples = model(some_mel(2, frames)).waveform.shape[-1]
        expected = frames * model.config.hop_length
        if name.endswith("_odd"):
            assert expected <= samples < expected + model.config.hop_length
        else:
            assert samples == expected


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("sizes", [[1] * 90, [7, 40, 1, 0, 42], [3], [90]], ids=["ones", "mixed", "short", "whole"])
def test_stream_equals_offline(name, sizes):
    model = tiny_model(name)
    mel = some_mel(2, sum(sizes))
    with torch.no_grad():
        whole = model(mel).waveform
    pieces = list(model.stream(mel.split(sizes, dim=-1)))
    assert len(pieces) > 1 or len(sizes) == 1
    tolerance = 2e-5 * max(1.0, whole.abs().max().item())
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", TINY)
def test_receptive_field_is_exact(name):
    model = tiny_model(name).double()
    before, after = model.receptive_field_frames
    hop, middle = model.config.hop_length, before
    mel = some_mel(1, before + after + 1).double().requires_grad_()
    waveform = model.generator(mel, 5)[0, middle * hop : (middle + 1) * hop]
    weights = torch.randn(hop, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((waveform * weights).sum(), mel)
    assert gradient[0, :, 0].abs().max() > 0, "the first frame of the field has no influence"
    assert gradient[0, :, -1].abs().max() > 0, "the last frame of the field has no influence"
    wider = torch.cat([some_mel(1, 5, seed=3), mel.detach(), some_mel(1, 5, seed=4)], dim=-1).double()
    again = model(wider).waveform[0, (middle + 5) * hop : (middle + 6) * hop]
    torch.testing.assert_close(again, waveform, rtol=0, atol=1e-5)


def test_stream_of_nothing_and_of_wrong_shapes():
    model = tiny_model("istft")
    assert list(model.stream([])) == []
    with pytest.raises(ValueError) as error:
        list(model.stream([torch.zeros(10, 5)]))
    assert_error(error, "mel chunk", "(batch, 10, frames)", "(10, 5)")
    for wrong in (torch.zeros(10, 5), torch.zeros(1, 9, 5), torch.zeros(1, 10, 0)):
        with pytest.raises(ValueError) as error:
            model(wrong)
        assert_error(error, "input_features", "(batch, 10, frames)", str(tuple(wrong.shape)))


def test_magnitudes_that_were_asked_for_come_out_on_request():
    model, mel = tiny_model("istft_corrected"), some_mel(2, 9)
    model.generator.mel_corrections = 30
    with torch.no_grad():
        plain, both = model(mel), model(mel, output_magnitude=True)
        waveform, magnitude = model(mel, return_dict=False, output_magnitude=True)
    assert (
        plain.magnitude is None and torch.equal(plain.waveform, both.waveform) and torch.equal(waveform, both.waveform)
    )
    assert torch.equal(magnitude, both.magnitude) and magnitude.shape == (2, 9, 33)
    heard = (magnitude @ model.generator.tables.bank).log().transpose(1, 2)
    # Where no window has to agree with another, the magnitudes have the mel that was given.
    assert (heard - mel).abs().median() < 0.1
    with pytest.raises(ValueError) as error:
        tiny_model("hifigan")(mel, output_magnitude=True)
    assert_error(error, "output_magnitude", "istft", "hifigan")


def test_a_stream_goes_on_from_its_state_and_other_architectures_have_none():
    model, mel = tiny_model("istft"), some_mel(2, 60)
    with torch.no_grad():
        first = model(mel[..., :40], last=False)
        rest = model(mel[..., 40:], stream_state=first.stream_state, last=False)
        end = model(mel[..., :0], stream_state=rest.stream_state, last=True)
        whole = model(mel)
    after = model.receptive_field_frames[1]
    assert first.waveform.shape[-1] == (40 - after) * model.hop_length and whole.stream_state is None
    made = torch.cat([output.waveform for output in (first, rest, end)], dim=-1)
    torch.testing.assert_close(made, whole.waveform, rtol=0, atol=2e-5 * max(1.0, whole.waveform.abs().max().item()))
    with pytest.raises(ValueError) as error:
        tiny_model("hifigan")(mel, last=False)
    assert_error(error, "last", "istft", "hifigan")
    with pytest.raises(ValueError, match="at least one frame"):
        model(mel[..., :0], last=False)


def test_silence_is_nearly_silent():
    model = HifiVocoderModel(HifiVocoderConfig.preset("istft_tiny", num_hidden_layers=1)).eval()
    mel = torch.full((1, model.config.num_mel_bins, 20), model.config.mel_config.floor_value)
    with torch.no_grad():
        assert model(mel).waveform.abs().max() < 1e-3


def test_istft_learns_a_chord():
    """A few steps of spectral training cut the mel error; the untrained phase alone does not."""
    torch.manual_seed(0)
    config = HifiVocoderConfig(**{**TINY["istft"], "hidden_size": 32, "intermediate_size": 64})
    model, mel_config = HifiVocoderModel(config), config.mel_config
    time = torch.arange(16 * 40) / 8000
    target = sum(torch.sin(6.2832 * pitch * time) for pitch in (440.0, 554.4, 659.3)).unsqueeze(0) * 0.2
    mel = log_mel_spectrogram(target, mel_config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = log_mel_l1(model(mel).waveform, mel, mel_config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], (losses[0], losses[-1])


@pytest.mark.parametrize(
    ("preset", "count"),
    [("hifigan_v1", 13926017), ("hifigan_v2", 925985), ("hifigan_v3", 1462273), ("hifihybrid", 6814337)],
)
def test_published_parameter_counts(preset, count):
    with torch.device("meta"):
        model = HifiVocoderModel(HifiVocoderConfig.preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", ["hifigan", "hifihybrid"])
def test_weight_norm_changes_nothing_and_saves_plain_weights(name, tmp_path):
    model, mel = tiny_model(name), some_mel(1, 6)
    names = set(model.state_dict())
    with torch.no_grad():
        expected = model(mel).waveform
        model.apply_weight_norm()
        model.apply_weight_norm()
        assert any("parametrizations" in key for key in model.state_dict())
        torch.testing.assert_close(model(mel).waveform, expected, rtol=1e-4, atol=1e-5)
        normed = model.to_original_state_dict()
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(
            HifiVocoderModel.from_pretrained(tmp_path)(mel).waveform, expected, rtol=1e-4, atol=1e-5
        )
        model.remove_weight_norm()
        assert set(model.state_dict()) == names
        torch.testing.assert_close(model(mel).waveform, expected, rtol=1e-4, atol=1e-5)
    plain = model.to_original_state_dict()
    assert plain.keys() == normed.keys()
    with pytest.raises(ValueError, match="istft"):
        tiny_model("istft").apply_weight_norm()


def test_bfloat16_autocast_keeps_transforms_precise():
    model, mel = tiny_model("istft"), some_mel(2, 12)
    with torch.no_grad():
        expected = model(mel).waveform
        with torch.autocast("cpu", torch.bfloat16):
            actual = model(mel).waveform
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().mean() < 0.05 * expected.abs().max()


ODD_ARGUMENTS = {
    "resblock": "1",
    "upsample_rates": [5, 3],
    "upsample_kernel_sizes": [11, 8],
    "upsample_initial_channel": 12,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2, 4], [2, 6, 1]],
    "num_mels": 20,
    "batch_size": 16,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_original_files_of_unusual_sizes(suffix, tmp_path):
    fields = {
        "resblock_kernel_sizes": (3, 5),
        "resblock_dilations": ((1, 2, 4), (2, 6, 1)),
        "upsample_initial_channels": 12,
    }
    model = HifiVocoderModel(
        HifiVocoderConfig(
            architecture="hifigan",
            mel=MelConfig.preset("hifigan", num_mel_bins=20, hop_length=15).to_dict(),
            upsample_rates=(5, 3),
            upsample_kernel_sizes=(11, 8),
            **fields,
        )
    ).eval()
    state_dict = model.to_original_state_dict(weight_norm=True)
    path = tmp_path / f"generator{suffix}"
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save({"generator": state_dict}, path)
    loaded = HifiVocoderModel.from_original(path, ODD_ARGUMENTS)
    assert loaded.config.mel_config == model.config.mel_config
    assert loaded.config.resblock_dilations == model.config.resblock_dilations
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, msg=key)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"upsample_rate": [2]}, ("no argument 'upsample_rate'",)),
        ({"hop_size": 256}, ("hop_size", "15", "256")),
        ({"num_mels": 21}, ("conv_pre.weight", "shape")),
    ],
)
def test_original_arguments_that_do_not_fit(change, fragments):
    config = HifiVocoderConfig(**{**TINY["hifigan_odd"], "mel": {**ODD_MEL, "num_mel_bins": 20}})
    weights = HifiVocoderModel(config).to_original_state_dict()
    arguments = {"upsample_rates": [5, 3], "upsample_kernel_sizes": [11, 8], "upsample_initial_channel": 16}
    with pytest.raises(ValueError) as error:
        HifiVocoderModel.from_original(weights, {**arguments, "num_mels": 20, **change})
    assert_error(error, *fragments)


def test_original_checkpoints_that_are_damaged():
    model = tiny_model("hifihybrid")
    arguments = {"n_mels": 10, "initial_channels": 16, "stride_sizes": [4, 4]}
    weights = model.to_original_state_dict()
    assert HifiVocoderModel.from_original(weights, arguments).config.hop_length == 16
    for damage, fragments in [
        ({"blocks.9.tconv.bias": torch.zeros(1)}, ("unexpected key", "blocks.9.tconv.bias")),
        (
            {"initial_block.weight_g": torch.zeros(1)},
            ("initial_block.weight_g", "missing key", "initial_block.weight_v"),
        ),
    ]:
        with pytest.raises(ValueError) as error:
            HifiVocoderModel.from_original({**weights, **damage}, arguments)
        assert_error(error, *fragments)
    del weights["final_block.conv.bias"]
    with pytest.raises(ValueError, match="missing key 'final_block.conv.bias'"):
        HifiVocoderModel.from_original(weights, arguments)
    with pytest.raises(ValueError, match="neither"):
        HifiVocoderModel.from_original({"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="no original"):
        tiny_model("istft").to_original_state_dict()


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"architecture": "wavenet"}, ("architecture", "wavenet")),
        ({"kernel_size": 4}, ("kernel_size", "odd", "4")),
        ({"refine_steps": -1}, ("refine_steps", "-1")),
        ({"mel_corrections": -1}, ("mel_corrections", "-1")),
        ({"refine_momentum": 1.0}, ("refine_momentum", "[0, 1)", "1.0")),
        ({"refine_feedback": 1.5}, ("refine_feedback", "[0, 1]", "1.5")),
        ({"hidden_size": 0}, ("hidden_size", "0")),
        ({"mel": {**MEL, "center": True}}, ("center",)),
        ({"architecture": "hifigan", "upsample_rates": (8, 8)}, ("upsample_kernel_sizes", "(8, 8)")),
        ({"architecture": "hifigan", "upsample_rates": (8, 8, 2, 3)}, ("hop_length", "256", "384")),
        ({"architecture": "hifigan", "upsample_kernel_sizes": (4, 16, 4, 4)}, ("at least its rate", "4")),
        ({"architecture": "hifigan", "resblock_type": "3"}, ("resblock_type", "3")),
        ({"architecture": "hifigan", "resblock_dilations": ((1,),)}, ("resblock_dilations", "one list per kernel")),
        ({"architecture": "hifigan", "upsample_initial_channels": 8}, ("upsample_initial_channels", "8")),
    ],
)
def test_configurations_that_break_a_rule(fields, fragments):
    with pytest.raises(StrictDataclassError) as error:
        HifiVocoderConfig(**fields)
    assert_error(error, *fragments)


def test_cached_tables_survive_meta_loading_and_inference_mode(tmp_path):
    """Loading builds the model on the meta device, and inference may come first: neither may spoil the caches."""
    tiny_model("istft").save_pretrained(tmp_path)
    stft_module._window.cache_clear()
    griffin_lim_module._pseudo_inverse.cache_clear()
    model = HifiVocoderModel.from_pretrained(tmp_path)
    stft_module._window.cache_clear()
    with torch.inference_mode():
        model(some_mel(1, 4))
    model(some_mel(1, 4)).waveform.square().mean().backward()
    assert model.generator.head.weight.grad.abs().sum() > 0


def test_refinement_is_chosen_when_loading(tmp_path):
    """The projections have no weights: a saved model may be loaded with more of them."""
    model, mel = tiny_model("istft"), some_mel(1, 9)
    model.save_pretrained(tmp_path)
    more = HifiVocoderModel.from_pretrained(tmp_path, refine_steps=4).eval()
    assert more.receptive_field_frames[0] == model.receptive_field_frames[0] + 2 * 3
    with torch.no_grad():
        assert (more(mel).waveform - model(mel).waveform).abs().max() > 1e-4
        model.generator.refine_steps = 4
        torch.testing.assert_close(more(mel).waveform, model(mel).waveform, rtol=0, atol=0)


def test_presets_and_their_contracts():
    assert HifiVocoderConfig.preset("hifigan_v1").mel_config == MelConfig.preset("hifigan")
    assert HifiVocoderConfig.preset("hifihybrid").mel_config == MelConfig.preset("melreformer")
    assert HifiVocoderConfig.preset("istft_tiny", refine_steps=3).refine_steps == 3
    assert HifiVocoderConfig().mel_config.num_mel_bins == 128
    with pytest.raises(ValueError, match="hifigan_v1"):
        HifiVocoderConfig.preset("hifigan_v9")


def test_saved_configuration_is_plain_json(tmp_path):
    HifiVocoderConfig.preset("hifigan_v3").save_pretrained(tmp_path)
    values = json.loads((Path(tmp_path) / "config.json").read_text())
    assert values["upsample_rates"] == [8, 8, 4]
    assert HifiVocoderConfig.from_pretrained(tmp_path).resblock_dilations == ((1, 2), (2, 6), (3, 12))


def test_docstring_example():
    results = doctest.testmod(modeling_hifi_vocoder)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("normed", [False, True])
def test_a_given_state_dict_is_what_is_saved(normed, tmp_path):
    """As trainers call it, which gather the weights themselves."""
    model, other = tiny_model("hifigan"), tiny_model("hifigan")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.125)
    given = {name: value.clone() for name, value in other.state_dict().items()}
    if normed:
        model.apply_weight_norm()
    model.save_pretrained(tmp_path, state_dict=dict(given))  # the library empties what it is given
    loaded = HifiVocoderModel.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == given.keys()
    for name, value in given.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0, msg=name)


def test_borders_of_the_configuration():
    inside, outside = from_one("hidden_size", "intermediate_size", "num_hidden_layers", "kernel_size")
    inside |= {"refine_steps": (0,), "num_oscillators": (0,), "win_length": ({"mel": {**MEL, "win_length": 32}},)}
    inside |= {"mel_corrections": (0,), "refine_momentum": (0.0, 0.999), "refine_feedback": (0.0, 1.0)}
    outside |= {
        "kernel_size": (0, 2, -1),
        "refine_steps": (-1,),
        "num_oscillators": (-1,),
        "mel_corrections": (-1,),
        "refine_momentum": (-0.001, 1.0),
        "refine_feedback": (-0.001, 1.001),
        "win_length": ({"mel": {**MEL, "win_length": 31}},),
    }
    check_borders(HifiVocoderConfig, inside, outside)
    rates = {"upsample_rates": (256, 1), "upsample_kernel_sizes": (256, 1), "upsample_initial_channels": 4}
    one_less = {"upsample_initial_channels": 3}
    inside = {"upsample_rates": (rates,), "resblock_type": ("1", "2")}
    outside = {
        "upsample_initial_channels": (rates | one_less,),
        "upsample_kernel_sizes": ({"upsample_rates": ()}, {"upsample_kernel_sizes": ()}),
        "rates positive": ({"upsample_rates": (256, 0), "upsample_kernel_sizes": (256, 1)},),
        "at least its rate": ({"upsample_rates": (256, 1), "upsample_kernel_sizes": (255, 1)},),
        "resblock_dilations": ({"resblock_kernel_sizes": (), "resblock_dilations": ()},),
    }
    check_borders(HifiVocoderConfig, inside, outside, architecture="hifigan")
