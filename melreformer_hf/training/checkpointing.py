"""Checkpoints that continue a training to the bit.

A checkpoint is a folder `checkpoints/step-00001000` that appears complete or not at all:

| file | holds |
|---|---|
| `<name>.safetensors` | weights of one model (`model`, `average`, `discriminator`) |
| `optimizers.pt` | states of the optimizers and of fp16's gradient scaler, read with `weights_only=True` |
| `random-<rank>.pt` | random number generators of one process |
| `state.json` | step, minutes, data position, running sums, best metric, settings |
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

FOLDER = "checkpoints"
STATE_FILE = "state.json"
_STEP = re.compile(r"step-(\d{8})")


class Stateful(Protocol):
    """An optimizer, or what else has a state of that kind."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state_dict: dict) -> None: ...


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


def save_checkpoint(
    output_dir: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Stateful],
    state: Mapping,
    *,
    rank: int,
    keep: int,
    wait: Callable[[], None],
) -> Path:
    """Write a checkpoint; every process calls it, `wait` is their barrier.

    Older ones beyond `keep` are removed, and those of later steps: they belong to what a training did before it was
    continued from an earlier checkpoint, and `latest` must not mean them.
    """
    target = output_dir / FOLDER / f"step-{step:08d}"
    partial = target.with_name(f".{target.name}.partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    torch.save(random_state(), partial / f"random-{rank}.pt")
    if rank == 0:
        for name, module in modules.items():
            save_file(
                {key: value.contiguous() for key, value in _weights(module).items()}, partial / f"{name}.safetensors"
            )
        torch.save({name: optimizer.state_dict() for name, optimizer in optimizers.items()}, partial / "optimizers.pt")
        (partial / STATE_FILE).write_text(json.dumps(state, indent=1))
    wait()
    if rank == 0:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        existing = list_checkpoints(output_dir)
        current = existing.index(target) + 1
        for other in [*existing[: max(0, current - keep)], *existing[current:]]:
            shutil.rmtree(other)
    wait()
    return target


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Stateful], *, rank: int
) -> dict:
    """Fill modules, optimizers and generators from a checkpoint and return its `state.json`.

    Raises:
        ValueError: the checkpoint holds other models, or weights of other shapes.
    """
    state = json.loads((path / STATE_FILE).read_text())
    for name, module in modules.items():
        file = path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"The checkpoint {path} has no weights of {name!r}; it belongs to another training.")
        try:
            module.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise ValueError(f"The weights of {name!r} in {path} do not fit this configuration: {error}") from error
    stored = torch.load(path / "optimizers.pt", map_location="cpu", weights_only=True)
    for name, optimizer in optimizers.items():
        if name in stored:  # a gradient scaler is new when the training goes on in fp16 but was not in it before
            optimizer.load_state_dict(stored[name])
    generators = path / f"random-{rank}.pt"
    if generators.is_file():  # absent when the training goes on with more processes than it had
        set_random_state(torch.load(generators, weights_only=True))
    return state


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    weights = {}
    for name, tensor in module.state_dict().items():
        shared = tensor.data_ptr() in seen and tensor.numel() > 0
        weights[name] = tensor.clone() if shared else tensor  # safetensors refuses tensors that share memory
        seen.add(tensor.data_ptr())
    return weights


def save_model(
    model: nn.Module, folder: Path, extra: Mapping[str, dict] | None = None, card: Mapping[str, str] | None = None
) -> None:
    """`save_pretrained` plus JSON files, each written beside its place and moved there; `card` fills the model's card."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, card=card)
    for name, values in (extra or {}).items():
        (partial / name).write_text(json.dumps(values, indent=1))
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        os.replace(file, folder / file.name)
    partial.rmdir()


__all__ = [
    "find_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "random_state",
    "save_checkpoint",
    "save_model",
    "set_random_state",
]
