"""MelGAN: contract, exact streaming with the derived overlap, published size, original checkpoints, errors."""

from __future__ import annotations

import doctest
import pickle

import pytest
import torch
from borders import check_borders
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.melgan_vocoder import modeling_melgan_vocoder
from melreformer_hf.models.melgan_vocoder.configuration_melgan_vocoder import MelGanVocoderConfig
from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel

MEL = MelConfig(sampling_rate=8000, n_fft=64, win_length=64, hop_length=16, num_mel_bins=10).to_dict()
TINY = {
    "even": {"mel": MEL, "base_channels": 3, "num_residual_layers": 2, "upsample_rates": (4, 4)},
    "odd": {
        "mel": {**MEL, "hop_length": 30},
        "base_channels": 2,
        "num_residual_layers": 3,
        "upsample_rates": (5, 3, 2),
    },
    "no_blocks": {"mel": MEL, "base_channels": 3, "num_residual_layers": 0, "upsample_rates": (16,)},
}


def tiny_model(name: str) -> MelGanVocoderModel:
    torch.manual_seed(0)
    return MelGanVocoderModel(MelGanVocoderConfig(**TINY[name])).eval()


def some_mel(batch: int, frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(8, 10, frames, generator=torch.Generator().manual_seed(seed))[:batch] * 2 - 4


class TestMelGanVocoder(ModelContractMixin):
    model_class = MelGanVocoderModel
    main_output = "waveform"
    takes_other_types = True

    def config(self):
        return MelGanVocoderConfig(**TINY["even"])

    def inputs(self, batch):
        return {"input_features": some_mel(batch, 12)}

    def steps(self, model):
        return {"step": (model._synthesize, (some_mel(2, 9),))}


@pytest.mark.parametrize("name", TINY)
def test_shortest_input_and_lengths(name):
    model = tiny_model(name)
    for frames in (model.min_frames, model.min_frames + 5):
        assert model(some_mel(2, frames)).waveform.shape == (2, frames * model.config.hop_length)
    with pytest.raises(ValueError) as error:
        model(some_mel(1, model.min_frames - 1))
    assert_error(error, f"at least {model.min_frames} frames", f"got {model.min_frames - 1}", "silence")
    with pytest.raises(RuntimeError, match="[Pp]adding size"):
        model._synthesize(some_mel(1, model.min_frames - 1))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("sizes", [[1] * 70, [7, 40, 1, 0, 42], [5], [90]], ids=["ones", "mixed", "short", "whole"])
def test_stream_equals_offline(name, sizes):
    model, mel = tiny_model(name), some_mel(2, sum(sizes))
    with torch.no_grad():
        whole = model(mel).waveform
    pieces = list(model.stream(mel.split(sizes, dim=-1)))
    assert len(pieces) > 1 or len(sizes) == 1
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", TINY)
def test_receptive_field_is_exact(name):
    model = tiny_model(name).double()
    before, after = model.receptive_field_frames
    hop = model.config.hop_length
    mel = some_mel(1, before + after + 7).double().requires_grad_()
    samples = model(mel).waveform[0, (before + 3) * hop : (before + 4) * hop]
    weights = torch.randn(hop, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((samples * weights).sum(), mel)
    reached = gradient[0].abs().amax(0).nonzero().flatten()
    assert (reached[0].item(), reached[-1].item()) == (3, 3 + before + after)


def test_stream_of_nothing_and_of_wrong_shapes():
    model = tiny_model("even")
    assert list(model.stream([])) == []
    with pytest.raises(ValueError) as error:
        list(model.stream([torch.zeros(10, 5)]))
    assert_error(error, "mel chunk", "(batch, 10, frames)", "(10, 5)")
    with pytest.raises(ValueError, match="at least 4 frames"):
        list(model.stream(some_mel(1, 3).split(1, dim=-1)))
    for wrong in (torch.zeros(10, 5), torch.zeros(1, 9, 5)):
        with pytest.raises(ValueError) as error:
            model(wrong)
        assert_error(error, "input_features", "(batch, 10, frames)", str(tuple(wrong.shape)))


def test_published_size():
    with torch.device("meta"):
        model = MelGanVocoderModel(MelGanVocoderConfig.preset("melgan"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_260_257
    assert model.config.mel_config == MelConfig.preset("melgan")
    assert MelGanVocoderConfig().num_mel_bins == 128
    with pytest.raises(ValueError, match="tiny"):
        MelGanVocoderConfig.preset("melgan2")


def test_weight_norm_changes_nothing_and_saves_plain_weights(tmp_path):
    model, mel = tiny_model("odd"), some_mel(1, 12)
    names = set(model.state_dict())
    with torch.no_grad():
        expected = model(mel).waveform
        model.apply_weight_norm()
        assert any("parametrizations" in key for key in model.state_dict())
        torch.testing.assert_close(model(mel).waveform, expected, rtol=1e-4, atol=1e-6)
        normed = model.to_original_state_dict()
        model.save_pretrained(tmp_path)
        loaded = MelGanVocoderModel.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(mel).waveform, expected, rtol=1e-4, atol=1e-6)
        model.remove_weight_norm()
    assert set(model.state_dict()) == names
    assert model.to_original_state_dict().keys() == normed.keys()


ARGUMENTS = {"input_size": 10, "ngf": 1, "n_residual_layers": 1}


def original_model() -> MelGanVocoderModel:
    torch.manual_seed(1)
    config = MelGanVocoderConfig(
        mel=MelConfig.preset("melgan", num_mel_bins=10).to_dict(), base_channels=1, num_residual_layers=1
    )
    return MelGanVocoderModel(config).eval()


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_original_files(suffix, weight_norm, tmp_path):
    model, path = original_model(), tmp_path / f"best_netG{suffix}"
    state_dict = model.to_original_state_dict(weight_norm)
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save(state_dict, path)
    loaded = MelGanVocoderModel.from_original(path, ARGUMENTS)
    assert loaded.config.mel_config == model.config.mel_config
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, msg=key)


def test_original_of_another_mel():
    weights = original_model().to_original_state_dict()
    mel = MelConfig.preset("specvqgan", num_mel_bins=10).to_dict()
    assert MelGanVocoderModel.from_original(weights, ARGUMENTS, mel=mel).config.mel_config == MelConfig.from_dict(mel)
    with pytest.raises(ValueError) as error:
        MelGanVocoderModel.from_original(weights, ARGUMENTS, mel=MelConfig.preset("specvqgan").to_dict())
    assert_error(error, "input_size", "80", "10")


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"model.1.weight_v": None}, ("missing key 'model.1.weight_v'",)),
        ({"model.1.weight_g": None}, ("missing key 'model.1.weight_g'",)),
        ({"model.1.weight_g": torch.ones(16)}, ("model.1.weight_g", "(16,)", "(16, 1, 1)")),
        ({"model.1.bias": None}, ("missing key 'model.1.bias'",)),
        ({"model.1.bias": torch.ones(3)}, ("model.1.bias", "(3,)", "(16,)")),
        ({"model.0.bias": torch.ones(3)}, ("unexpected key 'model.0.bias'",)),
        ({"step": 3}, ("'step'", "int")),
    ],
)
def test_broken_originals(change, fragments):
    weights = {**original_model().to_original_state_dict(), **change}
    with pytest.raises(ValueError) as error:
        MelGanVocoderModel.from_original({k: v for k, v in weights.items() if v is not None}, ARGUMENTS)
    assert_error(error, *fragments)


class Payload:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_hostile_and_unknown_originals(tmp_path, capsys):
    path = tmp_path / "netG.pt"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="refused"):
        MelGanVocoderModel.from_original(path, ARGUMENTS)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no argument 'nfg'"):
        MelGanVocoderModel.from_original({}, {"nfg": 3})


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"base_channels": 0}, ("base_channels", "0")),
        ({"num_residual_layers": -1}, ("num_residual_layers", "-1")),
        ({"upsample_rates": ()}, ("upsample_rates", "()")),
        ({"upsample_rates": (8, 32.0)}, ("upsample_rates", "32.0")),
        ({"upsample_rates": (8, 8)}, ("hop_length", "256", "64")),
    ],
)
def test_configurations_that_break_a_rule(fields, fragments):
    with pytest.raises(StrictDataclassError) as error:
        MelGanVocoderConfig(**fields)
    assert_error(error, *fragments)


def test_docstrings_run():
    results = doctest.testmod(modeling_melgan_vocoder)
    assert results.failed == 0 and results.attempted > 3


@pytest.mark.parametrize("normed", [False, True])
def test_a_given_state_dict_is_what_is_saved(normed, tmp_path):
    """As trainers call it, which gather the weights themselves."""
    model, given = tiny_model("even"), {}
    for name, value in tiny_model("even").state_dict().items():
        given[name] = value + 0.125
    if normed:
        model.apply_weight_norm()
    model.save_pretrained(tmp_path, state_dict=dict(given))  # the library empties what it is given
    loaded = MelGanVocoderModel.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == given.keys()
    for name, value in given.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0, msg=name)


def test_borders_of_the_configuration():
    inside = {"base_channels": (1,), "num_residual_layers": (0,), "upsample_rates": ((256, 1), (256,))}
    outside = {"base_channels": (0,), "num_residual_layers": (-1,), "upsample_rates": ((256, 0), (256, True), (128,))}
    check_borders(MelGanVocoderConfig, inside, outside)
