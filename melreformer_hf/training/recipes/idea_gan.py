"""Recipe `idea_gan`: a style to an idea and its duration, in one step, against a discriminator that sees both.

StyleGAN2's training (Karras et al., arXiv 1912.04958): non-saturating logistic loss, R1 and path length every few steps,
mixed styles, an average of the weights. Real and generated ideas are changed alike before they are judged (`IdeaAugmentation`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.metrics import duration_ks, mel_statistics_distance
from melreformer_hf.models.idea_stylegan2.configuration_idea_stylegan2 import IdeaStyleGan2Config
from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.discriminators.stylegan2 import StyleGan2Discriminator
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.idea_augmentation import IdeaAugmentation
from melreformer_hf.training.losses.stylegan2 import (
    logistic_discriminator_loss,
    nonsaturating_generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.idea_data import IdeaDataOptions, IdeaDataRecipe
from melreformer_hf.training.wrapping import unwrapped

_AUGMENTATION = IdeaAugmentation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdeaGanOptions(IdeaDataOptions):
    """Settings of the adversarial idea recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of IdeaStyleGan2Config that --model.NAME values change")
    r1_weight: float = option(
        2.0, "gamma of R1, the discriminator's squared gradient at real ideas; half of it counts"
    )
    r1_every: int = option(16, "steps between two penalties R1, each multiplied by this number")
    path_weight: float = option(2.0, "weight of the path length penalty; 0 computes none")
    path_every: int = option(8, "steps between two path length penalties, each multiplied by this number")
    path_batch_share: float = option(0.5, "share of the batch whose path lengths are measured")
    mixing: float = option(0.9, "share of the steps whose fine layers have other styles than the coarse ones")
    augmentation_share: float = option(_AUGMENTATION.share, "share of the ideas that undergo each kind of change")
    augmentation_gain: float = option(_AUGMENTATION.gain, "largest gain, in standard deviations of the log-mels")
    augmentation_stretch: float = option(_AUGMENTATION.stretch, "largest factor of the pace")
    augmentation_shift: float = option(_AUGMENTATION.shift, "largest shift in time, as a share of the idea")
    augmentation_drop: float = option(_AUGMENTATION.drop, "largest share of the bands that are flattened")
    truncation_psi: float = option(1.0, "how far styles keep from their mean while validating")
    validation_ideas: int = option(48, "held-out ideas; samples are compared with four times as many training ideas")
    validation_samples: int = option(48, "ideas that are sampled while validating")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("r1_every", "path_every", "validation_ideas", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("r1_weight", "path_weight", "truncation_psi"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        if not 0 < self.path_batch_share <= 1:
            raise ValueError(f"options.path_batch_share must be above 0 and at most 1, got {self.path_batch_share}.")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"options.mixing must be in [0, 1], got {self.mixing}.")
        self.augmentation()

    def augmentation(self) -> IdeaAugmentation:
        """What `augmentation_*` say."""
        names = (field.name for field in dataclasses.fields(IdeaAugmentation))
        return IdeaAugmentation(**{name: getattr(self, f"augmentation_{name}") for name in names})


class RunningMean(nn.Module):
    """A number that is saved with every checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))


class IdeaGanRecipe(IdeaDataRecipe):
    """Train the adversarial idea model (IdeaStyleGan2Model) and its discriminator.

    Attributes:
        reference_split: what sampled ideas are compared with, as in the recipe `idea_diffusion`.
    """

    name = "idea_gan"
    best_metric = "score"
    Options = IdeaGanOptions
    reference_split = "train"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = IdeaStyleGan2Config.preset(self.options.preset, **config.model)
        self.mel, self.columns = self.model_config.mel_config, self.model_config.num_columns
        self.augment = self.options.augmentation()
        self.path_mean = RunningMean()
        self._held_out: dict[str, torch.Tensor] | None = None

    def trainables(self) -> dict[str, Trainable]:
        fitted: dict[str, object] = {}
        if self.options.fit_crops:
            fitted = self.fitted(*self.ideas_of(self._lengths("train"), self.options.fit_crops))
        config = IdeaStyleGan2Config.preset(self.options.preset, **{**fitted, **self.config.model})
        judge = StyleGan2Discriminator.for_generator(config)
        settings = OptimizerSettings(learning_rate=self.config.discriminator_learning_rate)
        return {"model": Trainable(IdeaStyleGan2Model(config)), "discriminator": Trainable(judge, settings)}

    def stateful(self) -> dict[str, nn.Module]:
        return {"path_mean": self.path_mean}

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        idea, log2_frames = self.idea_of(item)
        # Of the item's own generator: the same whoever prepares it.
        latents = torch.randn(2, 2, self.model_config.style_size, generator=generator)
        return {"idea": idea, "log2_num_frames": log2_frames, "latents": latents}

    def _made(
        self, model: nn.Module, latents: torch.Tensor, context: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pictures and log2 durations of (batch, 2, style_size) latents, of which the second are for mixed layers."""
        mixing: dict = {}
        count = self.model_config.num_styles
        draw, place = torch.rand(2, generator=context.generator).tolist()
        if draw < self.options.mixing and count > 1:
            mixing = {"mixing_latents": latents[:, 1], "mixing_index": 1 + int(place * (count - 1))}
        made = model(latents[:, 0], noise="random", return_dict=True, **mixing)
        return made.sample, made.log2_num_frames

    def _judged(self, judge: nn.Module, pictures: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        told = None if lengths is None else self._bare.normalize_duration(lengths)
        return judge(pictures, told)

    @property
    def _bare(self) -> IdeaStyleGan2Model:
        return unwrapped(self.modules["model"])

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        # latents: (batch, for which of the two phases, coarse or fine, style_size)
        yield self._discriminator_phase(batch, context)
        model, judge = self.modules["model"], unwrapped(self.modules["discriminator"])
        pictures, lengths = self._made(model, batch["latents"][:, 1], context)
        # Unwrapped and frozen: gradients pass through the discriminator, its own are not wanted.
        with freeze(judge):
            loss = nonsaturating_generator_loss(self._judged(judge, *self.augment(pictures, lengths)))
        scalars = {"loss": loss}
        if self.options.path_weight and context.step % self.options.path_every == 0:
            penalty = self._path_penalty(batch["latents"][:, 1, 0])
            loss = loss + self.options.path_weight * self.options.path_every * penalty
            scalars["path_length_penalty"] = penalty
        yield Phase("model", loss, scalars)

    def _discriminator_phase(self, batch: dict[str, torch.Tensor], context: StepContext) -> Phase:
        judge = self.modules["discriminator"]
        with torch.no_grad():
            # Unwrapped: the generator's own pass comes in the other phase.
            fake = self.augment(*self._made(self._bare, batch["latents"][:, 0], context))
            real, lengths = self.augment(self._bare.normalize_idea(batch["idea"]), batch["log2_num_frames"])
        lengths = lengths if self.model_config.predict_duration else None
        penalized = self.options.r1_weight > 0 and context.step % self.options.r1_every == 0
        inputs = [value.detach().requires_grad_(penalized) for value in (real, lengths) if value is not None]
        logits = self._judged(judge, inputs[0], inputs[1] if len(inputs) > 1 else None)
        # One wrapped pass for each backward; spreads over the batch must not mix real and generated ideas.
        loss = logistic_discriminator_loss(logits, self._judged(unwrapped(judge), *fake))
        scalars = {"discriminator_loss": loss}
        if penalized:
            penalty = r1_penalty(logits, inputs)
            loss = loss + 0.5 * self.options.r1_weight * self.options.r1_every * penalty
            scalars["r1_penalty"] = penalty
        return Phase("discriminator", loss, scalars)

    def _path_penalty(self, latents: torch.Tensor) -> torch.Tensor:
        rows, bare = max(1, round(self.options.path_batch_share * len(latents))), self._bare
        # Styles of our own: those that come out of a network in half precision are copies, which nothing was made from.
        styles = bare.mapping(latents[:rows])[:, None].expand(-1, self.model_config.num_styles, -1)
        made = bare(styles=styles, noise="random", return_dict=True)
        mean = self.path_mean.value.to(latents.device)
        penalty, mean = path_length_penalty(path_lengths(made.sample.float(), styles), mean)
        self.path_mean.value.copy_(mean)
        return penalty

    def prepare_validation(self) -> None:
        self._reference()

    def _reference(self) -> dict[str, torch.Tensor]:
        if self._held_out is None:
            count = self.options.validation_ideas
            ideas, lengths = self.ideas_of(self._lengths(self.validation_split), count)
            learned, known = self.ideas_of(self._lengths(self.reference_split), 4 * count)
            self._held_out = {"idea": ideas, "log2_num_frames": lengths, "learned": learned, "known": known}
        return self._held_out

    def validate(self, model: nn.Module) -> Validation:
        held_out = self._reference()
        bare, generator = unwrapped(model), torch.Generator().manual_seed(1)
        given = None if self.model_config.predict_duration else held_out["log2_num_frames"].exp2().round().long()
        drawn = [
            bare.sample(1, generator, None if given is None else given[row % len(given)], self.options.truncation_psi)
            for row in range(self.options.validation_samples)
        ]
        ideas = torch.cat([sample.ideas for sample in drawn]).cpu()
        frames = torch.cat([sample.num_frames for sample in drawn]).cpu()
        metrics = mel_statistics_distance(ideas, held_out["learned"])
        score = metrics["statistics_distance"]
        if given is None:
            metrics["duration_ks"] = duration_ks(frames.double().log2(), held_out["known"])
            score = score + metrics["duration_ks"]
        pictures = {
            "sampled": stack_mels(list(ideas[:4]), width=512),
            "held_out": stack_mels(list(held_out["idea"][:4]), width=512),
        }
        told = f"statistics of samples {metrics['statistics_distance']:.3f} from the music's"
        counts = {"sampled ideas": len(ideas), "training ideas": len(held_out["learned"])}
        return Validation({**metrics, "score": score}, pictures, summary=told, counts=counts)


__all__ = ["IdeaGanOptions", "IdeaGanRecipe"]
