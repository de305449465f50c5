"""Speed of MIDI files to tokens, beside MidiTok on the same files, and whether every scheme gives the notes back.

    pip install miditok
    python benchmarks/midi.py FOLDER [FOLDER ...] --files 50

Times are processor seconds for all files, from the bytes in memory to lists of token numbers, the best of three rounds in
which the tokenizers take turns. Comparable are those with about as many tokens per note: MidiTok's MIDI-Like writes starts,
ends and waits, as `interarrival` does, with velocities besides; its TSD writes notes with durations. MidiTok quantizes to
a grid of beats, ours are exact to 10 ms. `--files 0` takes all files.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from melreformer_hf.processing.midi.arrival import events_to_notes, notes_to_events
from melreformer_hf.processing.midi.attributes import attributes_of_notes, notes_of_attributes
from melreformer_hf.processing.midi.columns import read_note_columns
from melreformer_hf.processing.midi.interarrival import (
    changes_to_notes,
    decode_changes,
    notes_to_changes,
    read_changes,
)
from melreformer_hf.processing.midi.notes import MidiNote, midi_bytes, notes_to_midi, read_notes
from melreformer_hf.processing.midi.vocabulary import MAX_DURATION_TICKS
from melreformer_hf.processing.tokenization_midi import MidiTokenizer


def to_events(content: bytes) -> list[int]:
    """All `arrival` events of a file, whatever its length."""
    return notes_to_events(read_notes(content))[0]


def tokenizers() -> dict[str, Callable[[bytes], object]]:
    """What is measured, by name; MidiTok's where it is installed."""
    found: dict[str, Callable[[bytes], object]] = {
        "ours: notes as arrays": read_note_columns,
        "ours: interarrival": read_changes,
        "ours: arrival": to_events,
    }
    try:
        import miditok
        import symusic
    except ImportError:
        return found
    found["symusic: reading alone"] = symusic.Score.from_midi
    for name in ("MIDILike", "TSD", "REMI"):
        tokenizer = getattr(miditok, name)()
        found[f"MidiTok: {name}"] = lambda content, tokenizer=tokenizer: tokenizer(symusic.Score.from_midi(content))
    return found


def measure(contents: list[bytes], rounds: int = 3) -> dict[str, float]:
    """Processor seconds of each tokenizer for all files, the best round."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, tokenize in tokenizers().items():
            started = time.process_time()
            for content in contents:
                tokenize(content)
            times.setdefault(name, []).append(time.process_time() - started)
    return {name: round(min(values), 3) for name, values in times.items()}


def _sorted(notes: list[MidiNote], fields: int) -> list[tuple]:
    return sorted(tuple(note[:fields]) for note in notes)


def _spans(notes: list[MidiNote]) -> list[list[tuple]]:
    """Starts and ends: all that is kept where notes of one key overlap, because they end in their order."""
    starts = sorted((note.onset, note.pitch, note.instrument) for note in notes)
    return [starts, sorted((note.onset + (note.duration or 0), note.pitch, note.instrument) for note in notes)]


def round_trips(content: bytes) -> dict[str, bool]:
    """Whether each scheme gives the notes of a file back, as far as it says that it keeps them."""
    notes = [note._replace(duration=25) if note.duration is None else note for note in read_notes(content)]
    cut = [note._replace(duration=min(note.duration, MAX_DURATION_TICKS - 1)) for note in notes]
    result = {"arrival": _sorted(events_to_notes(notes_to_events(notes)[0]), 4) == _sorted(cut, 4)}
    tokens, waits_cut = notes_to_changes(notes)
    again = changes_to_notes(decode_changes(tokens))
    result["interarrival"] = waits_cut > 0 or _spans(again) == _spans(notes)
    tokenizer, windows = MidiTokenizer("note_tuple"), []
    for start in range(0, max((note.onset for note in cut), default=0) + 1, 10_000):
        window = [note._replace(onset=note.onset - start) for note in cut if start <= note.onset < start + 10_000]
        windows.append(not window or tokenizer.decode_notes(tokenizer.encode_midi(window)) == window)
    result["note_tuple"] = all(windows)
    once = notes_of_attributes(attributes_of_notes(notes))
    pitches = [note.pitch for note in sorted(notes, key=lambda note: (note.onset, note.pitch))]
    # Coarse by design: every note is there, and what was written once is written the same ever after.
    again = notes_of_attributes(attributes_of_notes(once))
    result["attributes"] = sorted(again) == sorted(once) and [note.pitch for note in once] == pitches
    result["written file"] = _spans(read_notes(midi_bytes(notes_to_midi(notes)))) == _spans(notes)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="+", help="searched for .mid and .midi files")
    parser.add_argument("--files", type=int, default=50, help="how many to read, drawn at random; 0 for all")
    parser.add_argument("--round-trips", action="store_true", help="check them instead of measuring speed")
    arguments = parser.parse_args()
    paths = sorted(
        path for folder in arguments.folder for path in folder.rglob("*") if path.suffix in (".mid", ".midi")
    )
    if not paths:
        parser.error(f"no MIDI files under {arguments.folder}")
    random.Random(0).shuffle(paths)
    paths = paths[: arguments.files or None]
    result: dict[str, object] = {"files": len(paths)}
    if arguments.round_trips:
        failed: dict[str, list[str]] = {}
        for path in paths:
            for scheme, holds in round_trips(path.read_bytes()).items():
                failed.setdefault(scheme, []).extend([] if holds else [path.name])
        result["files that come back"] = {scheme: len(paths) - len(names) for scheme, names in failed.items()}
        result["others"] = {scheme: names for scheme, names in failed.items() if names}
    else:
        contents = [path.read_bytes() for path in paths]
        result["notes"] = sum(read_note_columns(content).shape[1] for content in contents)
        result["processor seconds"] = measure(contents)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
