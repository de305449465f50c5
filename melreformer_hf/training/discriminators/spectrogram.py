"""Multi-resolution spectrogram discriminator.

Source: Jang et al., UnivNet (arXiv 2106.07889), as used by BigVGAN. Deviations: the input is the logarithm of the
magnitude, so that quiet partials count; hops are a quarter of the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from melreformer_hf.audio.stft import Transform, extend, full_precision, map_frames, power
from melreformer_hf.training.discriminators.stacks import SideBySide, judge

_SLOPE = 0.1
_SMALLEST_POWER = 1e-8
# (kernel along frequency, along time), stride along frequency
_LAYERS = (((9, 3), 1), ((9, 3), 2), ((9, 3), 2), ((9, 3), 2), ((3, 3), 1))


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions over the log-magnitude spectrogram of one window length.

    Args:
        window_size: samples; the hop is a quarter.
        channels: width of every layer.
    """

    def __init__(self, window_size: int, channels: int) -> None:
        super().__init__()
        if window_size % 4:
            raise ValueError(f"window_size must be divisible by 4 (the hop is a quarter), got {window_size}.")
        self.window_size = window_size
        widths = [1] + [channels] * len(_LAYERS)
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[index], channels, kernel, (stride, 1), padding=(kernel[0] // 2, kernel[1] // 2))
            for index, (kernel, stride) in enumerate(_LAYERS)
        )
        self.output_conv = nn.Conv2d(channels, 1, 3, padding=1)

    def _spectrogram(self, waveform: torch.Tensor) -> torch.Tensor:
        transform = Transform(self.window_size, self.window_size // 4, self.window_size)

        def log_magnitude(spectrum: torch.Tensor) -> torch.Tensor:
            return 0.5 * power(spectrum).clamp(min=_SMALLEST_POWER).log()

        with full_precision(waveform):
            frames = map_frames(extend(waveform.float(), transform, centered=True), transform, log_magnitude)
        return frames.transpose(1, 2)  # (batch, frame, bin) -> (batch, bin, frame)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, sample) -> logits (batch, position) and the layers' outputs."""
        if waveform.ndim != 2 or waveform.shape[-1] <= self.window_size // 2:
            raise ValueError(
                f"waveform must be (batch, more than {self.window_size // 2} samples), got {tuple(waveform.shape)}."
            )
        # (batch, bin, frame) -> (batch, 1, bin, frame), in the layers' type: the transform itself ran in float32.
        hidden = self._spectrogram(waveform).unsqueeze(1).to(self.convs[0].weight.dtype)
        return judge(hidden, self.convs, self.output_conv, _SLOPE)


class MultiResolutionDiscriminator(SideBySide):
    """One `SpectrogramDiscriminator` per window length.

    Args:
        window_sizes: samples.
        channels: width of every layer.
    """

    def __init__(self, window_sizes: Sequence[int] = (512, 1024, 2048), channels: int = 32) -> None:
        super().__init__(SpectrogramDiscriminator(size, channels) for size in window_sizes)


__all__ = ["MultiResolutionDiscriminator", "SpectrogramDiscriminator"]
