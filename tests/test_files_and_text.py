"""What every writer and every message of the package shares: whole files or none, and the name that was meant."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from melreformer_hf._files import replacing, replacing_folder, write_json, write_text
from melreformer_hf._text import suggest

PACKAGE = Path(__file__).parents[1] / "melreformer_hf"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), replacing(target) as partial:
        partial.write_text("half")
        raise KeyError
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with replacing(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old" and partial.parent == target.parent and partial.name.startswith(".")
    assert target.read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(FileNotFoundError, match="No folder .*nowhere.*create it"), replacing(tmp_path / "nowhere/a"):
        pass


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    for round in range(2):
        with replacing_folder(target) as partial:
            (partial / f"{round}.txt").write_text("x")
        assert [path.name for path in target.iterdir()] == [f"{round}.txt"]
    (target.parent / ".out.partial").mkdir()
    (target.parent / ".out.partial" / "stale").write_text("of a killed process")
    with pytest.raises(OSError, match="full"), replacing_folder(target) as partial:
        assert not list(partial.iterdir())
        (partial / "2.txt").write_text("x")
        raise OSError("disk full")
    assert [path.name for path in target.iterdir()] == ["1.txt"] and list(target.parent.iterdir()) == [target]


def test_json_is_json(tmp_path):
    assert json.loads(write_json(tmp_path / "a.json", {"a": [1, 2.5, None]}).read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None]}


def test_suggestions():
    assert suggest("hiden_size", ["hidden_size", "other"]) == "Did you mean 'hidden_size'?"
    assert suggest("zzz", {"b": 1, "a": 2}) == "Known: 'a', 'b'."
    assert suggest(3, []) == "" and suggest("zzz", [f"name_{index}" for index in range(50)]) == ""


def test_there_is_one_of_each():
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [path.name for path, text in sources.items() if "difflib" in text] == ["_text.py"]
    moves = {
        path.relative_to(PACKAGE).as_posix() for path, text in sources.items() if re.search(r"os\.replace\(", text)
    }
    # A checkpoint is filled by several processes together and moved by the first; a model keeps what lies beside it;
    # and music that was interrupted is kept.
    assert moves <= {"_files.py", "training/checkpointing.py", "data/building.py", "pipelines/writing.py"}
