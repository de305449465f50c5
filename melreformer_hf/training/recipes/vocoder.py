"""Recipe `vocoder`: log-mel to waveform with spectral losses and, when they have weight, discriminators.

Mels are those of recordings; a share of them may be made by a trained performer of the notes that the recordings are
played from, so that the vocoder also learns to sound what it will be given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf._text import duration_in_words
from melreformer_hf.audio.griffin_lim import griffin_lim
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.stft import Transform, power
from melreformer_hf.audio.stft import stft as spectrum_of
from melreformer_hf.data.collation import collate
from melreformer_hf.data.performances import PerformanceStore
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics import log_mel_l1, magnitude_distance, multi_resolution_stft_distance
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.discriminators.families import DiscriminatorEnsemble
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.audio import AudioOptions, AudioRecipe, length_of
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.made_mels import PerformedMels
from melreformer_hf.training.wrapping import unwrapped

_SMALLEST_POWER = 1e-10  # of a magnitude of 1e-5, as in the STFT distance


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
    magnitude_weight: float = option(
        0.0,
        "weight of the STFT distance of the magnitudes that architecture istft predicts, before windows are joined",
    )
    adversarial_weight: float = option(0.0, "weight of the least-squares adversarial loss; 0 builds no discriminator")
    feature_matching_weight: float = option(2.0, "weight of feature matching, relative to adversarial_weight")
    discriminators: tuple[str, ...] = option(("mpd", "mrd"), "any of mpd, msd, mrd, ms_stft, waveform, stft_N")
    discriminator_size: int = option(32, "channels of the discriminators' first layers; 32 is HiFi-GAN's size")
    adversarial_start: float = option(0.5, "share of the training after which the adversarial game begins")
    gain_augmentation_db: float = option(12.0, "crops are scaled by a random gain of up to this many dB down")
    performer: str | None = option(
        None,
        "a trained performer, or a pipeline with one (folder, bundled name or Hub id), that makes mels of the dataset's "
        "notes; the dataset is then one of performances",
    )
    made_share: float | None = option(
        None, "share of the crops whose mel the performer makes, of the others it is the true one; default: 0.5"
    )
    validation_crops: int = option(12, "held-out crops that are measured")
    validation_frames: int = option(512, "length of each in mel frames")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_frames", "validation_crops", "validation_frames", "discriminator_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        weights = ("mel_weight", "stft_weight", "magnitude_weight", "adversarial_weight", "feature_matching_weight")
        for name in (*weights, "gain_augmentation_db"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.adversarial_start <= 1:
            raise ValueError(f"options.adversarial_start must be in [0, 1], got {self.adversarial_start}.")
        if self.made_share is not None and not 0 <= self.made_share <= 1:
            raise ValueError(f"options.made_share must be in [0, 1], got {self.made_share}.")
        if self.made_share is not None and self.performer is None:
            raise ValueError(
                f"options.made_share={self.made_share} needs options.performer, which makes the mels: give both or none."
            )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One kind of mels of the held-out crops.

    Args:
        mel: (crop, mel, frame).
        baseline: log-mel L1 and STFT distance of what Griffin-Lim makes of them.
    """

    mel: torch.Tensor
    baseline: tuple[float, float]


class VocoderRecipe(AudioRecipe):
    """Train a vocoder (HifiVocoderModel) on crops of recordings, and on what a performer makes of their notes."""

    name = "vocoder"
    best_metric = "score"
    Options = VocoderOptions
    config_class = HifiVocoderConfig
    model_class = HifiVocoderModel
    # Least-squares adversarial losses and a sum of differences of features, as HiFi-GAN.
    judging_loss = staticmethod(discriminator_loss)
    fooling_loss = staticmethod(generator_loss)
    matching_loss = staticmethod(feature_matching_loss)

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = self.config_class.preset(self.options.preset, **config.model)
        self.mel = self.model_config.mel_config
        architecture = getattr(self.model_config, "architecture", self.name)
        if self.options.magnitude_weight and architecture != "istft":
            raise ValueError(
                f"options.magnitude_weight must be 0 for architecture {architecture!r}, which predicts "
                f"no magnitudes, got {self.options.magnitude_weight}."
            )
        self.made = None if self.options.performer is None else PerformedMels(self.options.performer, self.mel)
        self.made_share = 0.5 if self.options.made_share is None else self.options.made_share
        self.reads_performances = self.made is not None
        self._stores: dict[str, PerformanceStore] = {}
        self._real: torch.Tensor | None = None
        self._held_out: dict[str, HeldOut] = {}

    def store(self, split: str) -> PerformanceStore:
        """The performances of a split, opened once; of trainings with a performer.

        Raises:
            ValueError: no such dataset or split, no notes, or another sampling rate than that of the mel contract.
        """
        if split not in self._stores:
            rate, minutes = self.mel.sampling_rate, self.config.cache_minutes
            self._stores[split] = PerformanceStore(self.config.dataset, split, rate, minutes)
        return self._stores[split]

    def trainables(self) -> dict[str, Trainable]:
        trainables = {"model": Trainable(self.model_class(self.model_config))}
        if self.options.adversarial_weight > 0:
            judges = self.build_judges()
            settings = OptimizerSettings(learning_rate=self.config.discriminator_learning_rate)
            trainables["discriminator"] = Trainable(judges, settings)
        return trainables

    def build_judges(self) -> nn.Module:
        """The discriminators, which give (logits, feature maps) of waveforms (batch, sample)."""
        return DiscriminatorEnsemble(self.options.discriminators, self.options.discriminator_size)

    def frozen(self) -> dict[str, nn.Module]:
        return {} if self.made is None else {"performer": self.made.load()}

    def stream(self, rank: int, world_size: int) -> ItemStream:
        frames = self.options.crop_frames
        if self.made is not None:
            samples, store = frames * self.mel.hop_length, self.store("train")
            with length_of("crop_frames", frames):
                return store.crops(samples, seed=self.config.seed, rank=rank, world_size=world_size)
        return self.crops("train", frames, frames, rank, world_size, option="crop_frames")

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        # down only: never louder than full scale
        decibels = -self.options.gain_augmentation_db * torch.rand((), generator=generator)
        waveform = item["waveform"] * 10 ** (decibels / 20)  # amplitude, hence 20
        tensors = {"waveform": waveform, "mel": log_mel_spectrogram(waveform, self.mel)}
        if self.made is None:
            return tensors
        is_made = torch.rand((), generator=generator) < self.made_share
        notes = self.made.inputs(item, self.options.crop_frames)
        return {**tensors, **notes, "is_made": is_made, "decibels": decibels}

    def _heard(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mels that the model is given: true ones, and in their place those that the performer makes."""
        if self.made is None or not batch["is_made"].any():
            return batch["mel"]
        rows, config, mel = batch["is_made"], self.mel, batch["mel"].clone()  # (batch, mel, frame)
        made = self.made.mels(self.modules["performer"], batch, rows, mel.shape[-1])
        # The performer plays at full loudness, the waveform is so many dB softer.
        nepers = batch["decibels"][rows] * (config.power * math.log(10) / 20)
        unit = config.log_multiplier / (math.log(10) if config.log_base == "10" else 1.0)
        mel[rows] = (made + unit * nepers[:, None, None]).clamp(config.floor_value, config.clip_max)
        return mel

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        real = batch["waveform"]  # (batch, sample)
        asked = {"output_magnitude": True} if self.options.magnitude_weight else {}
        output = self.modules["model"](self._heard(batch), **asked)
        fake = output.waveform.float()  # (batch, sample)
        discriminator = self.modules.get("discriminator")
        adversarial = discriminator is not None and context.progress >= self.options.adversarial_start
        if adversarial:
            # Without the generator's graph: its loss comes later, from a second pass.
            yield self._discriminator_phase(discriminator, fake.detach(), real)
        mel = log_mel_l1(fake, real, self.mel)
        stft = multi_resolution_stft_distance(fake, real)
        loss = self.options.mel_weight * mel + self.options.stft_weight * stft
        scalars = {"mel_l1": mel, "mr_stft": stft}
        if self.options.magnitude_weight:
            wanted = power(spectrum_of(real, Transform.of(self.mel))).clamp(min=_SMALLEST_POWER).sqrt()
            scalars["magnitude"] = magnitude_distance(output.magnitude.clamp(min=_SMALLEST_POWER**0.5), wanted).mean()
            loss = loss + self.options.magnitude_weight * scalars["magnitude"]
        if adversarial:
            judged = self._judged(discriminator, fake, real)
            scalars |= judged
            matching = self.options.feature_matching_weight * judged["feature_matching"]
            loss = loss + self.options.adversarial_weight * (judged["adversarial"] + matching)
        yield Phase("model", loss, {"loss": loss, **scalars})

    def _discriminator_phase(self, discriminator: nn.Module, fake: torch.Tensor, real: torch.Tensor) -> Phase:
        rows = len(real)
        scores, _ = discriminator(torch.cat([real, fake]))  # one pass: DDP allows one forward per backward
        loss = self.judging_loss([score[:rows] for score in scores], [score[rows:] for score in scores])
        return Phase("discriminator", loss, {"discriminator_loss": loss})

    def _judged(self, discriminator: nn.Module, fake: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        # Unwrapped: DDP would wait for gradients of the discriminator that this loss does not make.
        bare = unwrapped(discriminator)
        with freeze(bare):
            with torch.no_grad():
                _, wanted = bare(real)
            scores, features = bare(fake)
            return {"adversarial": self.fooling_loss(scores), "feature_matching": self.matching_loss(wanted, features)}

    def prepare_validation(self) -> None:
        self._reference()

    def _reference(self) -> dict[str, HeldOut]:
        # Fixed crops of held-out recordings and what Griffin-Lim makes of their mels, computed once.
        if self._held_out:
            return self._held_out
        frames, count = self.options.validation_frames, self.options.validation_crops
        samples, split = frames * self.mel.hop_length, self.validation_split
        held_out = self.recordings(split) if self.made is None else self.store(split)
        with length_of("validation_frames", frames):
            crops = held_out.fixed_crops(samples, count)
        self._real = torch.stack([crop["waveform"] for crop in crops])
        mels = {"": log_mel_spectrogram(self._real, self.mel)}
        if self.made is not None:
            batches = [collate([self.made.inputs(crop, frames)]) for crop in crops]
            row, performer = torch.ones(1, dtype=torch.bool), self.modules["performer"]
            mels["made_"] = torch.cat([self.made.mels(performer, batch, row, frames).cpu() for batch in batches])
        for kind, mel in mels.items():
            baseline = griffin_lim(mel, self.mel, generator=torch.Generator().manual_seed(0))
            self._held_out[kind] = HeldOut(mel, self._distances(baseline))
        return self._held_out

    def _distances(self, fake: torch.Tensor) -> tuple[float, float]:
        mel, stft = log_mel_l1(fake, self._real, self.mel), multi_resolution_stft_distance(fake, self._real)
        return mel.item(), stft.item()

    def validate(self, model: nn.Module) -> Validation:
        device, names = next(model.parameters()).device, ("mel_l1", "mr_stft")
        metrics, scores, words, pictures = {}, [], [], []
        held_outs = self._reference()
        audio = {"true": self._real[0]}
        for kind, held_out in held_outs.items():
            fake = torch.cat([model(row.to(device)).waveform.float().cpu() for row in held_out.mel.split(4)])
            found, best = self._distances(fake), held_out.baseline
            metrics |= {f"{kind}{name}": value for name, value in zip(names, found, strict=True)}
            metrics |= {f"griffin_lim_{kind}{name}": value for name, value in zip(names, best, strict=True)}
            mel, stft = (value / baseline for value, baseline in zip(found, best, strict=True))
            words.append(f"log-mel error {mel:.2f}x and STFT distance {stft:.2f}x of Griffin-Lim's")
            scores.append(mel + stft)
            pictures += [held_out.mel[0], log_mel_spectrogram(fake[0], self.mel)]
            audio[f"{kind}synthesized"] = fake[0]
        metrics["score"] = scores[0]
        if self.made is not None:
            # As both kinds are mixed in training, so they are weighed.
            metrics["score"] = (1 - self.made_share) * scores[0] + self.made_share * scores[1]
            words[1] = f"of performed mels {words[1]}"
        return Validation(
            metrics,
            {"true_over_synthesized": stack_mels(pictures)},
            audio,
            self.mel.sampling_rate,
            "; ".join(words),
            {"crops": len(self._real)},
        )

    def describe_data(self) -> str:
        if self.made is None:
            return super().describe_data()
        return f"{duration_in_words(60 * self.store('train').hours)} of performances"


__all__ = ["VocoderOptions", "VocoderRecipe"]
