"""Rows of tokens and notes: written by `melreformer data tokenize`, streamed to trainings."""

from __future__ import annotations

import bisect
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from melreformer_hf.data.opening import check_path
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.processing.midi.notes import DRUMS

TOKENS_FILE = "tokens.json"
NOTE_FIELDS = ("onset", "duration", "pitch", "instrument", "velocity", "pedal")
_PITCH, _INSTRUMENT = NOTE_FIELDS.index("pitch"), NOTE_FIELDS.index("instrument")


class SequenceWriter:
    """Writes the rows of one split into numbered safetensors files: `values` one after the other, `offsets`, `pieces`.

    Args:
        folder: where the files go.
        split: first part of their names.
        rows_per_shard: rows per file.
    """

    def __init__(self, folder: Path, split: str, rows_per_shard: int) -> None:
        self.folder, self.split, self.rows_per_shard = folder, split, rows_per_shard
        self.rows: list[np.ndarray] = []
        self.owners: list[int] = []
        self.pieces: list[Mapping[str, str]] = []
        self.numbers: dict[str, int] = {}
        self.shards = self.total_rows = self.total_values = 0

    def add(self, row: np.ndarray, piece: Mapping[str, str] | None) -> None:
        """Add a row, (token,) or (note, field), and what is known of the piece it belongs to."""
        owner = -1
        if piece is not None:
            owner = self.numbers.setdefault(piece["recording"], len(self.pieces))
            self.pieces += [piece] if owner == len(self.pieces) else []
        self.rows.append(row.astype(np.int32))
        self.owners.append(owner)
        if len(self.rows) >= self.rows_per_shard:
            self._flush()

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        if not self.rows:
            return
        offsets = np.cumsum([0, *(len(row) for row in self.rows)], dtype=np.int64)
        tensors = {
            "values": np.concatenate(self.rows),
            "offsets": offsets,
            "pieces": np.array(self.owners, dtype=np.int32),
        }
        save_file(tensors, self.folder / f"{self.split}-{self.shards:05d}.safetensors")
        self.shards += 1
        self.total_rows += len(self.rows)
        self.total_values += int(offsets[-1])
        self.rows, self.owners = [], []

    def close(self) -> dict[str, int]:
        """Write what is waiting; returns the numbers of rows, values and files."""
        self._flush()
        if self.pieces:
            (self.folder / f"{self.split}-pieces.json").write_text(json.dumps(self.pieces, indent=0), encoding="utf-8")
        return {"rows": self.total_rows, "values": self.total_values, "shards": self.shards}


class SequenceStore:
    """Random access to the rows of one split; values are mapped into memory, not loaded.

    Args:
        dataset: folder made by `melreformer data tokenize`, or the id `user/name` of one on the Hub (downloaded once).
        split: `train`, `validation` or `test`.

    Attributes:
        scheme: of the tokens, or `notes`.
        vocab_size: number of tokens, `None` of `notes`.
        labels: names of all labels, `None` where there are none.
        num_rows: rows of the split; of `notes` these are pieces.

    Raises:
        ValueError: no such dataset or split.
    """

    def __init__(self, dataset: str | Path, split: str = "train") -> None:
        self.folder, self.split = _resolve(dataset), split
        info = json.loads((self.folder / TOKENS_FILE).read_text(encoding="utf-8"))
        if split not in info["splits"]:
            raise ValueError(f"split must be one of {sorted(info['splits'])} of {dataset}, got {split!r}.")
        self.scheme, self.vocab_size = info["scheme"], info["vocab_size"]
        self.labels = tuple(info["labels"]) or None
        pattern = re.compile(rf"{re.escape(split)}-\d{{5}}\.safetensors")
        self._paths = sorted(path for path in (self.folder / "data").iterdir() if pattern.fullmatch(path.name))
        offsets, owners = zip(*(self._index(path) for path in self._paths), strict=True)
        self._offsets, self._owners = list(offsets), np.concatenate(owners)
        self._ends = np.cumsum([len(part) - 1 for part in offsets]).tolist()
        pieces = self.folder / "data" / f"{split}-pieces.json"
        self.pieces: list[dict[str, str]] = json.loads(pieces.read_text(encoding="utf-8")) if pieces.is_file() else []
        self._files: dict[int, object] = {}

    @staticmethod
    def _index(path: Path) -> tuple[np.ndarray, np.ndarray]:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return file.get_tensor("offsets"), file.get_tensor("pieces")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._ends[-1]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens, or notes, of every row."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def values(self, row: int, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Tokens of a row, (token,) int64, or `length` notes of a piece from `start`, (note, field) int64."""
        shard = bisect.bisect_right(self._ends, row)
        local = row - (self._ends[shard - 1] if shard else 0)
        begin, end = self._offsets[shard][local : local + 2].tolist()
        begin, end = begin + start, end if length is None else min(end, begin + start + length)
        return torch.from_numpy(self._slice(shard)[begin:end].astype(np.int64))

    def _slice(self, shard: int):
        from safetensors import safe_open

        if shard not in self._files:
            self._files[shard] = safe_open(self._paths[shard], framework="np")
        return self._files[shard].get_slice("values")

    def told(self, row: int) -> dict[str, str]:
        """Name, label and metadata of the piece that a row belongs to; nothing of rows that hold several."""
        owner = int(self._owners[row])
        return {key: text for key, text in self.pieces[owner].items() if text} if owner >= 0 else {}

    def tokens(self, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> TokenStream:
        """An endless stream of rows.

        Raises:
            ValueError: the dataset holds notes.
        """
        return TokenStream(self, seed, rank, world_size)

    def notes(
        self, num_notes: int, *, transpose: int = 0, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> NoteStream:
        """An endless stream of stretches of pieces.

        Args:
            num_notes: longest stretch.
            transpose: every stretch is moved up or down by up to this many semitones, drums are not.
            seed: of the sequence.
            rank: index of this process.
            world_size: number of processes.

        Raises:
            ValueError: the dataset holds tokens, or `num_notes` or `transpose` break their rules.
        """
        return NoteStream(self, num_notes, transpose, seed, rank, world_size)


def open_sequences(dataset: str | Path, split: str = "train") -> SequenceStore:
    """The rows of one split of a dataset of tokens or notes, see `SequenceStore`."""
    return SequenceStore(dataset, split)


def _resolve(dataset: str | Path) -> Path:
    folder = Path(dataset)
    if not folder.is_dir():
        check_path(str(dataset))
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError

        patterns = ["*.json", "*.md", "data/*"]
        try:
            folder = Path(snapshot_download(str(dataset), repo_type="dataset", allow_patterns=patterns))
        except RepositoryNotFoundError as error:
            raise ValueError(f"dataset must exist on the Hub, got {dataset}, which does not: {error}") from error
    if not (folder / TOKENS_FILE).is_file():
        raise ValueError(
            f"dataset must be one made by `melreformer data tokenize` (with {TOKENS_FILE}), got {dataset}. Make it of "
            "MIDI files: melreformer data tokenize MIDI_DIR --output tokens/mine"
        )
    return folder


class TokenStream(ItemStream):
    """Rows of tokens, all of them once per epoch, in an order of (seed, epoch).

    Yields:
        dict of `input_ids` (token,) int64, `index`; of rows of one piece also `recording`, `label`, its metadata.

    Args:
        store: the rows.
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: the dataset holds notes.
    """

    def __init__(self, store: SequenceStore, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(seed, rank, world_size)
        if store.scheme == "notes":
            raise ValueError(
                "The dataset holds notes, not tokens: use SequenceStore.notes, or tokenize with --scheme."
            )
        self.store = store
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def item(self, index: int) -> dict:
        """The row at `index` of the global sequence."""
        epoch, place = divmod(index, self.store.num_rows)
        if epoch != self._epoch:
            random = np.random.default_rng([self.natural_seed, epoch])
            self._epoch, self._order = epoch, random.permutation(self.store.num_rows)
        row = int(self._order[place])
        return {**self.store.told(row), "input_ids": self.store.values(row), "index": index}


class NoteStream(ItemStream):
    """Stretches of pieces, weighted by their notes; a stretch begins at time zero.

    Yields:
        dict of `notes` (field, note) int64, the fields as `NOTE_FIELDS`; `start`, the number of the stretch's first note in
        its piece, and `piece_notes`, the notes of the piece; `recording`, `label` and metadata; `index`.

    Args:
        store: the pieces.
        num_notes: longest stretch; shorter pieces are given whole.
        transpose: see `SequenceStore.notes`.
        seed: of the sequence.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        ValueError: the dataset holds tokens, or `num_notes` or `transpose` break their rules.
    """

    def __init__(
        self,
        store: SequenceStore,
        num_notes: int,
        transpose: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(seed, rank, world_size)
        if store.scheme != "notes":
            raise ValueError(f"The dataset holds tokens ({store.scheme}), not notes: tokenize with --scheme notes.")
        if num_notes < 1 or not 0 <= transpose < 64:
            raise ValueError(
                f"num_notes must be at least 1 and transpose in 0..63, got num_notes={num_notes}, transpose={transpose}."
            )
        self.store, self.num_notes, self.transpose = store, num_notes, transpose
        self._ends = np.cumsum(store.lengths).tolist()

    def item(self, index: int) -> dict:
        """The stretch at `index` of the global sequence."""
        random = self.random(index)
        row = bisect.bisect_right(self._ends, int(random.integers(self._ends[-1])))
        start = int(random.integers(max(0, int(self.store.lengths[row]) - self.num_notes) + 1))
        notes = self.store.values(row, start, self.num_notes).T.contiguous()  # (field, note)
        notes[0] -= notes[0, 0].clone()
        shift = int(random.integers(-self.transpose, self.transpose + 1))
        pitched = notes[_INSTRUMENT] != DRUMS
        # What would leave the keyboard moves an octave back.
        moved = notes[_PITCH] + shift
        moved = torch.where(moved > 127, moved - 12 * ((moved - 116) // 12), moved)
        moved = torch.where(moved < 0, moved + 12 * ((11 - moved) // 12), moved)
        notes[_PITCH] = torch.where(pitched, moved, notes[_PITCH])
        place = {"start": start, "piece_notes": int(self.store.lengths[row])}
        return {**self.store.told(row), **place, "notes": notes, "index": index}


__all__ = [
    "NOTE_FIELDS",
    "TOKENS_FILE",
    "NoteStream",
    "SequenceStore",
    "SequenceWriter",
    "TokenStream",
    "open_sequences",
]
