"""Checkpoints that continue a training to the bit.

A checkpoint is a folder `checkpoints/step-00001000` that appears complete or not at all:

| file | holds |
|---|---|
| `<name>.safetensors` | weights of one trained module, and of the averaged model (`average`) |
| `optimizers.pt` | states of the optimizers and of fp16's gradient scaler, read with `weights_only=True` |
| `process-<rank>.pt` | of one process: random number generators, what the recipe calls stateful, running sums of losses |
| `state.json` | step, minutes, data position, best metric, settings |
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from melreformer_hf._files import partial_of, replacing_folder, write_text

FOLDER = "checkpoints"
STATE_FILE = "state.json"
_STEP = re.compile(r"step-(\d{8})")


@dataclasses.dataclass
class Part:
    """Something that a checkpoint holds.

    Args:
        read: gives its state; every process calls, the first one writes.
        load: takes the state back.
    """

    read: Callable[[], dict]
    load: Callable[[dict], object]


def random_state() -> dict:
    """State of the generators of Python, numpy and torch, in types that `weights_only=True` reads."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping) -> None:
    """The inverse of `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a training, oldest first."""
    folder = output_dir / FOLDER
    found = [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found)


def find_checkpoint(resume: str, output_dir: Path) -> Path | None:
    """Folder that `--resume` means; `latest` without any checkpoint is None (a fresh start).

    Raises:
        ValueError: the named folder is no checkpoint.
    """
    if resume == "latest":
        existing = list_checkpoints(output_dir)
        return existing[-1] if existing else None
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise ValueError(f"resume must be 'latest' or a checkpoint folder (with {STATE_FILE}), got {resume!r}.")
    return path


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    # What a full disk raises depends on who writes; all of it becomes an OSError that names the place.
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        raise OSError(
            getattr(error, "errno", None) or errno.EIO, f"Could not write it ({error})", str(path)
        ) from error


def save_checkpoint(
    output_dir: Path,
    step: int,
    weights: Mapping[str, Part],
    optimizers: Mapping[str, Part],
    process: Mapping,
    state: Mapping,
    *,
    rank: int,
    keep: int,
    wait: Callable[[], None],
) -> Path:
    """Write a checkpoint; every process calls it, `wait` is their barrier.

    Older ones beyond `keep` are removed, and those of later steps: they belong to what a training did before it was
    continued from an earlier checkpoint, and `latest` must not mean them.

    Args:
        output_dir: folder of the training.
        step: that was done last.
        weights: modules by name.
        optimizers: by name.
        process: what belongs to this process alone.
        state: JSON-ready values that belong to all.
        rank: index of this process.
        keep: how many checkpoints stay.
        wait: barrier of the processes.

    Raises:
        OSError: the disk is full or cannot be written; nothing of this checkpoint remains.
    """
    target = output_dir / FOLDER / f"step-{step:08d}"
    partial = partial_of(target)
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(replacing_folder(target))
        wait()
        for name, part in weights.items():
            tensors = part.read()  # one module after the other: gathered ones are large
            if rank == 0:
                with _writing(target):
                    save_file(_saveable(tensors), partial / f"{name}.safetensors")
        states = {name: part.read() for name, part in optimizers.items()}
        with _writing(target):
            torch.save({"random": random_state(), **process}, partial / f"process-{rank}.pt")
            if rank == 0:
                torch.save(states, partial / "optimizers.pt")
                write_text(partial / STATE_FILE, json.dumps(state, indent=1))
        wait()
    if rank == 0:
        existing = list_checkpoints(output_dir)
        current = existing.index(target) + 1
        for other in [*existing[: max(0, current - keep)], *existing[current:]]:
            shutil.rmtree(other)
    wait()
    return target


def load_checkpoint(
    path: Path, weights: Mapping[str, Part], optimizers: Mapping[str, Part], *, rank: int
) -> tuple[dict, dict]:
    """Fill modules, optimizers and generators from a checkpoint.

    Returns:
        its `state.json`, and what it holds of this process (of the first one, where it had fewer).

    Raises:
        ValueError: the checkpoint holds other models, weights of other shapes, or states of another kind of optimizer.
    """
    state = json.loads((path / STATE_FILE).read_text())
    for name, part in weights.items():
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"The checkpoint {path} has no weights of {name!r}; it belongs to another training.")
        try:
            part.load(load_file(file))
        except RuntimeError as error:
            raise ValueError(f"The weights of {name!r} in {path} do not fit this configuration: {error}") from error
    stored = torch.load(path / "optimizers.pt", map_location="cpu", weights_only=True)
    for name, part in optimizers.items():
        if name in stored:  # a gradient scaler is new when the training goes on in fp16 but was not in it before
            try:
                part.load(stored[name])
            except ValueError as error:
                raise ValueError(
                    f"The optimizer state of {name!r} in {path} does not fit this configuration: {error}. Resume with "
                    "the optimizer that it was made with, or start anew from the weights with --init_from."
                ) from error
    own = path / f"process-{rank}.pt"
    process = torch.load(own if own.is_file() else path / "process-0.pt", map_location="cpu", weights_only=True)
    if own.is_file():  # otherwise the training goes on with more processes than it had
        set_random_state(process["random"])
    return state, process


def update_state(path: Path, **values: object) -> None:
    """Replace entries of a checkpoint's `state.json`, at once or not at all."""
    state = json.loads((path / STATE_FILE).read_text())
    with _writing(path):
        write_text(path / STATE_FILE, json.dumps({**state, **values}, indent=1))


def _saveable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    weights = {}
    for name, tensor in tensors.items():
        shared = tensor.data_ptr() in seen and tensor.numel() > 0
        # safetensors refuses tensors that share memory, and those with gaps
        weights[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return weights


def save_model(
    model: nn.Module,
    folder: Path,
    extra: Mapping[str, dict] | None = None,
    card: Mapping[str, str] | None = None,
    beside: Callable[[Path, Mapping[str, str]], None] | None = None,
) -> None:
    """`save_pretrained` plus JSON files, each written beside its place and moved there.

    Args:
        model: the model.
        folder: where it goes.
        extra: JSON values by file name.
        card: fills the model's card.
        beside: writes more files into the folder, see `Recipe.save_beside`.

    Raises:
        OSError: the disk is full or cannot be written; what was in the folder before is still there.
    """
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _writing(folder):
            partial.mkdir(parents=True)
            model.save_pretrained(partial, card=card, repo_id=folder.name)  # the card names its last place
            if beside is not None:
                beside(partial, card or {})
            for name, values in (extra or {}).items():
                (partial / name).write_text(json.dumps(values, indent=1))
            folder.mkdir(parents=True, exist_ok=True)
            for file in partial.iterdir():
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


__all__ = [
    "Part",
    "find_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "random_state",
    "save_checkpoint",
    "save_model",
    "set_random_state",
    "update_state",
]
