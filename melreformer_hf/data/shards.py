"""Where the shards of a built dataset lie: in a folder, downloaded from the Hub, or read from the Hub piece by piece."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from melreformer_hf.data.shard_writing import DATASET_FILE

REMOTE = "hf://datasets/"
_INDEX = ("recording", "segment", "total_samples")
_NOT_METADATA = (*_INDEX, "num_segments")
# One segment is some hundred kilobytes; the library's default would fetch five megabytes around each.
_BLOCK = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording of a split: name, length in samples, where its segments lie (shard, first row), label and metadata."""

    name: str
    num_samples: int
    shard: int
    first_row: int
    metadata: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)


def _of_split(paths: list[str], split: str) -> list[str]:
    pattern = re.compile(rf"{re.escape(split)}-\d{{5}}\.parquet")
    return sorted(path for path in paths if pattern.fullmatch(Path(path).name))


@dataclasses.dataclass(frozen=True)
class LocalShards:
    """Shards in a folder; they are mapped into memory."""

    folder: Path

    def info(self) -> dict:
        """What `melreformer data build` wrote about the dataset."""
        return json.loads((self.folder / DATASET_FILE).read_text())

    def names(self, split: str) -> list[str]:
        """Shards of a split, in order."""
        return _of_split([str(path) for path in (self.folder / "data").iterdir()], split)

    def open(self, name: str):
        """A Parquet file."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(name, memory_map=True)


@dataclasses.dataclass(frozen=True)
class HubShards:
    """Shards on the Hub, at one commit; only what is asked for is fetched.

    Args:
        repo_id: user/name.
        commit: hash of the commit, so that a dataset that changes later does not change a training.
    """

    repo_id: str
    commit: str

    def _files(self):
        from huggingface_hub import HfFileSystem

        return HfFileSystem()

    @property
    def _root(self) -> str:
        return f"datasets/{self.repo_id}@{self.commit}"

    def info(self) -> dict:
        """What `melreformer data build` wrote about the dataset."""
        return json.loads(self._files().read_text(f"{self._root}/{DATASET_FILE}"))

    def names(self, split: str) -> list[str]:
        """Shards of a split, in order."""
        return _of_split(self._files().ls(f"{self._root}/data", detail=False), split)

    def open(self, name: str):
        """A Parquet file that is read by ranges."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._files().open(name, "rb", block_size=_BLOCK))


def open_shards(dataset: str | Path) -> LocalShards | HubShards:
    """The shards of a dataset that `melreformer data build` made, see `opening.is_built`.

    Args:
        dataset: its folder; `user/name` of one on the Hub, which is downloaded once; or `hf://datasets/user/name`
            (`@revision` may follow) of one that is read from the Hub as it is needed.

    Raises:
        ValueError: no such dataset.
    """
    name = str(dataset)
    if not name.startswith(REMOTE):
        return LocalShards(resolve_dataset(dataset))
    from huggingface_hub import HfApi

    repo_id, _, revision = name.removeprefix(REMOTE).rstrip("/").partition("@")
    return HubShards(repo_id, HfApi().dataset_info(repo_id, revision=revision or None).sha)


def resolve_dataset(dataset: str | Path) -> Path:
    """Folder of a built dataset given as a folder or as a Hub id; of the latter what is missing here is downloaded.

    Files that have arrived are kept when a download is interrupted.

    Raises:
        ValueError: no dataset made by `melreformer data build`.
    """
    folder = Path(dataset)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        repo_id, _, revision = str(dataset).partition("@")
        patterns = ["*.json", "*.md", "data/*.parquet"]
        folder = Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision or None, allow_patterns=patterns)
        )
    if not (folder / DATASET_FILE).is_file():
        raise ValueError(f"dataset must be one made by `melreformer data build` (with {DATASET_FILE}), got {dataset}.")
    return folder


def recordings_of(file, shard: int, name: str) -> list[Recording]:
    """The recordings of one shard, from its footer alone: a row group is one segment, its statistics are its values.

    Raises:
        ValueError: the file was not written by `melreformer data build`.
    """
    found, metadata = [], file.metadata
    for row in range(metadata.num_row_groups):
        group = metadata.row_group(row)
        columns = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
        values = [columns.get(column) for column in _INDEX]
        if group.num_rows != 1 or any(value is None or not value.has_min_max for value in values):
            raise ValueError(f"{name} must have one segment per row group with statistics; build the dataset again.")
        recording, segment, total = (value.min for value in values)
        if segment == 0:
            told = {
                name: value.min
                for name, value in columns.items()
                if "." not in name and name not in _NOT_METADATA and value is not None and value.has_min_max
            }
            found.append(Recording(recording, total, shard, row, {name: text for name, text in told.items() if text}))
    return found


__all__ = ["REMOTE", "HubShards", "LocalShards", "Recording", "open_shards", "recordings_of", "resolve_dataset"]
