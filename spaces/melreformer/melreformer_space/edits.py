"""Recordings are edited: varied, blended, and in spans of seconds filled, extended and looped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gradio as gr
import numpy as np
import torch

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_utils import RowGenerators, row_generators
from melreformer_hf.plotting import MelSummary, Panel, panels_picture
from melreformer_space.limits import (
    ADDED_SECONDS,
    MAX_SECONDS,
    MIN_SECONDS,
    SEAM_SECONDS,
    STEPS,
    check_number,
    checked,
    read_recording,
    refusal,
)
from melreformer_space.sound import Files, Shown, Sound, emptied

WIDTH = 640
# Gets the row of a seed and what is told of the mel; gives the music while it is made.
Make = Callable[[RowGenerators, Callable[[torch.Tensor], None]], Iterator[torch.Tensor]]


class EditPlayer:
    """Plays edited recordings, at the level that they have.

    Args:
        pipeline: edits.
        live: whether chunks are sent to a live player.
        files: where its files go.
    """

    def __init__(self, pipeline: MelReformerPipeline, live: bool, files: Files) -> None:
        self.pipeline, self.live, self.files, self.rate = pipeline, live, files, pipeline.sampling_rate

    def vary(
        self, recording: str | None, strength: float, seed: int, steps: float, stopped: Callable
    ) -> Iterator[Shown]:
        """Play a variation."""
        drawing = _drawing(strength, steps)
        waveform = read_recording(recording, self.rate)

        def make(rows: RowGenerators, told: Callable) -> Iterator[torch.Tensor]:
            drawn = self.pipeline.vary_idea((waveform, self.rate), **drawing, generator=rows)
            yield from self.pipeline.stream_idea(*drawn, callback_on_mel=told, generator=rows)

        origin = f"{_name(recording)} varied by {drawing['strength']:g}, seed {seed}."
        yield from self._play([(recording, waveform)], make, self._seconds(waveform), origin, seed, stopped)

    def blend(
        self,
        recording: str | None,
        other: str | None,
        weight: float,
        strength: float,
        seed: int,
        steps: float,
        stopped: Callable,
    ) -> Iterator[Shown]:
        """Play what lies between two recordings."""
        drawing = _drawing(strength, steps)
        weight = check_number("The weight", weight, 0, 1)
        waveforms = [read_recording(file, self.rate) for file in (recording, other)]
        sources = [(waveform, self.rate) for waveform in waveforms]

        def make(rows: RowGenerators, told: Callable) -> Iterator[torch.Tensor]:
            drawn = self.pipeline.blend_ideas(*sources, weight, **drawing, generator=rows)
            yield from self.pipeline.stream_idea(*drawn, callback_on_mel=told, generator=rows)

        lengths = [self._seconds(waveform) for waveform in waveforms]
        seconds = (1 - weight) * lengths[0] + weight * lengths[1]
        origin = f"{weight:g} of the way from {_name(recording)} to {_name(other)}, seed {seed}."
        befores = list(zip((recording, other), waveforms, strict=True))
        yield from self._play(befores, make, seconds, origin, seed, stopped)

    def inpaint(
        self,
        recording: str | None,
        start: float,
        end: float,
        strength: float,
        seed: int,
        steps: float,
        stopped: Callable,
    ) -> Iterator[Shown]:
        """Make a span anew."""
        drawing = _drawing(strength, steps)
        start, end = (
            check_number(f"The span's {which}", value, 0, MAX_SECONDS)
            for which, value in (("beginning", start), ("end", end))
        )
        waveform = read_recording(recording, self.rate)

        def make(rows: RowGenerators, told: Callable) -> Iterator[torch.Tensor]:
            source = (waveform, self.rate)
            yield from self.pipeline.inpaint_stream(
                source, start, end, **drawing, generator=rows, callback_on_mel=told
            )

        origin = f"{_name(recording)}, {start:g} to {end:g} s made anew, seed {seed}."
        seconds = self._seconds(waveform)
        yield from self._play([(recording, waveform)], make, seconds, origin, seed, stopped, [(start, end)])

    def extend(
        self,
        recording: str | None,
        left: float,
        right: float,
        strength: float,
        seed: int,
        steps: float,
        stopped: Callable,
    ) -> Iterator[Shown]:
        """Go on before the beginning and after the end."""
        drawing = _drawing(strength, steps)
        left, right = (
            check_number(f"The seconds to add {where}", value, *ADDED_SECONDS)
            for where, value in (("before", left), ("after", right))
        )
        waveform = read_recording(recording, self.rate)
        own = self._seconds(waveform)
        wanted = left + own + right
        check_number("The length of the result in seconds", wanted, MIN_SECONDS, MAX_SECONDS)
        if not left and not right:
            raise refusal("Choose how many seconds to add before or after the recording.")

        def make(rows: RowGenerators, told: Callable) -> Iterator[torch.Tensor]:
            source = (waveform, self.rate)
            yield from self.pipeline.extend_stream(
                source, left, right, **drawing, generator=rows, callback_on_mel=told
            )

        spans = [(0.0, left)] * (left > 0) + [(left + own, wanted)] * (right > 0)
        origin = f"{_name(recording)} extended, seed {seed}."
        yield from self._play([(recording, waveform)], make, wanted, origin, seed, stopped, spans, left)

    def loop(
        self, recording: str | None, seam: float, strength: float, seed: int, steps: float, stopped: Callable
    ) -> Iterator[Shown]:
        """Let the end lead into the beginning."""
        drawing = _drawing(strength, steps)
        seam = check_number("The seam in seconds", seam, *SEAM_SECONDS)
        waveform = read_recording(recording, self.rate)

        def make(rows: RowGenerators, told: Callable) -> Iterator[torch.Tensor]:
            made = self.pipeline.loop((waveform, self.rate), seam, **drawing, generator=rows)
            told(made.mels)
            yield made.audios

        seconds = self._seconds(waveform)
        spans = [(0.0, seam / 2), (seconds - seam / 2, seconds)]
        origin = f"{_name(recording)} as a loop, seed {seed}."
        yield from self._play([(recording, waveform)], make, seconds, origin, seed, stopped, spans)

    def length_of(self, recording: str | None) -> float:
        """Seconds of an upload, for the page's sliders; the longest that is accepted where there is none to read."""
        if recording is None:
            return float(MAX_SECONDS)
        seconds = self._seconds(read_recording(recording, self.rate))
        return max(math.floor(10 * seconds) / 10, 0.1)  # in the steps of the sliders

    def _seconds(self, waveform: torch.Tensor) -> float:
        """Of its whole frames, which the result has."""
        hop = self.pipeline.mel_config.hop_length
        return waveform.numel() // hop * hop / self.rate

    def _play(
        self,
        befores: Sequence[tuple[str, torch.Tensor]],
        make: Make,
        seconds: float,
        origin: str,
        seed: int,
        stopped: Callable,
        spans: Sequence[tuple[float, float]] = (),
        begin: float = 0.0,
    ) -> Iterator[Shown]:
        """Play what is made.

        Args:
            befores: recordings and their waveforms.
            make: makes the music.
            seconds: its length.
            origin: for the status.
            seed: of the music.
            stopped: tells whether the visitor has pressed Stop.
            spans: (begin, end) in seconds of what is made anew.
            begin: where the recording begins in the result, in seconds.
        """
        started, config = time.perf_counter(), self.pipeline.mel_config
        if stopped():
            yield Shown(emptied(self.live), status="Stopped.")
            return
        mels = checked(lambda: [log_mel_spectrogram(waveform, config) for _, waveform in befores])
        panels = [
            Panel(mel, _name(file), self._seconds(waveform), begin)
            for mel, (file, waveform) in zip(mels, befores, strict=True)
        ]
        summary = MelSummary(max(round(seconds * config.frame_rate), 1))

        def picture() -> np.ndarray:
            # What is not made yet stays grey, on a time axis that does not change.
            reached = seconds * summary.position / summary.num_frames
            after = Panel(summary.mel(), "the result", max(reached, 1e-3), 0.0, spans)
            return np.asarray(panels_picture([*panels, after], config, width=WIDTH, seconds=begin + seconds))

        yield Shown(emptied(self.live), None, picture=picture(), status="Drawing an idea ...")
        sound = Sound(self.files, self.rate, self.live, 1.0, None, started)
        rows = row_generators(torch.Generator().manual_seed(seed), 1)
        chunks = make(rows, lambda mel: summary.add(mel[0]))
        while (chunk := checked(lambda: next(chunks, None))) is not None:
            heard = sound.add(chunk)
            if stopped():
                break
            yield Shown(heard, status=f"{sound.made:.1f} of {seconds:.1f} s are made ...")
        heard, file = sound.finish(stopped())
        status = sound.summary(seconds, origin, stopped())
        yield Shown(heard, file, picture=picture(), status=status)


def _drawing(strength: object, steps: object) -> dict[str, float]:
    """How ideas are drawn, as arguments of the pipeline."""
    return {
        "strength": check_number("The strength", strength, 0, 1),
        "num_inference_steps": check_number("The number of steps", steps, *STEPS, whole=True),
    }


def _name(file: str) -> str:
    return Path(file).name


def edited_figure() -> gr.Image:
    """The picture before and after, empty."""
    return gr.Image(
        label="before and after; the bar marks what is new",
        show_label=False,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_classes="picture",
        min_width=300,
    )
