"""Mistakes that only commands can see: files that could not be written hours later."""

from __future__ import annotations

from pathlib import Path


def check_output_file(path: Path, suffix: str) -> None:
    """Refuse a file that could not be written before hours of work go into it.

    Raises:
        ValueError: another suffix, or a folder of that name.
        FileNotFoundError: the folder does not exist.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"--output must be a {suffix} file, got {path}.")
    if path.is_dir():
        raise ValueError(f"--output must be a file, got the folder {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {path.parent} for {path.name}; create it first.")


__all__ = ["check_output_file"]
