"""Multi-scale STFT discriminator: 2-D convolutions over real and imaginary parts.

Source: Défossez et al., EnCodec (arXiv 2210.13438), original repository facebookresearch/encodec. Deviation: plain
weights; `melreformer_hf.nn.conv.apply_weight_norm` normalizes them for training (the original leaves the first layer of
each discriminator plain).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from melreformer_hf.audio.stft import Transform, extended_stft, full_precision
from melreformer_hf.originals.arguments import (
    EMPTY,
    FLAG,
    MAPPING,
    SIZE,
    SIZES,
    TEXT,
    either,
    several,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.training.discriminators.stacks import SideBySide

ORIGIN = "original multi-scale STFT discriminator"
_SLOPE = 0.2
_TABLE = [
    ("discriminators.{N}.convs.{N}.conv.", "discriminators.{N}.convs.{N}."),
    ("discriminators.{N}.convs.{N}.norm.", "discriminators.{N}.norms.{N}."),
    ("discriminators.{N}.conv_post.conv.", "discriminators.{N}.output_conv."),
    ("discriminators.{N}.conv_post.norm.", "discriminators.{N}.output_norm."),
    ("discriminators.{N}.activation.", "discriminators.{N}.activation."),
]
_NAMES = {
    "filters": ("channels", SIZE),
    "in_channels": ("num_audio_channels", SIZE),
    "out_channels": ("num_logits", SIZE),
    "n_ffts": ("n_ffts", SIZES),
    "hop_lengths": ("hop_lengths", SIZES),
    "win_lengths": ("win_lengths", SIZES),
    "kernel_size": ("kernel_size", several(SIZE, 2)),
    "dilations": ("dilations", either(SIZES, EMPTY)),
    "stride": ("stride", several(SIZE, 2)),
    "normalized": ("normalized", FLAG),
    "activation": ("activation", TEXT),
    "activation_params": ("activation_options", MAPPING),
}
_WITHOUT_FIELD = {"norm": TEXT, "max_filters": SIZE, "filters_scale": SIZE}
# The original's own defaults, where ours are those of its training.
_DEFAULTS = {"n_ffts": (1024, 2048, 512), "hop_lengths": (256, 512, 128), "win_lengths": (1024, 2048, 512)}
_WEIGHT_NORMS = ("weight_norm", "none")
_WINDOW = "spec_transform.window"


def _padding(kernel_size: Sequence[int], dilation: int = 1) -> tuple[int, int]:
    """What keeps frames and bins where they are if the kernel is odd; an even one loses one of them."""
    return (kernel_size[0] - 1) * dilation // 2, (kernel_size[1] - 1) // 2


def _activation(name: str, options: Mapping[str, object]) -> nn.Module:
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"activation must be the name of an activation in torch.nn, got {name!r}.")
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"activation_options must fit {name}, got {dict(options)}: {error}") from error


class StftDiscriminator(nn.Module):
    """One resolution.

    Args:
        n_fft: length of the transform in samples.
        hop_length: samples between frames.
        win_length: Hann window in samples, at most `n_fft`.
        channels: width of every layer.
        num_audio_channels: of the waveform.
        num_logits: logits per position.
        kernel_size: (frames, bins) of all layers but the last two, which have `kernel_size[0]` of both.
        dilations: of the strided layers, over frames; one layer each.
        stride: (frames, bins) of these layers.
        normalized: whether spectra are divided by the root of the window's energy.
        activation: name of an activation in torch.nn.
        activation_options: its arguments; `None`: a slope of 0.2 for the leaky ReLU, none for others.
        group_norm: whether every layer but the first is followed by a layer norm over all its channels and positions.

    Raises:
        ValueError: the window is longer than the transform, a length is not positive, or no such activation.
    """

    def __init__(
        self,
        n_fft: int,
        hop_length: int,
        win_length: int,
        channels: int,
        num_audio_channels: int = 1,
        *,
        num_logits: int = 1,
        kernel_size: Sequence[int] = (3, 9),
        dilations: Sequence[int] = (1, 2, 4),
        stride: Sequence[int] = (1, 2),
        normalized: bool = True,
        activation: str = "LeakyReLU",
        activation_options: Mapping[str, object] | None = None,
        group_norm: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < win_length <= n_fft or hop_length < 1:
            raise ValueError(
                "win_length must be in 1..n_fft and hop_length positive, got "
                f"n_fft={n_fft}, win_length={win_length}, hop_length={hop_length}."
            )
        if activation_options is None:
            activation_options = {"negative_slope": _SLOPE} if activation == "LeakyReLU" else {}
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.num_audio_channels, self.normalized = num_audio_channels, normalized
        self.activation = _activation(activation, activation_options)
        # Not saved: it follows from win_length, and a checkpoint's own is compared with it.
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        kernel, square = tuple(kernel_size), (kernel_size[0],) * 2
        first = nn.Conv2d(2 * num_audio_channels, channels, kernel, padding=_padding(kernel))
        strided = [
            nn.Conv2d(
                channels,
                channels,
                kernel,
                stride=tuple(stride),
                dilation=(dilation, 1),
                padding=_padding(kernel, dilation),
            )
            for dilation in dilations
        ]
        self.convs = nn.ModuleList([first, *strided, nn.Conv2d(channels, channels, square, padding=_padding(square))])
        self.output_conv = nn.Conv2d(channels, num_logits, square, padding=_padding(square))
        # The original gives its first layer no norm, see `original_format` below.
        norms = [
            nn.GroupNorm(1, channels) if group_norm and number else nn.Identity()
            for number, _ in enumerate(self.convs)
        ]
        self.norms = nn.ModuleList(norms)
        self.output_norm = nn.GroupNorm(1, num_logits) if group_norm else nn.Identity()

    def spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> complex (batch, channel, bin, frame), scaled as configured."""
        window, before = self.window.float(), (self.n_fft - self.win_length) // 2
        transform = Transform(self.n_fft, self.hop_length, self.win_length)
        with full_precision(waveform):
            # The window in the middle of the frame, as torch has it: (batch * channel, frame, bin).
            wide = nn.functional.pad(window, (before, self.n_fft - self.win_length - before))
            spectrum = extended_stft(waveform.float().flatten(0, 1), transform, wide).transpose(1, 2)
            if self.normalized:
                spectrum = spectrum / window.square().sum().sqrt()
            return spectrum.unflatten(0, waveform.shape[:2])

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, sample), or (batch, channel, sample) -> logits (batch, position) and the layers' outputs.

        Raises:
            ValueError: another shape, or shorter than the transform.
        """
        waveform = waveform.unsqueeze(1) if waveform.ndim == 2 else waveform
        if waveform.ndim != 3 or waveform.shape[1] != self.num_audio_channels or waveform.shape[-1] < self.n_fft:
            raise ValueError(
                f"waveform must be (batch, sample) or (batch, {self.num_audio_channels}, sample) with at least "
                f"{self.n_fft} samples, got {tuple(waveform.shape)}."
            )
        spectrum = self.spectrum(waveform)
        # (batch, real parts then imaginary parts, frame, bin)
        # (batch, channel, bin, frame) complex -> (batch, 2 channel, frame, bin): time comes first, dilations act on it.
        hidden = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3).to(self.output_conv.weight.dtype)
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = self.activation(norm(conv(hidden)))
            maps.append(hidden)
        maps.append(self.output_norm(self.output_conv(hidden)))
        return maps[-1].flatten(1), maps


def _configure(arguments: Mapping, state_dict: Mapping) -> dict:
    fields = _DEFAULTS | take_arguments(arguments, _NAMES, _WITHOUT_FIELD, ORIGIN, ("filters",))
    widest, scale = arguments.get("max_filters", 1024), arguments.get("filters_scale", 1)
    if min(scale * arguments["filters"], widest) != arguments["filters"]:
        # Its second layer would expect other channels than its first one gives.
        raise ValueError(
            "max_filters and filters_scale must leave all layers filters wide (the original does not run otherwise), "
            f"got filters={arguments['filters']}, max_filters={widest}, filters_scale={scale}."
        )
    norm = arguments.get("norm", "weight_norm")
    if norm not in (*_WEIGHT_NORMS, "time_group_norm"):
        raise ValueError(
            f"norm must be one of {(*_WEIGHT_NORMS, 'time_group_norm')}, got {norm!r}: the original's layer norms do not "
            "run on pictures, and of a spectral norm only its folded weights can be read (as norm='none')."
        )
    return fields | {"group_norm": norm == "time_group_norm"}


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    windows = {f"discriminators.{index}.{_WINDOW}": each.window for index, each in enumerate(model.discriminators)}
    return rename_keys(tensors, _TABLE, ORIGIN, reverse=True) | windows


def _normed(key: str, model: nn.Module) -> bool:
    """Which weights the original normalizes: convolutions, but not the first one, and none beside group norms."""
    grouped = isinstance(model.discriminators[0].output_norm, nn.GroupNorm)
    return key.endswith(".conv.weight") and ".convs.0.conv." not in key and not grouped


class MultiScaleStftDiscriminator(OriginalCheckpointMixin, SideBySide):
    """One `StftDiscriminator` per resolution.

    Args:
        n_ffts: lengths of the transforms in samples.
        hop_lengths: samples between frames.
        win_lengths: windows in samples.
        channels: width of every layer.
        num_audio_channels: of the waveform.
        options: further arguments of `StftDiscriminator`, the same at every resolution.

    Raises:
        ValueError: the lists' lengths differ, or a resolution is impossible.
    """

    original_format = OriginalFormat(
        ORIGIN,
        _configure,
        lambda tensors, model: rename_keys(tensors, _TABLE, ORIGIN),
        _to_original,
        weight_norm=True,
        normed=_normed,
    )

    def __init__(
        self,
        n_ffts: Sequence[int] = (2048, 1024, 512, 256, 128),
        hop_lengths: Sequence[int] = (512, 256, 128, 64, 32),
        win_lengths: Sequence[int] = (2048, 1024, 512, 256, 128),
        channels: int = 32,
        num_audio_channels: int = 1,
        **options: object,
    ) -> None:
        if not n_ffts or not len(n_ffts) == len(hop_lengths) == len(win_lengths):
            raise ValueError(
                "n_ffts, hop_lengths and win_lengths must have one entry per resolution, got "
                f"{len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)}."
            )
        super().__init__(
            StftDiscriminator(*lengths, channels, num_audio_channels, **options)
            for lengths in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        )


__all__ = ["MultiScaleStftDiscriminator", "StftDiscriminator"]
