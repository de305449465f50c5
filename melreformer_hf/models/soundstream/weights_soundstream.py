"""Original checkpoints of LumenPallidium/audio_generation's `CausalVQAE`, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.originals.arguments import ANYTHING, FLAG, NUMBER, SIZE, SIZES, TEXT, either, take_arguments
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original CausalVQAE"
_UPDATES = {"base": "gradient", "ema": "ema"}
_NAMES = {
    "in_channels": ("audio_channels", SIZE),
    "n_layers_per_block": ("num_residual_units", SIZE),
    "first_block_channels": ("base_channels", SIZE),
    "num_quantizers": ("num_quantizers", SIZE),
    "codebook_size": ("codebook_size", either(SIZE, SIZES)),
    "codebook_dim": ("hidden_size", SIZE),
    "vq_type": ("codebook_update", TEXT),
    "strides": ("strides", either(SIZE, SIZES)),
    "channel_multiplier": ("channel_multiplier", SIZE),
    "depthwise": ("depthwise", FLAG),
    "sample_rate": ("sampling_rate", SIZE),
}
_WITHOUT_FIELD = {
    "n_blocks": SIZE,
    "input_format": TEXT,
    "zero_center": FLAG,
    "use_energy_transformer": FLAG,
    "vq_cutoff_freq": NUMBER,
    "n_heads": SIZE,
    "context_length": SIZE,
    "norm": ANYTHING,
}
_WIDE = ("codewords", "vector_sum")


def configuration_from_original(arguments: Mapping) -> SoundStreamConfig:
    """Configuration of the original's arguments (and its file's `sample_rate`); what is absent has its defaults.

    Raises:
        ValueError: an argument is unknown, or asks for what the original cannot run or this codec does not have.
    """
    fields = take_arguments(arguments, _NAMES, _WITHOUT_FIELD, ORIGIN)
    refused = {
        "norm": (nn.Identity, "the original calls it without a size, so that it cannot normalize channels"),
        "input_format": ("n c l", "the original's other layout does not run"),
        "zero_center": (False, "the mean that is taken off and put back is not among the codes"),
        "use_energy_transformer": (False, "that bottleneck has no codes; see energy_stage of SoundStreamConfig"),
    }
    for name, (value, reason) in refused.items():
        if arguments.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r} ({reason}), got {arguments[name]!r}.")
    blocks = arguments.get("n_blocks", 4)
    strides = fields.get("strides", (2, 4, 5, 8))
    fields["strides"] = (strides,) * blocks if isinstance(strides, int) else tuple(strides)
    if len(fields["strides"]) != blocks:
        raise ValueError(f"strides must be one per block, n_blocks {blocks}, got {strides}.")
    fields["num_residual_units"] = fields.get("num_residual_units", 4) - 1
    if not isinstance(fields.get("codebook_size", 1024), int):
        fields["codebook_size"] = tuple(fields["codebook_size"])
    update = fields.get("codebook_update", "base")
    if update not in _UPDATES:
        raise ValueError(f"vq_type must be one of {sorted(_UPDATES)}, got {update!r}.")
    fields["codebook_update"] = _UPDATES[update]
    return SoundStreamConfig.preset("lumenpallidium", level_reduction="sum", gradient_path="every_level", **fields)


def _unit_rows(original: str, ours: str, depthwise: bool) -> list[tuple[str, str]]:
    first = [("conv1.0.", "gain."), ("conv1.1.", "conv1.")] if depthwise else [("conv1.", "conv1.")]
    return [(f"{original}{theirs}conv.", f"{ours}{own}") for theirs, own in [*first, ("conv2.", "conv2.")]]


def key_table(config: SoundStreamConfig) -> list[tuple[str, str]]:
    """Rows (original name, our name) of the convolutions, without weight norm, and of the codebooks."""
    count, units = len(config.strides), config.num_residual_units
    rows = [("encoders.0.1.conv.", "encoder.input_conv."), ("decoders.0.conv.", "decoder.input_conv.")]
    for block in range(count):
        theirs, ours = f"encoders.{block + 1}.layers.", f"encoder.blocks.{block}."
        rows.append((f"{theirs}{units}.0.conv.", f"{ours}downsample."))
        rows.append((f"decoders.{block + 1}.in_conv.0.conv.", f"decoder.blocks.{block}.upsample."))
        for unit in range(units):
            rows += _unit_rows(f"{theirs}{unit}.0.", f"{ours}stack.units.{unit}.", config.depthwise)
            decoder = (f"decoders.{block + 1}.layers.{unit}.0.", f"decoder.blocks.{block}.stack.units.{unit}.")
            rows += _unit_rows(*decoder, config.depthwise)
    rows += [(f"{half}s.{count + 1}.conv.", f"{half}.output_conv.") for half in ("encoder", "decoder")]
    tables = {"codebook": "codewords", "ema_codebook": "vector_sum", "cluster_frequency": "cluster_size"}
    books = "quantizer.quantizers.{N}.", "quantizer.codebooks.{N}."
    return rows + [(books[0] + theirs, books[1] + ours) for theirs, ours in tables.items()]


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    renamed = rename_keys(tensors, key_table(model.config), ORIGIN)
    for key in [key for key in renamed if key.startswith("quantizer.")]:
        if key.endswith(_WIDE):
            renamed[key] = renamed[key].transpose(-1, -2).contiguous()
        if key.endswith("codewords"):
            renamed[key.replace("codewords", "initted")] = torch.tensor(True)
    return renamed


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    kept = {key: value for key, value in tensors.items() if not key.endswith(".initted")}
    # The original's codebooks are (dim, codeword), ours (codeword, dim).
    kept = {key: value.transpose(-1, -2).contiguous() if key.endswith(_WIDE) else value for key, value in kept.items()}
    return rename_keys(kept, key_table(model.config), ORIGIN, reverse=True)


def _check_parts(model: nn.Module) -> None:
    config = model.config
    for name in ("wavelet_blocks", "multires_depth", "codebook_dim", "som_radius"):
        if getattr(config, name):
            raise ValueError(f"The original has no {name}, this codec has {getattr(config, name)}.")
    if config.energy_stage != "none":
        raise ValueError(f"The original has no energy_stage beside its codebooks, got {config.energy_stage!r}.")


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict: {"config": configuration_from_original(arguments)},
    _to_ours,
    _to_original,
    weight_norm=True,
    normed=lambda key, model: key.endswith(".weight"),
    check=_check_parts,
)

__all__ = ["ORIGINAL_FORMAT", "configuration_from_original", "key_table"]
