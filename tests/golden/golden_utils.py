"""Golden fixtures: inputs, weights and outputs computed by the original programs.

The folder comes from the environment variable `MELREFORMER_GOLDEN` (default: `tests/fixtures/golden`). Sizes, arguments
and tolerances come from the fixture's own files, so that the tests run on any set of the same layout.
"""

from __future__ import annotations

import functools
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

DEFAULT_FOLDER = Path(__file__).parents[1] / "fixtures" / "golden"
# README of the fixtures: atol = 2e-5 * max(1, |reference|max) unless the config's noise table says more.
RELATIVE_TOLERANCE = 2e-5
NOISE_MARGIN = 8.0


class Stored(dict):
    """The tensors of a fixture; one that a test cannot do without is missed by name."""

    def __init__(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.folder = folder

    def __missing__(self, key: str) -> torch.Tensor:
        pytest.fail(f"the golden set's {self.folder.name}/io.safetensors has no {key!r}; it has {sorted(self)}")


class Fixture:
    """One folder of a golden set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict = json.loads((folder / "config.json").read_text())
        path = folder / "io.safetensors"
        self.io = Stored(folder, load_file(path) if path.is_file() else {})

    def weights(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Tensors of the original's state dict whose names begin with `prefix`, without it."""
        every = load_file(self.folder / "weights.safetensors")
        return {key[len(prefix) :]: value for key, value in every.items() if key.startswith(prefix)}

    def tolerance(self, key: str) -> float:
        """Absolute tolerance for a stored tensor: the set's rule, or a multiple of its float32 noise if larger."""
        reference = self.io[key].abs().max().item() if self.io[key].numel() else 0.0
        noise = self.config.get("fp32_vs_fp64_max_abs", {}).get(key, 0.0)
        return max(RELATIVE_TOLERANCE * max(1.0, reference), NOISE_MARGIN * noise)

    def assert_stored(self, values: Mapping[str, torch.Tensor], at_least: float = 0.0) -> set[str]:
        """Compare those of the values that the fixture stores, one at least; which intermediates it has is its choice.

        Returns:
            the keys that were compared.
        """
        compared = values.keys() & self.io.keys()
        assert compared, f"the golden set's {self.folder.name} stores none of {sorted(values)}"
        for key in sorted(compared):
            self.assert_close(key, values[key], at_least)
        return compared

    def assert_close(self, key: str, actual: torch.Tensor, at_least: float = 0.0) -> None:
        """Compare with a stored tensor at its tolerance (or `at_least`, where a fixture's remarks allow more)."""
        expected = self.io[key]
        if not expected.is_floating_point():
            torch.testing.assert_close(
                actual.to(expected.dtype), expected, rtol=0, atol=0, msg=lambda m: f"{key}: {m}"
            )
            return
        atol = max(self.tolerance(key), at_least)
        torch.testing.assert_close(
            actual.detach().to(expected.dtype), expected, rtol=0, atol=atol, msg=lambda m: f"{key}: {m}"
        )


def tap(model: torch.nn.Module, places: dict[object, torch.nn.Module], run: Callable[[], object]) -> dict:
    """What modules give while `run` runs the model: {key of `places`: output}."""
    seen: dict[object, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, key=key: seen.update({key: output}))
        for key, module in places.items()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def number_in_words(remarks: list[str], pattern: str, default: float | None = None) -> float:
    """A number that a fixture gives in its remarks, by a pattern with one group."""
    found = re.search(pattern, " ".join(remarks))
    assert found or default is not None, f"the fixture's remarks lack {pattern!r}"
    return float(found[1]) if found else default


def golden_folder() -> Path:
    """The folder of the golden set in use.

    Raises:
        FileNotFoundError: `MELREFORMER_GOLDEN` names no golden set; skipping every test would look like success.
    """
    folder = Path(os.environ.get("MELREFORMER_GOLDEN") or DEFAULT_FOLDER)
    if not any(folder.glob("*/config.json")):
        raise FileNotFoundError(
            f"MELREFORMER_GOLDEN must be a folder with golden sets (<name>/config.json), got {folder}, which has none."
        )
    return folder


@functools.lru_cache
def _load(folder: Path) -> Fixture:
    return Fixture(folder)


def fixture(name: str) -> Fixture:
    """The fixture of a system by its folder's name; the test is skipped where the set in use does not have it."""
    folder = golden_folder() / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"the golden set in use has no {name}")
    return _load(folder)


def recipe_tensor(name: str, shape: tuple[int, ...], seed: int, bound_mul: float) -> torch.Tensor:
    """The portable weights of modules too large to store (rule in the golden set's README)."""
    random = numpy.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    u = random.uniform(-1, 1, shape)
    if len(shape) >= 2:
        values = u * bound_mul * numpy.sqrt(3 / numpy.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.2 * u
    elif name.endswith("running_var"):
        values = 1 + 0.5 * u
    else:
        values = 0.1 * u
    return torch.from_numpy(numpy.asarray(values, dtype=numpy.float32))
