"""The baseline that the autoregressive expansion has to beat: a convolutional upsampler without any recurrence.

A column-rate network reads the idea, its features are interpolated to the frame rate, and a stack of ConvNeXt blocks
(arXiv 2201.03545) corrects the re-interpolated idea. Every frame is computed at once.
"""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.mel_reformer.timing_mel_reformer import (
    column_of,
    half_frames,
    interpolate_columns,
    interpolate_idea,
)
from melreformer_hf.nn.configuration import StrictConfig, mel_config_of
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block


@dataclass
class ConvUpsamplerOutput(ModelOutput):
    """Output of `ConvUpsamplerModel`.

    Args:
        output_features: (batch, mel, frame) log-mel.
    """

    output_features: torch.FloatTensor | None = None


@strict
class ConvUpsamplerConfig(StrictConfig):
    """Configuration of `ConvUpsamplerModel`.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own.
        idea_columns: columns of an idea.
        hidden_size: channels.
        intermediate_size: width of the blocks' perceptrons.
        num_column_layers: blocks at the column rate.
        num_frame_layers: blocks at the frame rate; their dilations are 1, 2, 4, 1, 2, 4, ...
        mel_shift: subtracted from a log-mel before the network.
        mel_scale: then divided by.
        initializer_range: standard deviation of initial weights.
    """

    model_type = "melreformer_conv_upsampler"

    mel: dict | None = None
    idea_columns: int = 256
    hidden_size: int = 208
    intermediate_size: int = 512
    num_column_layers: int = 3
    num_frame_layers: int = 6
    mel_shift: float = -5.5
    mel_scale: float = 3.0
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Rules between fields."""
        for name in ("idea_columns", "hidden_size", "intermediate_size", "num_column_layers", "num_frame_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.mel_scale <= 0:
            raise ValueError(f"mel_scale must be positive, got {self.mel_scale}.")

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of ideas and results."""
        return mel_config_of(self.mel)


class ConvUpsamplerModel(HubMixin, PreTrainedModel):
    """Expands an idea to any window of its piece.

    Args:
        config: sizes.
    """

    config_class = ConvUpsamplerConfig
    base_model_prefix = "conv_upsampler"
    main_input_name = "input_features"

    def __init__(self, config: ConvUpsamplerConfig) -> None:
        super().__init__(config)
        bins, width = config.mel_config.num_mel_bins, config.hidden_size
        sizes = (width, config.intermediate_size)
        self.column_stem = nn.Conv1d(bins + 1, width, 7, padding=3)  # bands and how far the idea is stretched
        self.column_blocks = nn.ModuleList([ConvNeXtBlock(*sizes) for _ in range(config.num_column_layers)])
        self.frame_stem = nn.Conv1d(bins + width + 3, width, 7, padding=3)  # coarse mel, features, clock of three
        self.frame_blocks = nn.ModuleList(
            [ConvNeXtBlock(*sizes, dilation=2 ** (layer % 3)) for layer in range(config.num_frame_layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, bins)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ConvNeXtBlock):
            init_convnext_block(module, self.config.initializer_range)
        elif isinstance(module, (nn.Conv1d, nn.Linear)):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @property
    def context_frames(self) -> int:
        """Frames to each side that one frame depends on."""
        return 3 + sum(block.reach for block in self.frame_blocks)

    def forward(
        self, input_features: torch.Tensor, num_frames: torch.Tensor, start: torch.Tensor, length: int
    ) -> ConvUpsamplerOutput:
        """Expand a window.

        Args:
            input_features: (batch, mel, idea column) log-mel idea.
            num_frames: (batch,) int64, frames of the whole piece.
            start: (batch,) int64, first frame of the window.
            length: frames of the window.
        """
        config, margin = self.config, self.context_frames
        idea = (input_features - config.mel_shift) / config.mel_scale
        # (batch, 1, 1), in octaves, of order one
        stretch = torch.log2(num_frames.float() / idea.shape[-1])[:, None, None] / 4
        hidden = self.column_stem(torch.cat([idea, stretch.expand(-1, 1, idea.shape[-1])], 1))
        for block in self.column_blocks:
            hidden = block(hidden)
        # Each frame sees `margin` frames to either side: computed with the window, dropped at the end, so that windows join
        # without seams.
        first, total = start - margin, length + 2 * margin
        place = column_of(half_frames(first, total), num_frames, idea.shape[-1])  # (batch, frame), in columns
        features = interpolate_columns(hidden.float().transpose(1, 2), place).transpose(1, 2)  # (batch, width, frame)
        coarse = interpolate_idea(idea, first, total, num_frames)  # (batch, mel, frame)
        # Where inside its column a frame lies: interpolated features alone do not say.
        phase = 2 * math.pi * place[:, None]
        clock = torch.cat([phase.sin(), phase.cos(), stretch.expand(-1, 1, total)], 1)
        hidden = self.frame_stem(torch.cat([coarse, features, clock], 1))
        for block in self.frame_blocks:
            hidden = block(hidden)
        change = self.head(self.norm(hidden.transpose(1, 2))).transpose(1, 2)  # (batch, mel, frame)
        result = (coarse + change.float())[..., margin : margin + length]  # the margins have seen padding
        return ConvUpsamplerOutput(output_features=result * config.mel_scale + config.mel_shift)

    @torch.no_grad()
    def generate(
        self, input_features: torch.Tensor, num_frames: torch.Tensor, chunk_frames: int = 2048
    ) -> torch.Tensor:
        """Expand whole pieces, chunk by chunk: (batch, mel, column), (batch,) -> (batch, mel, longest T).

        Frames beyond a piece's length hold the value of silence.
        """
        longest = int(num_frames.max())
        pieces = []
        for begin in range(0, longest, chunk_frames):
            start = torch.full_like(num_frames, begin)
            length = min(chunk_frames, longest - begin)
            pieces.append(self(input_features, num_frames, start, length).output_features)
        mel = torch.cat(pieces, -1)
        floor = self.config.mel_config.floor_value
        beyond = torch.arange(longest, device=mel.device) >= num_frames[:, None]
        return mel.clamp(min=floor).masked_fill(beyond[:, None], floor)


__all__ = ["ConvUpsamplerConfig", "ConvUpsamplerModel", "ConvUpsamplerOutput"]
