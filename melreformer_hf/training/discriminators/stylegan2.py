"""StyleGAN2's discriminator, told the duration that belongs to a picture.

Source: Karras et al. (arXiv 1912.04958) in the form of rosinality/stylegan2-pytorch. Deviations: pictures need not be
square; the duration is one more input plane, and its spread over a group of the batch one more feature beside the
pictures', so that a generator which always says the same duration is seen; the group is the largest that divides the
batch, where the original fails on batches that its group does not divide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.weights_idea_stylegan2 import ARGUMENTS, channels_from_original
from melreformer_hf.nn.equalized import EqualizedConv2d, EqualizedLinear, scaled_leaky_relu
from melreformer_hf.nn.resample2d import filter_before_strided, fir_kernel
from melreformer_hf.originals.arguments import NUMBER, POSITIVE, SIZE, several, take_arguments
from melreformer_hf.originals.formats import OriginalCheckpointMixin, OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

ORIGIN = "original StyleGAN2 discriminator"
_EPSILON = 1e-8
_NAMES = {"blur_kernel": ("blur_taps", several(NUMBER))}
# The generator's arguments may be there too.
_WITHOUT_FIELD = {**ARGUMENTS, "style_dim": SIZE, "n_mlp": SIZE, "lr_mlp": POSITIVE}


class DiscriminatorBlock(nn.Module):
    """Residual block that halves rows and columns.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        blur_taps: filter before every stride.
    """

    def __init__(self, in_channels: int, out_channels: int, blur_taps: Sequence[float]) -> None:
        super().__init__()
        self.conv1 = EqualizedConv2d(in_channels, in_channels, 3, padding=1)
        self.blur = filter_before_strided(blur_taps, 3)
        self.conv2 = EqualizedConv2d(in_channels, out_channels, 3, stride=2)
        self.skip_blur = filter_before_strided(blur_taps, 1)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channel, row, column) -> (batch, out_channel, row / 2, column / 2)."""
        branch = scaled_leaky_relu(self.conv1(hidden))
        branch = scaled_leaky_relu(self.conv2(self.blur(branch)))
        # The sum of two signals of variance one has variance two.
        return (branch + self.skip(self.skip_blur(hidden))) / math.sqrt(2.0)


def batch_spread(values: torch.Tensor, group_size: int) -> torch.Tensor:
    """Standard deviation over groups of the batch, averaged over everything else.

    Members of a group lie `batch / group` rows apart.

    Args:
        values: (batch, ...).
        group_size: largest group; the largest divisor of the batch up to it is used.

    Returns:
        (batch,), the same for all members of a group.
    """
    batch = values.shape[0]
    # Any batch can be judged, also the last one of an epoch.
    group = max(size for size in range(1, min(group_size, batch) + 1) if batch % size == 0)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))  # a variance loses too much in half precision
    # (batch, ...) -> (group, batch / group, the rest): row r of the batch is member r // (batch / group).
    groups = wide.reshape(group, batch // group, -1)
    spread = (groups.var(0, unbiased=False) + _EPSILON).sqrt().mean(1)
    return spread.repeat(group)


def _configure(arguments: Mapping, state_dict: Mapping) -> dict:
    fields = take_arguments(arguments, _NAMES, _WITHOUT_FIELD, ORIGIN, required=("size",))
    sizes = {"shape": (arguments["size"],) * 2, "channels": channels_from_original(arguments), "num_channels": 3}
    return {"blur_taps": (1, 3, 3, 1), **fields, **sizes, "use_duration": False}


def _table(model: nn.Module) -> list[tuple[str, str]]:
    rows = [("convs.0.0.weight", "input_conv.weight"), ("convs.0.1.bias", "input_conv.bias")]
    for index in range(len(model.blocks)):
        original, ours = f"convs.{index + 1}.", f"blocks.{index}."
        rows += [
            (f"{original}conv1.0.weight", f"{ours}conv1.weight"),
            (f"{original}conv1.1.bias", f"{ours}conv1.bias"),
            (f"{original}conv2.1.weight", f"{ours}conv2.weight"),
            (f"{original}conv2.2.bias", f"{ours}conv2.bias"),
            (f"{original}skip.1.weight", f"{ours}skip.weight"),
        ]
    return [
        *rows,
        ("final_conv.0.weight", "final_conv.weight"),
        ("final_conv.1.bias", "final_conv.bias"),
        ("final_linear.0.", "hidden_linear."),
        ("final_linear.1.", "output_linear."),
    ]


def _to_original(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    # The original stores the filter of every resampling layer.
    names = [f"convs.{index + 1}.{part}.0.kernel" for index in range(len(model.blocks)) for part in ("conv2", "skip")]
    kernels = {name: fir_kernel(model.blur_taps) for name in names}
    return rename_keys(tensors, _table(model), ORIGIN, reverse=True) | kernels


def _check_durations_unused(model: nn.Module) -> None:
    if model.use_duration:
        raise ValueError("The original's discriminator knows no durations; this one has use_duration=True.")


class StyleGan2Discriminator(OriginalCheckpointMixin, nn.Module):
    """Judges pictures with their durations.

    Args:
        shape: (rows, columns) of the pictures.
        channels: width at every resolution, the coarsest first, as `IdeaStyleGan2Config.channels`.
        num_channels: pictures per input.
        blur_taps: filter of all resampling.
        use_duration: whether it is told durations.
        group_size: pictures over which the spread is measured.

    Raises:
        ValueError: the shape cannot be halved that often.
    """

    original_format = OriginalFormat(
        ORIGIN,
        _configure,
        lambda tensors, model: rename_keys(tensors, _table(model), ORIGIN),
        _to_original,
        container="d",
        check=_check_durations_unused,
    )

    def __init__(
        self,
        shape: tuple[int, int] = (128, 256),
        channels: Sequence[int] = (512, 512, 512, 512, 256, 128),
        num_channels: int = 1,
        blur_taps: Sequence[float] = (1, 3, 3, 1),
        use_duration: bool = True,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(channels) - 1)
        if min(shape) < factor or shape[0] % factor or shape[1] % factor:
            raise ValueError(f"shape must hold multiples of {factor} (halved len(channels) - 1 times), got {shape}.")
        if group_size < 1:
            raise ValueError(f"group_size must be positive, got {group_size}.")
        self.shape, self.num_channels, self.use_duration = tuple(shape), num_channels, use_duration
        self.blur_taps, self.group_size = tuple(blur_taps), group_size
        widths = list(reversed(channels))
        self.input_conv = EqualizedConv2d(num_channels + use_duration, widths[0], 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(widths[index], widths[index + 1], blur_taps) for index in range(len(widths) - 1)
        )
        self.final_conv = EqualizedConv2d(widths[-1] + 1 + use_duration, widths[-1], 3, padding=1)
        # The coarsest picture is flattened: the last layers know where something is.
        positions = (shape[0] // factor) * (shape[1] // factor)
        self.hidden_linear = EqualizedLinear(widths[-1] * positions, widths[-1])
        self.output_linear = EqualizedLinear(widths[-1], 1)

    @classmethod
    def for_generator(cls, config: IdeaStyleGan2Config, **overrides: object) -> StyleGan2Discriminator:
        """Discriminator of what a generator of this configuration makes; `overrides` replace single arguments."""
        arguments = {
            "shape": (config.num_mel_bins, config.num_columns),
            "channels": config.channels,
            "num_channels": config.num_channels,
            "blur_taps": config.blur_taps,
            "use_duration": config.predict_duration,
        }
        return cls(**{**arguments, **overrides})

    def forward(self, pictures: torch.Tensor, durations: torch.Tensor | None = None) -> torch.Tensor:
        """Judge.

        Args:
            pictures: (batch, num_channels, row, column), normalized.
            durations: (batch,) standardized durations (`IdeaStyleGan2Model.normalize_duration`); only with
                `use_duration`.

        Returns:
            (batch, 1) logits, positive for real.

        Raises:
            ValueError: shapes that do not fit; durations missing, or given to a discriminator that knows none.
        """
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (self.num_channels, *self.shape):
            raise ValueError(
                f"pictures must be (batch, {self.num_channels}, {self.shape[0]}, {self.shape[1]}), got "
                f"{tuple(pictures.shape)}."
            )
        self._check_durations(durations, pictures.shape[0])
        hidden = pictures
        if durations is not None:
            hidden = torch.cat([pictures, self._planes(durations, pictures)], dim=1)
        hidden = scaled_leaky_relu(self.input_conv(hidden))
        for block in self.blocks:
            hidden = block(hidden)
        features = [hidden, self._planes(batch_spread(hidden, self.group_size), hidden)]
        if durations is not None:
            features.append(self._planes(batch_spread(durations, self.group_size), hidden))
        hidden = scaled_leaky_relu(self.final_conv(torch.cat(features, dim=1)))
        return self.output_linear(scaled_leaky_relu(self.hidden_linear(hidden.flatten(1))))

    def _check_durations(self, durations: torch.Tensor | None, batch: int) -> None:
        if self.use_duration != (durations is not None):
            given = "none" if durations is None else tuple(durations.shape)
            raise ValueError(f"durations must be given exactly if use_duration={self.use_duration}, got {given}.")
        if durations is not None and tuple(durations.shape) != (batch,):
            raise ValueError(f"durations must be ({batch},), one per picture, got {tuple(durations.shape)}.")

    @staticmethod
    def _planes(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        # (batch,) -> (batch, 1, row, column): one number per picture as one more channel
        return values.to(like.dtype)[:, None, None, None].expand(-1, 1, *like.shape[-2:])


__all__ = ["DiscriminatorBlock", "StyleGan2Discriminator", "batch_spread"]
