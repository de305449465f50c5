"""Datasets made by `melreformer data build`: any place of any recording is reached at once."""

from __future__ import annotations

import bisect
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from melreformer_hf.data.recordings import CropSettings, Recordings
from melreformer_hf.data.shard_writing import SEGMENT_SECONDS
from melreformer_hf.data.shards import LocalShards, Recording, open_shards, recordings_of
from melreformer_hf.data.splits import HELD_OUT
from melreformer_hf.data.streams import ItemStream


class BuiltRecordings(Recordings):
    """Random access to the recordings of one split of a built dataset.

    A split that fits into the cache is decoded once and kept (16 bit). Of a larger one in a folder, short crops decode
    only what they need, because a segment would be gone from the cache before it is asked for again.

    Args:
        dataset: folder made by `melreformer data build`; the id `user/name` of one on the Hub, which is downloaded
            once; or `hf://datasets/user/name`, which is read from the Hub as training goes on.
        split: `train`, `validation`, `test` or another split of the dataset.
        cache_minutes: decoded audio kept in memory, in minutes.
        channels: of the waveforms; `None` as stored. Mono is repeated, several are averaged to mono.

    Raises:
        ValueError: `dataset` is no built dataset, has no such split, or not so many channels.
    """

    def __init__(
        self, dataset: str | Path, split: str = "train", cache_minutes: float = 120.0, channels: int | None = None
    ) -> None:
        self._shards = open_shards(dataset)
        info = self._shards.info()
        if split not in info["splits"]:
            raise ValueError(_missing_split(dataset, split, sorted(info["splits"])))
        stored = info.get("channels", 1)
        if channels not in (None, 1, stored) and stored != 1:
            raise ValueError(f"channels must be 1 or {stored}, as {dataset} was built, got {channels}.")
        self.split, self.sampling_rate, self.channels = split, info["sampling_rate"], channels or stored
        self.labels = tuple(info["labels"]) if info.get("labels") else None
        self.silence_weight = info.get("silence_weight", 1.0)
        self._names = self._shards.names(split)
        self._segment_samples = SEGMENT_SECONDS * self.sampling_rate
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cache_size = max(4, int(cache_minutes * 60 / SEGMENT_SECONDS / stored))
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
        """Samples [begin, end) of a segment, (samples, channel) int16."""
        import soundfile

        key = (shard, row)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key][begin:end]
        cell = self._file(shard).read_row_group(row, columns=["audio"])["audio"][0].as_py()
        with soundfile.SoundFile(io.BytesIO(cell["bytes"])) as file:
            if self._seeks and 2 * (end - begin) < self._segment_samples:
                file.seek(begin)
                return file.read(end - begin, dtype="int16", always_2d=True)
            data = file.read(dtype="int16", always_2d=True)
        self._cache[key] = data
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return data[begin:end]

    def read(self, recording: Recording, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Samples [start, start + length) of a recording, float32, full scale at 1; shape as in `Recordings`.

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
        waveform = torch.from_numpy(np.concatenate(parts).astype(np.float32) / 32768.0)  # (samples, channel)
        if self.channels == 1:
            return waveform[:, 0] if waveform.shape[1] == 1 else waveform.mean(1)
        return waveform.T.expand(self.channels, -1).contiguous()

    def item_of(self, recording: Recording, start: int, length: int) -> dict:
        """A part of a recording with its name, label and metadata."""
        waveform = self.read(recording, start, length)
        return {**recording.metadata, "waveform": waveform, "recording": recording.name, "num_samples": length}

    def _crops(self, settings: CropSettings, seed: int, rank: int, world_size: int) -> ItemStream:
        return BuiltCropStream(self, settings, seed, rank, world_size)

    def fixed_crops(self, num_samples: int, count: int, seed: int = 0) -> list[dict]:
        """See `Recordings`; at most one crop per recording until all are used."""
        places = self.fixed_places(self.recordings, num_samples, count, seed)
        return [self.item_of(recording, start, num_samples) for recording, start in places]

    def fixed_places(
        self, recordings: Sequence[Recording], num_samples: int, count: int, seed: int = 0
    ) -> list[tuple[Recording, int]]:
        """Where crops of `fixed_crops` begin that are taken from some of the recordings only.

        Raises:
            ValueError: none of them is that long.
        """
        usable = [item for item in recordings if item.num_samples >= num_samples]
        if not usable:
            longest = max(item.num_samples for item in recordings)
            raise ValueError(
                f"No recording of the split {self.split!r} has num_samples={num_samples} samples "
                f"({num_samples / self.sampling_rate:.1f} s); the longest has {longest}. Ask for shorter crops, or hold "
                "out longer recordings."
            )
        random = np.random.default_rng(seed)
        order = [usable[i] for _ in range(-(-count // len(usable))) for i in random.permutation(len(usable))][:count]
        return [(item, int(random.integers(item.num_samples - num_samples + 1))) for item in order]

    def whole(self, max_samples: int, count: int) -> list[dict]:
        """See `Recordings`; spread evenly over the split."""
        usable = [item for item in self.recordings if item.num_samples <= max_samples]
        usable = usable or [min(self.recordings, key=lambda item: item.num_samples)]
        step = max(1, len(usable) // count)
        return [self.item_of(item, 0, min(item.num_samples, max_samples)) for item in usable[::step][:count]]


def _missing_split(dataset: str | Path, split: str, existing: list[str]) -> str:
    """What to say of a built dataset without a split."""
    message = f"split must be one of {existing} of {dataset}, got {split!r}."
    if split not in HELD_OUT:
        return message
    return (
        f"{message} Build it again: `melreformer data build` holds out {split} by itself where there are three recordings "
        "or more."
    )


class BuiltCropStream(ItemStream):
    """Random crops of a built dataset: a sample position, uniform over all audio, chooses recording and place.

    Args:
        store: the recordings.
        settings: which crops.
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: no recording is long enough.
    """

    def __init__(
        self, store: BuiltRecordings, settings: CropSettings, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.store, self.settings = store, settings
        self._usable = [item for item in store.recordings if item.num_samples >= settings.min_samples]
        if not self._usable:
            raise ValueError(
                f"No recording of the split {store.split!r} has min_samples={settings.min_samples} samples; build with "
                "longer audio, or ask for shorter crops."
            )
        self._ends = np.cumsum([item.num_samples for item in self._usable]).tolist()

    def item(self, index: int) -> dict:
        """The crop at `index` of the global sequence, see `Recordings`."""
        random = self.random(index)
        for _ in range(self.settings.attempts):
            place = int(random.integers(self._ends[-1]))
            recording = self._usable[bisect.bisect_right(self._ends, place)]
            item = self.store.item_of(recording, *self.settings.place(recording.num_samples, random))
            if self.settings.is_kept(item["waveform"], self.store.sampling_rate, random):
                break
        return {**item, "index": index}


__all__ = ["BuiltCropStream", "BuiltRecordings"]
