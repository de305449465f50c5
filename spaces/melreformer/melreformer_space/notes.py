"""Music by way of notes: composed, continued, filled, accompanied, performed, and written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from melreformer_hf.pipelines.composing import DrawnNote, Score, drawn_score
from melreformer_hf.pipelines.hearing import score_end
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND, UNKNOWN_DURATION_TICKS, MidiNote, seconds_to_ticks
from melreformer_space.limits import (
    MAX_MIDI_SECONDS,
    MAX_SECONDS,
    MIN_SECONDS,
    NEW_SECONDS,
    check_drawing,
    check_number,
    checked,
    read_piece,
    read_recording,
    refusal,
)
from melreformer_space.roll import roll_of
from melreformer_space.sound import PEAK_DB, Files, Shown, Sound, emptied
from melreformer_space.stops import Stopped

SECONDS_BETWEEN_ROLLS = 0.4


def last_release(score: Score) -> float:
    """When the last key is let go, in seconds."""
    lengths = (UNKNOWN_DURATION_TICKS if note.duration is None else note.duration for note in score.notes)
    return max(note.onset + length for note, length in zip(score.notes, lengths, strict=True)) / TICKS_PER_SECOND


@dataclass
class Piece:
    """What is played.

    Args:
        chunks: its sound, (1, 1, sample) one after another.
        score: what is known of its notes by now.
        seconds: its length.
        origin: for the status, such as the seed.
        given: notes that the visitor gave.
        gap: what is written anew, in seconds.
    """

    chunks: Iterator[torch.Tensor]
    score: Callable[[], Score]
    seconds: float
    origin: str
    given: Collection[MidiNote] = ()
    gap: tuple[float, float] | None = None

    def roll(self, made: float | None = None) -> dict:
        """What a `piano_roll` shows of it."""
        return roll_of(self.score(), self.seconds, made, self.given, self.gap)


class NotePlayer:
    """Writes notes and plays them.

    Args:
        pipeline: makes the music.
        live: whether chunks are sent to a live player.
        files: where its files go.
    """

    def __init__(self, pipeline: MidiGenerationPipeline, live: bool, files: Files) -> None:
        self.pipeline, self.live, self.files, self.rate = pipeline, live, files, pipeline.sampling_rate

    def play(self, piece: Piece, started: float, stopped: Callable) -> Iterator[Shown]:
        """Make a piece audible.

        Args:
            piece: the piece.
            started: when the visitor's wait began, of `time.perf_counter`.
            stopped: tells whether the visitor has pressed Stop.
        """
        sound = Sound(self.files, self.rate, self.live, self.pipeline.live_gain, PEAK_DB, started)
        shown = 0.0
        for chunk in piece.chunks:
            heard, now = sound.add(chunk), time.perf_counter()
            if stopped():
                break
            if now - shown < SECONDS_BETWEEN_ROLLS:
                yield Shown(heard)
                continue
            shown = now
            status = f"{sound.made:.1f} of {piece.seconds:.1f} s are made ..."
            yield Shown(heard, roll=piece.roll(sound.made), status=status)
        heard, wav = sound.finish(stopped())
        made = sound.made if stopped() else None
        status = sound.summary(piece.seconds, piece.origin, stopped())
        yield Shown(heard, wav, self.files.midi(piece.score()), piece.roll(made), None, None, status)

    def begun(self, status: str, roll: dict) -> Shown:
        """The page before a piece."""
        return Shown(emptied(self.live), None, None, roll, None, None, status)

    def compose(
        self, seconds: float, seed: int, temperature: float, top_p: float, stopped: Callable
    ) -> Iterator[Shown]:
        """Compose a piece and play it while it is written."""
        started, drawn = time.perf_counter(), []
        seconds = check_number("The length in seconds", seconds, MIN_SECONDS, MAX_SECONDS)
        drawing = check_drawing(temperature, top_p)
        begun = self.begun("Composing ...", roll_of(Score([]), seconds, 0.0))
        if stopped():
            yield begun._replace(status="Stopped.")
            return
        yield begun
        generator = torch.Generator().manual_seed(seed)
        chunks = self.pipeline.stream(seconds, generator=generator, callback_on_note=drawn.append, **drawing)
        piece = Piece(chunks, lambda: drawn_score(drawn), seconds, f"Seed {seed}.")
        yield from self.play(piece, started, stopped)

    def go_on(
        self, file: str | None, seconds: float, seed: int, temperature: float, top_p: float, stopped: Callable
    ) -> Iterator[Shown]:
        """Play a MIDI file and go on where it ends, as it is written."""
        started, drawn = time.perf_counter(), []
        score = read_piece(file)
        seconds = check_number("The seconds to add", seconds, *NEW_SECONDS)
        drawing = check_drawing(temperature, top_p)
        length, name = last_release(score) + seconds, Path(file).name
        if length > MAX_MIDI_SECONDS:
            raise refusal(
                f"{name} and {seconds:g} s more last {length:.0f} s; at most {MAX_MIDI_SECONDS} s are accepted."
            )
        given = frozenset(score.notes)
        yield self.begun(f"Playing {name} ...", roll_of(score, length, 0.0, given))
        generator = torch.Generator().manual_seed(seed)
        chunks = self.pipeline.stream(
            length, prompt=score, generator=generator, callback_on_note=drawn.append, **drawing
        )
        origin = f"{name} and {seconds:g} s more, seed {seed}."
        yield from self.play(Piece(chunks, lambda: drawn_score(drawn, score), length, origin, given), started, stopped)

    def fill(
        self,
        file: str | None,
        start: float,
        end: float,
        seed: int,
        temperature: float,
        top_p: float,
        stopped: Callable,
    ) -> Iterator[Shown]:
        """Write anew what lies between two times of a MIDI file, and play all of it."""
        score = read_piece(file)
        start = check_number("The beginning of the gap in seconds", start, 0, MAX_MIDI_SECONDS)
        end = check_number("The end of the gap in seconds", end, 0, MAX_MIDI_SECONDS)
        if end <= start:
            raise refusal(f"The gap must end after its beginning, got {start:g} to {end:g} s.")
        first, stop = seconds_to_ticks(start), seconds_to_ticks(end)
        kept = frozenset(note for note in score.notes if not first <= note.onset < stop)

        def write(**drawing) -> Score:
            output = self.pipeline.fill(score, start, end, output_type="notes", **drawing)
            return Score(output.notes[0], output.pedal[0])

        left = Score([note for note in score.notes if note in kept], score.pedal)
        origin = f"{Path(file).name}, {start:g} to {end:g} s written anew, seed {seed}."
        yield from self._written(write, left, kept, (start, end), origin, seed, temperature, top_p, stopped)

    def accompany(
        self, file: str | None, seed: int, temperature: float, top_p: float, stopped: Callable
    ) -> Iterator[Shown]:
        """Write an accompaniment to the melody of a MIDI file, and play both."""
        score = read_piece(file)

        def write(**drawing) -> Score:
            output = self.pipeline.accompany(score, output_type="notes", **drawing)
            return Score(output.notes[0], output.pedal[0])

        origin = f"{Path(file).name} with an accompaniment, seed {seed}."
        yield from self._written(write, score, frozenset(score.notes), None, origin, seed, temperature, top_p, stopped)

    def _written(
        self,
        write: Callable[..., Score],
        given: Score,
        kept: Collection[MidiNote],
        gap: tuple[float, float] | None,
        origin: str,
        seed: int,
        temperature: float,
        top_p: float,
        stopped: Callable,
    ) -> Iterator[Shown]:
        """Write notes to given ones, whole, then play all of them."""
        started, drawing = time.perf_counter(), check_drawing(temperature, top_p)
        begun = self.begun("Writing notes ...", roll_of(given, score_end(*given), None, kept, gap))
        yield begun

        def check(note: DrawnNote) -> None:
            if stopped():
                raise Stopped

        try:
            generator = torch.Generator().manual_seed(seed)
            score = checked(lambda: write(generator=generator, callback_on_note=check, **drawing))
        except Stopped:
            yield begun._replace(status="Stopped.")
            return
        yield from self.play(self._whole(score, origin, kept, gap), started, stopped)

    def _whole(
        self, score: Score, origin: str, given: Collection[MidiNote] = (), gap: tuple[float, float] | None = None
    ) -> Piece:
        return Piece(self.pipeline.stream_score(score), lambda: score, score_end(*score), origin, given, gap)

    def perform(self, file: str | None, stopped: Callable) -> Iterator[Shown]:
        """Play a MIDI file."""
        started, score = time.perf_counter(), read_piece(file)
        piece = self._whole(score, f"{Path(file).name}, performed.", frozenset(score.notes))
        yield self.begun(f"Playing {Path(file).name} ...", piece.roll(0.0))
        yield from self.play(piece, started, stopped)

    def transcribe(self, recording: str | None, stopped: Callable) -> Iterator[Shown]:
        """Write down the notes of a recording, and play them."""
        started, waveform = time.perf_counter(), read_recording(recording, self.rate)
        seconds, name = waveform.numel() / self.rate, Path(recording).name
        yield self.begun(f"Listening to {name} ...", roll_of(Score([]), seconds, 0.0))
        score = checked(lambda: self.pipeline.transcribe(waveform, self.rate))
        if not score.notes:
            raise refusal(f"No notes were heard in {name}: is it silent, or no piano?")
        piece = self._whole(score, f"{len(score.notes)} notes were heard in {seconds:.1f} s of {name}.")
        yield from self.play(piece, started, stopped)

    def preview(self, file: str | None) -> tuple[dict | None, str, float, float]:
        """Roll and status of an uploaded file before anything is done with it, and a gap in its middle."""
        if file is None:
            return None, "", 0.0, 1.0
        score = read_piece(file)
        seconds = score_end(*score)
        last = max(note.onset for note in score.notes) / TICKS_PER_SECOND
        status = f"{Path(file).name}: {len(score.notes)} notes, {seconds:.1f} s. Choose what to do with it."
        return (
            roll_of(score, seconds, None, frozenset(score.notes)),
            status,
            round(last / 3, 1),
            round(2 * last / 3, 1),
        )
