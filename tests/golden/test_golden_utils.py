"""The golden tests run on the set that was asked for, or not at all."""

from __future__ import annotations

import golden_utils
import pytest
import torch


def test_a_wrong_folder_is_an_error(tmp_path, monkeypatch):
    """Not a skip of everything, which would pass."""
    for folder in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv("MELREFORMER_GOLDEN", str(folder))
        with pytest.raises(FileNotFoundError, match="MELREFORMER_GOLDEN must be a folder"):
            golden_utils.fixture("01_melreformer")


def test_a_set_may_lack_a_system(tmp_path, monkeypatch):
    (tmp_path / "02_other").mkdir()
    (tmp_path / "02_other" / "config.json").write_text("{}")
    monkeypatch.setenv("MELREFORMER_GOLDEN", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="no 01_melreformer"):
        golden_utils.fixture("01_melreformer")


def test_what_a_set_lacks_is_named(tmp_path):
    """A missing tensor of which nothing else can be told fails by name; intermediates are the set's choice."""
    golden = golden_utils.Fixture.__new__(golden_utils.Fixture)
    golden.folder, golden.config = tmp_path / "03_some", {}
    golden.io = golden_utils.Stored(golden.folder, {"a.out": torch.ones(2)})
    with pytest.raises(pytest.fail.Exception, match=r"03_some/io.safetensors has no 'a.in'; it has \['a.out'\]"):
        _ = golden.io["a.in"]
    assert golden.assert_stored({"a.out": torch.ones(2), "a.hidden": torch.zeros(1)}) == {"a.out"}
    with pytest.raises(AssertionError, match="a.out"):
        golden.assert_stored({"a.out": torch.zeros(2)})
    with pytest.raises(AssertionError, match="stores none of"):
        golden.assert_stored({"a.hidden": torch.zeros(1)})
