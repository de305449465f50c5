"""MelGAN: log-mel to waveform by transposed and dilated convolutions.

Kumar et al., MelGAN (arXiv 1910.06711); original repository descriptinc/melgan-neurips. Its discriminator is
`melreformer_hf.training.discriminators.melgan.MelGanDiscriminator`.

Deviations: plain weights by default, `apply_weight_norm()` for training as the original does; any rates that multiply
to the hop; streaming with an overlap derived from the layers. The original's initialization with a standard deviation
of 0.02 is undone by its weight norm at the first step, so that the library's own remains, as here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import leaky_relu
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.melgan_vocoder.configuration_melgan_vocoder import MelGanVocoderConfig
from melreformer_hf.models.melgan_vocoder.weights_melgan_vocoder import ORIGINAL_FORMAT
from melreformer_hf.nn.conv import UpsamplingConv1d, apply_weight_norm, has_weight_norm, remove_weight_norm
from melreformer_hf.nn.streaming import MelStreamingMixin
from melreformer_hf.originals.formats import OriginalCheckpointMixin
from melreformer_hf.originals.weight_norm import plain_state_dict

_SLOPE = 0.2
_END_KERNEL = 7


@dataclass
class MelGanVocoderOutput(ModelOutput):
    """Output of `MelGanVocoderModel`.

    Args:
        waveform: (batch, frame * hop_length), full scale at 1.
    """

    waveform: torch.FloatTensor | None = None


class ReflectedConv1d(nn.Conv1d):
    """Convolution of odd kernel that keeps the length by mirroring both ends."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        reach = dilation * (kernel_size - 1) // 2
        super().__init__(
            in_channels, out_channels, kernel_size, dilation=dilation, padding=reach, padding_mode="reflect"
        )
        self.reach = reach


class TwiceOverlappedUpsampling(UpsamplingConv1d):
    """Transposed convolution with a kernel of twice the rate; exactly `rate` output samples per input sample."""

    def __init__(self, in_channels: int, out_channels: int, rate: int) -> None:
        super().__init__(in_channels, out_channels, 2 * rate, rate)
        # For odd rates the original pads one more and adds a sample at the end.
        self.padding = (rate // 2 + rate % 2,)
        self.output_padding = (rate % 2,)


class MelGanResidualBlock(nn.Module):
    """A dilated and a pointwise convolution beside a pointwise shortcut.

    Args:
        channels: channels.
        dilation: of the three taps.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilated = ReflectedConv1d(channels, channels, 3, dilation)
        self.pointwise = nn.Conv1d(channels, channels, 1)
        self.shortcut = nn.Conv1d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> the same shape."""
        # Both paths begin at the raw input; only the branch is bent.
        branch = self.dilated(leaky_relu(hidden, _SLOPE))
        return self.shortcut(hidden) + self.pointwise(leaky_relu(branch, _SLOPE))


class MelGanStage(nn.Module):
    """Leaky ReLU, transposed convolution, residual blocks of dilations 1, 3, 9, ..."""

    def __init__(self, in_channels: int, out_channels: int, rate: int, num_residual_layers: int) -> None:
        super().__init__()
        self.upsample = TwiceOverlappedUpsampling(in_channels, out_channels, rate)
        self.blocks = nn.ModuleList(
            MelGanResidualBlock(out_channels, 3**layer) for layer in range(num_residual_layers)
        )

    @property
    def reaches(self) -> list[int]:
        """Samples on either side that each block's convolution sees."""
        return [block.dilated.reach for block in self.blocks]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, in_channel, sample) -> (batch, out_channel, sample * rate)."""
        hidden = self.upsample(leaky_relu(hidden, _SLOPE))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class MelGanVocoderPreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = MelGanVocoderConfig
    base_model_prefix = "melgan_vocoder"
    main_input_name = "input_features"
    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "mel-spectrogram", "vocoder")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MelGanResidualBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            # For transposed convolutions the library counts the fan-in along the same axis: (in, out, tap).
            bound = 1.0 / (module.weight.shape[1] * module.kernel_size[0]) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


class MelGanVocoderModel(OriginalCheckpointMixin, MelStreamingMixin, MelGanVocoderPreTrainedModel):
    """Log-mel spectrograms to waveforms, whole or as a stream.

    Args:
        config: sizes and mel contract.

    Example:

        >>> import torch
        >>> from melreformer_hf import MelGanVocoderConfig, MelGanVocoderModel
        >>> vocoder = MelGanVocoderModel(MelGanVocoderConfig.preset("tiny")).eval()
        >>> mel = torch.randn(1, vocoder.config.num_mel_bins, 40)
        >>> tuple(vocoder(mel).waveform.shape)
        (1, 10240)
        >>> sum(piece.shape[-1] for piece in vocoder.stream(mel.split(16, dim=-1)))
        10240
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: MelGanVocoderConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.num_mel_bins, self.hop_length = config.num_mel_bins, config.hop_length
        channels = config.stage_channels
        self.input_conv = ReflectedConv1d(config.num_mel_bins, channels[0], _END_KERNEL)
        self.stages = nn.ModuleList(
            MelGanStage(channels[index], channels[index + 1], rate, config.num_residual_layers)
            for index, rate in enumerate(config.upsample_rates)
        )
        self.output_conv = ReflectedConv1d(channels[-1], 1, _END_KERNEL)
        self.post_init()

    @property
    def receptive_field_frames(self) -> tuple[int, int]:
        """Frames (before, after) that the samples of a frame depend on, derived from the layers."""
        # Backwards from the samples of frame 0 to the frames that they depend on.
        first, last = -self.output_conv.reach, self.hop_length - 1 + self.output_conv.reach
        for stage in reversed(self.stages):
            reach = sum(stage.reaches)
            first, last = stage.upsample.sources(first - reach, last + reach)
        return self.input_conv.reach - first, last + self.input_conv.reach

    @property
    def min_frames(self) -> int:
        """Fewest frames whose ends can be mirrored by every layer."""
        needed, rate = self.input_conv.reach + 1, 1
        for stage in self.stages:
            rate *= stage.upsample.stride[0]
            # Mirroring needs more samples than it mirrors; a frame has `rate` samples at this stage.
            needed = max(needed, *[reach // rate + 1 for reach in stage.reaches], 1)
        return max(needed, self.output_conv.reach // rate + 1)

    def apply_weight_norm(self) -> None:
        """Weight-normalize every convolution, as the original trains; the output does not change."""
        apply_weight_norm(self)

    def remove_weight_norm(self) -> None:
        """Fold weight norms into plain weights; the output does not change."""
        remove_weight_norm(self)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save configuration and plain weights; weight norms are folded into what is written."""
        if has_weight_norm(self) and "state_dict" not in kwargs:
            kwargs["state_dict"] = plain_state_dict(self)
        super().save_pretrained(save_directory, **kwargs)

    def _synthesize(self, input_features: torch.Tensor) -> torch.Tensor:
        hidden = self.input_conv(input_features.to(self.output_conv.bias.dtype))
        for stage in self.stages:
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(stage.__call__, hidden)
            else:
                hidden = stage(hidden)
        return self.output_conv(leaky_relu(hidden, _SLOPE)).squeeze(1).tanh().to(input_features.dtype)

    def check_stream_length(self, frames: int) -> None:
        if frames < self.min_frames:
            raise ValueError(
                f"the mel must have at least {self.min_frames} frames (its ends are mirrored), got {frames}. Pad it "
                f"with the value of silence, {self.config.mel_config.floor_value:.2f}."
            )

    def forward(
        self, input_features: torch.Tensor, return_dict: bool | None = None
    ) -> MelGanVocoderOutput | tuple[torch.Tensor]:
        """Synthesize.

        Args:
            input_features: (batch, mel, frame) log-mel under `config.mel_config`, of at least `min_frames` frames,
                in any floating point type; the waveform has the same.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: the shape is not (batch, num_mel_bins, enough frames).
        """
        bins = self.num_mel_bins
        if input_features.ndim != 3 or input_features.shape[1] != bins:
            raise ValueError(
                f"input_features must be (batch, {bins}, frames), got {tuple(input_features.shape)}. A single mel "
                "needs a batch axis: mel.unsqueeze(0)."
            )
        self.check_stream_length(input_features.shape[-1])
        waveform = self._synthesize(input_features)
        return (waveform,) if return_dict is False else MelGanVocoderOutput(waveform=waveform)


__all__ = ["MelGanVocoderModel", "MelGanVocoderOutput", "MelGanVocoderPreTrainedModel"]
