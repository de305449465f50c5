"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def partial_of(path: str | os.PathLike) -> Path:
    """The name beside a path under which its content grows: hidden, and left behind by nothing but a killed process."""
    path = Path(path)
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name to write a file to, which takes the place of `path` at the end, unless something raised.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {path.parent} for {path.name}; create it first.")
    partial = partial_of(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` and of all that lies there, unless something raised."""
    path, partial = Path(path), partial_of(path)
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text (UTF-8) at once or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, values: Any) -> Path:
    """Write plain values as JSON, at once or not at all.

    Raises:
        ValueError: NaN or infinite numbers, which JSON does not have.
    """
    return write_text(path, json.dumps(values, indent=1, allow_nan=False))


__all__ = ["partial_of", "replacing", "replacing_folder", "write_json", "write_text"]
