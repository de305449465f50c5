"""Random crops of any audio dataset that the `datasets` library streams, with a position that is saved and restored."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from melreformer_hf.audio.io import read_audio

logger = logging.getLogger(__name__)


def stream_rows(dataset, split: str = "train", config_name: str | None = None, audio_column: str = "audio"):
    """Rows of a dataset, read as they are needed, with audio as encoded bytes.

    Args:
        dataset: `user/name` on the Hub, a folder that `datasets.load_dataset` reads, or a `datasets.IterableDataset`.
        split: `train`, `test` or another split of the dataset.
        config_name: configuration of the dataset, where it has several.
        audio_column: the column with the audio.

    Raises:
        ValueError: the dataset has no such column.
    """
    import datasets

    rows = dataset
    if isinstance(dataset, (str, Path)):
        rows = datasets.load_dataset(str(dataset), config_name, split=split, streaming=True)
    columns = rows.column_names or list(next(iter(rows)))
    if audio_column not in columns:
        raise ValueError(f"audio_column must be one of {sorted(columns)}, got {audio_column!r}.")
    # Encoded bytes: decoding is soundfile's work, so that torchcodec and ffmpeg are not needed.
    return rows.cast_column(audio_column, datasets.Audio(decode=False))


class DatasetCropStream(IterableDataset):
    """An endless stream of random crops, read in the order of the files, shuffled within windows of rows.

    Datasets that `melreformer data build` made are better served by `AudioCropStream`, which reaches every place at any
    time. This stream reads each shard from its beginning to its end, as is best for other people's datasets of any size
    on the Hub: nothing is stored. A row of n samples gives n / (mean crop length) crops, so that hours count, not files.

    Everything random comes from (seed, epoch, process, worker, row). `state_dict` and `load_state_dict` save and restore
    the position exactly, in the process itself (`num_workers=0`) or through torchdata's `StatefulDataLoader`. Rows are
    divided among processes and shards among workers: use at least as many shards as there are workers.

    Args:
        rows: see `stream_rows`; audio as encoded bytes.
        sampling_rate: samples per second of the crops; other rates are resampled.
        min_samples: shortest crop in samples; shorter rows are left out.
        max_samples: longest crop in samples; lengths are log-uniform between the two.
        seed: of everything random.
        multiple: lengths are rounded down to multiples of this many samples.
        window_rows: rows whose crops are shuffled together and kept in memory.
        audio_column: the column with the audio.
        name_column: the column that names a recording, where there is one; else the audio's path does.
        rank: index of this process.
        world_size: number of processes.

    Yields:
        dict of `waveform` (samples,) float32, `recording` name, `num_samples`.

    Raises:
        ValueError: lengths out of order, or (when iterated) no usable row in a whole epoch.
    """

    def __init__(
        self,
        rows,
        sampling_rate: int,
        min_samples: int,
        max_samples: int,
        *,
        seed: int = 0,
        multiple: int = 1,
        window_rows: int = 16,
        audio_column: str = "audio",
        name_column: str = "recording",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        if not 0 < multiple <= min_samples <= max_samples:
            raise ValueError(
                f"0 < multiple <= min_samples <= max_samples must hold, got {multiple}, {min_samples}, {max_samples}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size-1, got rank={rank}, world_size={world_size}.")
        if window_rows < 1 or sampling_rate < 1:
            raise ValueError(f"window_rows and sampling_rate must be positive, got {window_rows}, {sampling_rate}.")
        # Only the order of the shards is shuffled here: the library's own row buffer would be lost on resume.
        shuffled = rows.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        self.rows = split_dataset_by_node(shuffled, rank=rank, world_size=world_size)
        self.sampling_rate, self.seed, self.multiple, self.window_rows = sampling_rate, seed, multiple, window_rows
        self.min_samples, self.max_samples = min_samples, max_samples
        self.audio_column, self.name_column = audio_column, name_column
        self.rank, self.world_size = rank, world_size
        self._start: dict = {"epoch": 0, "row": 0, "rows": None}  # where the current window begins
        self._emitted = 0  # crops of it that were given out

    @property
    def mean_samples(self) -> float:
        """Expected length of a crop."""
        ratio = self.max_samples / self.min_samples
        return (self.max_samples - self.min_samples) / math.log(ratio) if ratio > 1 else float(self.min_samples)

    def state_dict(self) -> dict:
        """The position: where the current window of rows begins, and how many of its crops were given out."""
        return {**self._start, "emitted": self._emitted, "seed": self.seed, "window_rows": self.window_rows}

    def load_state_dict(self, state: dict) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: the state belongs to a stream with another seed or window.
        """
        for name in ("seed", "window_rows"):
            if state[name] != getattr(self, name):
                raise ValueError(f"The saved stream has {name} {state[name]}, this one {getattr(self, name)}.")
        self._start = {key: state[key] for key in ("epoch", "row", "rows")}
        self._emitted = state["emitted"]

    def _random(self, *place: int) -> np.random.Generator:
        worker = get_worker_info()
        return np.random.default_rng([self.seed, self.rank, 0 if worker is None else worker.id, *place])

    def _crops(self, row: dict, epoch: int, number: int) -> list[dict]:
        """Random crops of one row; none of one that is too short or cannot be decoded."""
        audio = row[self.audio_column]
        name = str(row.get(self.name_column) or audio.get("path") or number)
        try:
            source = audio["bytes"] if audio.get("bytes") is not None else audio["path"]
            waveform, _ = read_audio(source, self.sampling_rate)
        except (ValueError, OSError) as error:
            logger.warning("%s is left out: %s", name, error)
            return []
        total, random = waveform.numel(), self._random(epoch, number)
        if total < self.min_samples:
            return []
        count = max(1, int(total / self.mean_samples + random.random()))
        low, high = math.log(self.min_samples), math.log(self.max_samples)
        crops = []
        for _ in range(count):
            length = min(int(math.exp(low + (high - low) * random.random()) + 0.5), total)
            length = max(length // self.multiple, 1) * self.multiple
            start = int(random.integers(total - length + 1))
            crop = waveform[start : start + length].clone()
            crops.append({"waveform": crop, "recording": name, "num_samples": length})
        return crops

    def _windows(self) -> Iterator[list[dict]]:
        """Windows of shuffled crops from the saved position on; `_start` is moved after each."""
        self.rows.load_state_dict(self._start["rows"])
        self.rows.set_epoch(self._start["epoch"])
        while True:
            epoch, number, useful = self._start["epoch"], self._start["row"], self._start["row"] > 0
            window: list[dict] = []
            for row in self.rows:
                window += self._crops(row, epoch, number)
                number += 1
                if number % self.window_rows == 0:
                    useful = useful or bool(window)
                    yield self._shuffled(window, epoch, number)
                    window, self._emitted = [], 0
                    self._start = {"epoch": epoch, "row": number, "rows": self.rows.state_dict()}
            yield self._shuffled(window, epoch, number)
            if not (useful or window):
                raise ValueError(
                    f"No row of process {self.rank} gives a crop of min_samples={self.min_samples} samples at "
                    f"{self.sampling_rate} samples per second; lower min_samples, or use fewer processes and workers."
                )
            self._start, self._emitted = {"epoch": epoch + 1, "row": 0, "rows": None}, 0
            self.rows.set_epoch(epoch + 1)

    def _shuffled(self, window: list[dict], epoch: int, number: int) -> list[dict]:
        order = self._random(epoch, number, 1).permutation(len(window))
        return [window[i] for i in order]

    def __iter__(self) -> Iterator[dict]:
        for window in self._windows():
            while self._emitted < len(window):
                crop = window[self._emitted]
                self._emitted += 1
                yield crop


__all__ = ["DatasetCropStream", "stream_rows"]
