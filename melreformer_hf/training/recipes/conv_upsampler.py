"""Recipe `conv_upsampler`: the non-autoregressive baseline of the expansion, trained on the same windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable
from melreformer_hf.training.recipes.expansion_data import (
    ExpansionDataOptions,
    ExpansionDataRecipe,
    flatten_windows,
    idea_and_windows,
    inside_mask,
)
from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerConfig, ConvUpsamplerModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvUpsamplerOptions(ExpansionDataOptions):
    """Settings of the baseline's recipe: those of the data."""


class ConvUpsamplerRecipe(ExpansionDataRecipe):
    """Train the convolutional upsampler, the baseline that the expansion has to beat at equal cost."""

    name = "conv_upsampler"
    Options = ConvUpsamplerOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = ConvUpsamplerConfig(**config.model)
        self.mel = self.model_config.mel_config

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(ConvUpsamplerModel(self.model_config))}

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return idea_and_windows(item["waveform"], self.mel, self.model_config.idea_columns, self.options, generator)

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        rows = flatten_windows(batch)
        output = self.modules["model"](rows["idea"], rows["num_frames"], rows["start"], self.options.window_frames)
        error = (output.output_features.float() - rows["labels"]).abs()  # (window, mel, frame)
        inside = inside_mask(rows["start"], self.options.window_frames, rows["num_frames"])
        loss = (error * inside).sum() / (inside.sum() * error.shape[1])  # mean over what belongs to the crop
        yield Phase("model", loss, {"loss": loss})


__all__ = ["ConvUpsamplerOptions", "ConvUpsamplerRecipe"]
