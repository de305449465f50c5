"""Arguments of the originals' discriminators at other values than the golden fixtures have, against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool1d, conv1d, conv2d, group_norm, leaky_relu

from melreformer_hf.originals.weight_norm import fold_weight_norms
from melreformer_hf.training.discriminators.soundstream import PooledWaveformDiscriminator, TwoSidedStftDiscriminator
from melreformer_hf.training.discriminators.stft import MultiScaleStftDiscriminator
from melreformer_hf.training.discriminators.waveform import MultiPeriodDiscriminator, MultiScaleDiscriminator


def spread(weights: dict[str, torch.Tensor], scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Random values of the same shapes; magnitudes are positive, tables and singular vectors stay."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for key, value in weights.items():
        made[key] = scale * torch.randn(value.shape, generator=generator)
        if key.endswith("weight_g"):
            made[key] = made[key].abs() + 0.1
        elif key.endswith("spec_transform.window") or f"{key[:-1]}orig" in weights:
            made[key] = value
    return made


def waveforms(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


# EnCodec's

STFT = {"filters": 3, "n_ffts": [64, 48], "hop_lengths": [16, 10], "win_lengths": [64, 31]}
STFT_CHANGES = {
    "kernels": {"kernel_size": [5, 3]},
    "even kernels": {"kernel_size": [4, 6]},
    "dilations": {"dilations": [1, 3]},
    "no strided layer": {"dilations": []},
    "strides": {"stride": [2, 3]},
    "not normalized": {"normalized": False},
    "channels": {"in_channels": 2, "out_channels": 2},
    "activation": {"activation": "ELU", "activation_params": {"alpha": 0.7}},
    "activation with weights": {"activation": "PReLU", "activation_params": {}},
    "slope": {"activation_params": {"negative_slope": 0.05}},
    "no norm": {"norm": "none"},
    "group norm": {"norm": "time_group_norm", "dilations": [2]},
    "widths that change nothing": {"max_filters": 3, "filters_scale": 4},
}


def stft_logits(weights: dict, told: dict, index: int, waveform: torch.Tensor) -> torch.Tensor:
    """Logits (batch, out, frame, bin) of one resolution."""
    plain, stem = fold_weight_norms(weights, "test"), f"discriminators.{index}."
    size = told["win_lengths"][index]
    window = torch.hann_window(size)
    spectrum = torch.stft(
        waveform.flatten(0, 1),
        told["n_ffts"][index],
        told["hop_lengths"][index],
        size,
        window,
        center=False,
        return_complex=True,
    ).unflatten(0, waveform.shape[:2])
    if told.get("normalized", True):
        spectrum = spectrum / window.pow(2).sum().sqrt()
    hidden = torch.cat([spectrum.real, spectrum.imag], 1).transpose(2, 3)
    options = told.get("activation_params", {"negative_slope": 0.2})
    activation = getattr(nn, told.get("activation", "LeakyReLU"))(**options)
    if f"{stem}activation.weight" in plain:
        activation.load_state_dict({"weight": plain[f"{stem}activation.weight"]})
    height, width = told.get("kernel_size", (3, 9))
    dilations = told.get("dilations", (1, 2, 4))

    def layer(values, name, stride=1, dilation=1, square=False, grouped=True):
        padding = ((height - 1) * dilation // 2, (height - 1) // 2 if square else (width - 1) // 2)
        weight, bias = plain[f"{stem}{name}.conv.weight"], plain[f"{stem}{name}.conv.bias"]
        values = conv2d(values, weight, bias, stride, padding, (dilation, 1))
        if told.get("norm") == "time_group_norm" and grouped:
            values = group_norm(values, 1, plain[f"{stem}{name}.norm.weight"], plain[f"{stem}{name}.norm.bias"])
        return values

    hidden = activation(layer(hidden, "convs.0", grouped=False))
    for number, dilation in enumerate(dilations, start=1):
        hidden = activation(layer(hidden, f"convs.{number}", tuple(told.get("stride", (1, 2))), dilation))
    hidden = activation(layer(hidden, f"convs.{len(dilations) + 1}", square=True))
    return layer(hidden, "conv_post", square=True)


@pytest.mark.parametrize("name", STFT_CHANGES)
@torch.no_grad()
def test_stft_discriminators(name):
    told = STFT | STFT_CHANGES[name]
    weights = spread(MultiScaleStftDiscriminator.from_original_arguments(told).to_original_state_dict())
    model = MultiScaleStftDiscriminator.from_original(weights, told)
    waveform = waveforms(2, told.get("in_channels", 1), 333)
    logits, maps = model(waveform)
    for index, (values, layers) in enumerate(zip(logits, maps, strict=True)):
        expected = stft_logits(weights, told, index, waveform)
        close(layers[-1], expected)
        close(values, expected.flatten(1))
    assert model.to_original_state_dict().keys() == weights.keys()


def test_the_original_s_own_resolutions_are_the_default():
    model = MultiScaleStftDiscriminator.from_original_arguments({"filters": 2})
    assert [each.n_fft for each in model.discriminators] == [1024, 2048, 512]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filters_scale": 2}, "does not run otherwise"),
        ({"max_filters": 2}, "filters=3, max_filters=2"),
        ({"norm": "layer_norm"}, "norm must be one of"),
        ({"activation": "Linear2"}, "activation must be the name"),
        ({"activation_params": {"slope": 1}}, "activation_options must fit LeakyReLU"),
        ({"kernel_size": [3]}, "'kernel_size' must be a list of 2"),
    ],
)
def test_stft_arguments_that_cannot_be_honored(changes, words):
    with pytest.raises(ValueError, match=words):
        MultiScaleStftDiscriminator.from_original_arguments(STFT | changes)


# LumenPallidium's

SPECTRUM = {"first_channel_size": 2, "win_length": 128}
SPECTRUM_CHANGES = {
    "longer window": {"win_length": 512},  # the last layer then has several taps, and is padded
    "odd window": {"win_length": 160, "hop_length": 33},
    "transform": {"n_fft": 192},
    "blocks": {"channel_multipliers": [3, 1], "strides": [[2, 2], [1, 3]], "win_length": 64},
    "fewer strides": {"channel_multipliers": [2, 2, 2], "strides": [[1, 2], [2, 1]]},
    "not normalized": {"normalize_stft": False},
    "weight norm": {"norm": "weight"},
    "no norm": {"norm": None},
}


def spectral(weights: dict, name: str) -> torch.Tensor:
    """A layer's weight: over its largest singular value, of the stored vectors, where it is spectrally normalized."""
    if f"{name}.weight_orig" not in weights:
        return fold_weight_norms(weights, "test")[f"{name}.weight"]
    weight, u, v = (weights[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
    return weight / (u @ weight.flatten(1) @ v)


@pytest.mark.parametrize("name", SPECTRUM_CHANGES)
@torch.no_grad()
def test_two_sided_stft_discriminators(name):
    told = SPECTRUM | SPECTRUM_CHANGES[name]
    weights = spread(TwoSidedStftDiscriminator.from_original_arguments(told).to_original_state_dict())
    waveform, size = waveforms(2, 1900), told["win_length"]
    length = told.get("n_fft", size)
    hidden = torch.stft(
        waveform,
        length,
        told.get("hop_length", size // 4),
        size,
        torch.ones(size),
        normalized=told.get("normalize_stft", True),
        onesided=False,
        return_complex=True,
    )
    hidden = torch.stack([hidden.real, hidden.imag], 1).transpose(2, 3)

    def layer(values, stem, stride=1, padding=0):
        return conv2d(values, spectral(weights, stem), weights[f"{stem}.bias"], stride, padding)

    hidden = layer(hidden, "first_conv", padding=3)
    multipliers = told.get("channel_multipliers", (2, 2, 1, 2, 1, 2))
    strides = told.get("strides", ((1, 2), (2, 2)) * 3)
    for number, (stride, _) in enumerate(zip(strides, multipliers, strict=False)):
        hidden = layer(hidden, f"blocks.{number}.layers.0", padding=1)
        padding = ((stride[0] + 1) // 2, (stride[1] + 1) // 2)
        hidden = layer(hidden, f"blocks.{number}.layers.2", tuple(stride), padding)
    taps = size // 2 ** (len(multipliers) + 1)
    expected = layer(hidden, "final_conv", padding=(0, (taps - 1) // 2))
    model = TwoSidedStftDiscriminator.from_original(weights, told)
    close(model(waveform)[1][0][-1], expected)
    assert model.to_original_state_dict().keys() == weights.keys()


WAVE = {"channel_sizes": [4, 8, 8], "kernel_sizes": [5, 4, 3], "strides": [1, 3, 1], "groups": [1, 2, 1]}
WAVE_CHANGES = {
    "scales": {"n_blocks": 2, "scalefactor_per_block": 3},
    "one block": {"n_blocks": 1},
    "stereo": {"in_channels": 2},
    "slope": {"activation": nn.LeakyReLU(0.05)},
    "weight norm": {"norm": "weight"},
    "no norm": {"norm": None, "name": "judge", "feature_multiplier": 10},
}


@pytest.mark.parametrize("name", WAVE_CHANGES)
@torch.no_grad()
def test_pooled_waveform_discriminators(name):
    told = WAVE | WAVE_CHANGES[name]
    weights = spread(PooledWaveformDiscriminator.from_original_arguments(told).to_original_state_dict())
    waveform = waveforms(2, told.get("in_channels", 1), 200)
    slope = told["activation"].negative_slope if "activation" in told else 0.2
    model = PooledWaveformDiscriminator.from_original(weights, told)
    logits, maps = model(waveform)
    assert len(logits) == told.get("n_blocks", 3)
    for scale, layers in enumerate(maps):
        factor = told.get("scalefactor_per_block", 2) ** scale
        hidden = avg_pool1d(waveform, 2 * factor, factor, padding=factor)
        last = len(told["channel_sizes"])
        for number in range(1, last + 1):
            stem = f"layers.{scale}.layers.{number}" + (".0" if number < last else "")
            stride, groups = told["strides"][number - 1], told["groups"][number - 1]
            hidden = conv1d(hidden, spectral(weights, stem), weights[f"{stem}.bias"], stride, groups=groups)
            hidden = leaky_relu(hidden, slope) if number < last else hidden
        close(layers[-1], hidden)
    assert model.to_original_state_dict().keys() == weights.keys()


# HiFiHybrid's


@pytest.mark.parametrize("changes", [{"kernel_size": 3, "stride": 2}, {"kernel_size": 4, "periods": [4]}], ids=str)
@torch.no_grad()
def test_period_discriminators(changes):
    told = {"periods": [2, 5], "channels": [1, 3, 4], "kernel_size": 5, "stride": 3, "seq_len": 99} | changes
    weights = spread(MultiPeriodDiscriminator.from_original_arguments(told).to_original_state_dict())
    waveform = waveforms(2, 101)
    logits, _ = MultiPeriodDiscriminator.from_original(weights, told)(waveform)
    for index, period in enumerate(told["periods"]):
        missing = -waveform.shape[-1] % period
        hidden = nn.functional.pad(waveform.unsqueeze(1), (0, missing), mode="reflect").unflatten(-1, (-1, period))
        for layer in range(2):
            stem = f"discriminators.{index}.blocks.{layer}.0"
            stride = told["stride"] if layer == 0 else 1
            padding = ((told["kernel_size"] - 1) // 2, 0)
            hidden = leaky_relu(
                conv2d(hidden, weights[f"{stem}.weight"], weights[f"{stem}.bias"], (stride, 1), padding), 0.2
            )
        stem = f"discriminators.{index}.conv_post"
        hidden = conv2d(hidden, weights[f"{stem}.weight"], weights[f"{stem}.bias"], 1, (1, 0))
        close(logits[index], hidden.flatten(1))


@torch.no_grad()
def test_poolings_of_scale_discriminators():
    sizes = {"channels": [4, 4], "kernel_sizes": [5, 3], "strides": [2, 1], "groups": [1, 2]}
    told = {"pooling": [{"kernel_size": 3, "stride": 3}, None, {"kernel_size": 2}], "seq_len": 64, **sizes}
    weights = spread(MultiScaleDiscriminator.from_original_arguments(told).to_original_state_dict())
    waveform = waveforms(2, 97)
    logits, _ = MultiScaleDiscriminator.from_original(weights, told)(waveform)
    for index, pooling in enumerate(told["pooling"]):
        hidden = waveform.unsqueeze(1)
        hidden = hidden if pooling is None else avg_pool1d(hidden, **pooling)
        for layer in range(2):
            stem = f"discriminators.{index}.blocks.{layer}"
            taps = weights[f"{stem}.weight"]
            padding = math.floor((taps.shape[-1] - 1) / 2)
            hidden = conv1d(hidden, taps, weights[f"{stem}.bias"], sizes["strides"][layer], padding, 1, layer + 1)
            hidden = leaky_relu(hidden, 0.2)
        stem = f"discriminators.{index}.conv_post"
        hidden = conv1d(hidden, weights[f"{stem}.weight"], weights[f"{stem}.bias"], padding=1)
        close(logits[index], hidden.squeeze(1))
