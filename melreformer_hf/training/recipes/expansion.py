"""Recipe `expansion`: from an idea to the mel of any length, autoregressive over windows of columns.

Each window is trained with the true past, which is noised so that the network does not lean on it alone; a share of
the windows is given the network's own prediction of the past, so that it learns to continue what it will hear when it
runs freely (parallel scheduled sampling; Mihaylova and Martins, arXiv 1906.07651). Validation always runs freely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.data.streams import AudioCropStream
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import Phase, Recipe, Validation
from melreformer_hf.training.recipes.expansion_data import (
    ExpansionDataOptions,
    ExpansionValidator,
    expansion_stream,
    flatten_windows,
    idea_and_windows,
    inside_mask,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionOptions(ExpansionDataOptions):
    """Settings of the expansion recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of MelReformerConfig that --model.NAME values change")
    input_noise: float = option(0.9, "standard deviation of the noise on the past, in units of the log-mel")
    own_history: float = option(0.5, "share of the windows whose past is the network's own prediction")
    own_history_start: float = option(0.3, "share of the training after which own_history begins")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_noise < 0:
            raise ValueError(f"options.input_noise must not be negative, got {self.input_noise}.")
        for name in ("own_history", "own_history_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"options.{name} must be in [0, 1], got {getattr(self, name)}.")


class ExpansionRecipe(Recipe):
    """Train the expansion (MelReformerModel): idea and duration to a mel of that duration."""

    name = "expansion"
    best_metric = "ratio"
    Options = ExpansionOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = MelReformerConfig.preset(self.options.preset, **config.model)
        if "frames_per_column" not in config.model:
            columns = self.model_config.idea_columns
            trained = (self.options.min_frames / columns, self.options.max_frames / columns)
            self.model_config = MelReformerConfig.preset(
                self.options.preset, **{**config.model, "frames_per_column": trained}
            )
        if self.model_config.architecture != "local":
            raise ValueError(
                f"The expansion recipe trains architecture 'local', got {self.model_config.architecture!r}; the "
                "original's fixed sizes know no windows of longer pieces."
            )
        self.mel = self.model_config.mel_config
        self._validator: ExpansionValidator | None = None

    def modules(self) -> dict[str, nn.Module]:
        return {"model": MelReformerModel(self.model_config)}

    def stream(self, rank: int, world_size: int) -> AudioCropStream:
        return expansion_stream(self, self.mel, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        model = self.model_config
        tensors = idea_and_windows(
            item["waveform"], self.mel, model.idea_columns, self.options, generator, lead=model.fold_size
        )
        noise = torch.randn(tensors["labels"].shape, generator=generator) * self.options.input_noise
        return {**tensors, "noise": noise.to(torch.bfloat16)}  # half the bytes between processes

    def phases(
        self, modules: dict[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[Phase]:
        rows, lead = flatten_windows(batch), self.model_config.fold_size
        past = rows["labels"] + batch["noise"].flatten(0, 1).float()
        labels, told = rows["labels"][..., lead:], past[..., lead:]
        window = {
            "input_features": rows["idea"],
            "num_frames": rows["num_frames"],
            "start_frames": rows["start"],
            "previous_features": past[..., :lead],
        }
        own = round(self.options.own_history * len(labels)) if progress >= self.options.own_history_start else 0
        if own:
            told = torch.cat([self._predicted(modules["model"], window, told, own), told[own:]])
        output = modules["model"](labels=labels, decoder_input_features=told, **window)
        inside = inside_mask(rows["start"], labels.shape[-1], rows["num_frames"])

        def mel_l1(features: torch.Tensor, count: int | None = None) -> torch.Tensor:
            error = (features.detach().float() - labels).abs() * inside
            return error[:count].sum() / (inside[:count].sum() * labels.shape[1])

        scalars = {"loss": output.loss, "mel_l1": mel_l1(output.output_features)}
        scalars["encoder_mel_l1"] = mel_l1(output.encoder_features)
        if own:
            scalars["mel_l1_own_history"] = mel_l1(output.output_features, own)
        yield Phase("model", output.loss, scalars)

    @staticmethod
    def _predicted(model: nn.Module, window: dict[str, torch.Tensor], told: torch.Tensor, rows: int) -> torch.Tensor:
        # What the decoder makes of the first windows of the batch; the items' order is random already.
        bare = getattr(model, "module", model)
        part = {key: value[:rows] for key, value in window.items()}
        with torch.no_grad():
            return bare(decoder_input_features=told[:rows], **part).decoder_features.float()

    def validate(self, model: nn.Module) -> Validation:
        if self._validator is None:
            store = self.store(self.options.validation_split)
            self._validator = ExpansionValidator(store, self.options, self.mel, self.model_config.idea_columns)
        device = next(model.parameters()).device
        return self._validator(lambda idea, frames: model.generate(idea.to(device), frames.to(device)))


__all__ = ["ExpansionOptions", "ExpansionRecipe"]
