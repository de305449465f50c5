"""A picture of a separated recording of any length, at constant memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.nn.stems import Stems
from melreformer_hf.plotting import MelSummary, Panel, save_panels

# Frames of a block whose log-mel is computed at once, and columns of the picture.
_BLOCK_FRAMES, _COLUMNS = 512, 920
_SMALLEST = 1e-5
_TITLES = ("recording", "vocals", "instrumental")


class StemPictures:
    """Log-mels of a recording and of its stems, and the vocals' share, gathered while the stems are made.

    Args:
        sampling_rate: of the stems.
        num_samples: of the recording, at least; what comes after is not shown.
    """

    def __init__(self, sampling_rate: int, num_samples: int) -> None:
        self.config = MelConfig(sampling_rate=sampling_rate)
        self.num_frames = max(1, num_samples // self.config.hop_length)
        self._summaries = [MelSummary(self.num_frames, _COLUMNS) for _ in _TITLES]
        self._held = torch.zeros(len(_TITLES), 0)

    def add(self, stems: Stems) -> None:
        """Further samples, (channel, some) each."""
        vocals, instrumental = (stem.float().mean(0) for stem in stems)
        self._held = torch.cat([self._held, torch.stack([vocals + instrumental, vocals, instrumental])], dim=-1)
        block = _BLOCK_FRAMES * self.config.hop_length
        while self._held.shape[-1] >= block:
            self._take(self._held[:, :block])
            self._held = self._held[:, block:]

    def _take(self, waveforms: torch.Tensor) -> None:
        room = self.num_frames - self._summaries[0].position
        mels = log_mel_spectrogram(waveforms, self.config)[..., : max(room, 0)]  # (3, mel, frame)
        for summary, mel in zip(self._summaries, mels, strict=True):
            summary.add(mel)

    def panels(self) -> list[Panel]:
        """Recording, vocals, their share, instrumental; to be asked for once, at the end."""
        hop, rest = self.config.hop_length, self._held.shape[-1]
        if rest or not self._summaries[0].position:
            # The last block is filled up with silence to what a window needs.
            padded = max(-(-rest // hop) * hop, self.config.n_fft)
            self._take(torch.nn.functional.pad(self._held, (0, padded - rest)))
            self._held = self._held[:, :0]
        seconds = self._summaries[0].position / self.config.frame_rate
        mels = [summary.mel() for summary in self._summaries]
        low, high = min(mel.min().item() for mel in mels), max(mel.max().item() for mel in mels)
        voice, band = (mel.exp().clamp(min=_SMALLEST) for mel in mels[1:])
        # On the color scale of the others: black is none, bright is all.
        share = low + (high - low) * voice / (voice + band)
        shown = {
            _TITLES[0]: mels[0],
            _TITLES[1]: mels[1],
            "share of the vocals, none to all": share,
            _TITLES[2]: mels[2],
        }
        return [Panel(mel, title, seconds) for title, mel in shown.items()]

    def save(self, path: str | os.PathLike) -> Path:
        """Write the picture as a PNG, complete or not at all."""
        return save_panels(self.panels(), self.config, path)


__all__ = ["StemPictures"]
