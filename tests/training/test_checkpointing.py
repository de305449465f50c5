"""What checkpoints are made of: random states, tensors as safetensors takes them, models that appear whole."""

from __future__ import annotations

import errno
import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from melreformer_hf.training.checkpointing import (
    Part,
    _saveable,
    list_checkpoints,
    random_state,
    save_checkpoint,
    save_model,
    set_random_state,
)


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(()).item()]


def test_random_states_come_back_with_what_is_half_drawn():
    """Generators of normal numbers make two at a time and keep the second."""
    random.gauss(0, 1)
    np.random.standard_normal()
    file = io.BytesIO()
    torch.save(random_state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    expected, after = draws(), draws()
    assert expected != after
    set_random_state(state)
    assert draws() == expected and draws() == after


def test_tensors_that_share_memory_or_have_gaps_are_saved(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "same": whole, "turned": whole.T, "gaps": torch.arange(12.0).reshape(3, 4)[:, ::2]}
    tensors |= {"empty": torch.zeros(0), "none": torch.zeros(0, 2)}
    save_file(_saveable(tensors), tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value), name


class Model(torch.nn.Module):
    """Writes one file, and tells what it was told."""

    def __init__(self, text: str, error: Exception | None = None) -> None:
        super().__init__()
        self.text, self.error = text, error

    def save_pretrained(self, folder: Path, card: dict | None, repo_id: str) -> None:
        (folder / "model.txt").write_text(f"{self.text} {card} {repo_id}")
        if self.error is not None:
            raise self.error


def test_a_model_appears_whole_or_leaves_what_was_there(tmp_path):
    folder = tmp_path / "new" / "run" / "best"

    def beside(place: Path, card: dict) -> None:
        (place / "beside.txt").write_text(str(dict(card)))

    save_model(Model("one"), folder, {"told.json": {"a": 1}}, {"data": "x"}, beside)
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "model.txt": "one {'data': 'x'} best",
        "told.json": '{\n "a": 1\n}',
        "beside.txt": "{'data': 'x'}",
    }
    save_model(Model("two"), folder)
    assert (folder / "model.txt").read_text() == "two None best" and (folder / "told.json").is_file()
    with pytest.raises(OSError, match="Could not write it") as caught:
        save_model(Model("three", RuntimeError("disk full")), folder)
    assert caught.value.errno == errno.EIO and caught.value.filename == str(folder)
    with pytest.raises(OSError, match="No space") as caught:
        save_model(Model("three", OSError(errno.ENOSPC, "No space")), folder)
    assert caught.value.errno == errno.ENOSPC
    assert (folder / "model.txt").read_text() == "two None best"
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


@pytest.mark.parametrize(("keep", "steps"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_so_many_checkpoints_are_kept_and_none_of_later_steps(tmp_path, keep, steps):
    def save(step: int, keep: int) -> None:
        part = Part(lambda: {"weight": torch.full((2,), float(step))}, lambda state: None)
        more = {"rank": 0, "keep": keep, "wait": lambda: None}
        save_checkpoint(tmp_path, step, {"model": part}, {}, {}, {"step": step}, **more)

    for step in (1, 2, 7, 8):
        save(step, 9)
    save(3, keep)  # of a training that was continued from step 2
    assert [int(path.name[-8:]) for path in list_checkpoints(tmp_path)] == steps
    (tmp_path / "checkpoints" / "step-1").mkdir()
    assert len(list_checkpoints(tmp_path)) == len(steps) and list_checkpoints(tmp_path / "nothing") == []
