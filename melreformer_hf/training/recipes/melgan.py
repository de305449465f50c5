"""Recipe `melgan`: log-mel to waveform by adversarial training alone, as MelGAN (arXiv 1910.06711) trains.

Everything but model, discriminators and losses is the `vocoder` recipe's: data, performers, validation.
"""

from __future__ import annotations

import dataclasses
import functools

from torch import nn

from melreformer_hf.models.melgan_vocoder.configuration_melgan_vocoder import MelGanVocoderConfig
from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel
from melreformer_hf.nn.conv import apply_weight_norm
from melreformer_hf.training.config import option
from melreformer_hf.training.discriminators.melgan import MelGanDiscriminator
from melreformer_hf.training.losses.adversarial import feature_matching_loss
from melreformer_hf.training.losses.hinge import hinge_discriminator_loss, hinge_generator_loss
from melreformer_hf.training.recipes.base import Trainable
from melreformer_hf.training.recipes.vocoder import VocoderOptions, VocoderRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelGanOptions(VocoderOptions):
    """Settings of the MelGAN recipe: those of `vocoder`, with the original's values.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("melgan", "preset of MelGanVocoderConfig that --model.NAME values change")
    crop_frames: int = option(32, "mel frames per training crop")
    mel_weight: float = option(0.0, "weight of the log-mel L1 distance; the original has none")
    stft_weight: float = option(0.0, "weight of the multi-resolution STFT distance; the original has none")
    adversarial_weight: float = option(1.0, "weight of the adversarial loss, a hinge")
    # 10 times 4/5 of a sum over 5 layers, averaged over 3 scales, beside a sum over 3 scales: a third of 40.
    feature_matching_weight: float = option(13.3, "weight of feature matching, relative to adversarial_weight")
    discriminator_size: int = option(16, "channels of the discriminators' first layers; 16 is the original's")
    discriminator_scales: int = option(3, "discriminators, each of half the sampling rate of the one before")
    adversarial_start: float = option(0.0, "share of the training after which the adversarial game begins")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discriminators != VocoderOptions.discriminators:
            raise ValueError(
                f"options.discriminators must be left out: a MelGAN has its own, got {list(self.discriminators)}."
            )
        if self.discriminator_scales < 1:
            raise ValueError(f"options.discriminator_scales must be at least 1, got {self.discriminator_scales}.")
        if not self.adversarial_weight and not self.mel_weight and not self.stft_weight:
            raise ValueError("options.adversarial_weight, mel_weight or stft_weight must be above 0, got none.")


class MelGanRecipe(VocoderRecipe):
    """Train a MelGAN vocoder (MelGanVocoderModel) on crops of recordings."""

    name = "melgan"
    Options = MelGanOptions
    config_class = MelGanVocoderConfig
    model_class = MelGanVocoderModel
    judging_loss = staticmethod(hinge_discriminator_loss)
    fooling_loss = staticmethod(hinge_generator_loss)
    matching_loss = staticmethod(functools.partial(feature_matching_loss, reduction="mean"))

    def trainables(self) -> dict[str, Trainable]:
        found = super().trainables()
        for trainable in found.values():
            apply_weight_norm(trainable.module)
        return found

    def build_judges(self) -> nn.Module:
        return MelGanDiscriminator(self.options.discriminator_scales, self.options.discriminator_size)


__all__ = ["MelGanOptions", "MelGanRecipe"]
