"""Discriminators of the SoundStream-like codec: pooled waveforms and one STFT, spectrally normalized.

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

from melreformer_hf.originals.arguments import (
    FLAG,
    NONE,
    NUMBER,
    SIZE,
    SIZES,
    TEXT,
    Kind,
    either,
    several,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys
from melreformer_hf.originals.weight_norm import fold_weight_norms, split_weight_norms
from melreformer_hf.training.discriminators.stacks import DiscriminatorOutput

_SLOPE = 0.2
_FIRST_KERNEL = 7
_WAVEFORM_ORIGIN = "original waveform discriminator"
_STFT_ORIGIN = "original STFT discriminator"
# Names within a spectrally normalized layer: weight and singular vectors.
_SPECTRAL = [
    ("weight_orig", "parametrizations.weight.original"),
    ("weight_u", "parametrizations.weight.0._u"),
    ("weight_v", "parametrizations.weight.0._v"),
    ("bias", "bias"),
]
_PLAIN = [("weight", "weight"), ("bias", "bias")]
# Of both originals: their norm, and what only names them or weighs their losses.
_COMMON = {
    "norm": either(TEXT, NONE),
    "name": TEXT,
    "base_name": TEXT,
    "feature_multiplier": NUMBER,
}
_LEAKY = Kind("an nn.LeakyReLU", lambda value: isinstance(value, nn.LeakyReLU))


def _normed(layer: nn.Module, norm: str) -> nn.Module:
    if norm not in ("spectral", "none"):
        raise ValueError(f'norm must be "spectral" or "none", got {norm!r}.')
    return parametrizations.spectral_norm(layer) if norm == "spectral" else layer


def _format(
    origin: str, layers: Callable[[nn.Module], list[tuple[str, str]]], configure: Callable[[Mapping], dict]
) -> OriginalFormat:
    """Format of the original's, norms included, from (original, our) beginnings of its layers' names."""

    def table(model: nn.Module) -> list[tuple[str, str]]:
        names = _SPECTRAL if model.norm == "spectral" else _PLAIN
        return [(f"{a}{theirs}", f"{b}{ours}") for a, b in layers(model) for theirs, ours in names]

    def to_ours(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> Mapping[str, torch.Tensor]:
        # Not by the format's own weight norm: a spectral norm has a `weight_v` too, of another meaning.
        plain = tensors if model.norm == "spectral" else fold_weight_norms(tensors, origin)
        return rename_keys(plain, table(model), origin)

    def to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> Mapping[str, torch.Tensor]:
        renamed = rename_keys(tensors, table(model), origin, reverse=True)
        return split_weight_norms(renamed) if model.weight_normed else renamed

    return OriginalFormat(origin, lambda arguments, _: configure(arguments), to_ours, to_original)


def _norm_fields(arguments: Mapping) -> dict:
    norm = arguments.get("norm", "spectral")
    if norm not in ("spectral", "weight", None):
        raise ValueError(f'norm must be "spectral", "weight" or None, got {norm!r}.')
    return {"norm": "spectral" if norm == "spectral" else "none", "weight_normed": norm == "weight"}


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


def _waveform_fields(arguments: Mapping) -> dict:
    names = {"in_channels": ("num_audio_channels", SIZE), "channel_sizes": ("channels", SIZES)}
    names |= {name: (name, SIZES) for name in ("kernel_sizes", "strides", "groups", "scales")}
    others = _COMMON | {"n_blocks": SIZE, "scalefactor_per_block": SIZE, "activation": _LEAKY}
    fields = take_arguments(arguments, names, others, _WAVEFORM_ORIGIN) | _norm_fields(arguments)
    if "n_blocks" in arguments or "scalefactor_per_block" in arguments:
        factor = arguments.get("scalefactor_per_block", 2)
        fields["scales"] = [factor**index for index in range(arguments.get("n_blocks", 3))]
    if "activation" in arguments:
        fields["slope"] = arguments["activation"].negative_slope
    widths = fields.get("channels")
    if widths is not None:
        # The original lists one width more than it builds layers; the logits' layer reads the last one.
        if len(widths) < 2 or widths[-1] != widths[-2]:
            raise ValueError(
                "channel_sizes must end in two equal widths (the original's logits' layer reads the last one, its last "
                f"hidden layer has the one before), got {tuple(widths)}."
            )
        fields["channels"] = tuple(widths)[:-1]
    return fields


class PooledWaveformDiscriminator(OriginalCheckpointMixin, nn.Module):
    """Grouped convolutions without padding over average-pooled waveforms, one stack per scale.

    Args:
        channels: widths of the layers.
        kernel_sizes: their kernels, and that of the logits' layer last.
        strides: their strides, and that of the logits' layer last.
        groups: their groups, and those of the logits' layer last.
        scales: samples per pooled sample; the average is over twice as many.
        num_audio_channels: of the waveform.
        slope: of the rectifiers below zero.
        norm: `"spectral"`, or `"none"` (weight norms are applied from outside, `melreformer_hf.nn.conv`).
        weight_normed: whether its original has weight norms.

    Raises:
        ValueError: the lists do not fit each other.
    """

    original_format = _format(_WAVEFORM_ORIGIN, _waveform_layers, _waveform_fields)

    def __init__(
        self,
        channels: Sequence[int] = (16, 64, 256, 512, 1024, 1024),
        kernel_sizes: Sequence[int] = (15, 41, 41, 41, 41, 5, 3),
        strides: Sequence[int] = (1, 4, 4, 4, 4, 1, 1),
        groups: Sequence[int] = (1, 4, 16, 64, 256, 1, 1),
        scales: Sequence[int] = (1, 2, 4),
        num_audio_channels: int = 1,
        slope: float = _SLOPE,
        norm: str = "spectral",
        weight_normed: bool = False,
    ) -> None:
        super().__init__()
        lengths = {len(kernel_sizes), len(strides), len(groups), len(channels) + 1}
        if len(lengths) != 1 or not channels or not scales or min(scales) < 1:
            raise ValueError(
                "kernel_sizes, strides and groups must have one entry per layer and one for the logits, scales at least "
                f"one positive entry; got {len(kernel_sizes)}, {len(strides)}, {len(groups)} for {len(channels)} "
                f"channels, and scales {tuple(scales)}."
            )
        self.norm, self.weight_normed = norm, weight_normed
        self.num_audio_channels, self.slope = num_audio_channels, slope
        widths = [num_audio_channels, *channels, 1]
        # Also the finest scale is pooled, over two samples at a stride of one, as in the original.
        self.pools = nn.ModuleList(nn.AvgPool1d(2 * scale, scale, padding=scale) for scale in scales)
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                _normed(nn.Conv1d(widths[i], widths[i + 1], kernel_sizes[i], strides[i], groups=groups[i]), norm)
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
            waveform: (batch, sample), or (batch, channel, sample), at least `shortest` samples.

        Returns:
            (logits, feature maps): per scale a tensor (batch, position), and the list of the pooled waveform and every
            layer's output, the logit map last.

        Raises:
            ValueError: another shape, or too short for the coarsest scale.
        """
        given, channels = tuple(waveform.shape), self.num_audio_channels
        waveform = waveform.unsqueeze(1) if waveform.ndim == 2 else waveform
        if waveform.ndim != 3 or waveform.shape[1] != channels or waveform.shape[-1] < self.shortest:
            raise ValueError(
                f"waveform must be (batch, sample) or (batch, {channels}, sample), at least {self.shortest} samples, got "
                f"{given}. Train on longer crops, or take out the coarsest of the scales."
            )
        logits, maps = [], []
        for pool, stack in zip(self.pools, self.stacks, strict=True):
            hidden = pool(waveform)
            # The pooled waveform itself is the first map that is matched.
            layers = [hidden]
            for index, conv in enumerate(stack):
                hidden = conv(hidden)
                if index + 1 < len(stack):
                    hidden = nn.functional.leaky_relu(hidden, self.slope)
                layers.append(hidden)
            logits.append(hidden.flatten(1))
            maps.append(layers)
        return logits, maps


class _StftBlock(nn.Module):
    """3 x 3 convolution, leaky rectifier, strided convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int], slope: float, norm: str) -> None:
        super().__init__()
        self.slope = slope
        self.conv = _normed(nn.Conv2d(in_channels, in_channels, 3, padding=1), norm)
        kernel = (stride[0] + 2, stride[1] + 2)
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        self.strided_conv = _normed(nn.Conv2d(in_channels, out_channels, kernel, stride, padding), norm)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.strided_conv(nn.functional.leaky_relu(self.conv(hidden), self.slope))


def _stft_fields(arguments: Mapping) -> dict:
    names = {
        "first_channel_size": ("channels", SIZE),
        "channel_multipliers": ("widening", SIZES),
        "strides": ("strides", several(several(SIZE, 2))),
        "win_length": ("win_length", SIZE),
        "n_fft": ("n_fft", either(SIZE, NONE)),
        "hop_length": ("hop_length", either(SIZE, NONE)),
        "normalize_stft": ("normalized", FLAG),
    }
    fields = take_arguments(arguments, names, _COMMON | {"in_channels": SIZE}, _STFT_ORIGIN)
    if arguments.get("in_channels", 2) != 2:
        raise ValueError(
            f"in_channels must be 2, the real and the imaginary part of one spectrum, got {arguments['in_channels']}."
        )
    # An identity stands where the original's activation was meant: it is linear from end to end.
    return fields | _norm_fields(arguments) | {"slope": 1.0}


class TwoSidedStftDiscriminator(OriginalCheckpointMixin, nn.Module):
    """2-D convolutions over real and imaginary parts of the whole spectrum, unwindowed; one discriminator.

    Args:
        win_length: samples; at least two to the power of the blocks plus one.
        channels: width of the first layer; every block multiplies it.
        slope: of the rectifiers below zero; 1 makes the discriminator linear, as the original is.
        widening: of each block.
        strides: (frames, bins) of each block; blocks without an entry here or in `widening` are left out.
        n_fft: length of the transform; `None` is `win_length`.
        hop_length: samples between frames; `None` is a quarter of `win_length`.
        normalized: whether spectra are divided by the root of the transform's length.
        norm: `"spectral"`, or `"none"` (weight norms are applied from outside, `melreformer_hf.nn.conv`).
        weight_normed: whether its original has weight norms.

    Raises:
        ValueError: the window's length does not fit.
    """

    original_format = _format(_STFT_ORIGIN, _stft_layers, _stft_fields)

    def __init__(
        self,
        win_length: int = 1024,
        channels: int = 32,
        slope: float = _SLOPE,
        widening: Sequence[int] = (2, 2, 1, 2, 1, 2),
        strides: Sequence[Sequence[int]] = ((1, 2), (2, 2)) * 3,
        n_fft: int | None = None,
        hop_length: int | None = None,
        normalized: bool = True,
        norm: str = "spectral",
        weight_normed: bool = False,
    ) -> None:
        super().__init__()
        # The last layer spans the bins of half a spectrum that the blocks leave, whatever their strides are.
        taps = win_length // 2 ** (len(widening) + 1)
        if taps < 1:
            raise ValueError(f"win_length must be at least {2 ** (len(widening) + 1)}, got {win_length}.")
        self.norm, self.weight_normed, self.normalized = norm, weight_normed, normalized
        self.win_length = win_length
        self.n_fft = win_length if n_fft is None else n_fft
        self.hop_length = win_length // 4 if hop_length is None else hop_length
        if self.n_fft < win_length or self.hop_length < 1:
            raise ValueError(
                f"n_fft must be at least win_length and hop_length positive, got {self.n_fft}, {win_length} and "
                f"{self.hop_length}."
            )
        self.first_conv = _normed(nn.Conv2d(2, channels, _FIRST_KERNEL, padding=_FIRST_KERNEL // 2), norm)
        blocks = []
        for stride, factor in zip(strides, widening, strict=False):
            blocks.append(_StftBlock(channels, channels * factor, tuple(stride), slope, norm))
            channels *= factor
        self.blocks = nn.ModuleList(blocks)
        self.output_conv = _normed(nn.Conv2d(channels, 1, (1, taps), padding=(0, (taps - 1) // 2)), norm)

    @property
    def shortest(self) -> int:
        """Samples that one logit needs: more than a half transform mirrors, and frames for every stride."""
        frames = 1
        for block in reversed(self.blocks):
            conv = block.strided_conv
            frames = (frames - 1) * conv.stride[0] + conv.kernel_size[0] - 2 * conv.padding[0]
        return max(self.n_fft // 2 + 1, (frames - 1) * self.hop_length)

    def _spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            rectangle = torch.ones(self.win_length, device=waveform.device)
            spectrum = torch.stft(
                waveform.float(),
                self.n_fft,
                self.hop_length,
                self.win_length,
                window=rectangle,
                normalized=self.normalized,
                onesided=False,
                return_complex=True,
            )
            return torch.view_as_real(spectrum).permute(0, 3, 2, 1)

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """Judge.

        Args:
            waveform: (batch, sample), at least `shortest` samples.

        Returns:
            (logits, feature maps), lists of one entry: (batch, position), and the layers' outputs (batch, channel,
            frame, bin), the logit map last.

        Raises:
            ValueError: another shape, or too short.
        """
        if waveform.ndim != 2 or waveform.shape[-1] < self.shortest:
            raise ValueError(
                f"waveform must be (batch, at least {self.shortest} samples), got {tuple(waveform.shape)}."
            )
        hidden = self._spectrum(waveform).to(self.first_conv.weight.dtype)
        maps = []
        for layer in [self.first_conv, *self.blocks, self.output_conv]:
            hidden = layer(hidden)
            maps.append(hidden)
        return [hidden.flatten(1)], [maps]


__all__ = ["PooledWaveformDiscriminator", "TwoSidedStftDiscriminator"]
