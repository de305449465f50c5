"""Original checkpoints of MelSpec_GPT_VQVAE's class GPT (karchkha), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.nn.gpt import GPT_TABLE, original_mask, take_original_masks
from melreformer_hf.nn.renaming import rename_keys, take_arguments

ORIGIN = "original class GPT"
TABLE = [*GPT_TABLE, ("embedder.weight", "class_embedding.weight")]
_NAMES = {
    "vocab_size": "vocab_size",
    "block_size": "num_tokens",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "class_size": "num_classes",
    "embd_pdrop": "embedding_dropout",
    "resid_pdrop": "residual_dropout",
    "attn_pdrop": "attention_dropout",
}


def configuration_from_original(arguments: Mapping) -> ClassGptConfig:
    """Configuration of the original's arguments; its `block_size` counts the class's position.

    Raises:
        ValueError: an argument is unknown.
    """
    fields = take_arguments(arguments, _NAMES, ("n_unmasked",), ORIGIN)
    if arguments.get("n_unmasked", 0) != 0:
        raise ValueError(f"n_unmasked must be 0 for a causal model, got {arguments['n_unmasked']}.")
    if "num_tokens" in fields:
        fields["num_tokens"] -= 1
    return ClassGptConfig(**fields)


def to_ours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's tensors under our names; Lightning checkpoints hold them under `transformer.`.

    What else a Lightning checkpoint holds (the frozen VQ-VAE) belongs to other models and is not read.
    """
    prefix = "transformer."
    if "transformer.tok_emb.weight" in state_dict:
        state_dict = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    ours = rename_keys(take_original_masks(dict(state_dict), True, ORIGIN), TABLE, ORIGIN)
    name = "backbone.position_embedding.weight"
    if name in ours and ours[name].ndim == 3:
        ours[name] = ours[name].squeeze(0)
    return ours


def to_original(state_dict: Mapping[str, torch.Tensor], config: ClassGptConfig) -> dict[str, torch.Tensor]:
    """Our tensors under the original's names, with its mask buffers."""
    original = {key: value.clone() for key, value in rename_keys(state_dict, TABLE, ORIGIN, reverse=True).items()}
    original["pos_emb"] = original["pos_emb"].unsqueeze(0)
    for layer in range(config.num_hidden_layers):
        original[f"blocks.{layer}.attn.mask"] = original_mask(config.num_tokens + 1, True)
    return original


__all__ = ["ORIGIN", "configuration_from_original", "to_original", "to_ours"]
