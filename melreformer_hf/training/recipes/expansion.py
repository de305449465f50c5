"""Recipe `expansion`: from an idea to the mel of any length.

`--model.head` chooses what is trained: "l1" draws the middle of what might have been played, "energy" and "flow" sample.
`--model.num_decoder_layers 0` leaves the autoregressive decoder out. With it, each window is trained with the true past,
which is noised so that the network does not lean on it alone; a share of the windows is given what the network itself
makes of the past, so that it learns to continue what it will hear when it runs freely (parallel scheduled sampling;
Mihaylova and Martins, arXiv 1906.07651). Validation always runs freely. `--options.adversarial_weight` adds patch
discriminators. `--model.architecture original` trains the original program by teacher forcing, as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel, MelReformerOutput
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.discriminators.mel_patches import MelPatchDiscriminators
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.losses.adversarial import feature_matching_loss
from melreformer_hf.training.losses.balancer import adaptive_weight
from melreformer_hf.training.losses.hinge import hinge_discriminator_loss, hinge_generator_loss
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.expansion_data import (
    ExpansionDataOptions,
    ExpansionDataRecipe,
    flatten_windows,
    idea_and_windows,
    inside_mask,
)
from melreformer_hf.training.wrapping import unwrapped

# What a training from other weights may add, leave out or resize; the encoder and its curves must be there.
_NEW_PARTS = ("expansion.postnet.", "expansion.sampler.", "expansion.decoder.")
_SHARED = "expansion.decoder.curves."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionOptions(ExpansionDataOptions):
    """Settings of the expansion recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of MelReformerConfig that --model.NAME values change")
    input_noise: float = option(
        0.9, "standard deviation of the noise on the decoder's past, in units of the log-mel; of a sampler at most"
    )
    scheduled_sampling: float = option(0.5, "share of the crops whose past is the network's own, with a decoder")
    scheduled_sampling_start: float = option(0.3, "share of the training after which scheduled_sampling begins")
    draws: int = option(4, "draws that a sampling head's loss compares, at least 2 for the energy score")
    freeze_encoder: bool = option(False, "train what follows the encoder's drawing only; see init_from")
    adversarial_weight: float = option(
        0.0, "share of the head's own gradient that the discriminators have; 0 builds none"
    )
    adversarial_start: float = option(0.85, "share of the training after which the adversarial game begins")
    adversarial_ramp: float = option(0.05, "share of the training over which its weight grows")
    feature_matching_weight: float = option(1.0, "weight of feature matching beside the adversarial loss")
    discriminator_size: int = option(16, "channels of the discriminators' first layers")
    validation_draws: int = option(4, "draws of every held-out piece, of a sampling head")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("input_noise", "adversarial_weight", "feature_matching_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        for name in ("scheduled_sampling", "scheduled_sampling_start", "adversarial_start", "adversarial_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"options.{name} must be in [0, 1], got {getattr(self, name)}.")
        for name in ("draws", "discriminator_size", "validation_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")


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
        self.is_original = self.model_config.architecture == "original"
        self.samples, self.has_decoder = self.model_config.head != "l1", self.model_config.num_decoder_layers > 0
        self._check_options()
        self.mel = self.model_config.mel_config

    def _check_options(self) -> None:
        options = self.options
        if self.model_config.head == "energy" and options.draws < 2:
            raise ValueError(f"options.draws must be at least 2 with head 'energy', got {options.draws}.")
        if self.is_original and (options.freeze_encoder or options.adversarial_weight):
            raise ValueError(
                "options.freeze_encoder and options.adversarial_weight belong to architecture 'local', got "
                f"{options.freeze_encoder} and {options.adversarial_weight}."
            )
        smallest = MelPatchDiscriminators.smallest_picture()
        if options.adversarial_weight and options.window_frames < smallest:
            raise ValueError(
                f"options.window_frames must be at least {smallest} with options.adversarial_weight, got "
                f"{options.window_frames}."
            )
        block = self.model_config.decoder_window * self.model_config.fold_size
        if self.is_original and options.validation_crop_frames > block:
            raise ValueError(
                f"options.validation_crop_frames must be at most {block} with architecture 'original', whose blocks end "
                f"there, got {options.validation_crop_frames}."
            )

    def trainables(self) -> dict[str, Trainable]:
        model = MelReformerModel(self.model_config)
        if self.options.freeze_encoder:
            for module in (model.expansion.encoder, model.expansion.decoder.curves):
                module.requires_grad_(False)
        trainables = {"model": Trainable(model)}
        if self.options.adversarial_weight:
            judges = MelPatchDiscriminators(base_channels=self.options.discriminator_size)
            rate = self.config.discriminator_learning_rate
            trainables["discriminator"] = Trainable(judges, OptimizerSettings(kind="adamw", learning_rate=rate))
        return trainables

    def may_differ(self, name: str) -> bool:
        return name.startswith(_NEW_PARTS) and not name.startswith(_SHARED)

    def stream(self, rank: int, world_size: int) -> ItemStream:
        if not self.is_original:
            return super().stream(rank, world_size)
        # Whole blocks, as the original trains.
        block = self.model_config.decoder_window * self.model_config.fold_size
        return self.crops("train", block, block, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        model = self.model_config
        if self.is_original:
            return {"mel": log_mel_spectrogram(item["waveform"], self.mel)}
        lead = model.fold_size if self.has_decoder else 0
        tensors = idea_and_windows(item["waveform"], self.mel, model.idea_columns, self.options, generator, lead)
        if self.has_decoder:
            # Noise on the past, so that the decoder does not lean on it alone (exposure bias).
            noise = torch.randn(tensors["labels"].shape, generator=generator) * self.options.input_noise
            if self.samples:  # of every strength up to the full one
                noise = noise * torch.rand(len(noise), 1, 1, generator=generator)
            tensors["noise"] = noise.to(torch.bfloat16)  # half the bytes between processes
        if self.samples:
            # One more than the loss compares: what the network makes of the past is a draw of its own.
            shape = (self.options.windows_per_crop, self.options.draws + 1)
            tensors["seeds"] = torch.randint(2**62, shape, generator=generator)
        return tensors

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        if self.is_original:
            mel = batch["mel"]
            frames = torch.full((len(mel),), mel.shape[-1], device=mel.device)
            loss = self.modules["model"](mel, frames, labels=mel).loss
            yield Phase("model", loss, {"loss": loss})
            return
        rows = flatten_windows(batch)
        given, sampled = self._given(batch, rows, context.progress)
        labels = given["labels"]
        output = self.modules["model"](**given)
        # Beyond the end of a crop there is only filling.
        inside = inside_mask(rows["start"], labels.shape[-1], rows["num_frames"])

        def mel_l1(features: torch.Tensor, count: int | None = None) -> torch.Tensor:
            error = (features.detach().float() - labels).abs() * inside
            return error[:count].sum() / (inside[:count].sum() * labels.shape[1])

        scalars = {"mel_l1": mel_l1(output.output_features), "encoder_mel_l1": mel_l1(output.encoder_features)}
        if sampled:
            scalars["mel_l1_scheduled_sampling"] = mel_l1(output.output_features, sampled)
        loss = output.loss
        begun = context.progress - self.options.adversarial_start
        if self.options.adversarial_weight and begun >= 0:
            real, fake, drawing = (
                unwrapped(self.modules["model"])._normalize(mel.float()) * inside
                for mel in (labels, output.output_features, output.encoder_features.detach())
            )
            yield self._discriminator_phase(real, fake.detach(), drawing)
            weight = self.options.adversarial_weight * min(1.0, begun / max(self.options.adversarial_ramp, 1e-9))
            judged, scalars["adversarial"] = self._judged(loss, real, fake, drawing)
            loss = loss + weight * judged
        yield Phase("model", loss, {"loss": output.loss, **scalars})

    def _given(
        self, batch: dict[str, torch.Tensor], rows: dict[str, torch.Tensor], progress: float
    ) -> tuple[dict, int]:
        """What the model is called with, and how many windows have the network's own past."""
        # Each idea is encoded once, for all of its windows.
        pieces = {"input_features": batch["idea"], "num_frames": batch["num_frames"]}
        if not self.has_decoder:
            noise = self._noise(batch, rows, rows["labels"].shape[-1])
            return {**pieces, **noise, "start_frames": rows["start"], "labels": rows["labels"]}, 0
        lead = self.model_config.fold_size
        noise = batch["noise"].flatten(0, 1).float()  # (window, mel, lead + length)
        heard, past = rows["labels"], rows["labels"] + noise
        labels, given = heard[..., lead:], past[..., lead:]
        window = {"start_frames": rows["start"], "previous_features": past[..., :lead]}
        crops, count = self._num_sampled(len(batch["idea"]), progress), batch["start"].shape[1]
        sampled = crops * count
        if sampled:
            part = {key: value[:crops] for key, value in pieces.items()}
            part |= {key: value[:sampled] for key, value in window.items()}
            if self.samples:
                part |= {"heard_features": heard[:sampled], **self._noise(batch, rows, labels.shape[-1], sampled)}
            own = self._own(part, given[:sampled])
            if self.samples:  # the decoder's past is noised, the head is told it as it is
                heard = torch.cat([torch.cat([heard[:sampled, :, :lead], own], dim=-1), heard[sampled:]])
                own = own + noise[:sampled, :, lead:]
            given = torch.cat([own, given[sampled:]])
        told = {"heard_features": heard, **self._noise(batch, rows, labels.shape[-1])} if self.samples else {}
        return {**pieces, **window, **told, "labels": labels, "decoder_input_features": given}, sampled

    def _noise(self, batch: dict, rows: dict, frames: int, own: int | None = None) -> dict[str, torch.Tensor]:
        """Noise of the draws that are compared, or of the first `own` windows' own past."""
        if not self.samples:
            return {}
        seeds = batch["seeds"].flatten(0, 1)  # (window, draw + 1)
        seeds = seeds[:, :-1] if own is None else seeds[:own, -1:]
        stretch = rows["num_frames"][: len(seeds)], rows["start"][: len(seeds)], frames
        return {"noise": unwrapped(self.modules["model"]).draw_noise(seeds, *stretch)}

    def _num_sampled(self, crops: int, progress: float) -> int:
        begun = progress >= self.options.scheduled_sampling_start
        return round(self.options.scheduled_sampling * crops) if begun else 0

    def _own(self, part: dict[str, torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        # What the network makes of the first windows of the batch; the items' order is random already. Unwrapped, because
        # DDP allows one forward per backward.
        with torch.no_grad():
            output = unwrapped(self.modules["model"])(decoder_input_features=given, **part)
        return (output.output_features if self.samples else output.decoder_features).float()

    def _discriminator_phase(self, real: torch.Tensor, fake: torch.Tensor, drawing: torch.Tensor) -> Phase:
        rows = len(real)
        # One pass: DDP allows one forward per backward.
        scores, _ = self.modules["discriminator"](torch.cat([real, fake]), torch.cat([drawing, drawing]))
        loss = hinge_discriminator_loss([score[:rows] for score in scores], [score[rows:] for score in scores])
        return Phase("discriminator", loss, {"discriminator_loss": loss})

    def _judged(
        self, own: torch.Tensor, real: torch.Tensor, fake: torch.Tensor, drawing: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # As large a gradient at the head's last layer as its own loss has; unwrapped, because DDP would wait for gradients
        # of the discriminator that this loss does not make.
        bare, head = unwrapped(self.modules["discriminator"]), unwrapped(self.modules["model"]).expansion.head
        with freeze(bare):
            with torch.no_grad():
                _, wanted = bare(real, drawing)
            scores, features = bare(fake, drawing)
            adversarial = hinge_generator_loss(scores)
            matching = feature_matching_loss(wanted, features, reduction="mean")
            loss = adversarial + self.options.feature_matching_weight * matching
            return adaptive_weight(own, loss, head.last_weight, factor=1.0, most=1e4) * loss, adversarial

    def validation_settings(self) -> dict:
        return {
            "fold_size": self.model_config.fold_size,
            "idea_mode": "point" if self.is_original else "area",
            "draws": self.options.validation_draws if self.samples else 1,
        }

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        device = next(model.parameters()).device

        def generate(idea: torch.Tensor, frames: torch.Tensor, draw: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(draw)
            return model.generate(idea.to(device), frames.to(device), generator=generator)

        result = self._validator(generate)
        if self.has_decoder:
            result.pictures["true_teacher_forced_free_running"] = self._forced_picture(model, device)
        return result

    def _forced_picture(self, model: nn.Module, device: torch.device):
        # What one step makes of the true past beside what it makes of its own.
        mel = self._validator.targets["crops"][0][None].to(device)
        frames = torch.tensor([mel.shape[-1]], device=device)
        idea = resize_mel(mel, self.model_config.idea_columns, mode="point" if self.is_original else "area")
        output: MelReformerOutput = model(idea, frames, decoder_input_features=mel)
        free = model.generate(idea, frames, generator=torch.Generator().manual_seed(0))
        return stack_mels([part[0, :, :1024].float().cpu() for part in (mel, output.output_features, free)])


__all__ = ["ExpansionOptions", "ExpansionRecipe"]
