"""Original checkpoints of EnCodec's language model (facebookresearch/encodec), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.originals.arguments import FLAG, POSITIVE, SHARE, SIZE, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original EnCodec language model"
_LAYER = {
    "self_attn.in_proj_weight": "attention.qkv.weight",
    "self_attn.in_proj_bias": "attention.qkv.bias",
    "self_attn.out_proj.": "attention.out_proj.",
    "linear1.": "up_proj.",
    "linear2.": "down_proj.",
    "norm1.": "attention_norm.",
    "norm2.": "mlp_norm.",
}
TABLE = [
    ("emb.{N}.weight", "code_embeddings.{N}.weight"),
    ("linears.{N}.", "heads.{N}."),
    ("transformer.norm_in.", "input_norm."),
    *((f"transformer.layers.{{N}}.{theirs}", f"layers.{{N}}.{ours}") for theirs, ours in _LAYER.items()),
]
_NAMES = {
    "n_q": ("num_quantizers", SIZE),
    "card": ("codebook_size", SIZE),
    "dim": ("hidden_size", SIZE),
    "num_layers": ("num_hidden_layers", SIZE),
    "num_heads": ("num_attention_heads", SIZE),
    "past_context": ("num_context_frames", SIZE),
    "max_period": ("position_period", POSITIVE),
    "norm_in": ("input_norm", FLAG),
    "norm_first": ("norm_first", FLAG),
    "layer_norm_eps": ("layer_norm_eps", POSITIVE),
    "dropout": ("dropout", SHARE),
    "bias": ("bias", FLAG),
}
_ORIGINAL_DEFAULTS = {
    "num_quantizers": 32,
    "codebook_size": 1024,
    "hidden_size": 200,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_context_frames": 1000,
}


def configuration_from_original(arguments: Mapping) -> CodecLMConfig:
    """Configuration of the original constructor's arguments; what is absent has its default.

    Raises:
        ValueError: an argument is unknown.
    """
    fields = take_arguments(arguments, _NAMES, {"hidden_scale": POSITIVE, "gelu": FLAG}, ORIGIN)
    fields = _ORIGINAL_DEFAULTS | fields
    fields["position_period"] = float(fields.get("position_period", 10000.0))
    fields["dropout"] = float(fields.get("dropout", 0.0))
    fields["activation"] = "gelu" if arguments.get("gelu", True) else "relu"
    fields["intermediate_size"] = int(fields["hidden_size"] * arguments.get("hidden_scale", 4.0))
    return CodecLMConfig(**fields)


def _is_layer_bias(name: str) -> bool:
    return name.startswith("layers.") and name.endswith("bias")


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    ours = rename_keys(tensors, TABLE, ORIGIN)
    if model.config.bias:
        return ours
    return ours | {key: torch.zeros_like(value) for key, value in model.state_dict().items() if _is_layer_bias(key)}


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    # Without biases the original stores none, where ours are zero.
    kept = {key: value for key, value in tensors.items() if model.config.bias or not _is_layer_bias(key)}
    return rename_keys(kept, TABLE, ORIGIN, reverse=True)


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict: {"config": configuration_from_original(arguments)},
    _to_ours,
    _to_original,
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original"]
