"""The sound of a piece while it is made, the files that it leaves, and what is shown of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch

from melreformer_hf.audio.io import to_int16, write_audio
from melreformer_hf.pipelines.composing import Score
from melreformer_hf.pipelines.outputs import at_peak
from melreformer_hf.processing.midi.notes import write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi

CACHE_SECONDS = 3600  # files of visitors are deleted after this time
PEAK_DB = -1.0  # of files with composed and performed music, as the command writes them


class Shown(NamedTuple):
    """What changes on the page in one step; the rest stays."""

    sound: Any = gr.skip()
    wav: Any = gr.skip()
    midi: Any = gr.skip()
    roll: Any = gr.skip()
    idea: Any = gr.skip()
    mel: Any = gr.skip()
    status: Any = gr.skip()
    picture: Any = gr.skip()

    def of(self, names: tuple[str, ...]) -> tuple:
        """Those of a tab, in its order."""
        return tuple(getattr(self, name) for name in names)


class Files:
    """A folder of what visitors download, each file for as long as Gradio keeps its copy."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="melreformer-")

    def place(self, name: str) -> Path:
        """Where a new file goes."""
        root = Path(self._root.name)
        for folder in root.iterdir():
            if folder.stat().st_mtime < time.time() - CACHE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=root)) / name

    def midi(self, score: Score) -> str | None:
        """A MIDI file; `None` of no notes."""
        if not score.notes:
            return None
        path = self.place("piece.mid")
        write_midi(piece_to_midi(*score), path)
        return str(path)


class Sound:
    """The sound of one piece.

    Args:
        files: where its file goes.
        rate: samples per second.
        live: whether chunks are sent to a live player; else the player gets the piece when it is finished.
        gain: of what is played.
        peak_db: level of the file's loudest sample; `None` writes what was played.
        started: when the visitor's wait began, of `time.perf_counter`.
    """

    def __init__(
        self, files: Files, rate: int, live: bool, gain: float, peak_db: float | None, started: float
    ) -> None:
        self.files, self.rate, self.live, self.gain, self.peak_db = files, rate, live, gain, peak_db
        self.started, self.heard_after = started, 0.0
        self._chunks: list[np.ndarray] = []

    @property
    def made(self) -> float:
        """Seconds that were made."""
        return sum(len(chunk) for chunk in self._chunks) / self.rate

    def add(self, chunk: torch.Tensor) -> Any:
        """Take (1, 1, sample), and give what the player gets of it."""
        samples = chunk[0, 0].cpu().numpy()
        self._chunks.append(samples)
        self.heard_after = self.heard_after or time.perf_counter() - self.started
        return (self.rate, to_int16(samples, self.gain)) if self.live else gr.skip()

    def finish(self, stopped: bool) -> tuple[Any, str | None]:
        """What the player gets at the end, and the file. After Stop the player waits at the beginning of what was made:
        a live one would go on with what it has received beyond that."""
        if not self._chunks:
            return gr.update(value=None), None
        whole = np.concatenate(self._chunks)
        if self.peak_db is None:
            audio = torch.from_numpy(to_int16(whole, self.gain) / 32767.0)
        else:
            audio = at_peak(torch.from_numpy(whole), self.peak_db)
        file = str(write_audio(self.files.place("piece.wav"), audio, self.rate))
        if stopped or not self.live:
            return gr.update(value=file, autoplay=False, playback_position=0), file
        return gr.skip(), file

    def summary(self, length: float, origin: str, stopped: bool) -> str:
        """The last status."""
        if stopped:
            return f"**Stopped after {self.made:.1f} of {length:.1f} s**, which can be downloaded. {origin}"
        took = time.perf_counter() - self.started
        return (
            f"**{length:.1f} s of music in {took:.1f} s**, {rate_words(length / took)}; the first sound was ready after "
            f"{self.heard_after:.1f} s. {origin}"
        )


def emptied(live: bool) -> dict:
    """The player before a piece: with nothing to play, and not at the place where the piece before was left, to which
    Gradio would take the new one."""
    return gr.update(value=None, autoplay=live, playback_position=0)


def rate_words(factor: float) -> str:
    """Words for seconds of music per second of work."""
    return (
        f"{factor:.1f} times faster than it sounds" if factor >= 1 else f"{1 / factor:.1f} times slower than it sounds"
    )
