"""Original checkpoints of MelSpec_GPT_VQVAE's class GPT (karchkha), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.nn.gpt import GPT_TABLE, original_mask
from melreformer_hf.originals.arguments import COUNT, SHARE, SIZE, take_arguments
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
        ValueError: an argument is unknown.
    """
    fields = take_arguments(arguments, _NAMES, {"n_unmasked": COUNT}, ORIGIN)
    if arguments.get("n_unmasked", 0) != 0:
        raise ValueError(f"n_unmasked must be 0 for a causal model, got {arguments['n_unmasked']}.")
    if "num_tokens" in fields:
        fields["num_tokens"] -= 1
    return ClassGptConfig(**fields)


def transformer_of(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of the original `GPTClass`, and what they are, for messages.

    Lightning checkpoints hold them under `transformer.`; what else they hold (the frozen VQ-VAE) is not read.
    """
    prefix = "transformer."
    if not any(key.startswith(prefix) for key in state_dict):
        return dict(state_dict), ORIGIN
    kept = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    return kept, f"{ORIGIN} ({prefix}...)"


def to_ours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the original `GPTClass`, without its masks, under our names."""
    ours = rename_keys(state_dict, TABLE, ORIGIN)
    return ours | {_POSITIONS: ours[_POSITIONS].squeeze(0)}


def to_original(state_dict: Mapping[str, torch.Tensor], config: ClassGptConfig) -> dict[str, torch.Tensor]:
    """Our tensors under the original's names, with its mask buffers."""
    original = {key: value.clone() for key, value in rename_keys(state_dict, TABLE, ORIGIN, reverse=True).items()}
    original["pos_emb"] = original["pos_emb"].unsqueeze(0)
    for layer in range(config.num_hidden_layers):
        original[f"blocks.{layer}.attn.mask"] = original_mask(config.num_tokens + 1, True)
    return original


__all__ = ["configuration_from_original", "to_original", "to_ours", "transformer_of"]
