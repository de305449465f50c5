"""Discriminators of the package's own making, computed again in plain operations from their weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d, leaky_relu, linear, pad

from melreformer_hf.training.discriminators.soundstream import TwoSidedStftDiscriminator
from melreformer_hf.training.discriminators.spectrogram import SpectrogramDiscriminator
from melreformer_hf.training.discriminators.stylegan2 import StyleGan2Discriminator


def shapes(*layers: torch.nn.Module) -> list[tuple[int, ...]]:
    """(out, in, kernel) of layers: a computation from their weights takes them as they are."""
    return [tuple(layer.weight.shape) for layer in layers]


def waveform(samples: int) -> torch.Tensor:
    return torch.randn(2, samples, generator=torch.Generator().manual_seed(1)).double()


def spectrum(values: torch.Tensor, size: int, window: torch.Tensor, bins: int) -> torch.Tensor:
    """Frames a quarter apart, mirrored at the ends, times cosines and sines: (batch, bin, frame) complex."""
    padded = pad(values[:, None], (size // 2, size // 2), mode="reflect")[:, 0]
    frames = padded.unfold(-1, size, size // 4) * window
    angles = -2 * math.pi * torch.arange(bins).double()[:, None] * torch.arange(size).double() / size
    return torch.complex(frames @ angles.cos().T, frames @ angles.sin().T).transpose(1, 2)


@torch.no_grad()
def test_the_log_spectrogram_discriminator():
    torch.manual_seed(0)
    model, values = SpectrogramDiscriminator(64, 3), waveform(150)
    assert shapes(*model.convs) == [(3, 1, 9, 3), *[(3, 3, 9, 3)] * 3, (3, 3, 3, 3)]
    assert shapes(model.output_conv) == [(1, 3, 3, 3)]
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(64).double() / 64)
    hidden = spectrum(values, 64, window, 33).abs().clamp(min=1e-4).log()[:, None]
    for conv, stride in zip(model.convs, (1, 2, 2, 2, 1), strict=True):
        rows, columns = conv.weight.shape[2:]
        made = conv2d(hidden, conv.weight.double(), conv.bias.double(), (stride, 1), (rows // 2, columns // 2))
        hidden = leaky_relu(made, 0.1)
    expected = conv2d(hidden, model.output_conv.weight.double(), model.output_conv.bias.double(), padding=1)
    logits, maps = model(values.float())
    torch.testing.assert_close(logits.double(), expected.flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[-2].double(), hidden, rtol=1e-4, atol=1e-5)
    assert len(maps) == 6


@torch.no_grad()
@pytest.mark.parametrize(("size", "taps", "margin"), [(128, 1, 0), (384, 3, 1), (640, 5, 2)])
def test_the_two_sided_discriminator_with_rectifiers(size, taps, margin):
    """Its last layer sees all bins of half a spectrum, which the blocks leave a 128th of, and as many places come out."""
    torch.manual_seed(0)
    model, values = TwoSidedStftDiscriminator(size, 2, slope=0.2).eval(), waveform(2 * size + 44)
    assert shapes(model.first_conv, model.output_conv) == [(2, 2, 7, 7), (1, 32, 1, taps)]
    assert shapes(*(block.conv for block in model.blocks)) == [(n, n, 3, 3) for n in (2, 4, 8, 8, 16, 16)]
    full = spectrum(values, size, torch.ones(size).double(), size) / math.sqrt(size)
    hidden = torch.stack([full.real, full.imag], dim=1).transpose(2, 3)  # (batch, part, frame, bin)

    def conv(layer, value, **options):
        return conv2d(value, layer.weight.double(), layer.bias.double(), **options)

    hidden = conv(model.first_conv, hidden, padding=3)
    for block, stride in zip(model.blocks, ((1, 2), (2, 2)) * 3, strict=True):
        hidden = conv(
            block.strided_conv, leaky_relu(conv(block.conv, hidden, padding=1), 0.2), stride=stride, padding=1
        )
    expected = conv(model.output_conv, hidden, padding=(0, margin))
    logits, maps = model(values.float())
    torch.testing.assert_close(logits[0].double(), expected.flatten(1), rtol=1e-3, atol=1e-5)
    assert len(maps[0]) == 8


@torch.no_grad()
def test_the_stylegan2_discriminator_that_hears_durations():
    torch.manual_seed(0)
    model = StyleGan2Discriminator((4, 8), (6, 5), blur_taps=(1, 2, 1), group_size=2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    pictures, durations = torch.randn(4, 1, 4, 8, generator=generator), torch.randn(4, generator=generator)

    def act(value):
        return leaky_relu(value, 0.2) * math.sqrt(2)

    def conv(layer, value, **options):
        scale = 1 / math.sqrt(layer.weight[0].numel())
        return conv2d(
            value, layer.weight.double() * scale, None if layer.bias is None else layer.bias.double(), **options
        )

    def smooth(value, before, after):
        taps = torch.tensor([1.0, 2.0, 1.0]).double() / 4
        kernel = torch.outer(taps, taps).expand(value.shape[1], 1, 3, 3)
        return conv2d(pad(value, (before, after, before, after)), kernel, groups=value.shape[1])

    def spread(values):
        """Rows 0 and 2 make a group, rows 1 and 3 the other."""
        pairs = values.reshape(2, 2, -1)
        each = ((pairs - pairs.mean(0)).square().mean(0) + 1e-8).sqrt().mean(-1)
        return each.repeat(2)

    def plane(values, like):
        return values[:, None, None, None] * torch.ones_like(like[:, :1])

    hidden = torch.cat([pictures, plane(durations, pictures)], dim=1).double()
    hidden = act(conv(model.input_conv, hidden))
    block = model.blocks[0]
    branch = act(conv(block.conv2, smooth(act(conv(block.conv1, hidden, padding=1)), 2, 1), stride=2))
    hidden = (branch + conv(block.skip, smooth(hidden, 1, 0), stride=2)) / math.sqrt(2)
    features = [hidden, plane(spread(hidden), hidden), plane(spread(durations.double()), hidden)]
    hidden = act(conv(model.final_conv, torch.cat(features, dim=1), padding=1)).flatten(1)
    for layer in (model.hidden_linear, model.output_linear):
        hidden = linear(hidden, layer.weight.double() / math.sqrt(hidden.shape[1]), layer.bias.double())
        hidden = act(hidden) if layer is model.hidden_linear else hidden
    torch.testing.assert_close(model(pictures, durations).double(), hidden, rtol=1e-4, atol=1e-5)
