"""The pictured generation of the frame transformer equals its description in plain torch."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn.functional import conv2d, interpolate, layer_norm

from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel

SIZES = {"n_fft": 64, "hop_length": 32, "base_channels": 3, "num_attention_heads": 2, "num_hidden_layers": 3}


def model(**changes) -> FrameTransformerModel:
    torch.manual_seed(0)
    made = FrameTransformerModel(FrameTransformerConfig.preset("frame_transformer3", **{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + ("norm.weight" in name))
    return made


def rotate(values: torch.Tensor) -> torch.Tensor:
    """Pairs (2 i, 2 i + 1) of (..., frame, feature) turned by `frame * 10000 ** (-2 i / features)`."""
    frames, size = values.shape[-2:]
    angles = torch.arange(frames)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    pairs = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@pytest.mark.parametrize("frames", [8, 11])
@torch.no_grad()
def test_the_whole_network(frames):
    made = model()
    weights = made.state_dict()
    magnitudes = torch.rand(2, 2, 33, frames, generator=torch.Generator().manual_seed(1))

    def norm(values, name):
        scaled = layer_norm(values.transpose(2, 3), (values.shape[2],)) * weights[f"{name}.weight"]
        return (scaled + weights[f"{name}.bias"]).transpose(2, 3)

    def block(values, name, stride=1):
        inner = conv2d(norm(values, f"{name}.norm"), weights[f"{name}.conv1.weight"], padding=1).relu() ** 2
        inner = conv2d(inner, weights[f"{name}.conv2.weight"], stride=stride, padding=1)
        return conv2d(values, weights[f"{name}.identity.weight"], stride=stride) + inner

    def project(values, name):
        values = torch.einsum("cgf,bcft->bcgt", weights[f"{name}.linear.weight_pw"], values)
        taps, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
        return conv2d(values, taps, bias, padding=(0, 1), groups=values.shape[1])

    def heads(values):  # (batch, map, feature, frame) -> (batch, map, head, frame, head_dim)
        return values.unflatten(2, (2, -1)).transpose(3, 4)

    spectra = magnitudes[:, :, :32]
    hidden, scores = block(spectra, "stack.encoder", 2), 0.0
    assert hidden.shape == (2, 3, 16, -(-frames // 2))
    for layer in range(SIZES["num_hidden_layers"]):
        stem = f"stack.layers.{layer}."
        normed = norm(hidden, f"{stem}attention_norm")
        query, key, value = (heads(project(normed, f"{stem}attention.{name}_proj")) for name in "qkv")
        # The root of all features, not of a head's; scores of the layers before are added.
        scores = rotate(query) @ rotate(key).transpose(-1, -2) / 16**0.5 + scores
        attended = (scores.softmax(-1) @ value).transpose(3, 4).flatten(2, 3)
        hidden = hidden + torch.einsum("cgf,bcft->bcgt", weights[f"{stem}attention.out_proj.weight_pw"], attended)
        inner = conv2d(norm(hidden, f"{stem}mlp_norm"), weights[f"{stem}up_conv.weight"], padding=1).relu() ** 2
        hidden = hidden + conv2d(inner, weights[f"{stem}down_conv.weight"], padding=1)
    hidden = interpolate(hidden, size=(32, frames), mode="bilinear", align_corners=True)
    hidden = torch.cat((spectra, block(hidden, "stack.decoder")), 1)
    expected = conv2d(hidden, weights["out.weight"])
    found = made(magnitudes).logits
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(found[:, :, :32], expected, rtol=1e-4, atol=tolerance)
    assert torch.equal(found[:, :, 32], found[:, :, 31])  # the Nyquist bin has its neighbor's mask


def test_recomputed_layers_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        made = model(dropout=0.0).train()
        if recompute:
            getattr(made, "activation_checkpointing_enable", made.gradient_checkpointing_enable)()  # of older versions
        magnitudes = torch.rand(1, 2, 33, 6, generator=torch.Generator().manual_seed(1))
        made(magnitudes, labels=0.5 * magnitudes).loss.backward()
        gradients.append(made.stack.encoder.conv1.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channel_multipliers": (1, 2)}, "num_levels must be 1"),
        ({"num_attention_maps": (2,)}, "num_attention_maps must be None"),
        ({"num_attention_heads": 32}, "quarter"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_fields_that_a_stack_does_not_have(changes, words):
    with pytest.raises(StrictDataclassClassValidationError, match=words):
        FrameTransformerConfig.preset("frame_transformer3", **{**SIZES, **changes})


def test_it_has_no_original_checkpoint():
    with pytest.raises(ValueError, match="layout must be 'unet'"):
        model().to_original_state_dict()
