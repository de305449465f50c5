"""Layers written out in plain arithmetic, for comparison; they share no code with the package."""

from __future__ import annotations

import math

import torch


def shake(module: torch.nn.Module, seed: int = 0, std: float = 0.3) -> torch.nn.Module:
    """Random values for every parameter, norms and scales included: initial values hide terms (zeros, ones)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """x W^T + b over the last axis."""
    return torch.einsum("...i,oi->...o", x, layer.weight) + (0 if layer.bias is None else layer.bias)


def norm(layer: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """Layer norm over the last axis."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: torch.Tensor) -> torch.Tensor:
    """x times its logistic function."""
    return x / (1 + (-x).exp())


def conv1d(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, before: int, groups: int = 1):
    """Convolution tap by tap, zeros outside, `before` of them in front: (batch, in, t) -> (batch, out, t)."""
    out, per_group, taps = weight.shape
    length = x.shape[-1]
    made = torch.zeros(x.shape[0], out, length, dtype=x.dtype)
    for tap in range(taps):
        for t in range(length):
            source = t + tap - before
            if 0 <= source < length:
                for o in range(out):
                    first = o // (out // groups) * per_group
                    made[:, o, t] += (x[:, first : first + per_group, source] * weight[o, :, tap]).sum(-1)
    return made if bias is None else made + bias[:, None]


def convnext(block, x: torch.Tensor) -> torch.Tensor:
    """ConvNeXt block: x + scale * down(gelu(up(norm(depthwise(x))))), (batch, channel, frame)."""
    kernel = block.depthwise.kernel_size[0]
    hidden = conv1d(block.depthwise.weight, block.depthwise.bias, x, kernel // 2, groups=x.shape[1])
    hidden = linear(block.up, norm(block.norm, hidden.transpose(1, 2)))
    return x + (linear(block.down, gelu(hidden)) * block.scale).transpose(1, 2)


def mlp(block, x: torch.Tensor) -> torch.Tensor:
    """Pre-normalized perceptron."""
    return linear(block.down, gelu(linear(block.up, norm(block.norm, x))))


def windowed_attention(layer, x: torch.Tensor) -> torch.Tensor:
    """Every query by itself: scores of the keys in reach after turning pairs (i, i + half) as complex numbers."""
    batch, steps, width = x.shape
    heads, dim = layer.num_heads, width // layer.num_heads
    query, key, value = linear(layer.qkv, norm(layer.norm, x)).reshape(batch, steps, 3, heads, dim).unbind(2)
    rate = 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    turn = torch.exp(1j * torch.arange(steps).double()[:, None] * rate)[None, :, None]

    def turned(x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(x[..., : dim // 2].double(), x[..., dim // 2 :].double()) * turn
        return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)

    query, key, mixed = turned(query), turned(key), torch.zeros(batch, steps, heads, dim)
    for step in range(steps):
        seen = slice(max(0, step - layer.before), step + layer.after + 1)
        scores = torch.einsum("bhd,bkhd->bhk", query[:, step], key[:, seen]) / math.sqrt(dim)
        mixed[:, step] = torch.einsum("bhk,bkhd->bhd", scores.softmax(-1), value[:, seen])
    return linear(layer.out, mixed.flatten(2))


def neighbor_attention(layer, x: torch.Tensor, states: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Every step by itself: the columns within reach of the nearest one, keys told their distance."""
    batch, steps, width = x.shape
    heads, dim = layer.num_heads, width // layer.num_heads
    key, value = linear(layer.key_value, states).chunk(2, dim=-1)
    query, mixed = linear(layer.query, norm(layer.norm, x)), torch.zeros(batch, steps, width)
    for row in range(batch):
        for step in range(steps):
            nearest = int(place[row, step].round())
            seen = [c for c in range(nearest - layer.reach, nearest + layer.reach + 1) if 0 <= c < states.shape[1]]
            away = torch.tensor(seen) - place[row, step]
            told = torch.stack([away, away.abs(), (-away * away).exp()], dim=-1)
            keys = (key[row, seen] + linear(layer.distance_key, told)).reshape(-1, heads, dim)
            scores = torch.einsum("hd,khd->hk", query[row, step].reshape(heads, dim), keys) / math.sqrt(dim)
            values = value[row, seen].reshape(-1, heads, dim)
            mixed[row, step] = torch.einsum("hk,khd->hd", scores.softmax(-1), values).flatten()
    return linear(layer.out, mixed)
