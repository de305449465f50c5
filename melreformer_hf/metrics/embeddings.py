"""What sets of recordings are compared in: statistics of log-mels, what an ear hears, or any audio model of the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram

if TYPE_CHECKING:
    from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel


class LogMelStatistics:
    """Mean, standard deviation and mean absolute change in time of every band of a log-mel: no download, no network.

    It sees timbre, level and how lively the bands are, not melody or rhythm; use an audio model for those.

    Args:
        config: the mel contract; default 32 bands, magnitudes, natural logarithm, floor 1e-5, 22,050 Hz.
    """

    def __init__(self, config: MelConfig | None = None) -> None:
        self.config = config or MelConfig(num_mel_bins=32)
        self.name = f"log-mel statistics, {self.config.num_mel_bins} bands, {self.config.sampling_rate} Hz"

    def __call__(self, waveforms: Sequence[torch.Tensor], sampling_rate: int) -> torch.Tensor:
        """(sample,) waveforms to (waveform, 3 * band)."""
        rows = []
        for waveform in waveforms:
            mel = log_mel_spectrogram(_at_rate(waveform, sampling_rate, self.config.sampling_rate), self.config)
            rows.append(torch.cat([mel.mean(-1), mel.std(-1), mel.diff(dim=-1).abs().mean(-1)]))
        return torch.stack(rows)


class AudioModelEmbedding:
    """Features of a trained audio model, averaged over time.

    Works with models whose output has audio embeddings (CLAP), a pooled output or hidden states (wav2vec 2, HuBERT,
    MERT, AST), and with codecs that have an encoder (EnCodec, DAC).

    Args:
        name: Hub id or folder that `AutoModel` and `AutoFeatureExtractor` load.
        device: where the model runs.

    Raises:
        ValueError: the model's output is none of these.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoFeatureExtractor, AutoModel

        self.name, self.device = str(name), device
        self.extractor = AutoFeatureExtractor.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval().to(device)

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[torch.Tensor], sampling_rate: int) -> torch.Tensor:
        """(sample,) waveforms to (waveform, feature); one after another, so that padding changes nothing."""
        return torch.stack([self._embed(waveform, sampling_rate) for waveform in waveforms])

    def _embed(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        rate = self.extractor.sampling_rate
        samples = _at_rate(waveform, sampling_rate, rate).numpy()
        inputs = self.extractor(samples, sampling_rate=rate, return_tensors="pt").to(self.device)
        if hasattr(self.model, "get_audio_features"):
            return _pooled(self.model.get_audio_features(**inputs))
        encoder = getattr(self.model, "encoder", None)
        if "input_values" in inputs and hasattr(self.model, "quantizer") and encoder is not None:
            return encoder(inputs["input_values"])[0].mean(-1).cpu()  # (channel, frame)
        return _pooled(self.model(**inputs))


class NoteEarEmbedding:
    """What an ear reads notes from, its last hidden layer, averaged over time: touch, chords and rhythm, not timbre alone.

    Args:
        ear: a `NoteEarModel`, or the folder or Hub id of one.
        module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.
    """

    def __init__(self, ear: NoteEarModel | str | os.PathLike, module: Callable | None = None) -> None:
        if isinstance(ear, (str, os.PathLike)):
            from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel

            ear = NoteEarModel.from_pretrained(ear).eval()
        self.ear, self.module = ear, ear if module is None else module
        self.name = f"ear, {ear.config.hidden_size} features, {ear.config.sampling_rate} Hz"

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[torch.Tensor], sampling_rate: int) -> torch.Tensor:
        """(sample,) waveforms to (waveform, feature); one after another, so that padding changes nothing."""
        config, rows = self.ear.config, []
        for waveform in waveforms:
            samples = _at_rate(waveform, sampling_rate, config.sampling_rate).to(self.ear.device)
            mel = log_mel_spectrogram(samples[None], config.mel_config)
            rows.append(self.module(mel).last_hidden_state[0].float().mean(0).cpu())
        return torch.stack(rows)


def _pooled(output: object) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output[0].cpu()
    for key in ("audio_embeds", "pooler_output"):
        if getattr(output, key, None) is not None:
            return getattr(output, key)[0].cpu()
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3:
        raise ValueError(
            "The embedding's model must return audio_embeds, pooler_output or a last_hidden_state (batch, frame, "
            f"feature), got {type(output).__name__}. Pass a callable of your own to frechet_audio_distance."
        )
    return hidden[0].mean(0).cpu()


def _at_rate(waveform: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    if waveform.ndim != 1:
        raise ValueError(f"waveforms must be mono, (sample,), got shape {tuple(waveform.shape)}.")
    waveform = waveform.detach().cpu().float()
    if rate == wanted:
        return waveform
    from melreformer_hf.audio.io import resample

    return torch.from_numpy(resample(waveform.numpy(), rate, wanted))


__all__ = ["AudioModelEmbedding", "LogMelStatistics", "NoteEarEmbedding"]
