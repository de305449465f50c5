"""Reading checkpoints of the original programs: safely, strictly, with errors that name the key."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

# Names of a weight norm's magnitude and direction, as old and new versions of torch write them.
_WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# Tables that follow from the arguments were computed by another program: sines and windows differ in the last digits.
_TABLE_TOLERANCE = 1e-4


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
        if not isinstance(key, str):
            raise ValueError(f"The checkpoint's names must be strings, got {key!r}. Pass the state dict itself.")
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"The checkpoint's entry {key!r} must be a tensor, got {type(value).__name__}. Pass the state dict itself."
            )
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            kind = "on the meta device" if value.is_meta else "quantized" if value.is_quantized else str(value.layout)
            raise ValueError(
                f"The checkpoint's entry {key!r} must be a dense tensor with its numbers, this one is {kind}."
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


def load_from_original(
    module: torch.nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    to_ours: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    to_original: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    origin: str,
) -> None:
    """Load an original's state dict after comparing it with what the original writes for a model of these arguments.

    Args:
        module: the model of the arguments; it receives the tensors.
        state_dict: tensors under the original's names. Weight-normed layers may be stored plain, or under the names of
            either version of torch.
        to_ours: from the original's tensors, without tables that follow from the arguments, to those of `module`.
        to_original: the inverse, tables included; called with tensors of the meta device.
        origin: what the checkpoint is, for messages.

    Raises:
        ValueError: names the original's keys that are missing, unexpected, misshapen, not finite, of another kind of number, or
            tables with other values than the arguments lead to.
    """
    expected = to_original({key: value.to("meta") for key, value in module.state_dict().items()})
    expected = _weight_norms_as_given(expected, state_dict)
    _refuse([*_differences(state_dict, expected), *_other_tables(state_dict, expected)], origin)
    weights = {key: value for key, value in state_dict.items() if expected[key].is_meta}
    load_strictly(module, to_ours(weights), origin)


def _weight_norms_as_given(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What is expected, every weight in the form (plain, or one of two weight norms) in which it was given."""
    result = {}
    for key, value in expected.items():
        stem = key.removesuffix("weight_g").removesuffix("weight_v").removesuffix("weight")
        normed = f"{stem}weight_g" in expected and f"{stem}weight_v" in expected
        if key == f"{stem}weight_g" and normed:
            continue
        if key != f"{stem}weight" and not (key == f"{stem}weight_v" and normed):
            result[key] = value
            continue
        forms = [pair for pair in _WEIGHT_NORMS if any(stem + name in given for name in pair)]
        if not forms and normed and f"{stem}weight" not in given:
            forms = [_WEIGHT_NORMS[0]]
        if forms:
            magnitude, direction = forms[0]
            result[stem + magnitude] = value.new_empty(value.shape[:1] + (1,) * (value.ndim - 1))
            result[stem + direction] = value
        else:
            result[f"{stem}weight"] = value
    return result


def _differences(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    problems = [f"missing key {key!r}" for key in expected if key not in given]
    problems += [f"unexpected key {key!r}" for key in given if key not in expected]
    for key in (key for key in expected if key in given):
        if given[key].shape != expected[key].shape:
            shapes = tuple(given[key].shape), tuple(expected[key].shape)
            problems.append(f"key {key!r} has shape {shapes[0]}, the arguments ask for {shapes[1]}")
        elif given[key].is_floating_point() != expected[key].is_floating_point() and expected[key].is_meta:
            problems.append(f"key {key!r} holds {given[key].dtype}, the original {expected[key].dtype}")
        elif not given[key].isfinite().all():
            problems.append(f"key {key!r} holds values that are not finite")
    return problems


def _other_tables(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    tables = [key for key, value in expected.items() if not value.is_meta]
    return [
        f"key {key!r} holds other values than the arguments lead to"
        for key in tables
        if key in given
        and given[key].shape == expected[key].shape
        and not torch.allclose(
            given[key].double(), expected[key].double(), rtol=_TABLE_TOLERANCE, atol=_TABLE_TOLERANCE
        )
    ]


def _refuse(problems: list[str], origin: str) -> None:
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(f"The {origin} checkpoint does not fit: " + "; ".join(problems[:5]) + more + ".")


def load_strictly(module: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], origin: str) -> None:
    """Load a renamed original state dict, refusing every missing, unexpected or misshapen entry by name.

    Args:
        module: the model that receives the tensors.
        state_dict: tensors under the names of `module`.
        origin: what the checkpoint is, for messages.

    Raises:
        ValueError: names the first offending keys and why.
    """
    _refuse(_differences(state_dict, {key: value.to("meta") for key, value in module.state_dict().items()}), origin)
    module.load_state_dict(dict(state_dict))


__all__ = ["load_from_original", "load_original_state_dict", "load_strictly"]
