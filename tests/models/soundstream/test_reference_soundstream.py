"""The codec with every part of its own, computed again in plain float64 operations from its weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv1d, conv_transpose1d, elu, gelu, leaky_relu, pad

from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel

STRIDES = (2, 3)
OPTIONS = {
    "elu, wavelets, multiresolution": {"activation": "elu", "wavelet_blocks": (1,), "multires_depth": 3},
    "leaky, depthwise, factorized": {"depthwise": True, "codebook_dim": 4, "wavelet_blocks": (0,)},
    "gradient": {"codebook_update": "gradient", "commitment_weight": 0.3, "codebook_weight": 0.7},
}


class Plain:
    """The codec as formulas; `weights` are those of the model in float64."""

    def __init__(self, model: SoundStreamModel) -> None:
        self.config = model.config
        self.weights = {name: value.double() for name, value in model.state_dict().items()}
        self.act = elu if self.config.activation == "elu" else lambda x: leaky_relu(x, self.config.activation_slope)

    def conv(self, name, hidden, stride=1, dilation=1, groups=1):
        weight = self.weights[f"{name}.weight"]
        before = dilation * (weight.shape[-1] - 1) + 1 - stride
        hidden = pad(hidden, (before, -hidden.shape[-1] % stride))
        return conv1d(hidden, weight, self.weights[f"{name}.bias"], stride, 0, dilation, groups)

    def transposed(self, name, hidden, stride):
        made = conv_transpose1d(hidden, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride)
        return made[..., : hidden.shape[-1] * stride]

    def stack(self, name, hidden):
        for unit in range(self.config.num_residual_units):
            key, inner = f"{name}.units.{unit}", hidden
            if self.config.depthwise:
                inner = hidden * self.weights[f"{key}.gain.weight"][:, 0] + self.weights[f"{key}.gain.bias"][:, None]
            inner = self.act(self.conv(f"{key}.conv1", inner, dilation=self.config.dilation_base**unit))
            hidden = self.act(hidden + self.conv(f"{key}.conv2", inner))
        return hidden

    def multiresolution(self, waveform):
        key, depth = "encoder.multires_path.", self.config.multires_depth
        low = self.conv(f"{key}expand", waveform)
        low_pass, high_pass, mixing = (
            self.weights[f"{key}multires.{name}"] for name in ("low_pass", "high_pass", "mixing")
        )
        mixed, taps = low * mixing[:, -1:], low_pass.shape[-1]
        for level in range(depth):
            held = pad(low, ((taps - 1) * 2**level, 0))
            low, high = (
                conv1d(held, kernel, dilation=2**level, groups=len(kernel)) for kernel in (low_pass, high_pass)
            )
            mixed = mixed + high * mixing[:, depth - level, None]
        hidden = gelu(mixed + low * mixing[:, :1])
        hop = math.prod(STRIDES)
        hidden = self.conv(f"{key}pool", hidden, stride=hop, groups=hidden.shape[1])
        return gelu(self.conv(f"{key}project", hidden))

    def latents(self, waveform):
        waveform = pad(waveform, (0, -waveform.shape[-1] % math.prod(STRIDES)))
        hidden = self.conv("encoder.input_conv", waveform)
        for block, stride in enumerate(STRIDES):
            hidden = self.stack(f"encoder.blocks.{block}.stack", hidden)
            hidden = self.act(self.conv(f"encoder.blocks.{block}.downsample", hidden, stride=stride))
        hidden = self.conv("encoder.output_conv", hidden)
        return hidden + self.multiresolution(waveform) if self.config.multires_depth else hidden

    def quantized(self, latents):
        """Sum of the codewords, codes, and the squared distances of every level."""
        remainder, total, codes, distances = latents.transpose(1, 2), 0.0, [], []
        for level in range(self.config.num_quantizers):
            table, part = self.weights[f"quantizer.codebooks.{level}.codewords"], remainder
            if self.config.codebook_dim:
                part = part @ self.weights[f"quantizer.in_projections.{level}.weight"].T
                part = part + self.weights[f"quantizer.in_projections.{level}.bias"]
            codes.append(torch.cdist(part, table.expand(len(part), -1, -1)).argmin(-1))
            made = table[codes[-1]]
            distances.append((part - made).square().mean())
            if self.config.codebook_dim:
                made = made @ self.weights[f"quantizer.out_projections.{level}.weight"].T
                made = made + self.weights[f"quantizer.out_projections.{level}.bias"]
            total, remainder = total + made, remainder - made
        return total.transpose(1, 2), torch.stack(codes, dim=1), torch.stack(distances)

    def wavelets(self, name, hidden, rate):
        amplitudes = self.conv(f"{name}.analysis", hidden)
        frequency, phase, log_width = (
            self.weights[f"{name}.synthesis.{part}"][:, None] for part in ("frequency", "phase", "log_width")
        )
        places = (torch.arange(4 * rate, dtype=torch.float64) - (4 * rate - 1) / 2) / rate
        atoms = (2 * math.pi * frequency * places + phase).cos() * (-0.5 * (places / log_width.exp()) ** 2).exp()
        atoms = atoms * (rate / atoms.square().sum(-1, keepdim=True)).sqrt()
        frames = amplitudes.shape[-1]
        made = torch.zeros(*amplitudes.shape[:2], (frames + 3) * rate, dtype=torch.float64)
        for frame in range(frames):
            made[..., frame * rate : (frame + 4) * rate] += amplitudes[..., frame, None] * atoms
        return self.conv(f"{name}.output_conv", made[..., : frames * rate])

    def waveform(self, hidden):
        hidden = self.transposed("decoder.input_conv", hidden, 1)
        for block, stride in enumerate(STRIDES[::-1]):
            key = f"decoder.blocks.{block}."
            upsample = self.wavelets if block in self.config.wavelet_blocks else self.transposed
            hidden = self.stack(f"{key}stack", self.act(upsample(f"{key}upsample", hidden, stride)))
        return self.conv("decoder.output_conv", hidden)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_codec_is_its_formulas(name):
    torch.manual_seed(0)
    sizes = {"strides": STRIDES, "base_channels": 4, "hidden_size": 6, "codebook_size": 8, "multires_kernel_size": 3}
    config = SoundStreamConfig.preset("tiny", kmeans_iterations=0, **sizes, **OPTIONS[name])
    model = SoundStreamModel(config).eval()
    for parameter in model.parameters():  # also biases, which begin at zero
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.2)
    waveform = 0.5 * torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, output, encoded = Plain(model), model(waveform), model.encode(waveform)
    latents = plain.latents(waveform.double())
    torch.testing.assert_close(encoded.latents.double(), latents, rtol=1e-4, atol=1e-5)
    total, codes, distances = plain.quantized(latents)
    assert torch.equal(output.audio_codes, codes)
    made = plain.waveform(total)[..., :40]
    torch.testing.assert_close(output.audio_values.double(), made, rtol=1e-4, atol=1e-5)
    weight = config.commitment_weight + (config.codebook_weight if config.codebook_update == "gradient" else 0.0)
    expected = (made - waveform).abs().mean() + weight * distances.mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-4, atol=1e-5)
