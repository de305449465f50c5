"""Where a saved pipeline is, what it holds, and whether its files hold all weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from testing_utils import assert_error

from melreformer_hf.pipelines.loading import BUNDLED, check_configurations, check_weights, index_of, locate, parts_of


def test_a_pipeline_is_a_folder_a_bundled_name_or_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = {path.parent.name for path in BUNDLED.glob("piano-tiny/model_index.json")}
    assert locate(name) == BUNDLED / name and locate("user/name") is None
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is no saved pipeline: it has no model_index.json"):
        locate(name)  # what is there counts before what is bundled
    (tmp_path / name / "model_index.json").write_text("{}")
    assert str(locate(name)) == name and locate(tmp_path / name) == tmp_path / name
    for wrong in ("nothing", "./name", "../name", "/name", "a/b/c"):
        with pytest.raises(ValueError) as error:
            locate(wrong)
        assert_error(error, repr(wrong), "piano-tiny", "user/name")


def test_parts_are_those_that_are_there(tmp_path):
    index = {"_class_name": "X", "idea": ["a", "B"], "scheduler": [None, None], "rate": 3}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert parts_of(tmp_path) == {"idea"}
    for content, words in (("{", "not valid JSON"), ("[1]", "must hold names and values, got list")):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            index_of(tmp_path)


def test_weights_without_a_configuration_are_refused(tmp_path):
    (tmp_path / "idea").mkdir()
    check_configurations(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "idea" / "model.safetensors")
    with pytest.raises(ValueError, match="is incomplete: idea/config.json is missing"):
        check_configurations(tmp_path)
    (tmp_path / "idea" / "config.json").write_text("{}")
    check_configurations(tmp_path)


class Tied(torch.nn.Module):
    """Two names for one weight, and weights of no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.none, self.nothing = torch.nn.Parameter(torch.zeros(0)), torch.nn.Parameter(torch.zeros(0, 4))


def test_files_hold_all_weights_in_their_shapes(tmp_path):
    whole = {"first.weight": torch.zeros(3, 3), "none": torch.zeros(0), "nothing": torch.zeros(0, 4)}
    with pytest.raises(ValueError, match="holds no weights"):
        check_weights(tmp_path, Tied())
    save_file(whole, tmp_path / "a.safetensors")
    check_weights(tmp_path, Tied())  # one name of two is enough
    for left in ("nothing", "first.weight"):
        save_file({name: value for name, value in whole.items() if name != left}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=f"'{left}' is missing"):
            check_weights(tmp_path, Tied())
    save_file({left: whole[left], "more": torch.zeros(2)}, tmp_path / "b.safetensors")
    check_weights(tmp_path, Tied())  # in several files; what is not asked for does not matter
    save_file({**whole, "none": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'none' has shape \[1\], the configuration asks for \[0\]"):
        check_weights(tmp_path, Tied())
