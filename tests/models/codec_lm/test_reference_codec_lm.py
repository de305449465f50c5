"""The language model of codes, computed again in plain float64 operations from its weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, relu

from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel


def plain_logits(model: CodecLMModel, previous: torch.Tensor) -> torch.Tensor:
    """(batch, quantizer, frame) codes of the frames before -> (batch, quantizer, frame, code) float64."""
    config, weights = model.config, {name: value.double() for name, value in model.state_dict().items()}
    width, heads, frames = config.hidden_size, config.num_attention_heads, previous.shape[2]

    def linear(name, hidden):
        return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, hidden):
        return layer_norm(hidden, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def attention(name, hidden):
        # The frame before the first one is a layer input of zeros.
        parts = linear(f"{name}.qkv", torch.cat([torch.zeros_like(hidden[:, :1]), hidden], dim=1)).chunk(3, dim=-1)
        query, key, value = (part.view(len(hidden), frames + 1, heads, -1) for part in parts)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key)[:, :, 1:] / math.sqrt(width // heads)
        distance = torch.arange(1, frames + 1)[:, None] - torch.arange(frames + 1)
        scores[..., (distance < 0) | (distance > config.num_context_frames)] = -math.inf
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
        return linear(f"{name}.out_proj", mixed.flatten(2))

    hidden = sum(
        weights[f"code_embeddings.{level}.weight"][previous[:, level] + 1] for level in range(previous.shape[1])
    )
    hidden = norm("input_norm", hidden) if config.input_norm else hidden
    rates = config.position_period ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1))
    angles = torch.arange(frames)[:, None] * rates
    hidden = hidden + torch.cat([angles.cos(), angles.sin()], dim=-1)
    activation = {"gelu": gelu, "relu": relu}[config.activation]
    for index in range(config.num_hidden_layers):
        key = f"layers.{index}."

        def mlp(inner, key=key):
            return linear(f"{key}down_proj", activation(linear(f"{key}up_proj", inner)))

        if config.norm_first:
            hidden = hidden + attention(f"{key}attention", norm(f"{key}attention_norm", hidden))
            hidden = hidden + mlp(norm(f"{key}mlp_norm", hidden))
        else:
            hidden = norm(f"{key}attention_norm", hidden + attention(f"{key}attention", hidden))
            hidden = norm(f"{key}mlp_norm", hidden + mlp(hidden))
    return torch.stack([linear(f"heads.{level}", hidden) for level in range(previous.shape[1])], dim=1)


@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True, "activation": "relu", "input_norm": False}], ids=["published", "pre-norm"]
)
@torch.no_grad()
def test_the_model_is_its_formulas(options):
    torch.manual_seed(0)
    model = CodecLMModel(CodecLMConfig.preset("tiny", initializer_range=0.4, **options)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    labels = torch.randint(16, (2, 3, 11), generator=torch.Generator().manual_seed(1))
    labels[1, 2, 5:] = -100
    previous = torch.nn.functional.pad(labels[..., :-1], (1, 0), value=-1).clamp(min=-1)
    output, expected = model(labels=labels), plain_logits(model, previous)
    torch.testing.assert_close(output.logits.double(), expected, rtol=1e-4, atol=1e-4)
    likelihoods = expected.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(output.loss.double(), -likelihoods[labels >= 0].mean(), rtol=1e-4, atol=1e-5)
