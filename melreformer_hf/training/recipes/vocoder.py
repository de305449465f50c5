"""Recipe `vocoder`: log-mel to waveform with spectral losses and, when they have weight, discriminators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from melreformer_hf.audio.griffin_lim import griffin_lim
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.discriminators.spectrogram import MultiResolutionDiscriminator
from melreformer_hf.training.discriminators.waveform import MultiPeriodDiscriminator, MultiScaleDiscriminator
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.audio import AudioOptions, AudioRecipe, length_of
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.wrapping import unwrapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderOptions(AudioOptions):
    """Settings of the vocoder recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("istft_tiny", "preset of HifiVocoderConfig that --model.NAME values change")
    crop_frames: int = option(64, "mel frames per training crop")
    mel_weight: float = option(1.0, "weight of the log-mel L1 distance")
    stft_weight: float = option(1.0, "weight of the multi-resolution STFT distance")
    adversarial_weight: float = option(0.0, "weight of the least-squares adversarial loss; 0 builds no discriminator")
    feature_matching_weight: float = option(2.0, "weight of feature matching, relative to adversarial_weight")
    discriminators: tuple[str, ...] = option(("mpd", "mrd"), "any of mpd, msd, mrd")
    discriminator_size: int = option(32, "channels of the discriminators' first layers; 32 is HiFi-GAN's size")
    adversarial_start: float = option(0.5, "share of the training after which the adversarial game begins")
    gain_augmentation_db: float = option(12.0, "crops are scaled by a random gain of up to this many dB down")
    validation_crops: int = option(12, "held-out crops that are measured")
    validation_frames: int = option(512, "length of each in mel frames")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_frames", "validation_crops", "validation_frames", "discriminator_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        weights = ("mel_weight", "stft_weight", "adversarial_weight", "feature_matching_weight")
        for name in (*weights, "gain_augmentation_db"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.adversarial_start <= 1:
            raise ValueError(f"options.adversarial_start must be in [0, 1], got {self.adversarial_start}.")


def _discriminator(name: str, size: int) -> nn.Module:
    if name == "mpd":
        return MultiPeriodDiscriminator(channels=(1, size, 4 * size, 16 * size, 32 * size, 32 * size))
    if name == "msd":
        widths = [4 * size, 4 * size, 8 * size, 16 * size, 32 * size, 32 * size, 32 * size]
        return MultiScaleDiscriminator(channels=widths)
    if name == "mrd":
        return MultiResolutionDiscriminator(channels=size)
    raise ValueError(f"options.discriminators must be some of mpd, msd, mrd, got {name!r}.")


class DiscriminatorEnsemble(nn.Module):
    """Several families of discriminators as one; (logits, feature maps) of all of them, one entry each.

    Args:
        names: any of mpd (periods), msd (scales), mrd (spectrograms at several resolutions).
        size: channels of the first layers; 32 is the published size.
    """

    def __init__(self, names: Sequence[str], size: int) -> None:
        super().__init__()
        if not names:
            raise ValueError("options.discriminators must name at least one of mpd, msd, mrd, got none.")
        self.families = nn.ModuleList([_discriminator(name, size) for name in names])

    def forward(self, waveform: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """(batch, sample) to logits and feature maps."""
        logits, maps = [], []
        for family in self.families:
            family_logits, family_maps = family(waveform)
            # Joined, not stacked: maps of different families have different shapes.
            logits += family_logits
            maps += family_maps
        return logits, maps


class VocoderRecipe(AudioRecipe):
    """Train a vocoder (HifiVocoderModel) on crops of recordings."""

    name = "vocoder"
    best_metric = "score"
    Options = VocoderOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = HifiVocoderConfig.preset(self.options.preset, **config.model)
        self.mel = self.model_config.mel_config
        self._held_out: dict | None = None

    def trainables(self) -> dict[str, Trainable]:
        trainables = {"model": Trainable(HifiVocoderModel(self.model_config))}
        if self.options.adversarial_weight > 0:
            judges = DiscriminatorEnsemble(self.options.discriminators, self.options.discriminator_size)
            settings = OptimizerSettings(learning_rate=self.config.discriminator_learning_rate)
            trainables["discriminator"] = Trainable(judges, settings)
        return trainables

    def stream(self, rank: int, world_size: int) -> ItemStream:
        frames = self.options.crop_frames
        return self.crops("train", frames, frames, rank, world_size, option="crop_frames")

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        # down only: never louder than full scale
        decibels = -self.options.gain_augmentation_db * torch.rand((), generator=generator)
        waveform = item["waveform"] * 10 ** (decibels / 20)  # amplitude, hence 20
        return {"waveform": waveform, "mel": log_mel_spectrogram(waveform, self.mel)}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        real = batch["waveform"]  # (batch, sample)
        fake = self.modules["model"](batch["mel"]).waveform.float()  # (batch, sample)
        discriminator = self.modules.get("discriminator")
        adversarial = discriminator is not None and context.progress >= self.options.adversarial_start
        if adversarial:
            # Without the generator's graph: its loss comes later, from a second pass.
            yield self._discriminator_phase(discriminator, fake.detach(), real)
        mel = log_mel_l1(fake, real, self.mel)
        stft = multi_resolution_stft_distance(fake, real)
        loss = self.options.mel_weight * mel + self.options.stft_weight * stft
        scalars = {"mel_l1": mel, "mr_stft": stft}
        if adversarial:
            judged = self._judged(discriminator, fake, real)
            scalars |= judged
            matching = self.options.feature_matching_weight * judged["feature_matching"]
            loss = loss + self.options.adversarial_weight * (judged["adversarial"] + matching)
        yield Phase("model", loss, {"loss": loss, **scalars})

    def _discriminator_phase(self, discriminator: nn.Module, fake: torch.Tensor, real: torch.Tensor) -> Phase:
        rows = len(real)
        scores, _ = discriminator(torch.cat([real, fake]))  # one pass: DDP allows one forward per backward
        loss = discriminator_loss([score[:rows] for score in scores], [score[rows:] for score in scores])
        return Phase("discriminator", loss, {"discriminator_loss": loss})

    def _judged(self, discriminator: nn.Module, fake: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        # Unwrapped: DDP would wait for gradients of the discriminator that this loss does not make.
        bare = unwrapped(discriminator)
        with freeze(bare):
            with torch.no_grad():
                _, wanted = bare(real)
            scores, features = bare(fake)
            return {"adversarial": generator_loss(scores), "feature_matching": feature_matching_loss(wanted, features)}

    def prepare_validation(self) -> None:
        self._reference()

    def _reference(self) -> dict:
        # Fixed crops of held-out recordings and what Griffin-Lim makes of them, computed once.
        if self._held_out is None:
            samples = self.options.validation_frames * self.mel.hop_length
            recordings = self.recordings(self.validation_split)
            with length_of("validation_frames", self.options.validation_frames):
                crops = recordings.fixed_crops(samples, self.options.validation_crops)
            waveform = torch.stack([crop["waveform"] for crop in crops])
            mel = log_mel_spectrogram(waveform, self.mel)
            baseline = griffin_lim(mel, self.mel, generator=torch.Generator().manual_seed(0))
            self._held_out = {"waveform": waveform, "mel": mel, "baseline": self._distances(baseline, waveform)}
        return self._held_out

    def _distances(self, fake: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
        return log_mel_l1(fake, real, self.mel).item(), multi_resolution_stft_distance(fake, real).item()

    def validate(self, model: nn.Module) -> Validation:
        held_out = self._reference()
        device = next(model.parameters()).device
        fake = torch.cat([model(row.to(device)).waveform.float().cpu() for row in held_out["mel"].split(4)])
        mel, stft = self._distances(fake, held_out["waveform"])
        mel_baseline, stft_baseline = held_out["baseline"]
        metrics = {
            "mel_l1": mel,
            "mr_stft": stft,
            "griffin_lim_mel_l1": mel_baseline,
            "griffin_lim_mr_stft": stft_baseline,
            "score": mel / mel_baseline + stft / stft_baseline,
        }
        picture = stack_mels([held_out["mel"][0], log_mel_spectrogram(fake[0], self.mel)])
        return Validation(
            metrics,
            {"true_over_synthesized": picture},
            {"true": held_out["waveform"][0], "synthesized": fake[0]},
            self.mel.sampling_rate,
            f"log-mel error {mel / mel_baseline:.2f}x and STFT distance {stft / stft_baseline:.2f}x of Griffin-Lim's",
            {"crops": len(fake)},
        )


__all__ = ["VocoderOptions", "VocoderRecipe"]
