"""What people tell about their files: a table by file name, CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_NAME_COLUMNS = ("file_name", "path")


def default_metadata(folder: Path) -> Path | None:
    """`metadata.csv` or `metadata.jsonl` in the folder, if it has one."""
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def parse_rows(text: str, name: str) -> list[dict[str, str]]:
    """Rows of a table as texts by column.

    Args:
        text: content of the file.
        name: JSON lines when it ends in `.jsonl`, else CSV.

    Raises:
        ValueError: no such table.
    """
    try:
        if not name.endswith(".jsonl"):
            return list(csv.DictReader(text.splitlines()))
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [{str(key): "" if value is None else str(value) for key, value in row.items()} for row in rows]
    except (csv.Error, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{name} must be a CSV file (or .jsonl, an object per line) in UTF-8: {error}") from error


def read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a table by file name; a `path` column (as in a manifest) serves as well as `file_name`.

    Args:
        path: CSV, or JSON lines when it ends in `.jsonl`.

    Raises:
        ValueError: not text in UTF-8, no column for the name, a row without a name, or two rows that contradict.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin the file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a CSV file (or .jsonl, an object per line) in UTF-8: {error}") from error
    rows = parse_rows(text, path.name)
    columns = {str(name) for name in rows[0]} if rows else {"file_name"}
    if not columns.intersection(_NAME_COLUMNS):
        raise ValueError(f"{path} must have a column file_name or path, got {sorted(columns)}.")
    named: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        name = row.get("file_name") or row.get("path")
        if not name:
            raise ValueError(f"Row {number} of {path} must name a file in column file_name or path, got {row}.")
        if named.get(name, row) != row:
            raise ValueError(f"{path} tells two things about {name!r}; the second time in row {number}.")
        named[name] = row
    return named


def find_row(metadata: dict[str, dict[str, str]], file: Path, root: Path) -> dict[str, str]:
    """The metadata row of a file: by its path inside `root`, or by any suffix of its full path."""
    relative = file.relative_to(root).as_posix()
    if relative in metadata:
        return metadata[relative]
    parts = file.resolve().parts
    for start in range(1, len(parts)):
        row = metadata.get("/".join(parts[start:]))
        if row is not None:
            return row
    return {}


def check_metadata(metadata: dict[str, dict[str, str]], files: Sequence[Path], root: Path) -> None:
    """Refuse metadata that names none of the files: licences and splits would be lost without a word.

    Raises:
        ValueError: there are rows, and no file has one.
    """
    if metadata and not any(find_row(metadata, file, root) for file in files):
        raise ValueError(
            f"metadata names none of the files in {root}: it has {next(iter(metadata))!r}, the folder "
            f"{files[0].relative_to(root).as_posix()!r}. Name files by their path inside the folder."
        )


def folder_label(file: Path, root: Path) -> str:
    """Name of the folder that a file lies in; empty for files in `root` itself."""
    inside = file.relative_to(root).parent
    return inside.name


__all__ = [
    "METADATA_FILES",
    "check_metadata",
    "default_metadata",
    "find_row",
    "folder_label",
    "parse_rows",
    "read_metadata",
]
