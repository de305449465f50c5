"""Original checkpoints of MelSpec_VQVAE (karchkha), whose keys are those of taming-transformers, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.nn.renaming import rename_keys, take_arguments

ORIGIN = "original mel VQ-VAE"


def _block(original: str, ours: str) -> list[tuple[str, str]]:
    same = [(f"{original}{name}.", f"{ours}{name}.") for name in ("norm1", "conv1", "norm2", "conv2")]
    return [*same, (f"{original}nin_shortcut.", f"{ours}shortcut.")]


def _attention(original: str, ours: str) -> list[tuple[str, str]]:
    names = {"norm": "norm", "q": "query", "k": "key", "v": "value", "proj_out": "out"}
    return [(f"{original}{theirs}.", f"{ours}{own}.") for theirs, own in names.items()]


def _half(original: str, ours: str, levels: str, resample: str) -> list[tuple[str, str]]:
    return [
        *[(f"{original}{name}.", f"{ours}{name}.") for name in ("conv_in", "norm_out", "conv_out")],
        *_block(f"{original}mid.block_1.", f"{ours}middle.block1."),
        *_attention(f"{original}mid.attn_1.", f"{ours}middle.attention."),
        *_block(f"{original}mid.block_2.", f"{ours}middle.block2."),
        *_block(f"{original}{levels}.{{N}}.block.{{N}}.", f"{ours}levels.{{N}}.blocks.{{N}}."),
        *_attention(f"{original}{levels}.{{N}}.attn.{{N}}.", f"{ours}levels.{{N}}.attentions.{{N}}."),
        (f"{original}{levels}.{{N}}.{resample}.conv.", f"{ours}levels.{{N}}.resample.conv."),
    ]


TABLE = [
    *_half("_encoder.", "encoder.", "down", "downsample"),
    *_half("_decoder.", "decoder.", "up", "upsample"),
    ("quant_conv.", "quant_conv."),
    ("post_quant_conv.", "post_quant_conv."),
    ("_vq_vae._embedding.weight", "quantizer.codebook.weight"),
]
_NAMES = {
    "ch": "base_channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "num_residual_blocks",
    "attn_resolutions": "attention_resolutions",
    "resolution": "resolution",
    "z_channels": "latent_channels",
    "num_embeddings": "codebook_size",
    "embedding_dim": "codebook_dim",
    "commitment_cost": "commitment_weight",
    "group_norm_groups": "num_norm_groups",
    "dropout": "dropout",
}
_TRAINING_ONLY = ("disc_ndf", "disc_in_channels", "disc_num_layers", "in_channels", "out_ch", "double_z")


def configuration_from_original(arguments: Mapping, mel: Mapping | None) -> MelVqvaeConfig:
    """Configuration of the original's arguments; what is absent has the published value.

    Raises:
        ValueError: an argument is unknown, or asks for more than one channel.
    """
    for name in ("in_channels", "out_ch"):
        if arguments.get(name, 1) != 1:
            raise ValueError(f"{name} must be 1 (one mel), got {arguments[name]}.")
    if arguments.get("double_z", False):
        raise ValueError("double_z must be False: a vector-quantised model has no variance, got True.")
    fields = take_arguments(arguments, _NAMES, _TRAINING_ONLY, ORIGIN)
    return MelVqvaeConfig(**fields, mel=None if mel is None else dict(mel))


def to_ours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's tensors under our names. The discriminator, which only training has, is left out."""
    kept = {key: value for key, value in state_dict.items() if not key.startswith("discriminator.")}
    return rename_keys(kept, TABLE, ORIGIN)


def to_original(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under the original's names."""
    return {key: value.clone() for key, value in rename_keys(state_dict, TABLE, ORIGIN, reverse=True).items()}


__all__ = ["configuration_from_original", "to_original", "to_ours"]
