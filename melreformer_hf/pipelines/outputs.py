"""What pipelines return: one class per task."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput

from melreformer_hf.audio.io import write_audio
from melreformer_hf.nn.stems import Stems
from melreformer_hf.pipelines.separating import write_stems
from melreformer_hf.processing.midi.notes import MidiNote, midi_bytes, write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi

MIDI_OUTPUTS = (".mid", ".midi")


@dataclass
class AudioOutput(BaseOutput):
    """Sound, of any task.

    Args:
        audios: (batch, channel, sample) tensor, or array with `output_type="np"`, full scale at 1; rows shorter than
            the longest end in silence.
        num_samples: (batch,) true lengths of the audios in samples.
        sampling_rate: samples per second.
        peak_db: level that `save` gives the loudest sample of every row, in dB of full scale, unless told otherwise;
            `None` keeps the level of the audios.
    """

    audios: torch.Tensor | np.ndarray
    num_samples: torch.Tensor
    sampling_rate: int
    peak_db: float | None

    @property
    def durations(self) -> list[float]:
        """Length of every row in seconds."""
        return [samples / self.sampling_rate for samples in self.num_samples.tolist()]

    def save(self, path: str | os.PathLike, peak_db: float | None | Literal["auto"] = "auto") -> list[Path]:
        """Write audio files: `path` for one row, `path` with -0, -1, ... before its suffix for several.

        Args:
            path: of the file: .wav and .flac (16 bit), .ogg (Vorbis) or .mp3; its folder is made when missing.
            peak_db: every row is scaled so that its loudest sample has this level, in dB of full scale, at most 0;
                `None` keeps the level of the audios. Default: the output's own `peak_db`, which is loud for music that
                was generated and `None` for recordings that were processed. Silence stays silence.

        Raises:
            ValueError: `peak_db` is above 0 or no number, an unknown suffix, or audios that hold no sound.
        """
        peak_db = self.peak_db if isinstance(peak_db, str) and peak_db == "auto" else peak_db
        check_peak(peak_db)
        path = Path(path)
        rows = torch.empty(0) if isinstance(self.audios, list) else torch.as_tensor(self.audios)
        if rows.ndim != 3 or rows.shape[-1] < int(self.num_samples.max()):
            raise ValueError('save needs sound: call the pipeline with output_type="pt" or "np".')
        return [
            write_audio(name, at_peak(row[:, :length], peak_db), self.sampling_rate)
            for name, row, length in zip(numbered(path, len(rows)), rows, self.num_samples.tolist(), strict=True)
        ]


@dataclass
class MusicPipelineOutput(AudioOutput):
    """Music by way of mels.

    Args:
        audios: (batch, channel, sample), see `AudioOutput`.
        num_samples: (batch,) true lengths of the audios in samples.
        sampling_rate: samples per second.
        peak_db: level that `save` gives the loudest sample.
        mels: (batch, mel, frame) log-mels.
        ideas: (batch, mel, column) log-mel ideas.
        num_frames: (batch,) true lengths of the mels in frames.
    """

    mels: torch.Tensor
    ideas: torch.Tensor
    num_frames: torch.Tensor


@dataclass
class SoundPipelineOutput(AudioOutput):
    """Sounds by way of tokens.

    Args:
        audios: (batch, channel, sample), see `AudioOutput`; or what `output_type` asked for in its place.
        num_samples: (batch,) true lengths of the audios in samples.
        sampling_rate: samples per second.
        peak_db: level that `save` gives the loudest sample.
        mels: (batch, mel, frame) log-mels.
        codes: (batch, row, column) tokens, lowest bands first.
        num_frames: (batch,) true lengths of the mels in frames.
    """

    mels: torch.Tensor
    codes: torch.Tensor
    num_frames: torch.Tensor


@dataclass
class MidiMusicOutput(AudioOutput):
    """Music by way of notes.

    Args:
        audios: (batch, channel, sample), see `AudioOutput`; or what `output_type` asked for in its place.
        num_samples: (batch,) true lengths of the audios in samples.
        sampling_rate: samples per second.
        peak_db: level that `save` gives the loudest sample.
        mels: (batch, mel, frame) log-mels, of the performer or of the sampled sound; no frames where none were made.
        num_frames: (batch,) true lengths of the mels in frames.
        notes: of every row, in the order of onset and pitch.
        pedal: of every row, when the sustain pedal is down: intervals (down, up) in ticks of 10 ms.
    """

    mels: torch.Tensor
    num_frames: torch.Tensor
    notes: list[list[MidiNote]]
    pedal: list[list[tuple[int, int]]]

    @property
    def midi(self) -> list[bytes]:
        """Content of a MIDI file of every row."""
        return [midi_bytes(piece_to_midi(*row)) for row in zip(self.notes, self.pedal, strict=True)]

    def save(self, path: str | os.PathLike, peak_db: float | None | Literal["auto"] = "auto") -> list[Path]:
        """As `AudioOutput.save`; with the suffix .mid the notes and the pedal.

        Raises:
            ValueError: as there.
        """
        path = Path(path)
        if path.suffix.lower() not in MIDI_OUTPUTS:
            return super().save(path, peak_db)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = numbered(path, len(self.notes))
        for name, notes, pedal in zip(names, self.notes, self.pedal, strict=True):
            write_midi(piece_to_midi(notes, pedal), name)
        return names


@dataclass
class SeparationOutput(BaseOutput):
    """A recording in two stems, which add up to it.

    Args:
        vocals: (channel, sample) float32.
        instrumental: (channel, sample) float32.
        sampling_rate: samples per second.
    """

    vocals: torch.Tensor
    instrumental: torch.Tensor
    sampling_rate: int

    def save(self, folder: str | os.PathLike, suffix: str = ".wav") -> list[Path]:
        """Write `vocals` and `instrumental` into a folder, made when missing, each complete or not at all.

        Args:
            folder: for the two files.
            suffix: .wav (32-bit float, so that the two still add up), .flac, .ogg or .mp3.

        Raises:
            ValueError: another suffix.
        """
        stems = iter([Stems(self.vocals, self.instrumental)])
        return write_stems(stems, Path(folder), suffix, self.sampling_rate, len(self.vocals))


def numbered(path: Path, count: int) -> list[Path]:
    """`path` for one file, `path` with -0, -1, ... before its suffix for several."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


def check_peak(peak_db: float | None) -> None:
    """Refuse what is no level.

    Raises:
        ValueError: above 0, or no number.
    """
    if peak_db is None:
        return
    if isinstance(peak_db, bool) or not isinstance(peak_db, (int, float)) or not -math.inf < peak_db <= 0:
        raise ValueError(f"peak_db must be a number of at most 0, or None to keep the level, got {peak_db!r}.")


def peak_gain(peak: float, peak_db: float | None) -> float:
    """Factor that gives a loudest sample `peak` a level in dB; 1 where the level is kept, and for silence."""
    # What is softer than the last bit of a 16-bit file is silence, and stays it.
    if peak_db is None or peak < 2.0**-16:
        return 1.0
    return 10 ** (peak_db / 20) / peak


def at_peak(audio: torch.Tensor, peak_db: float | None) -> torch.Tensor:
    """(..., sample) scaled so that its loudest sample has a level in dB of full scale."""
    return audio * peak_gain(audio.abs().max().item() if audio.numel() else 0.0, peak_db)


__all__ = [
    "MIDI_OUTPUTS",
    "AudioOutput",
    "MidiMusicOutput",
    "MusicPipelineOutput",
    "SeparationOutput",
    "SoundPipelineOutput",
    "at_peak",
    "check_peak",
    "numbered",
    "peak_gain",
]
