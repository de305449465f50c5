"""The golden tests run on the set that was asked for, or not at all."""

from __future__ import annotations

import golden_utils
import pytest


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
