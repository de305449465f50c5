"""Original checkpoints of MelSpec_GPT_VQVAE's class GPT (karchkha), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.nn.gpt import GPT_TABLE, original_mask
from melreformer_hf.originals.arguments import COUNT, NONE, SHARE, SIZE, either, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original class GPT"
TABLE = [*GPT_TABLE, ("embedder.weight", "class_embedding.weight")]
_POSITIONS = "backbone.position_embedding.weight"
_NAMES = {
    "vocab_size": ("vocab_size", SIZE),
    "block_size": ("num_tokens", SIZE),
    "n_layer": ("num_hidden_layers", SIZE),
    "n_head": ("num_attention_heads", SIZE),
    "n_embd": ("hidden_size", SIZE),
    "class_size": ("num_classes", SIZE),
    "embd_pdrop": ("embedding_dropout", SHARE),
    "resid_pdrop": ("residual_dropout", SHARE),
    "attn_pdrop": ("attention_dropout", SHARE),
}


def configuration_from_original(arguments: Mapping) -> ClassGptConfig:
    """Configuration of the original's arguments; its `block_size` counts the class's position.

    Raises:
        ValueError: an argument is unknown, or makes no language model.
    """
    others = {"n_unmasked": COUNT, "last_linear": either(SIZE, NONE)}
    fields = take_arguments(arguments, _NAMES, others, ORIGIN)
    if arguments.get("n_unmasked", 0) > 1:
        raise ValueError(
            "n_unmasked must be 0 or 1: the first positions would see the very tokens that they are to predict, so that "
            f"nothing can be generated, got {arguments['n_unmasked']}."
        )
    vocabulary = fields.get("vocab_size", ClassGptConfig.vocab_size)
    if arguments.get("last_linear") not in (None, vocabulary):
        raise ValueError(
            f"last_linear must be None or vocab_size, {vocabulary}: the outputs are the logits of tokens, got "
            f"{arguments['last_linear']}."
        )
    if "num_tokens" in fields:
        fields["num_tokens"] -= 1
    return ClassGptConfig(**fields)


def _transformer_of(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the original `GPTClass`.

    Lightning checkpoints hold them under `transformer.`; what else they hold (the frozen VQ-VAE) is not read.
    """
    prefix = "transformer."
    if not any(key.startswith(prefix) for key in state_dict):
        return dict(state_dict)
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    ours = rename_keys(tensors, TABLE, ORIGIN)
    # The original's positions are (1, position, hidden), ours an embedding's (position, hidden).
    return ours | {_POSITIONS: ours[_POSITIONS].squeeze(0)}


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    original = rename_keys(tensors, TABLE, ORIGIN, reverse=True)
    original["pos_emb"] = original["pos_emb"].unsqueeze(0)
    for layer in range(model.config.num_hidden_layers):
        original[f"blocks.{layer}.attn.mask"] = original_mask(model.config.num_tokens + 1, True)
    return original


def _check(model: nn.Module) -> None:
    for name in ("null_class", "any_order"):
        if getattr(model.config, name):
            raise ValueError(f"{name} must be False for the {ORIGIN}, which has no such thing, got True.")


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict: {"config": configuration_from_original(arguments)},
    _to_ours,
    _to_original,
    container="state_dict",
    part=_transformer_of,
    check=_check,
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original"]
