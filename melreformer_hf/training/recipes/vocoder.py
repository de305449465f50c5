"""Recipe `vocoder`: log-mel to waveform with spectral losses and, when weighted, discriminators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.pictures import stack_mels
from melreformer_hf.audio.stft import griffin_lim
from melreformer_hf.data.streams import AudioCropStream, RecordingStore, fixed_crops
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.losses.spectral import mel_l1_distance, multi_resolution_stft_distance
from melreformer_hf.training.recipes.base import Phase, Recipe, Validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderRecipeConfig:
    """Settings of the vocoder recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = dataclasses.field(default="istft_tiny", metadata={"help": "HifiVocoderConfig preset"})
    crop_frames: int = dataclasses.field(default=64, metadata={"help": "mel frames per training crop"})
    mel_weight: float = dataclasses.field(default=1.0, metadata={"help": "weight of the log-mel L1 distance"})
    stft_weight: float = dataclasses.field(default=1.0, metadata={"help": "weight of the multi-resolution STFT"})
    adversarial_weight: float = dataclasses.field(
        default=0.0, metadata={"help": "weight of the least-squares adversarial loss; 0 builds no discriminator"}
    )
    feature_weight: float = dataclasses.field(default=2.0, metadata={"help": "weight of feature matching"})
    discriminators: tuple[str, ...] = dataclasses.field(
        default=("mpd", "mrd"), metadata={"help": "any of mpd, msd, mrd"}
    )
    discriminator_start: int = dataclasses.field(
        default=0, metadata={"help": "step at which the adversarial game begins"}
    )
    level_range: float = dataclasses.field(
        default=12.0, metadata={"help": "crops are scaled by a random gain of up to this many dB down"}
    )
    validation_crops: int = dataclasses.field(default=12, metadata={"help": "held-out crops that are measured"})
    validation_seconds: float = dataclasses.field(default=4.0, metadata={"help": "length of each in seconds"})
    model: dict = dataclasses.field(default_factory=dict, metadata={"help": "fields of HifiVocoderConfig"})

    def __post_init__(self) -> None:
        for name in ("crop_frames", "validation_crops", "validation_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("mel_weight", "stft_weight", "adversarial_weight", "feature_weight", "level_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


class VocoderRecipe(Recipe):
    """Trains a `HifiVocoderModel`."""

    name = "vocoder"
    best_metric = "score"

    def __init__(self, config: VocoderRecipeConfig, training: TrainingConfig) -> None:
        super().__init__(config, training)
        self.model_config = HifiVocoderConfig.preset(config.preset, **config.model)
        self.mel = self.model_config.mel_config
        self._reference: dict | None = None

    def modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"model": HifiVocoderModel(self.model_config).train()}
        if self.config.adversarial_weight > 0:
            from melreformer_hf.training.discriminators import build_discriminators

            modules["discriminator"] = build_discriminators(self.config.discriminators)
        return modules

    def optimizer_modules(self) -> dict[str, list[str]]:
        named = {"model": ["model"]}
        if self.config.adversarial_weight > 0:
            named["discriminator"] = ["discriminator"]
        return named

    def stream(self, rank: int, world_size: int) -> AudioCropStream:
        store = RecordingStore(self.training.dataset, "train")
        samples = self.config.crop_frames * self.mel.hop_length
        return AudioCropStream(store, samples, samples, self.training.seed, 1, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        decibels = -self.config.level_range * torch.rand((), generator=generator)
        waveform = item["waveform"] * 10 ** (decibels / 20)
        return {"waveform": waveform, "mel": log_mel_spectrogram(waveform, self.mel)}

    def phases(self, modules: dict[str, nn.Module], batch: dict[str, torch.Tensor], step: int) -> Iterator[Phase]:
        config, real = self.config, batch["waveform"]
        fake = modules["model"](batch["mel"]).waveform.float()
        adversarial = "discriminator" in modules and step >= config.discriminator_start
        if adversarial:
            from melreformer_hf.training.losses.adversarial import discriminator_loss

            loss = discriminator_loss(modules["discriminator"](real), modules["discriminator"](fake.detach()))
            yield Phase("discriminator", loss, {"loss/discriminator": loss})
        mel = mel_l1_distance(fake, real, self.mel)
        stft = multi_resolution_stft_distance(fake, real)
        loss = config.mel_weight * mel + config.stft_weight * stft
        scalars = {"mel_l1": mel, "mr_stft": stft}
        if adversarial:
            from melreformer_hf.training.losses.adversarial import feature_matching_loss, generator_loss

            judged, wanted = modules["discriminator"](fake), modules["discriminator"](real)
            scalars["loss/adversarial"] = generator_loss(judged)
            scalars["loss/features"] = feature_matching_loss(wanted, judged)
            loss = loss + config.adversarial_weight * scalars["loss/adversarial"]
            loss = loss + config.adversarial_weight * config.feature_weight * scalars["loss/features"]
        yield Phase("model", loss, {"loss": loss, **scalars})

    def _held_out(self) -> dict:
        """Fixed crops of the test split and what Griffin-Lim makes of them, computed once."""
        if self._reference is None:
            store = RecordingStore(self.training.dataset, "test")
            samples = int(self.config.validation_seconds * self.mel.frame_rate) * self.mel.hop_length
            crops = fixed_crops(store, samples, self.config.validation_crops)
            waveform = torch.stack([crop["waveform"] for crop in crops])
            mel = log_mel_spectrogram(waveform, self.mel)
            baseline = griffin_lim(mel, self.mel, generator=torch.Generator().manual_seed(0))
            self._reference = {"waveform": waveform, "mel": mel, "baseline": self._distances(baseline, waveform)}
        return self._reference

    def _distances(self, fake: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
        # Row by row: the spectral convergence of a batch would be ruled by its loudest recording.
        mel = mel_l1_distance(fake, real, self.mel).item()
        rows = [multi_resolution_stft_distance(f[None], r[None]).item() for f, r in zip(fake, real, strict=True)]
        return mel, sum(rows) / len(rows)

    def validate(self, model: nn.Module, device: torch.device) -> Validation:
        held_out = self._held_out()
        rows = held_out["mel"].split(1)
        fake = torch.cat([model(row.to(device)).waveform.float().cpu() for row in rows])
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
            metrics, {"true_over_synthesized": picture}, {"synthesized": (fake[0], self.mel.sampling_rate)}
        )


__all__ = ["VocoderRecipe", "VocoderRecipeConfig"]
