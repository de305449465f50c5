"""Recipe `conv_upsampler`: the non-autoregressive baseline of the expansion, trained on the same windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.data.streams import AudioCropStream
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.recipes.base import Phase, Recipe, Validation
from melreformer_hf.training.recipes.expansion_data import (
    ExpansionDataOptions,
    ExpansionValidator,
    expansion_stream,
    flatten_windows,
    idea_and_windows,
    inside_mask,
)
from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerConfig, ConvUpsamplerModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvUpsamplerOptions(ExpansionDataOptions):
    """Settings of the baseline's recipe: those of the data."""


class ConvUpsamplerRecipe(Recipe):
    """Train the convolutional upsampler, the baseline that the expansion has to beat at equal cost."""

    name = "conv_upsampler"
    best_metric = "ratio"
    Options = ConvUpsamplerOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = ConvUpsamplerConfig(**config.model)
        self.mel = self.model_config.mel_config
        self._validator: ExpansionValidator | None = None

    def modules(self) -> dict[str, nn.Module]:
        return {"model": ConvUpsamplerModel(self.model_config)}

    def stream(self, rank: int, world_size: int) -> AudioCropStream:
        return expansion_stream(self, self.mel, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return idea_and_windows(item["waveform"], self.mel, self.model_config.idea_columns, self.options, generator)

    def phases(
        self, modules: dict[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[Phase]:
        rows = flatten_windows(batch)
        output = modules["model"](rows["idea"], rows["num_frames"], rows["start"], self.options.window_frames)
        error = (output.output_features.float() - rows["labels"]).abs()
        inside = inside_mask(rows["start"], self.options.window_frames, rows["num_frames"])
        loss = (error * inside).sum() / (inside.sum() * error.shape[1])
        yield Phase("model", loss, {"loss": loss})

    def validate(self, model: nn.Module) -> Validation:
        if self._validator is None:
            store = self.store(self.options.validation_split)
            self._validator = ExpansionValidator(store, self.options, self.mel, self.model_config.idea_columns)
        device = next(model.parameters()).device
        return self._validator(lambda idea, frames: model.generate(idea.to(device), frames.to(device)))


__all__ = ["ConvUpsamplerOptions", "ConvUpsamplerRecipe"]
