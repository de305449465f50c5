"""Original checkpoints of MelSpec_VQVAE (karchkha), whose keys are those of taming-transformers, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.originals.arguments import AMOUNT, EMPTY, FLAG, SHARE, SIZE, SIZES, either, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

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
    ("_vq_vae._embedding.weight", "quantizer.codebooks.0.codewords"),
]
_NAMES = {
    "ch": ("base_channels", SIZE),
    "ch_mult": ("channel_multipliers", SIZES),
    "num_res_blocks": ("num_residual_blocks", SIZE),
    "attn_resolutions": ("attention_resolutions", either(SIZES, EMPTY)),
    "resolution": ("resolution", SIZE),
    "z_channels": ("latent_channels", SIZE),
    "num_embeddings": ("codebook_size", SIZE),
    "embedding_dim": ("codebook_dim", SIZE),
    "commitment_cost": ("commitment_weight", AMOUNT),
    "group_norm_groups": ("num_norm_groups", SIZE),
    "dropout": ("dropout", SHARE),
    "resamp_with_conv": ("resample_with_conv", FLAG),
}
_WITHOUT_FIELD = {name: SIZE for name in ("disc_ndf", "disc_in_channels", "disc_num_layers", "in_channels", "out_ch")}
_WITHOUT_FIELD |= {"double_z": FLAG, "give_pre_end": FLAG}


def configuration_from_original(arguments: Mapping, mel: Mapping | None) -> MelVqvaeConfig:
    """Configuration of the original's arguments; what is absent has the published value.

    Raises:
        ValueError: an argument is unknown, or asks for more than one channel.
    """
    fields = take_arguments(arguments, _NAMES, _WITHOUT_FIELD, ORIGIN)
    for name in ("in_channels", "out_ch"):
        if arguments.get(name, 1) != 1:
            raise ValueError(f"{name} must be 1 (one mel), got {arguments[name]}.")
    if arguments.get("give_pre_end", False):
        raise ValueError("give_pre_end must be False: without its last layer the decoder makes no mel, got True.")
    if arguments.get("double_z", False):
        raise ValueError("double_z must be False: a vector-quantized model has no variance, got True.")
    return MelVqvaeConfig(**fields, mel=None if mel is None else dict(mel))


def _without_discriminator(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that more than training has."""
    return {key: value for key, value in state_dict.items() if not key.startswith("discriminator.")}


def _to_ours(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = rename_keys(state_dict, TABLE, ORIGIN)
    codewords = renamed.get("quantizer.codebooks.0.codewords")
    if codewords is not None:  # the original counts no uses: each codeword begins with one, and is trained
        renamed["quantizer.codebooks.0.cluster_size"] = torch.ones(len(codewords))
        renamed["quantizer.codebooks.0.initted"] = torch.tensor(True)
    return renamed


def _to_original(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {key: value for key, value in state_dict.items() if not key.endswith((".cluster_size", ".initted"))}
    return rename_keys(kept, TABLE, ORIGIN, reverse=True)


def _check(model: nn.Module) -> None:
    if model.config.patch_size != 1:
        raise ValueError(
            f"patch_size must be 1 for the {ORIGIN}, which sees single bins, got {model.config.patch_size}."
        )


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict, mel=None: {"config": configuration_from_original(arguments, mel)},
    lambda tensors, model: _to_ours(tensors),
    lambda tensors, model: _to_original(tensors),
    container="state_dict",
    part=_without_discriminator,
    options=("mel",),
    check=_check,
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original"]
