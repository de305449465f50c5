"""Importing the package is quick, and the Auto classes know its models whatever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import melreformer_hf
from melreformer_hf._registration import FAMILIES


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_import_is_quick_and_light():
    code = (
        "import sys, melreformer_hf; print(sorted(set(sys.modules) & {'torch', 'transformers', 'diffusers', 'numpy'}))"
    )
    assert python(code) == "[]"


@pytest.mark.parametrize("name", sorted(set(melreformer_hf.__all__) - {"__version__"}))
def test_every_public_name_loads(name):
    assert getattr(melreformer_hf, name).__name__ == name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="MelReformr"):
        _ = melreformer_hf.MelReformr


def test_families_name_their_model_type():
    for model_type, (config, model, _) in FAMILIES.items():
        assert getattr(melreformer_hf, config).model_type == model_type
        assert getattr(melreformer_hf, model).config_class is getattr(melreformer_hf, config)


@pytest.mark.parametrize(
    "first",
    [
        "import melreformer_hf",
        "from transformers import AutoModel, AutoConfig, AutoFeatureExtractor; import melreformer_hf",
        "from melreformer_hf import ClassGptModel",
        "from melreformer_hf import MelReformerPipeline",
    ],
)
def test_auto_classes_load_saved_models_whatever_came_first(tmp_path, first):
    from melreformer_hf import HifiVocoderConfig, HifiVocoderModel, MelFeatureExtractor

    config = HifiVocoderConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    HifiVocoderModel(config).save_pretrained(tmp_path)
    MelFeatureExtractor().save_pretrained(tmp_path)
    code = f"""
import sys
{first}
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__, type(AutoModel.from_pretrained(sys.argv[1])).__name__,
      type(AutoFeatureExtractor.from_pretrained(sys.argv[1])).__name__)
"""
    assert python(code, str(tmp_path)) == "HifiVocoderConfig HifiVocoderModel MelFeatureExtractor"
