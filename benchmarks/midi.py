"""Speed of reading MIDI files, beside mido and symusic themselves, and agreement of the two readers.

    python benchmarks/midi.py FOLDER --files 50

Times are processor seconds for all files, the best of three.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import mido
import symusic

from melreformer_hf.processing.midi.fast import read_notes_fast
from melreformer_hf.processing.midi.notes import read_notes


def seconds(read: Callable[[bytes], object], contents: list[bytes]) -> float:
    """Processor time that `read` needs for all files."""
    times = []
    for _ in range(3):
        started = time.process_time()
        for content in contents:
            read(content)
        times.append(time.process_time() - started)
    return min(times)


def play_with_mido(content: bytes) -> int:
    """What a program does that takes messages with their times from mido."""
    return sum(1 for _ in mido.MidiFile(file=io.BytesIO(content)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="searched for .mid files")
    parser.add_argument("--files", type=int, default=50, help="how many to read, drawn at random")
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.rglob("*.mid"))
    if not paths:
        parser.error(f"no .mid files under {arguments.folder}")
    random.Random(0).shuffle(paths)
    contents = [path.read_bytes() for path in paths[: arguments.files]]
    readers = {
        "mido, messages": play_with_mido,
        "symusic, score": symusic.Score.from_midi,
        "read_notes": read_notes,
        "read_notes_fast": read_notes_fast,
    }
    result = {name: round(seconds(read, contents), 4) for name, read in readers.items()}
    exact, fast = ([sorted(read(content), key=repr) for content in contents] for read in (read_notes, read_notes_fast))
    result["files"] = len(contents)
    result["files with equal notes"] = sum(one == two for one, two in zip(exact, fast, strict=True))
    result["notes"] = sum(map(len, exact))
    result["equal notes"] = sum(len(set(one) & set(two)) for one, two in zip(exact, fast, strict=True))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
