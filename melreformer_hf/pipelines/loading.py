"""Saved pipelines: where they lie, and that nothing of them is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from safetensors import safe_open
from torch import nn

from melreformer_hf.hub.bundled import BUNDLED


def locate(name: str | os.PathLike) -> Path | None:
    """The folder of a saved pipeline by path or by the name of a bundled checkpoint; `None` for a Hub id.

    Raises:
        ValueError: a folder without a pipeline, or a name that is neither bundled nor a Hub id.
    """
    text = str(name)
    if not Path(text).exists() and (BUNDLED / text / "model_index.json").is_file():
        return BUNDLED / text
    if Path(text).exists():
        if not (Path(text) / "model_index.json").is_file():
            raise ValueError(f"{text} is no saved pipeline: it has no model_index.json.")
        return Path(text)
    if text.count("/") != 1 or text.startswith((".", "/")):
        bundled = sorted(path.parent.name for path in BUNDLED.glob("*/model_index.json"))
        raise ValueError(
            f"No pipeline {text!r}: it is neither a folder, nor a bundled checkpoint ({', '.join(bundled)}), nor a "
            "Hub id like user/name."
        )
    return None


def index_of(name: str | os.PathLike) -> dict:
    """The `model_index.json` of a saved pipeline.

    Args:
        name: folder, bundled checkpoint or Hub id, of which that file alone is downloaded.

    Raises:
        ValueError: as `locate`, or the file is no JSON object.
    """
    folder = locate(name)
    path = hf_hub_download(str(name), "model_index.json") if folder is None else folder / "model_index.json"
    try:
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} must hold names and values, got {type(index).__name__}.")
    return index


def parts_of(name: str | os.PathLike) -> set[str]:
    """Names of the components that a saved pipeline, or several that share a folder, have; arguments as `index_of`."""
    return {part for part, value in index_of(name).items() if isinstance(value, list) and value[0] is not None}


def check_configurations(folder: Path) -> None:
    """Refuse a saved pipeline whose models have weights but no configuration: they would be built with default sizes.

    Raises:
        ValueError: names the file that is missing.
    """
    for weights in sorted(folder.glob("*/*.safetensors")):
        if not (weights.parent / "config.json").is_file():
            raise ValueError(f"{folder} is incomplete: {weights.parent.name}/config.json is missing.")


def check_weights(folder: Path, module: nn.Module) -> None:
    """Refuse a component whose files do not hold all of its weights in its shapes; the libraries would only warn.

    Args:
        folder: of the component, with safetensors files.
        module: the component as it was loaded.

    Raises:
        ValueError: no weights, or names the first that is missing or misshapen.
    """
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
    if not shapes:
        raise ValueError(f"{folder} holds no weights (*.safetensors).")
    expected = module.state_dict()
    present = {expected[key].data_ptr() for key in shapes if key in expected}
    for key, tensor in expected.items():
        if key not in shapes and (tensor.data_ptr() not in present or tensor.numel() == 0):
            raise ValueError(f"The weights in {folder} do not fit its configuration: {key!r} is missing.")
        if key in shapes and list(tensor.shape) != shapes[key]:
            raise ValueError(
                f"The weights in {folder} do not fit its configuration: {key!r} has shape {shapes[key]}, the "
                f"configuration asks for {list(tensor.shape)}."
            )


__all__ = ["BUNDLED", "check_configurations", "check_weights", "index_of", "locate", "parts_of"]
