"""The style-based idea model in proportions and with a duration, computed again in plain operations from its weights."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import conv2d, leaky_relu, pad

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model


def act(value: torch.Tensor) -> torch.Tensor:
    return leaky_relu(value, 0.2) * math.sqrt(2)


def plain(model: IdeaStyleGan2Model, latents: torch.Tensor, psi: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and log2 durations with the constant noise; every picture has its own scaled weights."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    config, taps = model.config, torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8

    def linear(name, value, rate=1.0):
        weight = weights[f"{name}.weight"]
        return value @ weight.T * (rate / math.sqrt(weight.shape[1])) + weights[f"{name}.bias"] * rate

    def stretched(value):
        """Zeros after every row and column."""
        wide = value.new_zeros(*value.shape[:2], value.shape[2] * 2, value.shape[3] * 2)
        wide[..., ::2, ::2] = value
        return wide

    def smooth(value, before, after):
        kernel = 4 * torch.outer(taps, taps).expand(value.shape[1], 1, 4, 4)
        return conv2d(pad(value, (before, after, before, after)), kernel, groups=value.shape[1])

    def modulated(name, value, style, demodulate=True, up=False):
        weight = weights[f"{name}.weight"]
        weight = weight / math.sqrt(weight[0].numel())
        rows = []
        for row, gains in zip(value, linear(f"{name}.modulation", style), strict=True):
            own = weight * gains[:, None, None]
            if demodulate:
                own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if up:  # a transposed convolution: mirrored taps over the stretched picture, without its last zeros
                wide = pad(stretched(row[None]), (2, 1, 2, 1))
                rows.append(smooth(conv2d(wide, own.flip(-2, -1)), 1, 1))
            else:
                rows.append(conv2d(row[None], own, padding=own.shape[-1] // 2))
        return torch.cat(rows)

    def styled(name, value, style, up=False):
        value = modulated(f"{name}.conv", value, style, up=up)
        value = value + weights[f"{name}.noise_strength"] * weights[f"{name}.constant_noise"]
        return act(value + weights[f"{name}.bias"][:, None, None])

    style = latents.double()
    style = style / (style.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in range(config.num_mapping_layers):
        style = act(linear(f"mapping.layers.{layer}", style, config.mapping_rate_multiplier))
    style = weights["style_mean"] + psi * (style - weights["style_mean"])
    duration = linear("duration", style)[:, 0] * config.log2_frames_std + config.log2_frames_mean
    hidden, picture = weights["synthesis.constant"].expand(len(style), -1, -1, -1), None
    for level in range(len(config.channels)):
        key = f"synthesis.blocks.{level}"
        if level:
            hidden = styled(f"{key}.up", hidden, style, up=True)
        hidden = styled(f"{key}.conv", hidden, style)
        added = modulated(f"{key}.to_picture.conv", hidden, style, demodulate=False)
        added = added + weights[f"{key}.to_picture.bias"][:, None, None]
        picture = added if picture is None else added + smooth(stretched(picture), 2, 1)
    return picture, duration


@torch.no_grad()
def test_the_model_is_its_formulas():
    torch.manual_seed(0)
    mel = MelConfig.preset("hifigan", num_mel_bins=6, fmax=None).to_dict()
    sizes = {"num_columns": 10, "style_size": 8, "num_mapping_layers": 2, "channels": (6, 4)}
    model = IdeaStyleGan2Model(IdeaStyleGan2Config(mel=mel, log2_frames_std=0.7, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and noise strengths begin at zero
            torch.nn.init.normal_(parameter, mean=0.2, std=0.3)
    model.style_mean.normal_()
    latents = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    for psi in (1.0, 0.6):
        picture, duration = plain(model, latents, psi)
        output = model(latents, truncation_psi=psi)
        torch.testing.assert_close(output.sample.double(), picture, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.log2_num_frames.double(), duration, rtol=1e-5, atol=1e-5)
