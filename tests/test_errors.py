"""What goes wrong outside the package is told in one line: full disks, missing extras, interruptions."""

from __future__ import annotations

import contextlib
import errno
import resource
import runpy
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from audio_files import RATE, tone
from safetensors.torch import save_file

from melreformer_hf._errors import is_expected, one_line, told_in_one_line

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("train_*.py"))


@contextlib.contextmanager
def no_room():
    """Files of this process may not grow beyond 4 kB: writing fails as it does on a full disk.

    A context and no fixture: pytest's own output may go to a file, which is longer by the time a fixture is taken down.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["torch", "safetensors", "text", "soundfile"])
def test_files_that_cannot_be_written_are_told_in_one_line(tmp_path, capsys, kind):
    tensors, path = {"a": torch.zeros(100_000)}, tmp_path / "file"
    write = {
        "torch": lambda: torch.save(tensors, path),
        "safetensors": lambda: save_file(tensors, path),
        "text": lambda: path.write_text("x" * 100_000),
        "soundfile": lambda: soundfile.write(path, tone(9.0), RATE, format="WAV"),
    }[kind]
    with no_room(), pytest.raises(SystemExit) as stop, told_in_one_line():
        write()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1


def test_a_full_disk_says_what_is_kept():
    for error in (
        OSError(errno.ENOSPC, "No space left on device", "runs/x"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        assert is_expected(error)
        told = one_line(error)
        assert told.startswith("The disk is full") and "run the same command again" in told
    assert "runs/x" in one_line(OSError(errno.ENOSPC, "No space left on device", "runs/x"))


def test_bugs_keep_their_traceback():
    for error in (RuntimeError("shape '[2]' is invalid"), TypeError("x"), KeyError("x")):
        assert not is_expected(error)
        with pytest.raises(type(error)), told_in_one_line():
            raise error
    with pytest.raises(ValueError, match="asked"), told_in_one_line(lambda: True):
        raise ValueError("asked")


def test_interruptions_and_workers_are_told(capsys):
    with pytest.raises(SystemExit) as stop, told_in_one_line():
        raise KeyboardInterrupt
    assert stop.value.code == 130 and capsys.readouterr().err == "error: interrupted.\n"
    worker = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback ...\nValueError: rate 3"
    )
    assert one_line(worker) == "ValueError: rate 3"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_name_a_missing_extra(example, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "jsonargparse"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.setattr(sys, "argv", [str(example), "--config", "tiny", "--dataset", "d"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(example), run_name="__main__")
    assert stop.value.code == 2
    expected = "error: This needs jsonargparse: pip install 'melreformer_hf[train]' (or '.[train]' in a checkout).\n"
    assert capsys.readouterr().err == expected
