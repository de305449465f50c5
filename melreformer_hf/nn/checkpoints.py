"""Reading checkpoints of the original programs: safely, strictly, with errors that name the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch


def load_original_state_dict(source: Mapping[str, torch.Tensor] | str | os.PathLike, container: str | None = None):
    """State dict of an original checkpoint.

    Args:
        source: a state dict, or the path of a `.safetensors` file or of a `torch.save` file. The latter is read with
            `weights_only=True`: a pickle that holds code is refused.
        container: key under which the original's release puts its state dict (`{"generator": ...}`); looked into
            when present.

    Returns:
        dict of tensors.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is no readable checkpoint, holds code, or does not hold tensors only.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _read_file(Path(source))
    if container is not None and isinstance(source, Mapping) and isinstance(source.get(container), Mapping):
        source = source[container]
    if not isinstance(source, Mapping):
        raise ValueError(f"The checkpoint must be a mapping from names to tensors, got {type(source).__name__}.")
    for key, value in source.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"The checkpoint's entry {key!r} must be a tensor, got {type(value).__name__}. Pass the state dict itself."
            )
    return dict(source)


def _read_file(path: Path) -> Mapping:
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file at {path}.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises unpickling, zip, runtime and end-of-file errors alike
        raise ValueError(
            f"{path} was refused: it is damaged or holds more than tensors ({type(error).__name__}). Only checkpoints "
            "that torch.load(weights_only=True) accepts, or safetensors files, are read."
        ) from error


def load_strictly(module: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], origin: str) -> None:
    """Load a renamed original state dict, refusing every missing, unexpected or misshapen entry by name.

    Args:
        module: the model that receives the tensors.
        state_dict: tensors under the names of `module`.
        origin: what the checkpoint is, for messages.

    Raises:
        ValueError: names the first offending keys and why.
    """
    expected = module.state_dict()
    problems = [f"missing key {key!r}" for key in expected if key not in state_dict]
    problems += [f"unexpected key {key!r}" for key in state_dict if key not in expected]
    problems += [
        f"key {key!r} has shape {tuple(state_dict[key].shape)}, the arguments ask for {tuple(expected[key].shape)}"
        for key in expected
        if key in state_dict and state_dict[key].shape != expected[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"The {origin} checkpoint does not fit: " + "; ".join(problems[:5]) + more + ".")
    module.load_state_dict(dict(state_dict))


__all__ = ["load_original_state_dict", "load_strictly"]
