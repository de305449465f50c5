"""Models that come with the package: `from_pretrained("codec-tiny")` finds them by name."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLED = Path(__file__).parents[1] / "checkpoints"


def find_bundled(name: str | os.PathLike, subfolder: str = "") -> str:
    """The folder of a bundled model by its name; anything else, and what is a folder here, stays as it is.

    Args:
        name: as `from_pretrained` takes it.
        subfolder: of the model in it.
    """
    text = os.fspath(name)
    known = "/" not in text and (BUNDLED / text / subfolder / "config.json").is_file()
    return str(BUNDLED / text) if known and not Path(text).exists() else text


class BundledMixin:
    """Base of a transformers model class, before those that load: `from_pretrained` also takes names of bundled models."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, **kwargs):
        """As of `PreTrainedModel`, also by the name of a model that comes with the package."""
        place = pretrained_model_name_or_path
        if place is not None:
            place = find_bundled(place, kwargs.get("subfolder") or "")
        return super().from_pretrained(place, *args, **kwargs)


__all__ = ["BUNDLED", "BundledMixin", "find_bundled"]
