"""Rows of other people's audio datasets, read from the beginning or from a saved place: Parquet, folders, WebDataset."""

from __future__ import annotations

import abc
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from melreformer_hf.audio.io import AUDIO_SUFFIXES
from melreformer_hf.data.encoded import EncodedAudio
from melreformer_hf.data.recordings import RESERVED

logger = logging.getLogger(__name__)
NAME_COLUMN = "recording"
# A name of a column that no sample has is told after this many samples, not after a whole dataset.
_SILENT_SAMPLES = 100


@functools.cache
def _tell(message: str) -> None:
    logger.warning(message)  # once per process


@dataclasses.dataclass
class Row:
    """One recording of a dataset: its audio, its name, and what the dataset tells besides."""

    audio: EncodedAudio
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """The recording's name."""
        return self.audio.name


class RowReader(abc.ABC):
    """An iterator over the rows of one epoch that knows where it is."""

    def __iter__(self) -> Iterator[Row]:
        return self

    @abc.abstractmethod
    def __next__(self) -> Row: ...

    @abc.abstractmethod
    def state(self) -> dict:
        """The place after the last row, ready for JSON; `RowSource.read` continues there."""


class RowSource(abc.ABC):
    """The rows of one split, in an order that depends on (seed, epoch) alone.

    Attributes:
        labels: names of all labels, `None` where they are not known beforehand.
    """

    labels: tuple[str, ...] | None = None

    @abc.abstractmethod
    def read(self, seed: int, epoch: int, state: dict | None = None) -> RowReader:
        """The rows of an epoch, from a saved place on."""


def plain_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Texts and numbers of a row; names that an item needs itself get `_column` at their end."""
    kept = {key: value for key, value in values.items() if isinstance(value, (str, int, float, bool))}
    return {f"{key}_column" if key in RESERVED else key: value for key, value in kept.items() if key != NAME_COLUMN}


def _row(name: Any, source: bytes | str, values: Mapping[str, Any]) -> Row:
    if not name:
        # Rows without a name are known by their content: a number would move when rows are added.
        name = hashlib.sha256(source if isinstance(source, bytes) else source.encode()).hexdigest()[:16]
    return Row(EncodedAudio(str(name), source), plain_metadata(values))


def _order(seed: int, epoch: int, count: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


def fetch(url: str) -> bytes:
    """Content of a file at a path or an address."""
    import fsspec

    with fsspec.open(url, "rb") as file:
        return file.read()


@dataclasses.dataclass(frozen=True)
class AudioFile:
    """An audio file of a folder: name, path or address, and its row of metadata."""

    name: str
    url: str
    metadata: dict[str, Any]


class FileRows(RowSource):
    """Audio files in a folder (the layout `audiofolder`), in a new order in every epoch.

    Args:
        files: all of them.
    """

    def __init__(self, files: Sequence[AudioFile]) -> None:
        self.files = list(files)
        found = {file.metadata["label"] for file in files if "label" in file.metadata}
        self.labels = tuple(sorted(map(str, found))) or None

    def read(self, seed: int, epoch: int, state: dict | None = None) -> RowReader:
        return _FileReader(self.files, _order(seed, epoch, len(self.files)), (state or {"row": 0})["row"])


class _FileReader(RowReader):
    def __init__(self, files: Sequence[AudioFile], order: Sequence[int], row: int) -> None:
        self.files, self.order, self.row = files, order, row

    def __next__(self) -> Row:
        if self.row >= len(self.order):
            raise StopIteration
        file = self.files[self.order[self.row]]
        self.row += 1
        return _row(file.name, fetch(file.url) if "://" in file.url else file.url, file.metadata)

    def state(self) -> dict:
        return {"row": self.row}


class TarRows(RowSource):
    """WebDataset: tar files whose members of one name belong together; tar files in a new order in every epoch.

    `.json` gives metadata, `.txt` the column `txt`, `.cls` the label.

    Args:
        urls: paths or addresses of the tar files.
        field: suffix of the members with the audio; `audio` takes the first of a known type.
    """

    def __init__(self, urls: Sequence[str], field: str = "audio") -> None:
        self.urls, self.field = list(urls), field

    def read(self, seed: int, epoch: int, state: dict | None = None) -> RowReader:
        state = state or {"shard": 0, "sample": 0}
        return _TarReader(self, _order(seed, epoch, len(self.urls)), state["shard"], state["sample"])

    def samples(self, url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, member's suffix -> content) of one tar file."""
        import fsspec

        with fsspec.open(url, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            current, members = "", {}
            for member in archive:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                key = str(path.parent / stem)
                if key != current:
                    if members:
                        yield current, members
                    current, members = key, {}
                members[suffix.lower()] = archive.extractfile(member).read()
            if members:
                yield current, members


class _TarReader(RowReader):
    def __init__(self, rows: TarRows, order: Sequence[int], shard: int, sample: int) -> None:
        self.rows, self.order, self.shard, self.sample = rows, order, shard, sample
        self._samples: Iterator | None = None
        self._found, self._silent = shard + sample > 0, 0  # where a reader goes on there was audio before

    def __next__(self) -> Row:
        while self.shard < len(self.order):
            if self._samples is None:
                self._samples = self.rows.samples(self.rows.urls[self.order[self.shard]])
                for _ in range(self.sample):
                    next(self._samples)
            for key, members in self._samples:
                self.sample += 1
                field = self._field(members)
                if field in members:
                    self._found = True
                    return self._row(key, members, field)
                self._leave_out(key, members)
            self.shard, self.sample, self._samples = self.shard + 1, 0, None
            if self._silent and not self._found and self.shard == len(self.order):
                self._refuse(key, members)
        raise StopIteration

    def _field(self, members: dict[str, bytes]) -> str | None:
        known = [suffix for suffix in members if f".{suffix}" in AUDIO_SUFFIXES]
        return self.rows.field if self.rows.field != "audio" else (known or [None])[0]

    def _leave_out(self, key: str, members: dict[str, bytes]) -> None:
        """Tell of a sample without audio; where no sample has any, the name of the column is wrong."""
        self._silent += 1
        if self._silent == _SILENT_SAMPLES and not self._found:
            self._refuse(key, members)
        _tell(f"{key} is left out: its tar file has {sorted(members)} of it, and no {self.rows.field!r}")

    def _refuse(self, key: str, members: dict[str, bytes]) -> None:
        raise ValueError(f"audio_column must be one of {sorted(members)} of {key!r}, got {self.rows.field!r}.")

    def _row(self, key: str, members: dict[str, bytes], field: str) -> Row:
        told = json.loads(members["json"]) if "json" in members else {}
        values = dict(told) if isinstance(told, dict) else {}
        if "txt" in members:
            values["txt"] = members["txt"].decode("utf-8", "replace").strip()
        if "cls" in members:
            values["label"] = members["cls"].decode().strip()
        return _row(values.get(NAME_COLUMN) or key, members[field], values)

    def state(self) -> dict:
        return {"shard": self.shard, "sample": self.sample}


class StreamedRows(RowSource):
    """What the `datasets` library streams, above all Parquet: shards in a new order in every epoch.

    Args:
        rows: a `datasets.IterableDataset`.
        audio_column: the column with the audio: encoded files, or paths.
        label_column: the column that becomes `label`; classes are delivered by name.

    Raises:
        ValueError: the dataset has no such column.
    """

    def __init__(self, rows, audio_column: str = "audio", label_column: str = "label") -> None:
        import datasets

        columns = rows.column_names or list(next(iter(rows)))
        if audio_column not in columns:
            raise ValueError(f"audio_column must be one of {sorted(columns)}, got {audio_column!r}.")
        features = rows.features or {}
        # Arrow tables as they are stored: decoding is soundfile's work, so that torchcodec and ffmpeg are not needed.
        self.rows, self.audio_column = rows.with_format("arrow"), audio_column
        scalar = (datasets.Value, datasets.ClassLabel)
        self.told = [name for name in columns if name != audio_column and isinstance(features.get(name), scalar)]
        self.classes = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
        self.label_column = label_column
        self.labels = tuple(self.classes[label_column].names) if label_column in self.classes else None

    def read(self, seed: int, epoch: int, state: dict | None = None) -> RowReader:
        return _StreamedReader(self, seed, epoch, state)

    def row(self, table) -> Row:
        """The `Row` of an Arrow table of one row."""
        values = {name: table[name][0].as_py() for name in self.told}
        audio = table[self.audio_column][0].as_py()
        audio = {"path": audio} if isinstance(audio, str) else audio
        if audio is None or (
            isinstance(audio, dict) and {"bytes", "path"} <= audio.keys() and not any(audio.values())
        ):
            audio = {"bytes": b" "}  # no audio: left out, and told, where its header is read
        if not isinstance(audio, dict) or not (audio.get("bytes") or audio.get("path")):
            raise ValueError(
                f"audio_column {self.audio_column!r} must hold encoded files or paths, got {type(audio).__name__}."
            )
        for name, kind in self.classes.items():
            value = values.get(name)
            values[name] = kind.int2str(value) if value is not None and value >= 0 else None
        if self.label_column in values:
            values["label"] = values[self.label_column]
        source = audio["bytes"] if audio.get("bytes") is not None else audio["path"]
        return _row(values.get(NAME_COLUMN) or audio.get("path"), source, values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The library warns that its row buffer is lost on resume; a buffer of one row loses nothing.
    logger = logging.getLogger("datasets.iterable_dataset")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _StreamedReader(RowReader):
    def __init__(self, source: StreamedRows, seed: int, epoch: int, state: dict | None) -> None:
        self.source = source
        # Only the order of the shards is shuffled here: the library's own row buffer would be lost on resume.
        shuffled = copy.deepcopy(source.rows).shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        shuffled.set_epoch(epoch)
        if state is not None:
            shuffled.load_state_dict(state)
        # `iter` gives every worker all rows; iterating over the dataset itself would divide the shards among workers.
        self.rows, self._tables = shuffled, shuffled.iter(batch_size=1)

    def __next__(self) -> Row:
        with _quiet():
            table = next(self._tables)
        return self.source.row(table)

    def state(self) -> dict:
        return self.rows.state_dict()


__all__ = ["AudioFile", "FileRows", "Row", "RowReader", "RowSource", "StreamedRows", "TarRows", "fetch"]
