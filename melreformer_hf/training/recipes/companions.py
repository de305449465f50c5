"""Trained models that a recipe only uses: where they lie, and that they are what they are taken for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedConfig

from melreformer_hf.pipelines.loading import index_of, locate


@dataclasses.dataclass(frozen=True)
class Companion:
    """A trained model by the option that names it.

    Args:
        option: name of the option, for messages.
        kind: what it has to be, with its article: "a performer".
        folder: folder or Hub id.
        subfolder: inside it; empty where the folder is the model's own.
        config: its configuration.
    """

    option: str
    kind: str
    folder: str
    subfolder: str
    config: Any

    @classmethod
    def find(cls, option: str, kind: str, place: str, part: str, config_class: type[PreTrainedConfig]) -> Companion:
        """Look for a model.

        Args:
            option: see the class.
            kind: see the class.
            place: folder or Hub id of a model, or of a saved pipeline that has one; or the name of a bundled pipeline.
            part: name of the model in a pipeline.
            config_class: its configuration's class.

        Raises:
            ValueError: there is no such model, or it is of another kind.
        """
        folder, subfolder = _place_of(option, kind, place, part)
        try:
            values, _ = config_class.get_config_dict(folder, subfolder=subfolder)
        except OSError as error:
            raise ValueError(
                f"options.{option} must be {kind} or a pipeline with one, got {folder}: {error}"
            ) from error
        if values.get("model_type") != config_class.model_type:
            raise ValueError(
                f"options.{option} must be {kind}, or a pipeline that has one, got {place} of model type "
                f"{values.get('model_type')!r}."
            )
        return cls(option, kind, folder, subfolder, config_class.from_dict(values))


def _place_of(option: str, kind: str, place: str, part: str) -> tuple[str, str]:
    """Folder or Hub id, and the subfolder of the model in it."""
    folder = Path(place).expanduser()
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        return str(folder), ""
    place = str(folder) if folder.is_dir() else place
    try:
        index = index_of(place)
    except EntryNotFoundError:  # a Hub id of a model
        return place, ""
    except ValueError as error:
        raise ValueError(f"options.{option} must be {kind} or a pipeline with one: {error}") from error
    if not index.get(part):
        raise ValueError(f"options.{option} must be {kind} or a pipeline with one, got {place}, which has none.")
    return str(locate(place) or place), part


__all__ = ["Companion"]
