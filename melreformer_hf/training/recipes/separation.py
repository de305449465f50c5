"""Recipe `separation`: vocals and instrumental of mixtures that are made while training, from voices and accompaniments.

Two architectures: the band-split separator, whose waveforms are judged by their distortion and their spectra, and the
frame transformer, which learns as the original's does, by the absolute error of the masked magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.data.mixtures import MixtureSettings, MixtureStream, fixed_mixtures
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics import sdr, si_sdr
from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel
from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
from melreformer_hf.models.frame_transformer.separation_frame_transformer import normalized_magnitudes
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.losses.separation import distortion_ratio, spectral_share
from melreformer_hf.training.recipes.audio import AudioRecipe
from melreformer_hf.training.recipes.base import Phase, StepContext, Trainable, Validation
from melreformer_hf.training.recipes.separation_options import SeparationOptions

_MODELS = {
    "band_split": (BandSplitSeparatorConfig, BandSplitSeparatorModel),
    "frame_transformer": (FrameTransformerConfig, FrameTransformerModel),
}
# Odd numbers that set the sequences of the two sources apart where both come from one folder.
_ACCOMPANIMENT, _LAYER = 0x5851F42D, 0x4C957F2D
_PICTURE_FRAMES = 512


class SeparationRecipe(AudioRecipe):
    """Train a separator on mixtures of voices (--dataset) and accompaniments (--options.accompaniment)."""

    name = "separation"
    best_metric = "si_sdr"
    greater_is_better = True
    further_datasets = ("accompaniment",)
    Options = SeparationOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        kind, self._model = _MODELS[self.options.architecture]
        self.model_config = kind.preset(self.options.preset, **config.model)
        self.channels = self.model_config.num_audio_channels
        # Pictures are drawn in it; a training at 44.1 kHz has the same frames per second.
        self.mel = MelConfig(sampling_rate=self.model_config.sampling_rate)
        self._held_out: list[torch.Tensor] | None = None

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(self._model(self.model_config))}

    def _samples(self, seconds: float) -> int:
        return max(1, round(seconds * self.mel.sampling_rate))

    def stream(self, rank: int, world_size: int) -> ItemStream:
        samples, options, seed = self._samples(self.options.crop_seconds), self.options, self.config.seed
        # What plays faster is shorter afterwards.
        longest = math.ceil(samples * max(1.0, options.speeds[1])) + 1

        def crops(dataset: str | None, offset: int, silence_weight: float | None = None) -> ItemStream:
            recordings = self.recordings("train", dataset)
            return recordings.crops(
                longest,
                longest,
                seed=seed + offset,
                rank=rank,
                world_size=world_size,
                silence_weight=silence_weight,
            )

        try:
            # Silence comes from `mute`; a voice that happens to pause teaches nothing else.
            voices, band = crops(None, 0, 0.0), crops(options.accompaniment, _ACCOMPANIMENT)
            if options.accompaniment_layers == 2:
                settings = MixtureSettings(gains_db=(-6.0, 6.0), mute=0.25, level_db=options.level_db)
                band = MixtureStream(band, crops(options.accompaniment, _LAYER), settings, seed + _LAYER)
        except ValueError as error:
            raise ValueError(
                f"options.crop_seconds must fit the recordings, got {options.crop_seconds} (and {options.speeds[1]} times "
                f"that for options.speeds). {error}"
            ) from error
        return MixtureStream(voices, band, options.mixtures(samples), seed)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        # (source, channel, sample): the voice first.
        return {"sources": item["sources"].reshape(2, self.channels, -1)}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        sources = batch["sources"]  # (batch, source, channel, sample)
        vocals, mixture = sources[:, 0], sources.sum(1)
        judge = self._waveform_losses if self.options.architecture == "band_split" else self._magnitude_losses
        losses = judge(self.modules["model"], vocals, mixture)
        yield Phase("model", losses["loss"], losses)

    def _waveform_losses(
        self, model: nn.Module, vocals: torch.Tensor, mixture: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        made = model(mixture).vocals.float()
        # The stems add up, so that what is too much in one is missing in the other: one error for both.
        error, vocals, mixture = ((part.flatten(0, 1)) for part in (made - vocals, vocals, mixture))
        losses = {}
        if self.options.ratio_weight:
            ratios = [distortion_ratio(error, stem, mixture).mean() for stem in (vocals, mixture - vocals)]
            losses |= {"vocals_ratio_db": ratios[0], "instrumental_ratio_db": ratios[1]}
        if self.options.stft_weight:
            losses["stft"] = spectral_share(error, mixture)
        total = self.options.ratio_weight * sum(losses[name] for name in losses if name.endswith("_db")) / 20
        return {"loss": total + self.options.stft_weight * losses.get("stft", 0.0), **losses}

    def _magnitude_losses(
        self, model: nn.Module, vocals: torch.Tensor, mixture: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        config = self.model_config
        heard, _, loudest = normalized_magnitudes(mixture, config.transform)
        wanted, _, own = normalized_magnitudes(mixture - vocals, config.transform)
        # On the mixture's scale, and no louder than it: a mask of 0 to 1 can reach nothing else.
        wanted = torch.minimum(wanted * (own / loudest), heard)
        bins = config.num_bins
        return {"loss": model(heard[:, :, :bins], labels=wanted[:, :, :bins]).loss}

    def prepare_validation(self) -> None:
        if self._held_out is not None:
            return
        options, split = self.options, self.validation_split
        samples = self._samples(options.validation_seconds)
        voices, band = (self.recordings(split, dataset) for dataset in (None, options.accompaniment))
        try:
            self._held_out = fixed_mixtures(voices, band, samples, options.validation_crops, options.level_db)
        except ValueError as error:
            raise ValueError(
                f"options.validation_seconds must fit the recordings, got {options.validation_seconds}. {error}"
            ) from error

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        device, rate = next(model.parameters()).device, self.mel.sampling_rate
        scores: dict[str, list[torch.Tensor]] = {}
        for sources in self._held_out:
            sources = sources.to(device)
            mixture = sources.sum(0)
            made = model.separate(mixture, rate)
            for name, stem, true in zip(("", "instrumental_"), made, sources, strict=True):
                stem, true, whole = stem.flatten(), true.flatten(), mixture.flatten()
                scores.setdefault(f"{name}si_sdr", []).append(si_sdr(stem, true))
                scores.setdefault(f"{name}sdr", []).append(sdr(stem, true))
                scores.setdefault(f"{name}mixture_si_sdr", []).append(si_sdr(whole, true))
        metrics = {name: torch.stack(values).mean().item() for name, values in scores.items()}
        metrics["si_sdr_gain"] = metrics["si_sdr"] - metrics["mixture_si_sdr"]
        sources = self._held_out[0]
        shown = {"mixture": sources.sum(0), "vocals": model.separate(sources.sum(0).to(device), rate).vocals.cpu()}
        pictures = [log_mel_spectrogram(wave.mean(0), self.mel)[:, :_PICTURE_FRAMES] for wave in shown.values()]
        return Validation(
            metrics,
            {"mixture_over_vocals": stack_mels(pictures)},
            {name: wave.mean(0) for name, wave in shown.items()},
            rate,
            f"SI-SDR of vocals {metrics['si_sdr']:.2f} dB, {metrics['si_sdr_gain']:+.2f} dB to the mixture's; of the "
            f"instrumental {metrics['instrumental_si_sdr']:.2f} dB",
            {"mixtures": len(self._held_out)},
        )

    def check_start(self, pretrained: nn.Module) -> None:
        for field in ("sampling_rate", "num_audio_channels", "n_fft", "hop_length"):
            theirs, ours = getattr(pretrained.config, field), getattr(self.model_config, field)
            if theirs != ours:
                raise ValueError(f"{field} must be the same: init_from has {theirs}, this training has {ours}.")


__all__ = ["SeparationRecipe"]
