"""Multi-scale STFT discriminator: 2-D convolutions over real and imaginary parts.

Source: Défossez et al., EnCodec (arXiv 2210.13438), original repository facebookresearch/encodec. Deviation: plain
weights; `melreformer_hf.nn.conv.apply_weight_norm` normalises them for training (the original leaves the first layer of
each discriminator plain).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from melreformer_hf.originals.arguments import SIZE, SIZES, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.training.discriminators.stacks import SideBySide, judge

ORIGIN = "original multi-scale STFT discriminator"
_SLOPE = 0.2
_KERNEL = (3, 9)
_DILATIONS = (1, 2, 4)
_TABLE = [
    ("discriminators.{N}.convs.{N}.conv.", "discriminators.{N}.convs.{N}."),
    ("discriminators.{N}.conv_post.conv.", "discriminators.{N}.output_conv."),
]
_NAMES = {
    "filters": ("channels", SIZE),
    "in_channels": ("num_audio_channels", SIZE),
    "n_ffts": ("n_ffts", SIZES),
    "hop_lengths": ("hop_lengths", SIZES),
    "win_lengths": ("win_lengths", SIZES),
}
_WINDOW = "spec_transform.window"


class StftDiscriminator(nn.Module):
    """One resolution.

    Args:
        n_fft: length of the transform in samples.
        hop_length: samples between frames.
        win_length: Hann window in samples, at most `n_fft`.
        channels: width of every layer.
        num_audio_channels: of the waveform.

    Raises:
        ValueError: the window is longer than the transform, or a length is not positive.
    """

    def __init__(
        self, n_fft: int, hop_length: int, win_length: int, channels: int, num_audio_channels: int = 1
    ) -> None:
        super().__init__()
        if not 0 < win_length <= n_fft or hop_length < 1:
            raise ValueError(
                "win_length must be in 1..n_fft and hop_length positive, got "
                f"n_fft={n_fft}, win_length={win_length}, hop_length={hop_length}."
            )
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.num_audio_channels = num_audio_channels
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        time, frequency = _KERNEL
        first = nn.Conv2d(2 * num_audio_channels, channels, _KERNEL, padding=(time // 2, frequency // 2))
        strided = [
            nn.Conv2d(
                channels,
                channels,
                _KERNEL,
                stride=(1, 2),
                dilation=(dilation, 1),
                padding=(dilation * (time // 2), frequency // 2),
            )
            for dilation in _DILATIONS
        ]
        self.convs = nn.ModuleList([first, *strided, nn.Conv2d(channels, channels, time, padding=time // 2)])
        self.output_conv = nn.Conv2d(channels, 1, time, padding=time // 2)

    def spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> complex (batch, channel, bin, frame), over the root of the window's energy."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float().flatten(0, 1),
                self.n_fft,
                self.hop_length,
                self.win_length,
                self.window.float(),
                center=False,
                return_complex=True,
            )
            return (spectrum / self.window.float().square().sum().sqrt()).unflatten(0, waveform.shape[:2])

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
        hidden = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3).to(self.output_conv.weight.dtype)
        return judge(hidden, self.convs, self.output_conv, _SLOPE)


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    windows = {f"discriminators.{index}.{_WINDOW}": each.window for index, each in enumerate(model.discriminators)}
    return rename_keys(tensors, _TABLE, ORIGIN, reverse=True) | windows


class MultiScaleStftDiscriminator(OriginalCheckpointMixin, SideBySide):
    """One `StftDiscriminator` per resolution.

    Args:
        n_ffts: lengths of the transforms in samples.
        hop_lengths: samples between frames.
        win_lengths: windows in samples.
        channels: width of every layer.
        num_audio_channels: of the waveform.

    Raises:
        ValueError: the lists' lengths differ, or a resolution is impossible.
    """

    original_format = OriginalFormat(
        ORIGIN,
        lambda arguments, state_dict: take_arguments(arguments, _NAMES, {}, ORIGIN),
        lambda tensors, model: rename_keys(tensors, _TABLE, ORIGIN),
        _to_original,
        weight_norm=True,
        # The original gives its first layer no weight norm.
        normed=lambda key, model: key.endswith(".weight") and ".convs.0.conv." not in key,
    )

    def __init__(
        self,
        n_ffts: Sequence[int] = (2048, 1024, 512, 256, 128),
        hop_lengths: Sequence[int] = (512, 256, 128, 64, 32),
        win_lengths: Sequence[int] = (2048, 1024, 512, 256, 128),
        channels: int = 32,
        num_audio_channels: int = 1,
    ) -> None:
        if not n_ffts or not len(n_ffts) == len(hop_lengths) == len(win_lengths):
            raise ValueError(
                "n_ffts, hop_lengths and win_lengths must have one entry per resolution, got "
                f"{len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)}."
            )
        super().__init__(
            StftDiscriminator(*lengths, channels, num_audio_channels)
            for lengths in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        )


__all__ = ["MultiScaleStftDiscriminator", "StftDiscriminator"]
