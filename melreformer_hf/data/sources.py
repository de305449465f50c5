"""The files of a folder and what is known about them: names, splits, labels, licences, other columns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from melreformer_hf.data.metadata import check_metadata, default_metadata, find_row, folder_label, read_metadata
from melreformer_hf.data.recordings import RESERVED

LABEL_OF_FOLDER = "folder"
_SPLIT_NAME = re.compile(r"\w+([.-]\w+)*")  # it becomes the name of a file
_OWN_COLUMNS = (*RESERVED, "audio", "segment", "num_segments", "total_samples", "input_ids", "notes")
_TOLD = ("file_name", "path", "recording", "split", "license", "licence", "attribution", "source", "source_repo")


@dataclasses.dataclass(frozen=True)
class Source:
    """One file: `row` holds its recording's name, license, attribution, source, label and what else the metadata tell."""

    path: Path
    row: dict[str, str]
    split: str | None

    @property
    def recording(self) -> str:
        """Name of the recording."""
        return self.row["recording"]


def describe_sources(
    files: Sequence[Path], folder: Path, metadata: Path | None, license: str, label: str | None
) -> list[Source]:
    """What is known about the files of a folder.

    Args:
        files: the files.
        folder: where they are; a recording is named after its place in it, unless the metadata name it.
        metadata: table by file name; default: `metadata.csv` or `metadata.jsonl` in the folder.
        license: of recordings whose metadata name none.
        label: `folder` for the name of the folder that a file lies in, a column of the metadata, or `None` for the
            column `label` where there is one.

    Raises:
        ValueError: metadata for none of the files or with splits that are no words, two recordings of one name, or no
            such label.
    """
    path = metadata or default_metadata(folder)
    table = read_metadata(path) if path else {}
    check_metadata(table, files, folder)
    sources = [_describe(file, folder, find_row(table, file, folder), license, label) for file in files]
    _check(sources)
    if label is not None and not any(source.row["label"] for source in sources):
        if label == LABEL_OF_FOLDER:
            raise ValueError(
                f"label {LABEL_OF_FOLDER!r} needs files in folders of their own inside DIR, got all of them in DIR itself."
            )
        columns = sorted({column for row in table.values() for column in row if column})
        raise ValueError(f"label must be {LABEL_OF_FOLDER!r} or a column of the metadata {columns}, got {label!r}.")
    return sources


def _describe(path: Path, folder: Path, told: dict[str, str], license: str, label: str | None) -> Source:
    row = {
        "recording": told.get("recording") or path.relative_to(folder).with_suffix("").as_posix(),
        "license": told.get("license") or told.get("licence") or license,
        "attribution": told.get("attribution") or "",
        "source": told.get("source") or told.get("source_repo") or path.relative_to(folder).as_posix(),
    }
    for column, value in told.items():
        if column and column not in _TOLD:  # a row with more cells than the header has a column without a name
            row[f"{column}_column" if column in _OWN_COLUMNS else column] = value or ""
    if label is not None:
        row["label"] = (folder_label(path, folder) if label == LABEL_OF_FOLDER else told.get(label)) or ""
    return Source(path, row, told.get("split") or None)


def _check(sources: Sequence[Source]) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.split is not None and not _SPLIT_NAME.fullmatch(source.split):
            raise ValueError(
                f"split must be a word such as train or test, got {source.split!r} for {source.recording!r} in the "
                "metadata."
            )
        if source.recording in seen:
            raise ValueError(
                f"The recording {source.recording!r} appears twice, the second time as {source.path}. Rename one."
            )
        seen.add(source.recording)


def labels_of(sources: Sequence[Source]) -> list[str]:
    """Names of all labels, in order."""
    return sorted({source.row["label"] for source in sources if source.row.get("label")})


def check_output(output: Path, overwrite: bool, description: str) -> None:
    """Refuse to write over anything but an empty folder, or a dataset when that is wanted.

    Args:
        output: where the dataset goes.
        overwrite: whether a dataset may be replaced.
        description: name of the file that tells a dataset.

    Raises:
        ValueError: something else is there, or a dataset and `overwrite` is off.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / description).is_file():
        raise ValueError(f"--output must be a new folder or a dataset built before, got {output} with other content.")
    if not overwrite:
        raise ValueError(f"--output {output} holds a dataset already. Add --overwrite to replace it.")


__all__ = ["LABEL_OF_FOLDER", "Source", "check_output", "describe_sources", "labels_of"]
