"""How other people's datasets lie in folders and on the Hub: which splits, which files, what kind of rows."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from melreformer_hf.audio.io import AUDIO_SUFFIXES
from melreformer_hf.data.metadata import METADATA_FILES, parse_rows
from melreformer_hf.data.rows import AudioFile, FileRows, RowSource, StreamedRows, TarRows, fetch

_ON_THE_HUB = re.compile(r"^hf:/datasets/[^/]+/[^/]+")  # repository and commit, after `_place`


class Layout:
    """A dataset as the `datasets` library sees it: a kind, and files for each split.

    Folders of audio and WebDatasets are read without the library, whose readers of these need torchcodec; everything
    else, above all Parquet, is streamed by it.

    Args:
        dataset: a folder, or `user/name` on the Hub.
        config_name: configuration of the dataset, where it has several.
        revision: branch, tag or commit on the Hub.

    Raises:
        ValueError: there is no such dataset, or nothing in it that can be read.
    """

    def __init__(self, dataset: str, config_name: str | None = None, revision: str | None = None) -> None:
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        self.dataset, self.config_name, self.revision = dataset, config_name, revision
        try:
            self.builder = datasets.load_dataset_builder(dataset, config_name, revision=revision)
        except DatasetNotFoundError as error:
            raise ValueError(f"dataset must exist on the Hub, got {dataset}, which does not: {error}") from error
        except FileNotFoundError as error:
            raise ValueError(f"dataset must hold audio that can be read, got {dataset}: {error}") from error
        kinds = [kind.__name__ for kind in type(self.builder).__mro__]
        self.kind = next((kind for kind in kinds if kind in ("AudioFolder", "WebDataset")), kinds[0])
        self.files: Mapping[str, Sequence[str]] = {
            str(split): [str(file) for file in files]
            for split, files in (self.builder.config.data_files or {}).items()
        }

    @property
    def splits(self) -> list[str]:
        """Names of the dataset's own splits."""
        return sorted(self.files)

    def rows(self, split: str, audio_column: str, label_column: str) -> RowSource:
        """The rows of one of the dataset's own splits.

        Raises:
            ValueError: no such column.
        """
        if self.kind == "AudioFolder":
            if audio_column != "audio":
                raise ValueError(
                    f"audio_column must be 'audio' of a folder of audio files, as {self.dataset} is, got {audio_column!r}."
                )
            return FileRows(_audio_files(self.files[split], self.dataset, label_column))
        if self.kind == "WebDataset":
            return TarRows(self.files[split], audio_column)
        import datasets

        rows = datasets.load_dataset(
            self.dataset, self.config_name, split=split, streaming=True, revision=self.revision
        )
        return StreamedRows(rows, audio_column, label_column)


def _audio_files(urls: Sequence[str], dataset: str, label_column: str) -> list[AudioFile]:
    audio = [url for url in urls if PurePosixPath(url).suffix.lower() in AUDIO_SUFFIXES]
    if not audio:
        kinds = sorted({PurePosixPath(url).suffix for url in urls})
        raise ValueError(
            f"dataset must hold {', '.join(AUDIO_SUFFIXES)} files, got {dataset} with {kinds}. Unpack archives, convert "
            "other types, for example with ffmpeg."
        )
    told: dict[str, dict[str, str]] = {}
    for url in urls:
        if posixpath.basename(url) in METADATA_FILES:
            for row in parse_rows(fetch(url).decode("utf-8-sig"), url):
                name = row.pop("file_name", None)
                if name:
                    told[_place(posixpath.join(posixpath.dirname(url), name))] = row
    root = _place(os.path.abspath(dataset)) if os.path.isdir(dataset) else ""
    folders = {posixpath.dirname(_place(url)) for url in audio}
    files = []
    for url in audio:
        place = _place(url)
        metadata = dict(told.get(place, {}))
        if metadata.get(label_column):
            metadata["label"] = metadata[label_column]
        elif len(folders) > 1 and not told:
            metadata["label"] = posixpath.basename(posixpath.dirname(place))
        name = _ON_THE_HUB.sub("", place) if "://" in url else place.removeprefix(root)
        files.append(AudioFile(metadata.pop("recording", None) or name.lstrip("/"), url, metadata))
    return files


def _place(url: str) -> str:
    return posixpath.normpath(url.replace(os.sep, "/"))


__all__ = ["Layout"]
