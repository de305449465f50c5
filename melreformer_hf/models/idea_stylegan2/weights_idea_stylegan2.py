"""Original checkpoints of StyleGAN2 (rosinality/stylegan2-pytorch), both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.nn.configuration import mel_config_of
from melreformer_hf.nn.resample2d import fir_kernel
from melreformer_hf.originals.arguments import (
    MAPPING,
    NONE,
    NUMBER,
    POSITIVE,
    SIZE,
    Kind,
    check_argument,
    either,
    several,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original StyleGAN2 generator"
_COARSEST = 4
_NAMES = {
    "style_dim": ("style_size", SIZE),
    "n_mlp": ("num_mapping_layers", SIZE),
    "lr_mlp": ("mapping_rate_multiplier", POSITIVE),
    "blur_kernel": ("blur_taps", several(NUMBER)),
}
ARGUMENTS = {"size": SIZE, "channel_multiplier": SIZE, "channels": either(MAPPING, NONE)}


def channels_from_original(arguments: Mapping) -> tuple[int, ...]:
    """Widths per resolution, from 4 up to `size`.

    Args:
        arguments: `size`, a power of two from 4; `channel_multiplier` (2); where a fork changed the original's table,
            `channels` from resolution to width.

    Raises:
        ValueError: no size, or one that is no power of two or not in the table.
    """
    size = arguments.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < _COARSEST or size & (size - 1):
        raise ValueError(f"size must be a power of two of at least {_COARSEST}, got {size!r}.")
    sizes = [_COARSEST * 2**level for level in range(size.bit_length() - _COARSEST.bit_length() + 1)]
    if arguments.get("channels") is not None:
        table = _table_of_widths(arguments["channels"])
    else:
        multiplier = arguments.get("channel_multiplier", 2)
        table = {key: 512 if key <= 32 else 16384 // key * multiplier for key in (2**n for n in range(2, 11))}
    missing = [key for key in sizes if key not in table]
    if missing:
        raise ValueError(f"channels must name a width for every resolution up to size={size}, {missing} are missing.")
    return tuple(table[key] for key in sizes)


def _table_of_widths(channels: Mapping) -> dict[int, int]:
    table = {}
    for key, width in channels.items():
        check_argument("channels", str(key), Kind("named by resolutions", str.isdecimal), ORIGIN)
        check_argument(f"channels[{key}]", width, SIZE, ORIGIN)
        table[int(key)] = width
    return table


def configuration_from_original(arguments: Mapping, mel: Mapping | None = None) -> IdeaStyleGan2Config:
    """Configuration of the arguments of the original's `Generator`: color pictures, square, without durations.

    Raises:
        ValueError: an argument is unknown or missing, or contradicts `mel`.
    """
    fields = take_arguments(arguments, _NAMES, ARGUMENTS, ORIGIN, required=("size", "style_dim", "n_mlp"))
    channels, size = channels_from_original(arguments), arguments["size"]
    contract = mel_config_of(None if mel is None else dict(mel), **({"num_mel_bins": size} if mel is None else {}))
    if contract.num_mel_bins != size:
        raise ValueError(f"size must be the mel contract's num_mel_bins, {contract.num_mel_bins}, got {size}.")
    return IdeaStyleGan2Config(
        **fields,
        mel=contract.to_dict(),
        num_columns=size,
        num_channels=3,
        channels=channels,
        predict_duration=False,
    )


def _styled(original: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{original}conv.weight", f"{ours}conv.weight"),
        (f"{original}conv.modulation.", f"{ours}conv.modulation."),
        (f"{original}noise.weight", f"{ours}noise_strength"),
        (f"{original}activate.bias", f"{ours}bias"),
    ]


def _to_picture(original: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{original}conv.weight", f"{ours}conv.weight"),
        (f"{original}conv.modulation.", f"{ours}conv.modulation."),
        (f"{original}bias", f"{ours}bias"),
    ]


def key_table(config: IdeaStyleGan2Config) -> list[tuple[str, str]]:
    """(original, ours) names; the original counts convolutions and noises through all resolutions."""
    rows = [(f"style.{layer + 1}.", f"mapping.layers.{layer}.") for layer in range(config.num_mapping_layers)]
    rows += [
        ("input.input", "synthesis.constant"),
        ("noises.noise_0", "synthesis.blocks.0.conv.constant_noise"),
        *_styled("conv1.", "synthesis.blocks.0.conv."),
        *_to_picture("to_rgb1.", "synthesis.blocks.0.to_picture."),
    ]
    for level in range(1, len(config.channels)):
        ours, number = f"synthesis.blocks.{level}.", 2 * (level - 1)
        rows += [
            (f"noises.noise_{number + 1}", f"{ours}up.constant_noise"),
            (f"noises.noise_{number + 2}", f"{ours}conv.constant_noise"),
            *_styled(f"convs.{number}.", f"{ours}up."),
            *_styled(f"convs.{number + 1}.", f"{ours}conv."),
            *_to_picture(f"to_rgbs.{level - 1}.", f"{ours}to_picture."),
        ]
    return rows


def _kernels(config: IdeaStyleGan2Config) -> dict[str, torch.Tensor]:
    """The filters that the original stores, by its names."""
    kernel = fir_kernel(config.blur_taps, gain=4.0)
    names = [
        name
        for level in range(len(config.channels) - 1)
        for name in (f"convs.{2 * level}.conv.blur.kernel", f"to_rgbs.{level}.upsample.kernel")
    ]
    return {name: kernel.clone() for name in names}


def _to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    shaped = {"style_mean": model.style_mean}  # the original measures it anew each time, see `_measure`
    for key, value in rename_keys(tensors, key_table(model.config), ORIGIN).items():
        if key.endswith(".conv.weight"):
            value = value[0]
        elif key.endswith(".to_picture.bias"):
            value = value[0, :, 0, 0]
        shaped[key] = value
    return shaped


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    config, shaped = model.config, {}
    for key, value in tensors.items():
        if key == "style_mean":
            continue
        if key.endswith(".conv.weight"):
            value = value[None]
        elif key.endswith(".to_picture.bias"):
            value = value[None, :, None, None]
        shaped[key] = value
    return {**rename_keys(shaped, key_table(config), ORIGIN, reverse=True), **_kernels(config)}


def _check_shape(model: nn.Module) -> None:
    config = model.config
    if config.predict_duration or config.num_channels != 3 or tuple(config.coarsest_shape) != (4, 4):
        raise ValueError(
            "The original makes square pictures from 4 x 4 up, of three channels, without durations; this model "
            f"begins at {config.coarsest_shape} and has num_channels={config.num_channels}, "
            f"predict_duration={config.predict_duration}."
        )


def _measure(model: nn.Module) -> None:
    model.measure_style_mean(generator=torch.Generator().manual_seed(0))


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict, mel=None: {"config": configuration_from_original(arguments, mel)},
    _to_ours,
    _to_original,
    container="g_ema",
    options=("mel",),
    finish=_measure,
    check=_check_shape,
)

__all__ = ["ARGUMENTS", "ORIGINAL_FORMAT", "channels_from_original", "configuration_from_original"]
