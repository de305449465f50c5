"""Crops of whole log-mels that are kept in memory: for models that read long crops and little of each.

The log-mel of three minutes takes longer than a training step of a small model. Here every recording's is computed once.
"""

from __future__ import annotations

import bisect

import torch

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.data.built import BuiltCropStream, BuiltRecordings
from melreformer_hf.data.recordings import CropSettings
from melreformer_hf.data.shards import Recording

_PART_FRAMES = 8192
# Frames around a part that its own first and last ones see, with room to spare.
_CONTEXT_FRAMES = 8


def whole_log_mel(waveform: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """(sample,) to (mel, frame) in half precision, in parts: the spectrum of an hour needs no gigabytes."""
    hop, frames, parts = config.hop_length, len(waveform) // config.hop_length, []
    for begin in range(0, frames, _PART_FRAMES):
        end = min(frames, begin + _PART_FRAMES)
        first, last = max(0, begin - _CONTEXT_FRAMES), min(frames, end + _CONTEXT_FRAMES)
        # Only the recording's own ends are padded.
        stop = len(waveform) if last == frames else last * hop
        mel = log_mel_spectrogram(waveform[first * hop : stop], config)
        parts.append(mel[:, begin - first : end - first].half())
    return torch.cat(parts, dim=-1)


class MelCropStream(BuiltCropStream):
    """Random crops as `BuiltCropStream`, with `mel`, (mel, frame) in half precision, in place of `waveform`.

    Frames at the ends of a crop have seen what lies beside it, where the log-mel of a cut waveform has seen its mirror.

    Args:
        store: the recordings.
        settings: which crops, in samples; `multiple` is the hop.
        config: the mel contract.
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: no recording is long enough.
    """

    def __init__(
        self,
        store: BuiltRecordings,
        settings: CropSettings,
        config: MelConfig,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(store, settings, seed, rank, world_size)
        self.config = config
        self._mels: dict[str, torch.Tensor] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mels": {}}

    def _mel(self, recording: Recording) -> torch.Tensor:
        if recording.name not in self._mels:
            self._mels[recording.name] = whole_log_mel(self.store.read(recording), self.config)
        return self._mels[recording.name]

    def item(self, index: int) -> dict:
        """The crop at `index` of the global sequence: `mel`, `recording`, `num_frames`, `index`."""
        random, hop = self.random(index), self.config.hop_length
        for _ in range(self.settings.attempts):
            place = int(random.integers(self._ends[-1]))
            recording = self._usable[bisect.bisect_right(self._ends, place)]
            start, length = self.settings.place(recording.num_samples, random)
            if self.settings.silence_weight == 1:
                break
            waveform = self.store.read(recording, start, length)
            if self.settings.is_kept(waveform, self.store.sampling_rate, random):
                break
        begin, frames = round(start / hop), length // hop
        mel = self._mel(recording)[:, begin : begin + frames]
        return {"mel": mel, "recording": recording.name, "num_frames": mel.shape[-1], "index": index}


__all__ = ["MelCropStream", "whole_log_mel"]
