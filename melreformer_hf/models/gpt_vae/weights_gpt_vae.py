"""Original checkpoints of MelSpec_GPT_VQVAE's GPT-VAE (karchkha), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.gpt_vae.configuration_gpt_vae import FREE_BITS, GptVaeConfig
from melreformer_hf.nn.gpt import GPT_TABLE, original_mask
from melreformer_hf.originals.arguments import COUNT, NUMBER, SHARE, SIZE, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original GPT-VAE"
TABLE = [
    (f"{half}.transformer.{original}", f"{half}.{ours}")
    for half in ("encoder", "decoder")
    for original, ours in GPT_TABLE
]
_NAMES = {
    "vocab_size": ("vocab_size", SIZE),
    "block_size": ("num_tokens", SIZE),
    "n_layer": ("num_hidden_layers", SIZE),
    "n_head": ("num_attention_heads", SIZE),
    "n_embd": ("hidden_size", SIZE),
    "fix_var": ("fixed_variance", NUMBER),
    "embd_pdrop": ("embedding_dropout", SHARE),
    "resid_pdrop": ("residual_dropout", SHARE),
    "attn_pdrop": ("attention_dropout", SHARE),
    "fb": ("free_bits", COUNT),
    "target_kl": ("target_kl", NUMBER),
}
_LOSS_WEIGHT = "decoder.loss.weight"


def configuration_from_original(arguments: Mapping) -> GptVaeConfig:
    """Configuration of the original's arguments; its `fb` is 0 none, 1 sample, 2 dimension, 3 batch.

    Raises:
        ValueError: an argument is unknown or out of range.
    """
    fields = take_arguments(arguments, _NAMES, {}, ORIGIN)
    if "free_bits" in fields:
        if fields["free_bits"] not in range(len(FREE_BITS)):
            raise ValueError(f"fb must be 0 to {len(FREE_BITS) - 1}, got {fields['free_bits']!r}.")
        fields["free_bits"] = FREE_BITS[fields["free_bits"]]
    if "target_kl" in fields:  # the original's -1 switches the threshold off
        fields["target_kl"] = max(0.0, float(fields["target_kl"]))
    if "fixed_variance" in fields:
        fields["fixed_variance"] = max(0.0, float(fields["fixed_variance"]))
    return GptVaeConfig(**fields)


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    ours = rename_keys(tensors, TABLE, ORIGIN)
    names = [f"{half}.backbone.position_embedding.weight" for half in ("encoder", "decoder")]
    return ours | {name: ours[name].squeeze(0) for name in names}


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    config = model.config
    original = rename_keys(tensors, TABLE, ORIGIN, reverse=True)
    # The encoder sees no latent in front of its tokens: it has one position less, and its mask hides nothing.
    for half, positions, causal in (("encoder", config.num_tokens, False), ("decoder", config.num_tokens + 1, True)):
        stem = f"{half}.transformer"
        original[f"{stem}.pos_emb"] = original[f"{stem}.pos_emb"].unsqueeze(0)
        for layer in range(config.num_hidden_layers):
            original[f"{stem}.blocks.{layer}.attn.mask"] = original_mask(positions, causal)
    original[_LOSS_WEIGHT] = torch.ones(config.vocab_size)
    return original


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict: {"config": configuration_from_original(arguments)},
    _to_ours,
    _to_original,
    container="state_dict",
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original"]
