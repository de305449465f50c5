"""Recipe `codec`: waveforms to codes and back, with spectral losses and discriminators.

Losses on the waveform are balanced by their gradients (EnCodec, arXiv 2210.13438). Discriminators judge all at once, or one
at a time, drawn by how hard it is and together with the bitrate that it judges (LumenPallidium/audio_generation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics import multi_resolution_stft_distance
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel, SoundStreamOutput
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.discriminators.drawing import DiscriminatorDraw
from melreformer_hf.training.discriminators.families import DiscriminatorEnsemble, build_discriminator
from melreformer_hf.training.freezing import freeze
from melreformer_hf.training.losses.adversarial import feature_matching_loss
from melreformer_hf.training.losses.balancer import LossBalancer
from melreformer_hf.training.losses.codec import channel_average_loss, multi_window_mel_distance, si_sdr_loss
from melreformer_hf.training.losses.hinge import hinge_discriminator_loss, hinge_generator_loss, separation_term
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.audio import AudioRecipe, length_of
from melreformer_hf.training.recipes.base import Phase, Stateful, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.codec_measures import CodecMeasures
from melreformer_hf.training.recipes.codec_options import CodecOptions
from melreformer_hf.training.wrapping import unwrapped

_ALL = "discriminator"
_PICTURE_FRAMES = 512


class CodecRecipe(AudioRecipe):
    """Train a codec (SoundStreamModel) on crops of recordings."""

    name = "codec"
    best_metric = "score"
    Options = CodecOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = SoundStreamConfig.preset(self.options.preset, **config.model)
        self.channels = self.model_config.audio_channels
        # What distances are measured in; the crops are whole frames of the codec.
        self.mel = MelConfig(sampling_rate=self.model_config.sampling_rate)
        self._balancer = LossBalancer(self.options.balanced_weights(), self.options.balance)
        self._draw: DiscriminatorDraw | None = None
        self._measures: CodecMeasures | None = None
        if self.options.average_weight and (self.channels > 1 or self.model_config.architecture != "convolution"):
            raise ValueError(
                "options.average_weight must be 0 for codecs of several channels or of the spectral architecture, whose "
                f"stages are no subsampled waveforms; got {self.options.average_weight}."
            )

    def trainables(self) -> dict[str, Trainable]:
        trainables = {"model": Trainable(SoundStreamModel(self.model_config))}
        if self.options.adversarial_weight:
            settings = OptimizerSettings(learning_rate=self.config.discriminator_learning_rate)
            size = self.options.discriminator_size
            if self.options.judges == "all":
                judges = {"": DiscriminatorEnsemble(self._names, size)}
            else:
                judges = {name: build_discriminator(name, size) for name in self._names}
                self._draw = DiscriminatorDraw(self._names)
                for name in self._names if self.options.judged_bitrates else ():
                    self._draw.num_quantizers(name, self.model_config.num_quantizers)  # refuses what cannot be
            trainables |= {self._module(name): Trainable(judge, settings) for name, judge in judges.items()}
        return trainables

    @property
    def _names(self) -> tuple[str, ...]:
        return self.options.discriminators

    @staticmethod
    def _module(name: str) -> str:
        return f"{_ALL}_{name}" if name else _ALL

    def stateful(self) -> dict[str, Stateful]:
        return {"balancer": self._balancer, **({} if self._draw is None else {"draw": self._draw})}

    def stream(self, rank: int, world_size: int) -> ItemStream:
        recordings, hop = self.recordings("train"), self.model_config.hop_length
        samples = self.options.crop_frames * hop
        with length_of("crop_frames", self.options.crop_frames):
            return recordings.crops(
                samples, samples, seed=self.config.seed, multiple=hop, rank=rank, world_size=world_size
            )

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        waveform = item["waveform"].reshape(self.channels, -1)
        # Down only: never louder than full scale. In decibels of amplitude, hence 20.
        decibels = -self.options.gain_augmentation_db * torch.rand((), generator=generator)
        return {"waveform": waveform * 10 ** (decibels / 20)}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        real, model = batch["waveform"], self.modules["model"]  # (batch, channel, sample)
        if context.step == 0 and context.micro_index == 0:
            unwrapped(model).initialize_codebooks(real, generator=context.generator)
        name = self._judge(context)
        judged = self._draw is not None and name is not None and self.options.judged_bitrates
        output: SoundStreamOutput = model(
            real,
            num_quantizers=self._draw.num_quantizers(name, self.model_config.num_quantizers) if judged else None,
            output_hidden_states=bool(self.options.average_weight),
            generator=context.generator,
            train_encoder=context.step >= self.options.decoder_first_steps,
        )
        fake, target = output.audio_values.float().flatten(0, 1), real.flatten(0, 1)  # (batch * channel, sample)
        if name is not None:
            yield self._discriminator_phase(name, fake.detach(), target)
        losses = self._losses(fake, target)
        if name is not None:
            losses |= self._judged(name, fake, target)
            if self._draw is not None:
                self._draw.record(name, losses["adversarial"])
        loss = self._balancer(losses, output.audio_values, context.num_micro_steps)
        # Until the encoder learns nothing may pull its latents together.
        loss = loss + output.quantization_loss * (context.step >= self.options.decoder_first_steps)
        scalars = {**losses, "quantization_loss": output.quantization_loss, "perplexity": output.perplexity.mean()}
        if self.options.average_weight:
            # Not balanced: the balancer's gradient enters at the output, this one at every stage.
            stages = [stage.float() for stage in output.decoder_hidden_states]
            scalars["channel_average"] = channel_average_loss(stages, real, self.options.stage_weights)
            loss = loss + self.options.average_weight * scalars["channel_average"]
        yield Phase("model", loss, {"loss": loss, **scalars}, output.codebook_inputs)

    def _judge(self, context: StepContext) -> str | None:
        """Which discriminator judges this batch: a name, all of them (""), or none."""
        if not self.options.adversarial_weight or context.progress < self.options.adversarial_start:
            return None
        if self._draw is None:
            return ""
        if self._draw.drawn is None or (context.step % self.options.draw_every == 0 and context.micro_index == 0):
            self._draw.draw(context.generator)
        return self._draw.drawn

    def _losses(self, fake: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        options, losses = self.options, {}
        if options.waveform_weight:
            losses["waveform"] = (fake - target).abs().mean()
        if options.si_sdr_weight:
            losses["si_sdr"] = si_sdr_loss(fake, target)
        if options.mel_weight:
            losses["mel"] = multi_window_mel_distance(fake, target, self.mel.sampling_rate, options.mel_windows)
        if options.stft_weight:
            losses["stft"] = multi_resolution_stft_distance(fake, target)
        return losses

    def _discriminator_phase(self, name: str, fake: torch.Tensor, real: torch.Tensor) -> Phase:
        module, rows = self._module(name), len(real)
        scores, _ = self.modules[module](torch.cat([real, fake]))  # one pass: DDP allows one forward per backward
        real_scores, fake_scores = [score[:rows] for score in scores], [score[rows:] for score in scores]
        loss = hinge_discriminator_loss(real_scores, fake_scores)
        # How far apart it holds the two, in units of the hinge: collapse is zero.
        apart = torch.stack([(a - b).mean() for a, b in zip(real_scores, fake_scores, strict=True)]).mean()
        scalars = {f"{module}_loss": loss, f"{module}_separation": apart}
        if self.options.separation_weight:
            separation = separation_term(real_scores, fake_scores, self.options.separation_weight, offset=1e-3)
            loss = loss + separation
        return Phase(module, loss, scalars)

    def _judged(self, name: str, fake: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        # Unwrapped: DDP would wait for gradients of the discriminator that this loss does not make.
        bare = unwrapped(self.modules[self._module(name)])
        with freeze(bare):
            with torch.no_grad():
                _, wanted = bare(real)
            scores, features = bare(fake)
            found = {"adversarial": hinge_generator_loss(scores)}
            if self.options.feature_matching_weight:
                found["feature_matching"] = feature_matching_loss(wanted, features, reduction="mean", relative=True)
        return found

    def after_step(self, kept: dict[str, list[Any]], context: StepContext) -> None:
        model = unwrapped(self.modules["model"])
        for inputs in kept.get("model", ()):
            model.accumulate_codebooks(inputs)
        model.update_codebooks(context.generator)

    def prepare_validation(self) -> None:
        if self._measures is None:
            samples = self.options.validation_frames * self.model_config.hop_length
            with length_of("validation_frames", self.options.validation_frames):
                crops = self.recordings(self.validation_split).fixed_crops(samples, self.options.validation_crops)
            waveforms = [crop["waveform"].reshape(self.channels, -1) for crop in crops]
            self._measures = CodecMeasures(waveforms, self.mel)

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        found = self._measures(model, self.options.bitrates(self.model_config))
        pictures = [
            log_mel_spectrogram(waveform[0], self.mel)[:, :_PICTURE_FRAMES] for waveform in found.examples.values()
        ]
        best = max(found.bitrates)
        summary = (
            f"log-mel L1 {found.metrics[f'mel_l1/{best:g}_kbps']:.3f}, STFT distance "
            f"{found.metrics[f'mr_stft/{best:g}_kbps']:.3f} at {best:g} kbit/s, "
            f"{found.metrics[f'entropy_kbps/{best:g}_kbps']:.2f} as counted"
        )
        return Validation(
            found.metrics,
            {"true_over_decoded": stack_mels(pictures)},
            {name: waveform.mean(0) for name, waveform in found.examples.items()},
            self.mel.sampling_rate,
            summary,
            {"crops": len(self._measures.waveforms)},
        )

    def check_start(self, pretrained: nn.Module) -> None:
        for field in ("sampling_rate", "audio_channels", "hop_length"):
            theirs, ours = getattr(pretrained.config, field), getattr(self.model_config, field)
            if theirs != ours:
                raise ValueError(f"{field} must be the same: init_from has {theirs}, this training has {ours}.")


__all__ = ["CodecRecipe"]
