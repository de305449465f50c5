"""Recipe `expansion`: from an idea to the mel of any length, autoregressive over windows of columns.

Each window is trained with the true past, which is noised so that the network does not lean on it alone; a share of
the windows is given the network's own prediction of the past, so that it learns to continue what it will hear when it
runs freely (parallel scheduled sampling; Mihaylova and Martins, arXiv 1906.07651). Validation always runs freely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable
from melreformer_hf.training.recipes.expansion_data import (
    ExpansionDataOptions,
    ExpansionDataRecipe,
    flatten_windows,
    idea_and_windows,
    inside_mask,
)
from melreformer_hf.training.wrapping import unwrapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionOptions(ExpansionDataOptions):
    """Settings of the expansion recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of MelReformerConfig that --model.NAME values change")
    input_noise: float = option(0.9, "standard deviation of the noise on the past, in units of the log-mel")
    scheduled_sampling: float = option(0.5, "share of the windows whose past is the network's own prediction")
    scheduled_sampling_start: float = option(0.3, "share of the training after which scheduled_sampling begins")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_noise < 0:
            raise ValueError(f"options.input_noise must not be negative, got {self.input_noise}.")
        for name in ("scheduled_sampling", "scheduled_sampling_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"options.{name} must be in [0, 1], got {getattr(self, name)}.")


class ExpansionRecipe(ExpansionDataRecipe):
    """Train the expansion (MelReformerModel): idea and duration to a mel of that duration."""

    name = "expansion"
    Options = ExpansionOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = MelReformerConfig.preset(self.options.preset, **config.model)
        # What lengths were trained goes with the model, which draws no others.
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

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(MelReformerModel(self.model_config))}

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        model = self.model_config
        tensors = idea_and_windows(
            item["waveform"], self.mel, model.idea_columns, self.options, generator, lead=model.fold_size
        )
        # Noise on the past, so that the decoder does not lean on it alone (exposure bias).
        noise = torch.randn(tensors["labels"].shape, generator=generator) * self.options.input_noise
        return {**tensors, "noise": noise.to(torch.bfloat16)}  # half the bytes between processes

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        rows, lead = flatten_windows(batch), self.model_config.fold_size
        past = rows["labels"] + batch["noise"].flatten(0, 1).float()  # (window, mel, lead + length)
        labels, given = rows["labels"][..., lead:], past[..., lead:]
        window = {
            "input_features": rows["idea"],
            "num_frames": rows["num_frames"],
            "start_frames": rows["start"],
            "previous_features": past[..., :lead],
        }
        sampled = self._num_sampled(len(labels), context.progress)
        if sampled:
            given = torch.cat([self._predicted(window, given, sampled), given[sampled:]])
        output = self.modules["model"](labels=labels, decoder_input_features=given, **window)
        # Beyond the end of a crop there is only filling.
        inside = inside_mask(rows["start"], labels.shape[-1], rows["num_frames"])

        def mel_l1(features: torch.Tensor, count: int | None = None) -> torch.Tensor:
            error = (features.detach().float() - labels).abs() * inside
            return error[:count].sum() / (inside[:count].sum() * labels.shape[1])

        scalars = {"loss": output.loss, "mel_l1": mel_l1(output.output_features)}
        scalars["encoder_mel_l1"] = mel_l1(output.encoder_features)
        if sampled:
            scalars["mel_l1_scheduled_sampling"] = mel_l1(output.output_features, sampled)
        yield Phase("model", output.loss, scalars)

    def _num_sampled(self, rows: int, progress: float) -> int:
        begun = progress >= self.options.scheduled_sampling_start
        return round(self.options.scheduled_sampling * rows) if begun else 0

    def _predicted(self, window: dict[str, torch.Tensor], given: torch.Tensor, rows: int) -> torch.Tensor:
        # What the decoder makes of the first windows of the batch; the items' order is random already. Unwrapped, because
        # DDP allows one forward per backward.
        part = {key: value[:rows] for key, value in window.items()}
        with torch.no_grad():
            output = unwrapped(self.modules["model"])(decoder_input_features=given[:rows], **part)
        return output.decoder_features.float()


__all__ = ["ExpansionOptions", "ExpansionRecipe"]
