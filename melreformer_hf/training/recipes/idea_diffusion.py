"""Recipe `idea_diffusion`: noise and a duration to an idea.

The network predicts the velocity of Salimans and Ho (arXiv 2202.00512). Its normalization and its prior of durations
are fitted to the training crops before the first step. Validation measures the loss at fixed noise, and how far the
statistics of freely sampled ideas are from those of held-out ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.metrics import mel_statistics_distance
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler, set_spaced_timesteps
from melreformer_hf.nn.configuration import mel_config_of
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.losses.diffusion import PREDICTION_TYPES, diffusion_loss
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.idea_data import IdeaDataOptions, IdeaDataRecipe
from melreformer_hf.training.wrapping import unwrapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdeaDiffusionOptions(IdeaDataOptions):
    """Settings of the idea diffusion recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of IdeaUNetModel that --model.NAME values change")
    draws_per_idea: int = option(4, "noise levels that are trained per idea")
    condition_dropout: float = option(0.1, "share of the ideas whose duration is withheld")
    prediction_type: str = option("sample", "what the network predicts: sample (the clean idea) or v_prediction")
    max_snr: float = option(5.0, "signal-to-noise ratio from which on the loss weighs no more; 0 for no bound")
    gain_power: float = option(
        0.0,
        "errors of whitened ideas are weighed by how much their log-mels vary, to this power: 0 alike, 1 as in nats",
    )
    sampling_steps: int = option(20, "steps of DPM-Solver++ while validating")
    validation_ideas: int = option(
        48, "held-out ideas whose loss is measured; samples are compared with four times as many"
    )
    validation_samples: int = option(32, "ideas that are sampled while validating")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("draws_per_idea", "sampling_steps", "validation_ideas", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"options.prediction_type must be one of {PREDICTION_TYPES}, got {self.prediction_type!r}."
            )
        if self.max_snr < 0:
            raise ValueError(f"options.max_snr must not be negative, got {self.max_snr}.")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"options.condition_dropout must be in [0, 1], got {self.condition_dropout}.")
        if not 0 <= self.gain_power <= 1:
            raise ValueError(f"options.gain_power must be in [0, 1], got {self.gain_power}.")


class IdeaDiffusionRecipe(IdeaDataRecipe):
    """Train the idea model (IdeaUNetModel): diffusion over fixed-size mels that knows the duration.

    Attributes:
        reference_split: what sampled ideas are compared with while training: what they are learned from. Pieces that are
            held out differ from it more than good samples do.
    """

    name = "idea_diffusion"
    best_metric = "score"
    Options = IdeaDiffusionOptions
    reference_split = "train"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.mel = mel_config_of(config.model.get("mel"))
        self.columns = config.model.get("num_columns", 256)
        self.noise_power = config.model.get("noise_power", 1.0)
        self.scheduler = make_scheduler("ddim", self.options.prediction_type)
        self._held_out: dict[str, torch.Tensor] | None = None

    def trainables(self) -> dict[str, Trainable]:
        if not self.options.fit_crops:
            return {"model": Trainable(IdeaUNetModel.preset(self.options.preset, **self.config.model))}
        ideas, lengths = self.ideas_of(self._lengths("train"), self.options.fit_crops)
        fitted = self.fitted(ideas, lengths)
        if self.options.duration_quantiles:
            fitted["log2_frames_quantiles"] = self.quantiles(lengths)
        model = IdeaUNetModel.preset(self.options.preset, **{**fitted, **self.config.model})
        if model.whitening is not None:
            model.whitening.fit(ideas, model.place_of(lengths, len(ideas)))
        return {"model": Trainable(model)}

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        idea, log2_frames = self.idea_of(item)
        draws, steps = self.options.draws_per_idea, self.scheduler.config.num_train_timesteps
        # One draw from each of `draws` equal parts of the noise levels: less variance than independent draws.
        place = (torch.arange(draws) + torch.rand(draws, generator=generator)) / draws  # (draw,) in 0..1
        place = 1.0 - (1.0 - place) ** self.noise_power  # as sampling spaces its steps
        # as classifier-free guidance needs it
        withheld = torch.rand(draws, generator=generator) < self.options.condition_dropout
        return {
            "idea": idea,
            "log2_num_frames": torch.where(withheld, torch.nan, log2_frames.expand(draws)),
            "timesteps": (place * steps).long().clamp(max=steps - 1),
            "noise": torch.randn(draws, 1, *idea.shape, generator=generator),
        }

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        model, draws = self.modules["model"], batch["noise"].shape[1]  # noise: (batch, draw, 1, mel, column)
        flat = {key: batch[key].flatten(0, 1) for key in ("noise", "timesteps", "log2_num_frames")}
        # (batch * draw, 1, mel, column)
        ideas = batch["idea"].repeat_interleave(draws, 0)
        clean = unwrapped(model).normalize_idea(ideas, flat["log2_num_frames"])
        loss = self._loss(model, clean, flat["noise"], flat["timesteps"], flat["log2_num_frames"]).mean()
        yield Phase("model", loss, {"loss": loss})

    def _loss(
        self,
        model: nn.Module,
        clean: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        log2_num_frames: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted squared error per row, (batch,)."""
        bare, weigh = unwrapped(model), None
        if self.options.gain_power and bare.whitening is not None:
            place = bare.place_of(log2_num_frames, len(clean))

            def weigh(error: torch.Tensor) -> torch.Tensor:
                return bare.whitening.weigh_error(error[:, 0], place, self.options.gain_power)[:, None]

        snr = self.options.max_snr or None
        return diffusion_loss(model, clean, log2_num_frames, self.scheduler, noise, timesteps, snr, weigh)

    def prepare_validation(self) -> None:
        self._reference()

    def _reference(self) -> dict[str, torch.Tensor]:
        # Held-out ideas of the training's lengths, with noise and noise levels that never change.
        if self._held_out is None:
            count = self.options.validation_ideas
            items, learned = self._lengths(self.validation_split), self._lengths(self.reference_split)
            ideas, lengths = self.ideas_of(items, count)
            generator = torch.Generator().manual_seed(0)
            steps = self.scheduler.config.num_train_timesteps
            self._held_out = {
                "idea": ideas,
                "learned": self.ideas_of(learned, 4 * count)[0],
                "log2_num_frames": lengths,
                # Noise levels spread evenly: the loss of few ideas then has little variance.
                "timesteps": ((torch.arange(count) + 0.5) / count * steps).long(),
                "noise": torch.randn(count, 1, *ideas.shape[1:], generator=generator),
            }
        return self._held_out

    def validate(self, model: nn.Module) -> Validation:
        device = next(model.parameters()).device
        held_out = {key: value.to(device) for key, value in self._reference().items()}
        # In parts: a validation must not need more memory than a training step.
        rows = range(0, self.options.validation_ideas, 16)
        losses = [
            self._loss(
                model,
                model.normalize_idea(
                    held_out["idea"][begin : begin + 16], held_out["log2_num_frames"][begin : begin + 16]
                ),
                *(held_out[key][begin : begin + 16] for key in ("noise", "timesteps", "log2_num_frames")),
            )
            for begin in rows
        ]
        loss = torch.cat(losses).mean().item()
        samples = self._sample(model, held_out)
        distances = mel_statistics_distance(samples, held_out["learned"])
        metrics = {"loss": loss, **distances, "score": loss + distances["statistics_distance"]}
        pictures = {
            "sampled": stack_mels(list(samples[:4].cpu()), width=512),
            "held_out": stack_mels(list(held_out["idea"][:4].cpu()), width=512),
        }
        told = f"loss {loss:.3f}; statistics of samples {distances['statistics_distance']:.3f} from the music's"
        counts = {"held-out ideas": len(held_out["idea"]), "sampled ideas": len(samples)}
        return Validation(metrics, pictures, summary=told, counts=counts)

    def _sample(self, model: nn.Module, held_out: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ideas sampled freely for the durations of held-out ones, (batch, mel, column) log-mel."""
        scheduler = make_scheduler("dpm", self.options.prediction_type)
        config = model.config
        set_spaced_timesteps(
            scheduler, self.options.sampling_steps, config.noise_power, leap_timestep=config.leap_timestep
        )
        generator = torch.Generator().manual_seed(1)
        count = self.options.validation_samples
        durations = held_out["log2_num_frames"].repeat(-(-count // len(held_out["idea"])))[:count]
        sample = torch.randn(count, 1, *held_out["idea"].shape[1:], generator=generator).to(durations.device)
        for timestep in scheduler.timesteps:
            predicted = model(sample, timestep, durations).sample
            sample = scheduler.step(predicted, timestep, sample).prev_sample
        return model.denormalize_idea(sample, durations)


__all__ = ["IdeaDiffusionOptions", "IdeaDiffusionRecipe"]
