"""Discriminators of the SoundStream-like codec: pooled waveforms and one STFT, spectrally normalised.

Source: LumenPallidium/audio_generation, after Zeghidour et al., SoundStream (arXiv 2107.03312) and MelGAN. As there, the
STFT has no window and both halves of the spectrum. Deviations: the last two widths of the waveform stack may differ,
which the original cannot build; the STFT discriminator has rectifiers, where the original is linear from end to end (an
identity stands where its activation was meant), which `slope=1` and `from_original` reproduce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrizations

from melreformer_hf.originals.arguments import SIZE, SIZES, Kind, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.training.discriminators.stacks import DiscriminatorOutput

_SLOPE = 0.2
_STRIDES = ((1, 2), (2, 2), (1, 2), (2, 2), (1, 2), (2, 2))
_WIDENING = (2, 2, 1, 2, 1, 2)
_FIRST_KERNEL = 7
_FRAME_BINS = 2 ** len(_STRIDES)
# Names within a spectrally normalised layer: weight and singular vectors.
_SPECTRAL = [
    ("weight_orig", "parametrizations.weight.original"),
    ("weight_u", "parametrizations.weight.0._u"),
    ("weight_v", "parametrizations.weight.0._v"),
    ("bias", "bias"),
]


def _normed(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


def _format(
    origin: str,
    layers: Callable[[nn.Module], list[tuple[str, str]]],
    names: Mapping[str, tuple[str, Kind]],
    fixed: Mapping[str, float],
) -> OriginalFormat:
    """Format of the original's, spectral norms included, from (original, our) beginnings of its layers' names."""

    def table(model: nn.Module) -> list[tuple[str, str]]:
        return [(f"{a}{theirs}", f"{b}{ours}") for a, b in layers(model) for theirs, ours in _SPECTRAL]

    return OriginalFormat(
        origin,
        lambda arguments, state_dict: take_arguments(arguments, names, {}, origin) | fixed,
        lambda tensors, model: rename_keys(tensors, table(model), origin),
        lambda tensors, model: rename_keys(tensors, table(model), origin, reverse=True),
    )


def _waveform_layers(model: nn.Module) -> list[tuple[str, str]]:
    last = len(model.stacks[0]) - 1
    rows = [(f"layers.{{N}}.layers.{index + 1}.0.", f"stacks.{{N}}.{index}.") for index in range(last)]
    return [*rows, (f"layers.{{N}}.layers.{last + 1}.", f"stacks.{{N}}.{last}.")]


def _stft_layers(model: nn.Module) -> list[tuple[str, str]]:
    return [
        ("first_conv.", "first_conv."),
        ("blocks.{N}.layers.0.", "blocks.{N}.conv."),
        ("blocks.{N}.layers.2.", "blocks.{N}.strided_conv."),
        ("final_conv.", "output_conv."),
    ]


class PooledWaveformDiscriminator(OriginalCheckpointMixin, nn.Module):
    """Grouped convolutions without padding over average-pooled waveforms, one stack per scale.

    Args:
        channels: widths of the layers.
        kernel_sizes: their kernels, and that of the logits' layer last.
        strides: their strides, and that of the logits' layer last.
        groups: their groups, and those of the logits' layer last.
        scales: samples per pooled sample; the average is over twice as many.

    Raises:
        ValueError: the lists do not fit each other.
    """

    original_format = _format(
        "original waveform discriminator",
        _waveform_layers,
        {"channel_sizes": ("original_channels", SIZES)}
        | {name: (name, SIZES) for name in ("kernel_sizes", "strides", "groups", "scales")},
        {},
    )

    def __init__(
        self,
        channels: Sequence[int] = (16, 64, 256, 512, 1024, 1024),
        kernel_sizes: Sequence[int] = (15, 41, 41, 41, 41, 5, 3),
        strides: Sequence[int] = (1, 4, 4, 4, 4, 1, 1),
        groups: Sequence[int] = (1, 4, 16, 64, 256, 1, 1),
        scales: Sequence[int] = (1, 2, 4),
        original_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if original_channels is not None:
            # The original lists one width more than it builds layers; the logits' layer reads the last one.
            if len(original_channels) < 2 or original_channels[-1] != original_channels[-2]:
                raise ValueError(
                    "channel_sizes must end in two equal widths (the original's logits' layer reads the last one, its "
                    f"last hidden layer has the one before), got {tuple(original_channels)}."
                )
            channels = tuple(original_channels)[:-1]
        lengths = {len(kernel_sizes), len(strides), len(groups), len(channels) + 1}
        if len(lengths) != 1 or not channels or not scales or min(scales) < 1:
            raise ValueError(
                "kernel_sizes, strides and groups must have one entry per layer and one for the logits, scales at least "
                f"one positive entry; got {len(kernel_sizes)}, {len(strides)}, {len(groups)} for {len(channels)} "
                f"channels, and scales {tuple(scales)}."
            )
        widths = [1, *channels, 1]
        self.pools = nn.ModuleList(nn.AvgPool1d(2 * scale, scale, padding=scale) for scale in scales)
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                _normed(nn.Conv1d(widths[i], widths[i + 1], kernel_sizes[i], stride=strides[i], groups=groups[i]))
                for i in range(len(widths) - 1)
            )
            for _ in scales
        )

    @property
    def shortest(self) -> int:
        """Samples that the coarsest scale needs for one logit: nothing is padded, so every layer uses some up."""
        length = 1
        for conv in reversed(self.stacks[0]):
            length = (length - 1) * conv.stride[0] + conv.kernel_size[0]
        # Pooling by `scale` over twice as many samples, padded by `scale`, makes `samples // scale + 1` of them.
        return max((length - 1) * pool.stride[0] for pool in self.pools)

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            waveform: (batch, sample), at least `shortest` samples.

        Returns:
            (logits, feature maps): per scale a tensor (batch, position), and the list of the pooled waveform and every
            layer's output, the logit map last.

        Raises:
            ValueError: another shape, or too short for the coarsest scale.
        """
        if waveform.ndim != 2 or waveform.shape[-1] < self.shortest:
            raise ValueError(
                f"waveform must be (batch, at least {self.shortest} samples), got {tuple(waveform.shape)}. Train on "
                "longer crops, or take out the coarsest of the scales."
            )
        logits, maps = [], []
        for pool, stack in zip(self.pools, self.stacks, strict=True):
            hidden = pool(waveform.unsqueeze(1))
            layers = [hidden]
            for index, conv in enumerate(stack):
                hidden = conv(hidden)
                if index + 1 < len(stack):
                    hidden = nn.functional.leaky_relu(hidden, _SLOPE)
                layers.append(hidden)
            logits.append(hidden.flatten(1))
            maps.append(layers)
        return logits, maps


class _StftBlock(nn.Module):
    """3 x 3 convolution, leaky rectifier, strided convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.conv = _normed(nn.Conv2d(in_channels, in_channels, 3, padding=1))
        kernel = (stride[0] + 2, stride[1] + 2)
        self.strided_conv = _normed(nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.strided_conv(nn.functional.leaky_relu(self.conv(hidden), self.slope))


class TwoSidedStftDiscriminator(OriginalCheckpointMixin, nn.Module):
    """2-D convolutions over real and imaginary parts of the whole spectrum, unwindowed; one discriminator.

    Args:
        win_length: samples; a multiple of 128. The hop is a quarter.
        channels: width of the first layer; the last has sixteen times as many.
        slope: of the rectifiers below zero; 1 makes the discriminator linear, as the original is.

    Raises:
        ValueError: the window's length does not fit.
    """

    original_format = _format(
        "original STFT discriminator",
        _stft_layers,
        {"win_length": ("win_length", SIZE), "first_channel_size": ("channels", SIZE)},
        {"slope": 1.0},
    )

    def __init__(self, win_length: int = 1024, channels: int = 32, slope: float = _SLOPE) -> None:
        super().__init__()
        if win_length < 2 * _FRAME_BINS or win_length % (2 * _FRAME_BINS):
            raise ValueError(f"win_length must be a positive multiple of {2 * _FRAME_BINS}, got {win_length}.")
        self.win_length = win_length
        self.first_conv = _normed(nn.Conv2d(2, channels, _FIRST_KERNEL, padding=_FIRST_KERNEL // 2))
        blocks = []
        for stride, widening in zip(_STRIDES, _WIDENING, strict=True):
            blocks.append(_StftBlock(channels, channels * widening, stride, slope))
            channels *= widening
        self.blocks = nn.ModuleList(blocks)
        self.output_conv = _normed(nn.Conv2d(channels, 1, (1, win_length // (2 * _FRAME_BINS))))

    def _spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            rectangle = torch.ones(self.win_length, device=waveform.device)
            spectrum = torch.stft(
                waveform.float(),
                self.win_length,
                self.win_length // 4,
                window=rectangle,
                normalized=True,
                onesided=False,
                return_complex=True,
            )
            return torch.view_as_real(spectrum).permute(0, 3, 2, 1)

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            waveform: (batch, sample).

        Returns:
            (logits, feature maps), lists of one entry: (batch, position), and the layers' outputs (batch, channel,
            frame, bin), the logit map last.
        """
        if waveform.ndim != 2 or waveform.shape[-1] <= self.win_length // 2:
            raise ValueError(
                f"waveform must be (batch, more than {self.win_length // 2} samples), got {tuple(waveform.shape)}."
            )
        hidden = self._spectrum(waveform).to(self.first_conv.weight.dtype)
        maps = []
        for layer in [self.first_conv, *self.blocks, self.output_conv]:
            hidden = layer(hidden)
            maps.append(hidden)
        return [hidden.flatten(1)], [maps]


__all__ = ["PooledWaveformDiscriminator", "TwoSidedStftDiscriminator"]
