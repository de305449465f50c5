"""Performances: recordings and the notes that are played in them, aligned in time.

A dataset of performances is one of `melreformer data build` with a file of notes beside it. It is made of MIDI files and
a sound font: of each piece an excerpt is reduced to what its notes and its pedal say, played, and written together with
the moments at which hammers strike and dampers fall. Trainings that read audio alone can read it as well.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from pathlib import Path

import numpy as np

from melreformer_hf._files import replacing
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.shards import Recording
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.nn.sounding import SoundingNotes

NOTES_FILE = "notes.safetensors"
_FIELDS = ("onset", "release", "pitch", "velocity")


def write_notes(path: Path, notes: dict[str, SoundingNotes]) -> None:
    """Save the notes of recordings by name; the file appears complete or not at all."""
    from safetensors.numpy import save_file

    tables = [table.as_arrays() for table in notes.values()]
    whole = SoundingNotes.none()
    for table in tables:
        whole = whole.joined(table)
    columns = {name: getattr(whole, name) for name in _FIELDS}
    offsets = np.cumsum([0, *map(len, tables)], dtype=np.int64)
    with replacing(path) as partial:
        save_file({**columns, "offsets": offsets}, partial, metadata={"recordings": json.dumps(list(notes))})


def read_notes_table(path: Path) -> dict[str, SoundingNotes]:
    """What `write_notes` saved."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = json.loads(file.metadata()["recordings"])
        columns = [file.get_tensor(name) for name in _FIELDS]
        offsets = file.get_tensor("offsets").tolist()
    spans = zip(names, offsets, offsets[1:], strict=False)
    return {name: SoundingNotes(*(column[begin:end] for column in columns)) for name, begin, end in spans}


class PerformanceStore:
    """Random access to the performances of one split.

    Args:
        dataset: folder made by `build_performances`, or the id `user/name` of one on the Hub (downloaded once).
        split: `train`, `validation` or `test`.
        sampling_rate: samples per second that are needed; `None`: as stored.
        cache_minutes: decoded audio kept in memory, in minutes.

    Attributes:
        audio: the recordings.
        notes: by the name of a recording.

    Raises:
        ValueError: no such dataset or split, no notes beside it, or another sampling rate.
    """

    def __init__(
        self,
        dataset: str | Path,
        split: str = "train",
        sampling_rate: int | None = None,
        cache_minutes: float = 120.0,
    ) -> None:
        self.audio = BuiltRecordings(dataset, split, cache_minutes, channels=1)
        if sampling_rate not in (None, self.audio.sampling_rate):
            raise ValueError(
                f"The dataset {dataset} has {self.audio.sampling_rate} samples per second, needed are {sampling_rate}."
            )
        self.notes = read_notes_table(_notes_file(dataset))
        self.recordings = [recording for recording in self.audio.recordings if recording.name in self.notes]
        if not self.recordings:
            raise ValueError(f"{NOTES_FILE} of {dataset} must tell notes of recordings of the split {split!r}.")

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return self.audio.sampling_rate

    @property
    def hours(self) -> float:
        """Hours of performances in the split."""
        return sum(recording.num_samples for recording in self.recordings) / self.sampling_rate / 3600

    def item_of(self, recording: Recording, start: int, length: int) -> dict:
        """A part of a performance: audio and all notes of its recording, whose times count from the part's beginning.

        Returns:
            dict of `waveform` (sample,), `notes` (`SoundingNotes`, float64 seconds), `recording` and its metadata.
        """
        item = self.audio.item_of(recording, start, length)
        notes, begin = self.notes[recording.name], start / self.sampling_rate
        return {**item, "notes": dataclasses.replace(notes, onset=notes.onset - begin, release=notes.release - begin)}

    def crops(self, num_samples: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> PerformanceStream:
        """An endless stream of random crops of `num_samples` samples, weighted by hours.

        Raises:
            ValueError: no recording is that long.
        """
        return PerformanceStream(self, num_samples, seed, rank, world_size)

    def fixed_crops(self, num_samples: int, count: int, seed: int = 0) -> list[dict]:
        """The same `count` crops of exactly `num_samples` samples every time, see `item_of`.

        Raises:
            ValueError: no recording is that long.
        """
        places = self.audio.fixed_places(self.recordings, num_samples, count, seed)
        return [self.item_of(recording, start, num_samples) for recording, start in places]


def _notes_file(dataset: str | Path) -> Path:
    if Path(dataset).is_dir():
        path = Path(dataset) / NOTES_FILE
        if path.is_file():
            return path
        raise ValueError(
            f"dataset must be one of performances, with a file {NOTES_FILE}, got {dataset}. A folder of MIDI files "
            "becomes one when a training is given it."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(str(dataset), NOTES_FILE, repo_type="dataset"))
    except EntryNotFoundError as error:
        raise ValueError(f"dataset must be one of performances, got {dataset}, which has no {NOTES_FILE}.") from error


class PerformanceStream(ItemStream):
    """Random crops of performances, see `PerformanceStore.item_of`; also with `index`.

    Args:
        store: the performances.
        num_samples: length of a crop.
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: no recording is that long.
    """

    def __init__(
        self, store: PerformanceStore, num_samples: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.store, self.num_samples = store, num_samples
        self._usable = [item for item in store.recordings if item.num_samples >= num_samples]
        if not self._usable:
            longest = max(item.num_samples for item in store.recordings)
            raise ValueError(f"num_samples must be at most {longest}, the longest recording's, got {num_samples}.")
        self._ends = np.cumsum([item.num_samples - num_samples + 1 for item in self._usable]).tolist()

    def item(self, index: int) -> dict:
        """The crop at `index` of the global sequence."""
        random = self.random(index)
        place = int(random.integers(self._ends[-1]))
        chosen = bisect.bisect_right(self._ends, place)
        start = place - (self._ends[chosen - 1] if chosen else 0)
        return {**self.store.item_of(self._usable[chosen], start, self.num_samples), "index": index}


__all__ = ["NOTES_FILE", "PerformanceStore", "PerformanceStream", "read_notes_table", "write_notes"]
