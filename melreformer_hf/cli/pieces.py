"""Pieces of notes into files: as MIDI, or played and written while they are made, with a picture of the piano roll."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from melreformer_hf.cli.generate import record, seeds, tell_speed

if TYPE_CHECKING:
    import torch

    from melreformer_hf.pipelines.composing import DrawnNote, Score
    from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline


def compose_files(
    pipe: MidiGenerationPipeline,
    files: Sequence[Path | None],
    seconds: float | None,
    seed: int | None,
    peak_db: float | None,
    synth: str = "performer",
    temperature: float | None = None,
    top_p: float | None = None,
) -> None:
    """Compose pieces into files; music of a given length is written while it is composed.

    Args:
        pipe: the pipeline.
        files: to write; `None` is standard output.
        seconds: length of each; `None` lets the composer end them.
        seed: of the first; `None` is a new one.
        peak_db: level of the loudest sample; `None` keeps the pipeline's.
        synth: what plays.
        temperature: of the composer.
        top_p: of the composer.
    """
    from melreformer_hf.pipelines.composing import drawn_score

    drawing = {"temperature": temperature, "top_p": top_p}
    for file, (own, generator) in zip(files, seeds(seed, len(files)), strict=True):
        started, origin = time.perf_counter(), f"seed {own}"
        if seconds is None or _is_midi(file):
            score = pipe.compose(seconds, generator=generator, **drawing)
            _deliver(pipe, file, score, origin, peak_db, synth, seconds, started)
            continue
        drawn: list[DrawnNote] = []

        def sound(told: Callable[[torch.Tensor], None], generator=generator, drawn=drawn) -> Iterator[torch.Tensor]:
            arguments = {**drawing, "synth": synth, "generator": generator}
            return pipe.stream(seconds, callback_on_note=drawn.append, callback_on_mel=told, **arguments)

        _sound_files(pipe, file, sound, lambda drawn=drawn: drawn_score(drawn), origin, peak_db, seconds, started)


def write_files(
    pipe: MidiGenerationPipeline,
    files: Sequence[Path | None],
    write: Callable[[torch.Generator], Score],
    seed: int | None,
    origin: str,
    peak_db: float | None,
    synth: str,
    seconds: float | None,
) -> None:
    """Write pieces with a seed of their own each, and play them where sound is asked for."""
    for file, (own, generator) in zip(files, seeds(seed, len(files)), strict=True):
        started = time.perf_counter()
        _deliver(pipe, file, write(generator), f"{origin}, seed {own}", peak_db, synth, seconds, started)


def _deliver(
    pipe: MidiGenerationPipeline,
    file: Path | None,
    score: Score,
    origin: str,
    peak_db: float | None,
    synth: str,
    seconds: float | None,
    started: float,
) -> None:
    """Write a piece as notes, or play it."""
    if not _is_midi(file):
        play_file(pipe, file, score, origin, peak_db, synth, seconds, started)
        return
    from melreformer_hf.pipelines.hearing import score_end

    length = score_end(*score) if seconds is None else seconds
    written = save_notes(score, file, length, origin)
    typer.echo(f"wrote {written} ({len(score.notes)} notes, {length:.1f} s, {origin})")


def play_file(
    pipe: MidiGenerationPipeline,
    file: Path | None,
    score: Score,
    origin: str,
    peak_db: float | None,
    synth: str,
    seconds: float | None,
    started: float,
    notes_too: bool = True,
) -> None:
    from melreformer_hf.pipelines.hearing import score_end

    def sound(told: Callable[[torch.Tensor], None]) -> Iterator[torch.Tensor]:
        return pipe.stream_score(score, seconds, synth=synth, callback_on_mel=told)

    length = score_end(*score) if seconds is None else seconds
    _sound_files(pipe, file, sound, lambda: score, origin, peak_db, length, started, notes_too)


def _sound_files(
    pipe: MidiGenerationPipeline,
    file: Path | None,
    sound: Callable[[Callable[[torch.Tensor], None]], Iterator[torch.Tensor]],
    score: Callable[[], Score],
    origin: str,
    peak_db: float | None,
    seconds: float,
    started: float,
    notes_too: bool = True,
) -> None:
    """Write music while it is made, then its notes and a picture beside it.

    Args:
        pipe: the pipeline.
        file: to write; `None` is standard output.
        sound: makes the music, given what is told of its mel.
        score: its notes, asked for when it has been made.
        origin: where it comes from, in words.
        peak_db: level of the loudest sample; `None` keeps the pipeline's.
        seconds: its length.
        started: when work on it began, of `time.perf_counter`.
        notes_too: whether to write the notes beside it.
    """
    from melreformer_hf.plotting import MelSummary, save_roll_and_mel

    frames = pipe.frames_of(seconds)
    summary, length = MelSummary(frames), frames / pipe.mel_config.frame_rate
    # Into a pipe the loudest sample is not known beforehand.
    gain = 1.0 if peak_db is None else pipe.live_gain
    chunks = sound(lambda mel: summary.add(mel[0]))
    try:
        path = record(chunks, file, frames * pipe.mel_config.hop_length, pipe.sampling_rate, peak_db, gain)
    except typer.Exit:
        if notes_too and file is not None and (kept := score()).notes:
            typer.echo(f"their notes are in {save_notes(kept, file.with_suffix('.mid'))}")
        raise
    if path is None:
        return
    played = score()
    beside = [save_notes(played, path.with_suffix(".mid"))] if notes_too else []
    picture = path.with_suffix(".png")
    beside.append(save_roll_and_mel(*played.in_seconds(), length, picture, origin, summary.mel(), pipe.mel_config))
    names = " and ".join(map(str, beside))
    typer.echo(f"wrote {path} ({len(played.notes)} notes, {length:.1f} s, {origin}) and {names}")
    tell_speed(length, started)


def save_notes(score: Score, path: Path, seconds: float | None = None, title: str = "") -> Path:
    """A MIDI file, and with `seconds` a picture beside it."""
    from melreformer_hf.plotting import save_roll_and_mel
    from melreformer_hf.processing.midi.notes import write_midi
    from melreformer_hf.processing.midi.scores import piece_to_midi

    path.parent.mkdir(parents=True, exist_ok=True)
    write_midi(piece_to_midi(*score), path)
    if seconds is not None:
        save_roll_and_mel(*score.in_seconds(), seconds, path.with_suffix(".png"), title)
    return path


def _is_midi(file: Path | None) -> bool:
    return file is not None and file.suffix.lower() in (".mid", ".midi")


__all__ = ["compose_files", "play_file", "write_files", "save_notes"]
