"""Streams of random crops whose order is a pure function of (seed, index), and which therefore resume exactly."""

from __future__ import annotations

import bisect
import io
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from melreformer_hf.data.building import SEGMENT_SECONDS
from melreformer_hf.data.shards import LocalShards, Recording, open_shards, recordings_of, resolve_dataset


class RecordingStore:
    """Random access to the recordings of one split of a built dataset.

    A split that fits into the cache is decoded once and kept (16 bit). Of a larger one in a folder, short crops decode
    only what they need, because a segment would be gone from the cache before it is asked for again.

    Args:
        dataset: folder made by `melreformer data build`; the id `user/name` of one on the Hub, which is downloaded
            once; or `hf://datasets/user/name`, which is read from the Hub as training goes on.
        split: `train`, `test` or another split of the dataset.
        cache_minutes: decoded audio kept in memory, in minutes.

    Raises:
        ValueError: `dataset` is no built dataset, or has no such split.
    """

    def __init__(self, dataset: str | Path, split: str = "train", cache_minutes: float = 120.0) -> None:
        self._shards = open_shards(dataset)
        info = self._shards.info()
        if split not in info["splits"]:
            raise ValueError(f"split must be one of {sorted(info['splits'])} of {dataset}, got {split!r}.")
        self.sampling_rate: int = info["sampling_rate"]
        self._names = self._shards.names(split)
        self._segment_samples = SEGMENT_SECONDS * self.sampling_rate
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cache_size = max(4, int(cache_minutes * 60 / SEGMENT_SECONDS))
        self._files: dict[tuple[int, int], object] = {}
        self.recordings: list[Recording] = []
        for shard, name in enumerate(self._names):
            self.recordings += recordings_of(self._file(shard), shard, name)
        # What came over the network is kept in any case.
        self._seeks = isinstance(self._shards, LocalShards) and self.hours * 60 > cache_minutes

    def _file(self, shard: int):
        key = (os.getpid(), shard)  # a forked worker must not share a file position with its parent
        if key not in self._files:
            self._files = {other: file for other, file in self._files.items() if other[0] == key[0]}
            self._files[key] = self._shards.open(self._names[shard])
        return self._files[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}, "_cache": OrderedDict()}  # open files do not travel to workers

    @property
    def hours(self) -> float:
        """Hours of audio in the split."""
        return sum(recording.num_samples for recording in self.recordings) / self.sampling_rate / 3600

    def _part(self, shard: int, row: int, begin: int, end: int) -> np.ndarray:
        """Samples [begin, end) of a segment, int16."""
        import soundfile

        key = (shard, row)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key][begin:end]
        cell = self._file(shard).read_row_group(row, columns=["audio"])["audio"][0].as_py()
        with soundfile.SoundFile(io.BytesIO(cell["bytes"])) as file:
            if self._seeks and 2 * (end - begin) < self._segment_samples:
                file.seek(begin)
                return file.read(end - begin, dtype="int16")
            data = file.read(dtype="int16")
        self._cache[key] = data
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return data[begin:end]

    def read(self, recording: Recording, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Samples [start, start + length) of a recording, float32, full scale at 1.

        Raises:
            ValueError: the range is not inside the recording.
        """
        length = recording.num_samples - start if length is None else length
        if start < 0 or length < 1 or start + length > recording.num_samples:
            raise ValueError(
                f"start and length must lie inside {recording.name} of {recording.num_samples} samples, "
                f"got start={start}, length={length}."
            )
        step = self._segment_samples
        parts = []
        for index in range(start // step, (start + length - 1) // step + 1):
            begin, end = max(0, start - index * step), min(step, start + length - index * step)
            parts.append(self._part(recording.shard, recording.first_row + index, begin, end))
        return torch.from_numpy(np.concatenate(parts).astype(np.float32) / 32768.0)


class AudioCropStream(IterableDataset):
    """An endless stream of random crops, weighted by hours.

    Item `i` depends on `(seed, i)` alone: a sample position, uniform over all audio of the split, chooses recording and
    place, the length is log-uniform. Process r of W takes the items r, r + W, ...; workers divide a process's items in
    turn. Whatever the numbers of processes and workers, the global sequence is the same, and a position is one integer.

    Args:
        store: the recordings.
        min_samples: shortest crop in samples.
        max_samples: longest crop in samples; recordings shorter than a drawn length are given whole.
        seed: of the sequence.
        multiple: lengths are rounded down to multiples of this many samples.
        rank: index of this process.
        world_size: number of processes.

    Yields:
        dict of `waveform` (samples,) float32, `recording` name, `num_samples`, `index` in the global sequence.

    Raises:
        ValueError: lengths out of order, or no recording long enough.
    """

    def __init__(
        self,
        store: RecordingStore,
        min_samples: int,
        max_samples: int,
        seed: int = 0,
        multiple: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 < multiple <= min_samples <= max_samples:
            raise ValueError(
                f"0 < multiple <= min_samples <= max_samples must hold, got {multiple}, {min_samples}, {max_samples}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size-1, got rank={rank}, world_size={world_size}.")
        self.store, self.seed, self.multiple = store, seed, multiple
        self.min_samples, self.max_samples = min_samples, max_samples
        self.rank, self.world_size = rank, world_size
        self.position = 0  # items of this process that were consumed
        self._usable = [item for item in store.recordings if item.num_samples >= min_samples]
        if not self._usable:
            raise ValueError(f"No recording has min_samples={min_samples} samples; build with longer audio.")
        self._ends = np.cumsum([item.num_samples for item in self._usable]).tolist()

    def state_dict(self) -> dict[str, int]:
        """Position in the stream; the loop sets `position` to the number of items it has consumed."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: the state belongs to a stream with another seed.
        """
        if state["seed"] != self.seed:
            raise ValueError(
                f"The saved stream has seed {state['seed']}, this one {self.seed}; resume with the former."
            )
        self.position = state["position"]

    def item(self, index: int) -> dict:
        """The crop at `index` of the global sequence."""
        random = np.random.Generator(np.random.Philox(key=[self.seed & (2**64 - 1), index]))
        place = int(random.integers(self._ends[-1]))
        recording = self._usable[bisect.bisect_right(self._ends, place)]
        low, high = math.log(self.min_samples), math.log(self.max_samples)
        length = int(math.exp(low + (high - low) * random.random()) + 0.5)
        length = min(length, recording.num_samples)
        length = max(length // self.multiple, 1) * self.multiple
        start = int(random.integers(recording.num_samples - length + 1))
        waveform = self.store.read(recording, start, length)
        return {"waveform": waveform, "recording": recording.name, "num_samples": length, "index": index}

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        local = self.position + offset
        while True:
            yield self.item(local * self.world_size + self.rank)
            local += stride


def fixed_crops(store: RecordingStore, num_samples: int, count: int, seed: int = 0) -> list[dict]:
    """The same `count` crops of exactly `num_samples` samples every time, at most one per recording until all are used.

    Raises:
        ValueError: no recording is that long.
    """
    usable = [item for item in store.recordings if item.num_samples >= num_samples]
    if not usable:
        raise ValueError(f"No recording has num_samples={num_samples} samples.")
    random = np.random.default_rng(seed)
    order = [usable[i] for _ in range(-(-count // len(usable))) for i in random.permutation(len(usable))][:count]
    crops = []
    for recording in order:
        start = int(random.integers(recording.num_samples - num_samples + 1))
        waveform = store.read(recording, start, num_samples)
        crops.append({"waveform": waveform, "recording": recording.name, "num_samples": num_samples})
    return crops


def whole_recordings(store: RecordingStore, max_samples: int | None = None) -> Iterator[dict]:
    """Every recording from its beginning, cut at `max_samples` when given."""
    for recording in store.recordings:
        length = recording.num_samples if max_samples is None else min(max_samples, recording.num_samples)
        waveform = store.read(recording, 0, length)
        yield {"waveform": waveform, "recording": recording.name, "num_samples": length}


__all__ = [
    "AudioCropStream",
    "Recording",
    "RecordingStore",
    "fixed_crops",
    "resolve_dataset",
    "whole_recordings",
]
