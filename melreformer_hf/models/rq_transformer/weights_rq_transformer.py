"""Original checkpoints of RQ-Transformer (kakaobrain/rq-vae-transformer), both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.rq_transformer.configuration_rq_transformer import RQTransformerConfig
from melreformer_hf.originals.arguments import (
    ANYTHING,
    COUNT,
    FLAG,
    MAPPING,
    NONE,
    SHARE,
    SIZE,
    SIZES,
    TEXT,
    Kind,
    either,
    several,
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
    "shared_tok_emb": ("shared_table", FLAG),
    "shared_cls_emb": ("shared_classifier", FLAG),
    "cumsum_depth_ctx": ("cumulative_depth_context", FLAG),
    "vocab_size_cond": ("condition_vocab_size", COUNT),
    "block_size_cond": ("num_condition_positions", COUNT),
    "embd_pdrop": ("embedding_dropout", SHARE),
}
_TYPE = "rq-transformer"
_SPECIAL = {
    "type": TEXT,
    "vocab_size": either(SIZE, SIZES),
    "block_size": several(SIZE, 3),
    "input_embed_dim": either(SIZE, NONE),
    "input_emb_vqvae": FLAG,
    "head_emb_vqvae": FLAG,
    "body": MAPPING,
    "head": MAPPING,
    "ema": ANYTHING,
    # Fields of the original's configuration that its model never reads.
    "ar_hierarchy": either(FLAG, NONE),
    "use_padding_emb": FLAG,
    "scaled_head_emb_vqvae": FLAG,
}
_GELUS = {"v1": "gelu", "v2": "quick_gelu"}
# What a block may be told, with the original's defaults.
_BLOCK: dict[str, tuple[Kind, object]] = {
    "gelu": (TEXT, "v1"),
    "attn_pdrop": (SHARE, 0.0),
    "resid_pdrop": (SHARE, 0.1),
    "attn_bias": (FLAG, True),
    "mlp_bias": (FLAG, True),
}


def _stack_fields(arguments: Mapping, half: str) -> dict:
    """Our fields, without prefix, of the original's `body` or `head`."""
    stack, origin = arguments[half], f"{ORIGIN}, {half}"
    kinds = {"n_layer": SIZE, "block": MAPPING}
    take_arguments(stack, {}, kinds, origin, required=tuple(kinds))
    block = stack["block"]
    kinds = {"n_head": SIZE, "embed_dim": SIZE} | {name: kind for name, (kind, _) in _BLOCK.items()}
    take_arguments(block, {}, kinds, f"{origin}.block", required=("n_head",))
    width = arguments["embed_dim"]
    if block.get("embed_dim", width) != width:
        raise ValueError(
            f"{half}.block.embed_dim must be embed_dim, {width} (the original adds what both make), got "
            f"{block['embed_dim']}."
        )
    values = {name: block.get(name, default) for name, (_, default) in _BLOCK.items()}
    if values["gelu"] not in _GELUS:
        raise ValueError(f"{half}.block.gelu must be one of {sorted(_GELUS)}, got {values['gelu']!r}.")
    return {
        "num_hidden_layers": stack["n_layer"],
        "num_attention_heads": block["n_head"],
        "activation": _GELUS[values["gelu"]],
        "attention_dropout": float(values["attn_pdrop"]),
        "residual_dropout": float(values["resid_pdrop"]),
        "attention_bias": values["attn_bias"],
        "mlp_bias": values["mlp_bias"],
    }


def configuration_from_original(arguments: Mapping, shared_codebook: bool) -> RQTransformerConfig:
    """Configuration of the original's architecture arguments (the `arch` part of its YAML files).

    Raises:
        ValueError: an argument is unknown, or one that the original cannot run with either.
    """
    fields = take_arguments(
        arguments, _NAMES, _SPECIAL, ORIGIN, ("vocab_size", "block_size", "embed_dim", "body", "head")
    )
    if arguments.get("type", _TYPE) != _TYPE:
        raise ValueError(f"{ORIGIN}: argument 'type' must be {_TYPE!r}, got {arguments['type']!r}.")
    vocab_size = arguments["vocab_size"]
    sizes = {vocab_size} if isinstance(vocab_size, int) else set(vocab_size)
    if len(sizes) != 1:
        raise ValueError(
            f"vocab_size must be the same at every depth (the original masks the wrong axis otherwise), got {vocab_size}."
        )
    rows, columns, depth = arguments["block_size"]
    # Nothing and 0 stand for the one start token.
    length = fields["num_condition_positions"] = max(1, fields.get("num_condition_positions", 0))
    classes = fields["condition_vocab_size"] = max(1, fields.get("condition_vocab_size", 0))
    in_head = arguments.get("head_emb_vqvae", False)
    # Learned tables are never summed over depths there, only codewords are.
    fields["cumulative_depth_context"] = fields.get("cumulative_depth_context", False) and in_head
    return RQTransformerConfig(
        **fields,
        **_stack_fields(arguments, "body"),
        **{f"head_{name}": value for name, value in _stack_fields(arguments, "head").items()},
        codebook_dim=arguments.get("input_embed_dim") or arguments["embed_dim"],
        vocab_size=sizes.pop(),
        num_positions=rows * columns,
        num_quantizers=depth,
        code_embedding="codebook" if arguments.get("input_emb_vqvae", False) else "table",
        head_code_embedding="codebook" if in_head else "table",
        shared_codebook=shared_codebook,
        conditioning="sequence" if length > 1 else "class" if classes > 1 else "none",
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


def _check(model: nn.Module) -> None:
    config = model.config
    if config.conditioning == "mel":
        raise ValueError('conditioning="mel" has no original; only "none", "class" and "sequence" do.')
    if config.cumulative_depth_context and config.head_code_embedding == "table":
        raise ValueError(
            'cumulative_depth_context has no original with head_code_embedding="table": it sums codewords only.'
        )


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    _configure,
    _to_ours,
    _to_original,
    container="state_dict",
    options=("codebooks",),
    fill=_set_codebooks,
    check=_check,
)

__all__ = ["ORIGINAL_FORMAT", "codebooks_from_original", "configuration_from_original"]
