"""Crops of any audio dataset that the `datasets` library reads, in an order that resumes exactly."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from melreformer_hf.data.layouts import Layout
from melreformer_hf.data.recordings import CropSettings, Recordings
from melreformer_hf.data.rows import Row, RowReader, RowSource
from melreformer_hf.data.splits import HELD_OUT, assign_splits, split_of
from melreformer_hf.data.streams import ItemStream

logger = logging.getLogger(__name__)
WINDOW_ROWS = 16
WINDOW_BYTES = 256 * 2**20
SILENCE_WEIGHT = 0.1
HELD_OUT_FRACTION = 0.1
# Datasets of fewer recordings have their splits assigned one by one, so that none is empty.
_FEW = 64
_SKIPPED_WINDOWS = 8


@functools.cache
def _tell(message: str) -> None:
    logger.warning(message)  # once per process


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """Which of the dataset's rows belong to a split.

    Args:
        split: the split.
        own: the dataset's own split that is read.
        carved: splits that the dataset does not have and that are carved out of its `train` by the hash of the names.
        assigned: recording -> split, for a dataset of a handful of recordings.
    """

    split: str
    own: str
    carved: tuple[str, ...] = ()
    assigned: dict[str, str] | None = None

    def __contains__(self, recording: str) -> bool:
        if self.assigned is not None:
            return self.assigned.get(recording) == self.split
        if not self.carved:
            return True
        shares = [HELD_OUT_FRACTION if split in self.carved else 0.0 for split in HELD_OUT]
        return split_of(recording, *shares) == self.split


@dataclasses.dataclass
class _Window:
    """Rows that are in memory together and their crops, (row, start, length), in the order in which they are given."""

    first: int
    anchor: dict
    rows: list[Row]
    crops: list[tuple[int, int, int]]

    @property
    def end(self) -> int:
        return self.first + len(self.crops)


class RowCropStream(ItemStream):
    """Random crops of rows that are read one after another, shuffled within windows of rows.

    Every process and every worker walks all rows of an epoch in the same order, reads their lengths from their headers,
    knows therefore all crops of all windows, and decodes what its own items need: the global sequence is one, however
    many share it. A row of n samples gives n / (mean crop length) crops on average, so that hours count, not files.

    Args:
        source: the rows.
        rule: which of them.
        sampling_rate: samples per second of the crops.
        channels: of the crops.
        settings: which crops.
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.
        window_rows: rows whose crops are shuffled together; fewer where they take more than 256 MB.

    Raises:
        ValueError: when items are asked for and no row of a whole epoch is long enough.
    """

    def __init__(
        self,
        source: RowSource,
        rule: SplitRule,
        sampling_rate: int,
        channels: int,
        settings: CropSettings,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.source, self.rule, self.settings = source, rule, settings
        self.sampling_rate, self.channels, self.window_rows = sampling_rate, channels, window_rows
        self._windows: Iterator[_Window] | None = None
        self._window: _Window | None = None

    def __getstate__(self) -> dict:
        # Copies and workers find their own way from the anchor; an open file would be shared.
        return {**self.__dict__, "_windows": None, "_window": None}

    def seek(self, anchor: dict | None) -> None:
        """Forget where the stream was reading; the next item is looked for from the anchor on."""
        self.anchor, self._windows, self._window = anchor, None, None

    def _random(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.natural_seed, *place])

    def _crops_of(self, row: Row, epoch: int, number: int) -> list[tuple[int, int]]:
        """(start, length) of the crops of a row; none of one that is too short or has no readable header."""
        try:
            total = row.audio.num_samples(self.sampling_rate)
        except (ValueError, OSError) as error:
            _tell(f"{row.name} is left out: {error}")
            return []
        if total < self.settings.min_samples:
            return []
        random = self._random(epoch, number)
        count = int(total / self.settings.mean_samples + random.random())
        return [self.settings.place(total, random) for _ in range(count)]

    def _read_window(self, reader: RowReader, epoch: int, number: int) -> tuple[list[Row], list, int, bool]:
        """Rows and shuffled crops of the next window, the number of rows read so far, whether the epoch goes on."""
        rows: list[Row] = []
        crops: list[tuple[int, int, int]] = []
        begin, size = number, 0
        for row in reader:
            number += 1
            if row.name in self.rule:
                crops += [(len(rows), *place) for place in self._crops_of(row, epoch, number)]
                rows.append(row)
                size += len(row.audio.source)
            if len(rows) == self.window_rows or size > WINDOW_BYTES:
                break
        else:
            return rows, self._shuffled(crops, epoch, begin), number, False
        return rows, self._shuffled(crops, epoch, begin), number, True

    def _shuffled(self, crops: list[tuple[int, int, int]], epoch: int, begin: int) -> list[tuple[int, int, int]]:
        return [crops[place] for place in self._random(epoch, begin, 1).permutation(len(crops))]

    def _walk(self, anchor: dict | None) -> Iterator[_Window]:
        """Windows with crops in them, epoch after epoch."""
        anchor = anchor or {"first": 0, "epoch": 0, "row": 0, "rows": None}
        first, epoch, number, state = anchor["first"], anchor["epoch"], anchor["row"], anchor["rows"]
        while True:
            reader, useful, goes_on = self.source.read(self.natural_seed, epoch, state), number > 0, True
            while goes_on:
                place = {"first": first, "epoch": epoch, "row": number, "rows": state}
                rows, crops, number, goes_on = self._read_window(reader, epoch, number)
                # A row too short for a whole crop on average gives one in some epochs only.
                useful = useful or any(self._is_usable(row) for row in rows)
                state = reader.state() if goes_on else None
                if crops:
                    yield _Window(first, place, rows, crops)
                    first += len(crops)
            if not useful:
                raise ValueError(
                    f"No recording of the split {self.rule.split!r} has min_samples={self.settings.min_samples} samples "
                    f"at {self.sampling_rate} samples per second; ask for shorter crops."
                )
            epoch, number = epoch + 1, 0

    def _is_usable(self, row: Row) -> bool:
        try:
            return row.audio.num_samples(self.sampling_rate) >= self.settings.min_samples
        except (ValueError, OSError):
            return False

    def _window_of(self, index: int) -> _Window:
        if self._windows is None or self._window is None or index < self._window.first:
            anchor = self.anchor if self.anchor is not None and self.anchor["first"] <= index else None
            self._windows = self._walk(anchor)
            self._window = next(self._windows)
        while index >= self._window.end:
            self._window = next(self._windows)
        return self._window

    def item(self, index: int) -> dict:
        """The crop at `index` of the global sequence, see `Recordings`, with its window's place as `anchor`."""
        return self._readable(index, self._window_of(index), _SKIPPED_WINDOWS)

    def _readable(self, index: int, window: _Window, patience: int) -> dict:
        # A recording whose header lies is replaced by the next crop of the window, or of the windows after it.
        for offset in range(len(window.crops)):
            number, start, length = window.crops[(index - window.first + offset) % len(window.crops)]
            row = window.rows[number]
            try:
                waveform = self._audible(row, start, length, index)
            except (ValueError, OSError) as error:
                _tell(f"{row.name} is left out: {error}")
                continue
            return {**row_item(row, waveform), "index": index, "anchor": window.anchor}
        if not patience:
            raise ValueError(f"None of {_SKIPPED_WINDOWS} windows of recordings can be decoded, {row.name} the last.")
        item = self._readable(window.end, self._window_of(window.end), patience - 1)
        return {**item, "index": index, "anchor": window.anchor}

    def _audible(self, row: Row, start: int, length: int, index: int) -> torch.Tensor:
        """The crop, or another place of the same recording where it is mostly silent."""
        random = self.random(index)
        for attempt in range(self.settings.attempts):
            if attempt:
                start, _ = self.settings.place(row.audio.num_samples(self.sampling_rate), random)
                start = min(start, row.audio.num_samples(self.sampling_rate) - length)
            waveform = row.audio.read(start, length, self.sampling_rate, self.channels)
            if self.settings.is_kept(waveform, self.sampling_rate, random):
                break
        return waveform


def row_item(row: Row, waveform: torch.Tensor) -> dict[str, Any]:
    """A part of a row as an item."""
    return {**row.metadata, "waveform": waveform, "recording": row.name, "num_samples": waveform.shape[-1]}


class ForeignRecordings(Recordings):
    """One split of a dataset of another program, streamed.

    `validation` and `test` are the dataset's own; where it has none, every recording of its `train` belongs to one of
    the three by the hash of its name, a tenth each to validation and test.

    Args:
        layout: the dataset.
        split: `train`, `validation`, `test` or another split of the dataset.
        sampling_rate: samples per second of the waveforms; `None`: those of the first recording.
        channels: of the waveforms; `None`: those of the first recording.
        audio_column: the column with the audio.
        label_column: the column that becomes `label`.

    Raises:
        ValueError: no such split or column, or no recordings in it.
    """

    silence_weight = SILENCE_WEIGHT

    def __init__(
        self,
        layout: Layout,
        split: str,
        sampling_rate: int | None = None,
        channels: int | None = None,
        audio_column: str = "audio",
        label_column: str = "label",
    ) -> None:
        own = split if split in layout.splits else "train"
        if own not in layout.splits or (own != split and split not in HELD_OUT):
            raise ValueError(f"split must be one of {layout.splits} of {layout.dataset}, got {split!r}.")
        self.split, self.name = split, layout.dataset
        self.source = layout.rows(own, audio_column, label_column)
        self.rule = self._rule(own, layout.splits)
        first = next(self._rows(), None)
        if first is None:
            raise ValueError(
                f"{layout.dataset} has no recording for the split {split!r}: too few in its train, of which a tenth "
                "each goes to validation and test. Add recordings, or splits of its own."
            )
        _, rate, found = first.audio.header
        self.sampling_rate, self.channels, self.labels = sampling_rate or rate, channels or found, self.source.labels

    def _rule(self, own: str, existing: list[str]) -> SplitRule:
        carved = tuple(split for split in HELD_OUT if split not in existing)
        if own != "train" or not carved:
            return SplitRule(self.split, own)
        _tell(
            f"{self.name} has no split of its own for {' and '.join(carved)}: a tenth of the recordings of train is "
            "held out for each, by the hash of their names."
        )
        few = [row.name for row in itertools.islice(self.source.read(0, 0), _FEW)]
        if len(few) == _FEW:
            return SplitRule(self.split, own, carved)
        shares = [HELD_OUT_FRACTION if split in carved else 0.0 for split in HELD_OUT]
        assigned, _ = assign_splits(dict.fromkeys(few), *shares)
        return SplitRule(self.split, own, carved, assigned)

    def _rows(self) -> Iterator[Row]:
        """The split's rows once, those without a readable header left out."""
        for row in self.source.read(0, 0):
            if row.name not in self.rule:
                continue
            try:
                row.audio.header  # noqa: B018  read for its errors
            except (ValueError, OSError) as error:
                _tell(f"{row.name} is left out: {error}")
                continue
            yield row

    @property
    def hours(self) -> None:
        """Not known: the dataset is never read as a whole."""
        return None

    def _crops(self, settings: CropSettings, seed: int, rank: int, world_size: int) -> ItemStream:
        return RowCropStream(
            self.source, self.rule, self.sampling_rate, self.channels, settings, seed, rank, world_size
        )

    def _item(self, row: Row, start: int, length: int) -> dict | None:
        try:
            return row_item(row, row.audio.read(start, length, self.sampling_rate, self.channels))
        except (ValueError, OSError) as error:
            _tell(f"{row.name} is left out: {error}")
            return None

    def fixed_crops(self, num_samples: int, count: int, seed: int = 0) -> list[dict]:
        """See `Recordings`; of the first recordings that are long enough, at most one crop of each until all are used."""
        random, used, crops = np.random.default_rng(seed), [], []
        for row in self._rows():
            if len(crops) == count:
                return crops
            if row.audio.num_samples(self.sampling_rate) >= num_samples:
                crop = self._item(row, self._place(row, num_samples, random), num_samples)
                used += [] if crop is None else [row]
                crops += [] if crop is None else [crop]
        if not used:
            raise ValueError(
                f"No recording of the split {self.split!r} has num_samples={num_samples} samples "
                f"({num_samples / self.sampling_rate:.1f} s). Ask for shorter crops, or hold out longer recordings."
            )
        for row in itertools.islice(itertools.cycle(used), max(0, count - len(crops))):
            again = self._item(row, self._place(row, num_samples, random), num_samples)
            crops.append(crops[0] if again is None else again)
        return crops

    def _place(self, row: Row, length: int, random: np.random.Generator) -> int:
        return int(random.integers(row.audio.num_samples(self.sampling_rate) - length + 1))

    def whole(self, max_samples: int, count: int) -> list[dict]:
        """See `Recordings`; the first ones."""
        items, shortest = [], None
        for row in self._rows():
            total = row.audio.num_samples(self.sampling_rate)
            if total <= max_samples:
                item = self._item(row, 0, total)
                items += [] if item is None or not total else [item]
            elif shortest is None or total < shortest.audio.num_samples(self.sampling_rate):
                shortest = row
            if len(items) == count:
                break
        if not items and shortest is not None:
            item = self._item(shortest, 0, max_samples)
            items += [] if item is None else [item]
        return items


__all__ = ["ForeignRecordings", "RowCropStream", "SplitRule"]
