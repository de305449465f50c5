"""From a folder of MIDI files and a sound font to a dataset of performances."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from melreformer_hf._files import partial_of, replacing
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.metadata import default_metadata, find_row, read_metadata
from melreformer_hf.data.performances import NOTES_FILE, write_notes
from melreformer_hf.data.rendering import MIDI_SUFFIXES, render_folder
from melreformer_hf.data.splits import name_hash
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import (
    TICKS_PER_SECOND,
    MidiNote,
    import_mido,
    notes_to_midi,
    read_notes,
    write_midi,
)
from melreformer_hf.processing.midi.pedal import merge_intervals, read_pedal
from melreformer_hf.processing.midi.sounding import played_notes, sounding_notes

if TYPE_CHECKING:
    from mido import MidiFile

Score = tuple[list[MidiNote], list[tuple[int, int]]]

_LOWEST, _HIGHEST = 21, 108
_SUSTAIN = 64
# What still sounds at the end of a score is heard out.
_TAIL_TICKS = 2 * TICKS_PER_SECOND
# Names whose hash keeps them in `train`, whatever shares are held out.
KEYS_ALONE, TOUCHES = "calibration/keys_alone", "calibration/touches"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """How a folder of MIDI files becomes a dataset of performances.

    Args:
        sampling_rate: samples per second.
        excerpt_seconds: longest excerpt of a piece; one of each is taken, at a place that follows from its name.
        calibration: add two recordings to `train`: every key of a piano alone, and keys at all velocities.
        gain: FluidSynth's master gain.
        license: licence of pieces whose metadata name none.
        metadata: table as of `BuildConfig`; default: the folder's own.
        validation_fraction: as of `BuildConfig`.
        test_fraction: as there.
        workers: renderings at a time.
        overwrite: replace a dataset that is there already.

    Raises:
        ValueError: `excerpt_seconds` is below 1.
    """

    sampling_rate: int = 22050
    excerpt_seconds: float = 100.0
    calibration: bool = True
    gain: float = 0.5
    license: str = "unknown"
    metadata: Path | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    workers: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.excerpt_seconds >= 1:
            raise ValueError(f"excerpt_seconds must be at least 1, got {self.excerpt_seconds}.")


def build_performances(
    folder: Path, output: Path, soundfont: Path, config: PerformanceConfig, progress: bool = True
) -> dict:
    """Play excerpts of all pieces of a folder and keep their notes beside them.

    Only notes and pedal are played: programs, volumes and other controllers of the files are left out, so that what is
    heard follows from the notes that are kept. Times are in steps of 10 ms, as in all of the package.

    Args:
        folder: searched recursively for .mid and .midi.
        output: folder of the dataset; complete when it holds `NOTES_FILE`.
        soundfont: SF2 or SF3 file; its first program plays.
        config: see `PerformanceConfig`.
        progress: show bars.

    Returns:
        the report of `build_dataset`; pieces that could not be read or played are under `skipped`.

    Raises:
        ValueError: no MIDI file, none usable, or as `render_folder` and `build_dataset`.
        FileNotFoundError: FluidSynth or the sound font is missing.
    """
    folder, output = Path(folder), Path(output)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)
    if not files:
        raise ValueError(f"dataset must hold .mid or .midi files, found none in {folder}.")
    # Kept until the dataset is complete, so that a rendering that was interrupted goes on.
    work = partial_of(output).with_suffix(".parts")
    notes, skipped = _write_scores(files, folder, work / "midi", config)
    rendered = render_folder(
        work / "midi",
        work / "wav",
        soundfont,
        metadata=work / "midi" / "metadata.csv",
        sampling_rate=config.sampling_rate,
        gain=config.gain,
        workers=config.workers,
        progress=progress,
    )
    build = BuildConfig(
        sampling_rate=config.sampling_rate,
        license=config.license,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        silence_weight=1.0,
        workers=config.workers,
        overwrite=config.overwrite,
    )
    report = build_dataset(work / "wav", output, build, progress)
    write_notes(output / NOTES_FILE, notes)
    shutil.rmtree(work)
    report["skipped"] += skipped + [
        {"file": Path(name).relative_to(work / "midi").as_posix(), "reason": reason}
        for name, reason in rendered.failed
    ]
    return report


def excerpt_of(notes: Iterable[MidiNote], pedal: Iterable[tuple[int, int]], start: int, length: int) -> Score:
    """What begins within [start, start + length) ticks, from time zero on; what outlasts it ends there."""
    end = start + length
    kept = [
        note._replace(onset=note.onset - start, duration=max(1, min(note.duration, end - note.onset)), instrument=0)
        for note in notes
        if start <= note.onset < end
    ]
    clipped = [(max(down, start) - start, min(up, end) - start) for down, up in pedal]
    return kept, merge_intervals(clipped)


def score_to_midi(notes: Sequence[MidiNote], pedal: Iterable[tuple[int, int]]) -> MidiFile:
    """MIDI file of a piano's notes and pedal; it ends 2 s after the last of them.

    Raises:
        ValueError: a note is out of range.
        ImportError: mido is not installed.
    """
    mido = import_mido()
    midi = notes_to_midi(notes)
    end = max([note.onset + note.duration for note in notes] + [up for _, up in pedal], default=0) + _TAIL_TICKS
    events = [(tick, value) for down, up in pedal for tick, value in ((down, 127), (up, 0))]
    track, before = mido.MidiTrack(), 0
    for tick, value in [*events, (end, 0)]:
        track.append(mido.Message("control_change", control=_SUSTAIN, value=value, time=tick - before))
        before = tick
    # In front: of messages at one tick the pedal's come first, as `sounding_notes` has it.
    midi.tracks.insert(0, track)
    return midi


def calibration_scores() -> dict[str, Score]:
    """Every key of a piano held alone for 8 s, and every key struck four times, at velocities all over the range."""
    keys, second = range(_LOWEST, _HIGHEST + 1), TICKS_PER_SECOND
    alone = [MidiNote(10 * second * index, 8 * second, key, 0, 100) for index, key in enumerate(keys)]
    random, touches = np.random.default_rng(0), []
    for step, key in enumerate(random.permutation(np.repeat(keys, 4)).tolist()):
        duration, velocity = int(random.integers(5, second)), int(random.integers(8, 128))
        touches.append(MidiNote(3 * second // 2 * step, duration, key, 0, velocity))
    return {KEYS_ALONE: (alone, []), TOUCHES: (touches, [])}


def _write_scores(
    files: list[Path], folder: Path, output: Path, config: PerformanceConfig
) -> tuple[dict[str, SoundingNotes], list[dict]]:
    """MIDI files of the excerpts with their metadata; their notes by name, and what could not be read."""
    metadata = config.metadata or default_metadata(folder)
    rows = read_metadata(metadata) if metadata is not None else {}
    scores, told, skipped = {}, [], []
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            scores[name] = _read_excerpt(path, name, config)
        except ValueError as error:
            skipped.append({"file": f"{name}{path.suffix}", "reason": str(error)})
            continue
        row = {key: text for key, text in find_row(rows, path, folder).items() if key not in ("file_name", "path")}
        told.append({**row, "file_name": f"{name}.mid", "split": row.get("split", "")})
    if not scores:
        raise ValueError(f"No piece in {folder} is usable; the first: {skipped[:3]}.")
    if config.calibration:
        scores |= calibration_scores()
        told += [
            {"file_name": f"{name}.mid", "split": "train", "license": "CC0-1.0"} for name in (KEYS_ALONE, TOUCHES)
        ]
    for name, score in scores.items():
        path = output / f"{name}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_midi(score_to_midi(*score), path)
    columns = sorted({column for row in told for column in row if column})
    with replacing(output / "metadata.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(told)
    return {name: sounding_notes(*score) for name, score in scores.items()}, skipped


def _read_excerpt(path: Path, name: str, config: PerformanceConfig) -> Score:
    notes, pedal = played_notes(read_notes(path)), read_pedal(path)
    if not notes:
        raise ValueError(f"{path} holds no notes.")
    length = round(config.excerpt_seconds * TICKS_PER_SECOND)
    last = notes[-1].onset
    # A place that does not change when files are added.
    start = round(name_hash(name) * (last - length)) if last > length else 0
    excerpt = excerpt_of(notes, pedal, start, length)
    if not excerpt[0]:
        raise ValueError(f"{path} holds no notes in the excerpt that begins at {start / TICKS_PER_SECOND} s.")
    return excerpt


__all__ = [
    "KEYS_ALONE",
    "TOUCHES",
    "PerformanceConfig",
    "build_performances",
    "calibration_scores",
    "excerpt_of",
    "score_to_midi",
]
