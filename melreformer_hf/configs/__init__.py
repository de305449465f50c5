"""The settings of trainings that come with the package: `<recipe>_<size>.yaml`, by name.

The first line of each file is a comment that says what it is for; `melreformer train --list` shows it.
"""

from __future__ import annotations

import os
from pathlib import Path

from melreformer_hf._text import suggest

FOLDER = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml", ".json")


def configs_of(recipe: str) -> dict[str, Path]:
    """Files of a recipe by the name of their size, such as `tiny` and `base`."""
    return {path.stem.removeprefix(f"{recipe}_"): path for path in sorted(FOLDER.glob(f"{recipe}_*.yaml"))}


def find_config(name: str | os.PathLike, recipe: str) -> Path:
    """The file that `--config NAME` means: a file of the user's, `tiny`, or `vocoder_tiny`.

    Raises:
        FileNotFoundError: it names a file, and there is none.
        ValueError: it names no config of the recipe; the message suggests one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise FileNotFoundError(f"No config file at {path}.")
    known = configs_of(recipe)
    short = path.name.removeprefix(f"{recipe}_")
    if short not in known:
        raise ValueError(f"The recipe {recipe} has no config {path.name!r}. {suggest(short, known)}".rstrip())
    return known[short]


def purpose(path: Path) -> str:
    """What a config is for, as its first line says."""
    with open(path, encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


__all__ = ["configs_of", "find_config", "purpose"]
