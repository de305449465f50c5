"""Recipe `mel_vqvae`: log-mels of sounds to a small grid of tokens and back.

Reconstruction, codebook and commitment losses are the model's own; a patch discriminator judges the pictures once the
training has come far enough, with a weight that makes it pull as hard as the reconstruction (arXiv 2012.09841).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from melreformer_hf.metrics import codebook_perplexity, codebook_usage
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel, MelVqvaeOutput
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.discriminators.patch import PatchDiscriminator
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.losses.balancer import adaptive_weight
from melreformer_hf.training.losses.hinge import hinge_discriminator_loss, hinge_generator_loss
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.sound_data import SoundOptions, SoundRecipe
from melreformer_hf.training.wrapping import unwrapped

_PICTURED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelVqvaeOptions(SoundOptions):
    """Settings of the recipe for mel tokens.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("vas", "preset of MelVqvaeConfig that --model.NAME values change")
    adversarial_weight: float = option(0.8, "weight of the patch discriminator's judgement; 0 builds none")
    adversarial_start: float = option(0.3, "share of the training after which it judges")
    adaptive_limit: float = option(
        1.0,
        "the weight is multiplied by the ratio of the gradients of reconstruction and judgement, at most this; 0: by 1",
    )
    texture_weight: float = option(
        0.0,
        "weight of the distance between how lively true and decoded mels are in time and frequency, patch by patch",
    )
    decoder_only: bool = option(False, "train the decoder of init_from alone: its tokens stay what they are")
    discriminator_size: int = option(64, "channels of the discriminator's first layer")
    discriminator_layers: int = option(3, "its layers with stride 2")
    baseline_sounds: int = option(200, "training items whose means by class are the baseline of the validation")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discriminator_size", "discriminator_layers", "baseline_sounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("adversarial_weight", "adaptive_limit", "texture_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.adversarial_start <= 1:
            raise ValueError(f"options.adversarial_start must be in [0, 1], got {self.adversarial_start}.")


def texture_distance(prediction: torch.Tensor, target: torch.Tensor, patch: int = 16) -> torch.Tensor:
    """Mean absolute difference of how much mels change from bin to bin within patches, in time and in frequency; scalar.

    A mean over many draws is smooth, and near to every draw; noise of the right strength is far from each, bin by bin.
    What both have in common with a draw is how lively they are.

    Args:
        prediction: (batch, mel, frame).
        target: the same shape.
        patch: bins of a patch on either axis.
    """
    found = []
    for dim in (-1, -2):
        changes = (mel.float().diff(dim=dim).abs() for mel in (prediction, target))
        ours, theirs = (avg_pool2d(change[:, None], patch, patch // 2) for change in changes)
        found.append((ours - theirs).abs().mean())
    return torch.stack(found).mean()


class MelVqvaeRecipe(SoundRecipe):
    """Train a mel VQ-VAE (MelVqvaeModel), whose tokens class_gpt and gpt_vae learn, on labelled sounds."""

    name = "mel_vqvae"
    best_metric = "mel_l1"
    Options = MelVqvaeOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = MelVqvaeConfig.preset(self.options.preset, **config.model)
        self.mel = self.model_config.mel_config
        if self.options.crop_frames % self.model_config.stride:
            raise ValueError(
                f"options.crop_frames must be a multiple of the model's stride {self.model_config.stride}, got "
                f"{self.options.crop_frames}."
            )
        if self.options.decoder_only and config.init_from is None:
            raise ValueError(
                "options.decoder_only must be false without init_from, whose tokens it would keep, got true."
            )
        self._baseline = math.nan

    def trainables(self) -> dict[str, Trainable]:
        model = MelVqvaeModel(self.model_config)
        if self.options.decoder_only:
            for part in (model.encoder, model.quant_conv, model.quantizer):
                part.requires_grad_(False)
        trainables = {"model": Trainable(model)}
        if self.options.adversarial_weight:
            judge = PatchDiscriminator(1, self.options.discriminator_size, self.options.discriminator_layers)
            settings = OptimizerSettings(learning_rate=self.config.discriminator_learning_rate)
            trainables["discriminator"] = Trainable(judge, settings)
        return trainables

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        mel, model = batch["input_features"], self.modules["model"]  # (batch, mel, frame)
        if context.step == 0 and context.micro_index == 0:
            unwrapped(model).initialize_codebooks(mel, context.generator)
        output: MelVqvaeOutput = model(mel)
        judge = self.modules.get("discriminator")
        judged = judge is not None and context.progress >= self.options.adversarial_start
        if judged:
            yield self._discriminator_phase(judge, output.output_features.detach(), mel)
        scalars = {
            "reconstruction": output.reconstruction_loss,
            "quantization_loss": output.quantization_loss,
            "perplexity": output.perplexity,
        }
        loss = output.loss
        if self.options.texture_weight:
            scalars["texture"] = texture_distance(self._picture(output.output_features), self._picture(mel))
            loss = loss + self.options.texture_weight * scalars["texture"]
        if judged:
            adversarial, weight = self._judged(judge, output)
            scalars |= {"adversarial": adversarial, "adversarial_factor": weight}
            loss = loss + self.options.adversarial_weight * weight * adversarial
        yield Phase("model", loss, {"loss": loss, **scalars}, output.codebook_inputs)

    def _picture(self, mel: torch.Tensor) -> torch.Tensor:
        """A mel as the networks see it, from -1 to 1."""
        low, high = self.model_config.input_range
        return 2.0 * (mel.float() - low) / (high - low) - 1.0

    def _discriminator_phase(self, judge: nn.Module, fake: torch.Tensor, real: torch.Tensor) -> Phase:
        rows = len(real)
        # One pass, so that DDP sees one forward per backward, and both have the same batch statistics.
        ((scores,), _) = judge(torch.cat([self._picture(real), self._picture(fake)]))
        loss = 0.5 * hinge_discriminator_loss([scores[:rows]], [scores[rows:]])
        apart = scores[:rows].mean() - scores[rows:].mean()
        return Phase("discriminator", loss, {"discriminator_loss": loss, "discriminator_separation": apart})

    def _judged(self, judge: nn.Module, output: MelVqvaeOutput) -> tuple[torch.Tensor, torch.Tensor]:
        # Unwrapped: DDP would wait for gradients of the discriminator that this loss does not make.
        bare = unwrapped(judge)
        with freeze(bare):
            scores, _ = bare(self._picture(output.output_features))
            adversarial = hinge_generator_loss(scores)
        if not self.options.adaptive_limit:
            return adversarial, adversarial.new_ones(())
        last = unwrapped(self.modules["model"]).decoder.conv_out.weight
        return adversarial, adaptive_weight(
            output.reconstruction_loss, adversarial, last, factor=1.0, most=self.options.adaptive_limit
        )

    def after_step(self, kept: dict[str, list[Any]], context: StepContext) -> None:
        if self.options.decoder_only:
            return
        model = unwrapped(self.modules["model"])
        for inputs in kept.get("model", ()):
            model.accumulate_codebooks(inputs)
        model.update_codebooks(context.generator)

    def prepare_validation(self) -> None:
        if not math.isnan(self._baseline):
            return
        held_out, seen = self.held_out(), self.first_items(self.options.baseline_sounds)
        means = seen["input_features"].mean(0).repeat(len(self.class_names), 1, 1)  # (class, mel, frame)
        for label in seen["class_labels"].unique():
            means[label] = seen["input_features"][seen["class_labels"] == label].mean(0)
        guess = means[held_out["class_labels"]]
        self._baseline = (guess - held_out["input_features"]).abs().mean().item()

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        device, mels = next(model.parameters()).device, self.held_out()["input_features"]
        outputs = [model(part.to(device)) for part in mels.split(8)]
        made = torch.cat([output.output_features.float().cpu() for output in outputs])
        codes = torch.cat([output.codes.cpu().flatten(1) for output in outputs])[:, None]
        size, error = self.model_config.codebook_size, (made - mels).abs().mean().item()
        share = error / self._baseline
        metrics = {
            "mel_l1": error,
            "mel_l1_of_class_means": self._baseline,
            "mel_l1_share": share,
            "texture": texture_distance(self._picture(made), self._picture(mels)).item(),
            "usage": codebook_usage(codes, size).item(),
            "perplexity": codebook_perplexity(codes, size).item(),
        }
        shown = [mel for pair in zip(mels[:_PICTURED], made[:_PICTURED], strict=True) for mel in pair]
        summary = (
            f"log-mel error {share:.2f}x of the class means', {metrics['usage']:.0%} of the codewords used, perplexity "
            f"{metrics['perplexity']:.0f}"
        )
        return Validation(
            metrics, {"true_over_decoded": stack_mels(shown)}, summary=summary, counts={"sounds": len(mels)}
        )


__all__ = ["MelVqvaeOptions", "MelVqvaeRecipe", "texture_distance"]
