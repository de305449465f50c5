"""Original checkpoints of HiFi-GAN (jik876/hifi-gan) and HiFiHybrid (TariqAHassan/HiFiHybrid), both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.originals.arguments import (
    AMOUNT,
    COUNT,
    MAPPING,
    NONE,
    NUMBER,
    POSITIVE,
    SIZE,
    SIZES,
    TEXT,
    either,
    several,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original HiFi-GAN or HiFiHybrid generator"
_HIFIHYBRID = [
    ("initial_block.", "input_conv."),
    ("final_block.conv.", "output_conv."),
    ("final_block.activation.alpha", "output_activation.alpha"),
    ("final_block.activation.lowpass_conv0.low_pass", "output_activation.filter_before"),
    ("final_block.activation.lowpass_conv1.low_pass", "output_activation.filter_after"),
    ("blocks.{N}.tconv.", "stages.{N}.upsample."),
    ("blocks.{N}.amp_complex.amps.{N}.convs.{N}.", "stages.{N}.blocks.{N}.convs.{N}."),
    ("blocks.{N}.amp_complex.amps.{N}.activation.alpha", "stages.{N}.blocks.{N}.activation.alpha"),
    (
        "blocks.{N}.amp_complex.amps.{N}.activation.lowpass_conv0.low_pass",
        "stages.{N}.blocks.{N}.activation.filter_before",
    ),
    (
        "blocks.{N}.amp_complex.amps.{N}.activation.lowpass_conv1.low_pass",
        "stages.{N}.blocks.{N}.activation.filter_after",
    ),
]
# Beginnings of names, any of which tells an original from the other.
_MARKS = {
    "hifigan": ("conv_pre.", "conv_post.", "ups.", "resblocks."),
    "hifihybrid": ("initial_block.", "final_block.", "blocks."),
}

_MEL_NAMES = {
    "sampling_rate": ("sampling_rate", SIZE),
    "n_fft": ("n_fft", SIZE),
    "win_size": ("win_length", SIZE),
    "num_mels": ("num_mel_bins", SIZE),
    "fmin": ("fmin", AMOUNT),
    "fmax": ("fmax", either(POSITIVE, NONE)),
}
_HIFIGAN_NAMES = {
    "resblock": ("resblock_type", either(TEXT, SIZE)),
    "upsample_rates": ("upsample_rates", SIZES),
    "upsample_kernel_sizes": ("upsample_kernel_sizes", SIZES),
    "upsample_initial_channel": ("upsample_initial_channels", SIZE),
    "resblock_kernel_sizes": ("resblock_kernel_sizes", SIZES),
    "resblock_dilation_sizes": ("resblock_dilations", several(SIZES)),
}
_HIFIHYBRID_NAMES = {
    "initial_channels": ("upsample_initial_channels", SIZE),
    "stride_sizes": ("upsample_rates", SIZES),
    "amp_kernel_sizes": ("resblock_kernel_sizes", SIZES),
    "amp_dilation_sizes": ("resblock_dilations", several(SIZES)),
}
# Entries of HiFi-GAN's file that only training reads.
_HIFIGAN_UNUSED = {
    **dict.fromkeys(("num_gpus", "batch_size", "learning_rate", "adam_b1", "adam_b2", "lr_decay", "seed"), NUMBER),
    **dict.fromkeys(("segment_size", "num_freq", "num_workers"), COUNT),
    "fmax_for_loss": either(POSITIVE, NONE),
    "dist_config": MAPPING,
    "hop_size": SIZE,
}
_HIFIHYBRID_UNUSED = {"n_frames": SIZE}  # sets a width that cancels out of the filters


def key_table(config: HifiVocoderConfig) -> list[tuple[str, str]]:
    """(original, ours) beginnings of names; HiFi-GAN numbers the residual blocks of all stages in one row."""
    if config.architecture == "hifihybrid":
        return _HIFIHYBRID
    rows = [("conv_pre.", "input_conv."), ("conv_post.", "output_conv."), ("ups.{N}.", "stages.{N}.upsample.")]
    convs = {"convs1": "dilated", "convs2": "plain"} if config.resblock_type == "1" else {"convs": "dilated"}
    parallel = len(config.resblock_kernel_sizes)
    for number in range(len(config.upsample_rates) * parallel):
        ours = f"stages.{number // parallel}.blocks.{number % parallel}."
        rows += [(f"resblocks.{number}.{a}.{{N}}.", f"{ours}{b}.{{N}}.") for a, b in convs.items()]
    return rows


def architecture_of(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Which original a state dict comes from.

    Raises:
        ValueError: it is neither's.
    """
    for architecture, marks in _MARKS.items():
        if any(key.startswith(marks) for key in state_dict):
            return architecture
    raise ValueError(
        "The checkpoint is neither HiFi-GAN's (conv_pre.*) nor HiFiHybrid's (initial_block.*); its first keys are "
        f"{list(state_dict)[:3]}. Pass the generator's state dict."
    )


def configuration_from_original(architecture: str, arguments: Mapping) -> HifiVocoderConfig:
    """Configuration of an original's arguments.

    HiFi-GAN's are the entries of its `config.json` (mel entries included); HiFiHybrid's are those of its `Generator`.
    Where the hop is not among them it is the product of the rates.

    Raises:
        ValueError: an argument is unknown, or they contradict each other.
    """
    hifigan = architecture == "hifigan"
    names = _HIFIGAN_NAMES if hifigan else _HIFIHYBRID_NAMES
    mels = _MEL_NAMES if hifigan else {"n_mels": ("num_mel_bins", SIZE)}
    unused = _HIFIGAN_UNUSED if hifigan else _HIFIHYBRID_UNUSED
    everything = take_arguments(arguments, {**names, **mels}, unused, f"original {architecture}")
    fields = {ours: everything[ours] for ours, _ in names.values() if ours in everything}
    base = HifiVocoderConfig.preset("hifigan_v1" if hifigan else "hifihybrid").to_dict()
    for name in fields.keys() | {"architecture"}:
        base[name] = fields.get(name, base[name])
    ours = {ours for ours, _ in _HIFIGAN_NAMES.values()}
    chosen = {name: base[name] for name in {"architecture", "initializer_range", *ours}}
    if hifigan:
        # Its blocks read the first three dilations, or two; everything but the text "1" asks for the second kind.
        paired = chosen["resblock_type"] == "1"
        chosen["resblock_type"] = "1" if paired else "2"
        used = 3 if paired else 2
        if any(len(dilations) < used for dilations in chosen["resblock_dilations"]):
            raise ValueError(
                f"resblock_dilation_sizes must hold at least {used} dilations per block with this resblock, got "
                f"{chosen['resblock_dilations']}."
            )
        chosen["resblock_dilations"] = tuple(tuple(dilations)[:used] for dilations in chosen["resblock_dilations"])
    else:
        chosen["upsample_kernel_sizes"] = tuple(2 * rate for rate in chosen["upsample_rates"])
    hop = math.prod(chosen["upsample_rates"])
    if hifigan and arguments.get("hop_size", hop) != hop:
        raise ValueError(f"hop_size must be the product of upsample_rates, {hop}, got {arguments['hop_size']}.")
    mel = {"hop_length": hop, "n_fft": max(1024, hop)}
    mel |= {ours: everything[ours] for ours, _ in mels.values() if ours in everything}
    mel.setdefault("win_length", mel["n_fft"])
    mel["fmin"] = float(mel.get("fmin", 0.0))
    chosen["mel"] = MelConfig.preset("hifigan" if hifigan else "melreformer", **mel).to_dict()
    return HifiVocoderConfig(**chosen)


def _check_architecture(model: nn.Module) -> None:
    if model.config.architecture == "istft":
        raise ValueError('architecture "istft" has no original; only "hifigan" and "hifihybrid" do.')


ORIGINAL_FORMAT = OriginalFormat(
    ORIGIN,
    lambda arguments, state_dict: {"config": configuration_from_original(architecture_of(state_dict), arguments)},
    lambda tensors, model: rename_keys(tensors, key_table(model.config), ORIGIN),
    lambda tensors, model: rename_keys(tensors, key_table(model.config), ORIGIN, reverse=True),
    container="generator",
    weight_norm=False,  # HiFi-GAN's inference removes them, HiFiHybrid has none
    normed=lambda key, model: model.config.architecture == "hifigan" and key.endswith(".weight"),
    submodule="generator",
    check=_check_architecture,
)

__all__ = ["ORIGINAL_FORMAT", "architecture_of", "configuration_from_original"]
