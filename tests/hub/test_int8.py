"""Weights stored as integers: what is rounded, what is kept, and that models load from them like from any other file."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from melreformer_hf.hub.int8 import from_int8, is_int8, store_as_int8, to_int8
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel


def test_rows_are_rounded_to_a_254th_of_their_largest_value():
    matrix = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 64)[:, None]
    stored = to_int8({"a.weight": matrix})
    assert stored["a.weight"].dtype == torch.int8 and stored["a.weight"].abs().max() == 127
    assert stored["a.weight_scale"].shape == (64,)
    error = (from_int8(stored)["a.weight"] - matrix).abs().amax(1) / matrix.abs().amax(1)
    assert error.max() < 1.15 / 254 and error.mean() > 0.5 / 254


def test_small_vectors_and_integer_tensors_stay_as_they_are():
    state = {
        "vector": torch.randn(5000),
        "small": torch.randn(63, 65),
        "number": torch.arange(8192).view(64, 128),
        "zeros": torch.zeros(64, 64),
        "bits": torch.arange(256, dtype=torch.uint8),
    }
    stored = to_int8(state)
    assert set(stored) == {*state, "zeros_scale"}
    for name in ("vector", "small"):
        assert torch.equal(from_int8(stored)[name], state[name])
    bits = from_int8(stored)["bits"]
    assert bits.dtype == torch.uint8 and torch.equal(bits, state["bits"])
    assert torch.equal(stored["number"], state["number"]) and not from_int8(stored)["zeros"].any()


@pytest.mark.parametrize("broken", [{}, {"a_scale": torch.ones(3)}])
def test_integers_without_their_scales_are_refused(broken):
    with pytest.raises(ValueError, match=r"a_scale must hold one scale per row of \(4, 2\)"):
        from_int8({"a": torch.ones(4, 2, dtype=torch.int8), **broken})


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = NoteTransformerModel(NoteTransformerConfig.preset("test", hidden_size=64))
    model.half().save_pretrained(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "small")
    store_as_int8(tmp_path / "small")
    return tmp_path


def test_a_model_loads_from_them_as_from_any_file(saved):
    whole = NoteTransformerModel.from_pretrained(saved / "model", dtype=torch.float32)
    small = NoteTransformerModel.from_pretrained(saved / "small")
    assert not is_int8(saved / "model" / "model.safetensors") and is_int8(saved / "small" / "model.safetensors")
    sizes = [(saved / name / "model.safetensors").stat().st_size for name in ("model", "small")]
    assert sizes[1] < 0.65 * sizes[0]
    expected = from_int8(to_int8(load_file(saved / "model" / "model.safetensors")))
    for name, tensor in small.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name])
    assert small.name_or_path == str(saved / "small") and not small.training
    assert small.config.to_dict() == whole.config.to_dict() | {"_name_or_path": small.config.name_or_path}
    half = NoteTransformerModel.from_pretrained(saved / "small", dtype=torch.float16)
    assert half.dtype == torch.float16
    other = NoteTransformerModel.from_pretrained(saved / "small", config=whole.config, dtype="auto")
    assert other.config.hidden_size == 64 and other.dtype == torch.float32


def test_a_loaded_model_is_saved_in_its_own_precision(saved, tmp_path):
    NoteTransformerModel.from_pretrained(saved / "small").save_pretrained(tmp_path / "again")
    assert not is_int8(tmp_path / "again" / "model.safetensors")


def test_only_models_in_one_file_are_rewritten_and_no_file_is_left_half_written(saved, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="No model.safetensors in"):
        store_as_int8(tmp_path)
    path = saved / "model" / "model.safetensors"
    before = path.read_bytes()
    monkeypatch.setattr("melreformer_hf.hub.int8.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        store_as_int8(saved / "model")
    assert path.read_bytes() == before


def test_missing_scales_in_a_file_are_told(saved):
    path = saved / "small" / "model.safetensors"
    stored = load_file(path)
    del stored["embedding.attributes.weight_scale"]
    save_file(stored, path, metadata={"format": "pt", "storage": "int8"})
    with pytest.raises(ValueError, match="embedding.attributes.weight_scale must hold"):
        NoteTransformerModel.from_pretrained(saved / "small")
