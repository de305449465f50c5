"""The convolutional baseline of the expansion equals its formula, computed frame by frame from its weights."""

from __future__ import annotations

import math

import torch
from plain_layers import gelu, linear, norm, shake
from torch.nn.functional import conv1d

from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerConfig, ConvUpsamplerModel

BINS, COLUMNS = 4, 6
CONFIG = ConvUpsamplerConfig(
    mel={"num_mel_bins": BINS, "n_fft": 256, "win_length": 256, "hop_length": 64},
    idea_columns=COLUMNS,
    hidden_size=5,
    intermediate_size=7,
    num_column_layers=1,
    num_frame_layers=4,
    mel_shift=-3.0,
    mel_scale=2.0,
)


def block(layer, x: torch.Tensor, dilation: int) -> torch.Tensor:
    """x + scale * down(gelu(up(norm(depthwise(x))))), seven taps `dilation` apart."""
    weight, bias = layer.depthwise.weight, layer.depthwise.bias
    hidden = conv1d(x, weight, bias, padding=3 * dilation, dilation=dilation, groups=x.shape[1])
    hidden = linear(layer.up, norm(layer.norm, hidden.transpose(1, 2)))
    return x + (linear(layer.down, gelu(hidden)) * layer.scale).transpose(1, 2)


def between(values: torch.Tensor, place: float) -> torch.Tensor:
    """(channel, column) at a place between columns, constant beyond the outer centers."""
    place = min(max(place, 0.0), COLUMNS - 1.0)
    lower = min(int(place), COLUMNS - 2)
    return values[:, lower] + (values[:, lower + 1] - values[:, lower]) * (place - lower)


@torch.no_grad()
def test_windows_by_hand():
    model = shake(ConvUpsamplerModel(CONFIG))
    ideas = torch.randn(2, BINS, COLUMNS, generator=torch.Generator().manual_seed(1)) * 2 - 3
    frames, starts, length = (20, 9), (5, 0), 6
    made = model(ideas, torch.tensor(frames), torch.tensor(starts), length).output_features
    margin = 3 + 3 * (1 + 2 + 4 + 1)
    assert model.context_frames == margin
    for row in range(2):
        idea = (ideas[row] + 3) / 2
        stretch = math.log2(frames[row] / COLUMNS) / 4
        told = torch.cat([idea, torch.full((1, COLUMNS), stretch)])[None]
        hidden = block(
            model.column_blocks[0], conv1d(told, model.column_stem.weight, model.column_stem.bias, padding=3), 1
        )
        coarse, given = [], []
        for frame in range(starts[row] - margin, starts[row] + length + margin):
            place = (frame + 0.5) * COLUMNS / frames[row] - 0.5
            clock = [math.sin(2 * math.pi * place), math.cos(2 * math.pi * place), stretch]
            coarse.append(between(idea, place))
            given.append(torch.cat([coarse[-1], between(hidden[0], place), torch.tensor(clock)]))
        hidden = conv1d(torch.stack(given, dim=-1)[None], model.frame_stem.weight, model.frame_stem.bias, padding=3)
        for layer, dilation in zip(model.frame_blocks, (1, 2, 4, 1), strict=True):
            hidden = block(layer, hidden, dilation)
        change = linear(model.head, norm(model.norm, hidden[0].T)).T
        expected = (torch.stack(coarse, dim=-1) + change)[:, margin:-margin] * 2 - 3
        torch.testing.assert_close(made[row], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pieces_are_made_in_chunks_and_end_in_silence():
    model = shake(ConvUpsamplerModel(CONFIG), std=0.1)
    ideas = torch.randn(2, BINS, COLUMNS, generator=torch.Generator().manual_seed(1)) * 2 - 3
    frames, floor = torch.tensor([20, 9]), CONFIG.mel_config.floor_value
    whole = model(ideas, frames, torch.zeros(2, dtype=torch.long), 20).output_features.clamp(min=floor)
    for chunk in (1, 7, 19, 20, 21):
        made = model.generate(ideas, frames, chunk)
        assert made.shape == (2, BINS, 20) and (made[1, :, 9:] == floor).all() and (made[1, :, 8] != floor).any()
        torch.testing.assert_close(made[0], whole[0], rtol=1e-4, atol=1e-4)


def test_initial_values():
    model = ConvUpsamplerModel(CONFIG)
    for name, value in model.state_dict().items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith(("norm.weight", "scale")):
            assert value.unique().tolist() == [1.0 if "norm" in name else torch.tensor(0.1).item()], name
        else:
            assert 0.005 < value.std() < 0.04, name
