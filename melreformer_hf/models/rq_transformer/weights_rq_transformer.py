"""Original checkpoints of RQ-Transformer (kakaobrain/rq-vae-transformer), both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.rq_transformer.configuration_rq_transformer import RQTransformerConfig
from melreformer_hf.originals.arguments import (
    ANYTHING,
    FLAG,
    MAPPING,
    SHARE,
    SIZE,
    SIZES,
    TEXT,
    either,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original RQ-Transformer"


def _blocks(original: str, ours: str) -> list[tuple[str, str]]:
    names = {
        "ln1": "attention_norm",
        "ln2": "mlp_norm",
        "attn.query": "attention.q_proj",
        "attn.key": "attention.k_proj",
        "attn.value": "attention.v_proj",
        "attn.proj": "attention.out_proj",
        "mlp.0": "up_proj",
        "mlp.2": "down_proj",
    }
    return [(f"{original}.blocks.{{N}}.{a}.", f"{ours}.blocks.{{N}}.{b}.") for a, b in names.items()]


TABLE = [
    *_blocks("body_transformer", "body"),
    *_blocks("head_transformer", "head"),
    ("classifier.layer_norm.", "classifier.norm."),
    ("classifier.linear.", "classifier.linear."),
    ("cond_classifier.layer_norm.", "condition_classifier.norm."),
    ("cond_classifier.linear.", "condition_classifier.linear."),
    ("cond_emb.weight", "condition_embedding.weight"),
    ("tok_emb.weight", "token_embedding.weight"),
    ("input_mlp.", "input_projection."),
    ("head_mlp.", "head_projection."),
    ("pos_emb_cond", "condition_positions.weight"),
    ("pos_emb_hw", "positions.weight"),
    ("pos_emb_d", "depth_positions.weight"),
]
_POSITIONS = ("condition_positions.weight", "positions.weight", "depth_positions.weight")
_ORIGINAL_POSITIONS = ("pos_emb_cond", "pos_emb_hw", "pos_emb_d")
_OFFSETS = "tok_emb.offsets"
_CODEBOOK = re.compile(r"codebooks\.(\d+)\.")
_NAMES = {
    "embed_dim": ("hidden_size", SIZE),
    "input_embed_dim": ("codebook_dim", SIZE),
    "shared_tok_emb": ("shared_table", FLAG),
    "shared_cls_emb": ("shared_classifier", FLAG),
    "cumsum_depth_ctx": ("cumulative_depth_context", FLAG),
    "vocab_size_cond": ("condition_vocab_size", SIZE),
    "block_size_cond": ("num_condition_positions", SIZE),
    "embd_pdrop": ("embedding_dropout", SHARE),
}
_TYPE = "rq-transformer"
_SPECIAL = {
    "type": TEXT,
    "vocab_size": either(SIZE, SIZES),
    "block_size": SIZES,
    "input_emb_vqvae": FLAG,
    "head_emb_vqvae": FLAG,
    "body": MAPPING,
    "head": MAPPING,
    "ema": ANYTHING,
}
_BLOCK = {
    "n_head": SIZE,
    "gelu": TEXT,
    "attn_pdrop": SHARE,
    "resid_pdrop": SHARE,
    "attn_bias": FLAG,
    "mlp_bias": FLAG,
    "embed_dim": SIZE,
}


def _block_arguments(arguments: Mapping, half: str) -> tuple[int, dict]:
    """Number of layers and block arguments of `body` or `head`."""
    stack = arguments[half]
    kinds = {"n_layer": SIZE, "block": MAPPING}
    take_arguments(stack, {}, kinds, f"{ORIGIN}, {half}", required=tuple(kinds))
    block = dict(stack["block"])
    take_arguments(block, {}, _BLOCK, f"{ORIGIN}, {half}.block", required=("n_head",))
    for key in ("attn_bias", "mlp_bias"):
        if not block.pop(key, True):
            raise ValueError(f"{half}.block.{key} must be True: models without biases are not supported, got False.")
    return stack["n_layer"], block


def _activation(gelu: str) -> str:
    names = {"v1": "gelu", "v2": "quick_gelu"}
    if gelu not in names:
        raise ValueError(f"block.gelu must be one of {sorted(names)}, got {gelu!r}.")
    return names[gelu]


def configuration_from_original(arguments: Mapping, shared_codebook: bool) -> RQTransformerConfig:
    """Configuration of the original's architecture arguments (the `arch` part of its YAML files).

    Raises:
        ValueError: an argument is unknown, or one that the original cannot run with either.
    """
    fields = take_arguments(arguments, _NAMES, _SPECIAL, ORIGIN, ("vocab_size", "block_size", "body", "head"))
    if arguments.get("type", _TYPE) != _TYPE:
        raise ValueError(f"{ORIGIN}: argument 'type' must be {_TYPE!r}, got {arguments['type']!r}.")
    vocab_size = arguments["vocab_size"]
    sizes = {vocab_size} if isinstance(vocab_size, int) else set(vocab_size)
    if len(sizes) != 1:
        raise ValueError(f"vocab_size must be the same at every depth, got {vocab_size}.")
    *cells, depth = arguments["block_size"]
    body_layers, body = _block_arguments(arguments, "body")
    head_layers, head = _block_arguments(arguments, "head")
    for name, default in (("gelu", "v1"), ("attn_pdrop", 0.0), ("resid_pdrop", 0.0)):
        if body.get(name, default) != head.get(name, default):
            raise ValueError(f"body.block.{name} and head.block.{name} must agree, got {body} and {head}.")
    fields.setdefault("codebook_dim", fields.get("hidden_size", RQTransformerConfig.codebook_dim))
    length, classes = fields.get("num_condition_positions", 1), fields.get("condition_vocab_size", 1)
    return RQTransformerConfig(
        **fields,
        vocab_size=sizes.pop(),
        num_positions=math.prod(cells),
        num_quantizers=depth,
        num_hidden_layers=body_layers,
        num_attention_heads=body["n_head"],
        head_num_hidden_layers=head_layers,
        head_num_attention_heads=head["n_head"],
        code_embedding="codebook" if arguments.get("input_emb_vqvae", False) else "table",
        head_code_embedding="codebook" if arguments.get("head_emb_vqvae", False) else "table",
        shared_codebook=shared_codebook,
        conditioning="sequence" if length > 1 else "class" if classes > 1 else "none",
        activation=_activation(body.get("gelu", "v1")),
        attention_dropout=body.get("attn_pdrop", 0.0),
        residual_dropout=body.get("resid_pdrop", 0.0),
    )


def codebooks_from_original(state_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Codewords of an original RQ-VAE's quantizer (`codebooks.{depth}.weight`, whose last row is padding).

    Returns:
        (1, codeword, dim) where all depths share one codebook, else (depth, codeword, dim).

    Raises:
        ValueError: there are none, or their sizes differ.
    """
    depths = 1 + max((int(match[1]) for key in state_dict if (match := _CODEBOOK.match(key))), default=0)
    names = [f"codebooks.{depth}.weight" for depth in range(depths)]
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(f"The original RQ-VAE quantizer does not fit: missing key {missing[0]!r}.")
    tables = [state_dict[name][:-1] for name in names]
    if len({table.shape for table in tables}) > 1:
        raise ValueError(f"All codebooks must have one size, got {[tuple(table.shape) for table in tables]}.")
    shared = all(torch.equal(table, tables[0]) for table in tables)
    return torch.stack(tables[:1] if shared else tables).clone()


def _configure(arguments: Mapping, state_dict: Mapping, codebooks: torch.Tensor | None = None) -> dict:
    config = configuration_from_original(arguments, codebooks is not None and len(codebooks) == 1)
    if config.uses_codebook and codebooks is None:
        raise ValueError("codebooks are required: input_emb_vqvae or head_emb_vqvae is True, got None.")
    return {"config": config}


def _set_codebooks(model: nn.Module, codebooks: torch.Tensor | None = None) -> None:
    if model.config.uses_codebook:
        model.set_codebooks(codebooks)


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    ours = rename_keys(tensors, TABLE, ORIGIN)
    # The codec's codewords belong to its own checkpoint: ours holds them too, given beside.
    beside = {} if model.codebooks is None else {"codebooks": model.codebooks}
    return ours | {name: ours[name].squeeze(0) for name in _POSITIONS} | beside


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    config = model.config
    kept = {key: value for key, value in tensors.items() if key != "codebooks"}
    original = rename_keys(kept, TABLE, ORIGIN, reverse=True)
    for name in _ORIGINAL_POSITIONS:
        original[name] = original[name].unsqueeze(0)
    if config.uses_table and not config.shared_table:
        original[_OFFSETS] = torch.arange(config.num_quantizers) * config.vocab_size
    return original


def _check_conditioning(model: nn.Module) -> None:
    if model.config.conditioning == "mel":
        raise ValueError('conditioning="mel" has no original; only "none", "class" and "sequence" do.')


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    _configure,
    _to_ours,
    _to_original,
    container="state_dict",
    options=("codebooks",),
    fill=_set_codebooks,
    check=_check_conditioning,
)

__all__ = ["ORIGINAL_FORMAT", "codebooks_from_original", "configuration_from_original"]
