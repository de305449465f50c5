"""The libraries' Auto classes know the package's models whatever is imported first; the command starts quickly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from pipeline_utils_for_tests import tiny_pipeline

import melreformer_hf
from melreformer_hf._registration import FAMILIES, PIPELINES, is_own_command, register
from melreformer_hf.pipelines.loading import BUNDLED


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_the_command_starts_without_heavy_libraries():
    command = [sys.executable, "-X", "importtime", "-m", "melreformer_hf.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    heavy = {"torch", "transformers", "diffusers", "datasets", "accelerate", "gradio", "evaluate", "numpy"}
    assert "melreformer_hf.cli.main" in imported and not imported & heavy


@pytest.mark.parametrize(
    ("program", "words", "own"),
    [
        ("/usr/bin/melreformer", ["python", "/usr/bin/melreformer", "--help"], True),
        ("-m", ["python", "-m", "melreformer_hf.training", "vocoder"], True),
        ("-m", ["python", "-u", "-m", "melreformer_hf"], True),
        (str(Path(melreformer_hf.__file__).parent / "cli" / "__main__.py"), ["python", "-c", "spawn_main()"], True),
        ("-c", ["python", "-c", "import melreformer_hf"], False),
        ("-m", ["python", "-m", "pytest"], False),
        ("melreformer.py", ["python", "melreformer.py"], False),
    ],
)
def test_only_the_package_s_own_commands_leave_registration_out(monkeypatch, program, words, own):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert is_own_command() is own


@pytest.mark.parametrize("name", sorted(set(melreformer_hf.__all__) - {"__version__"}))
def test_every_public_name_loads(name):
    assert getattr(melreformer_hf, name).__name__ == name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="MelReformr"):
        _ = melreformer_hf.MelReformr


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_registered(name):
    family = FAMILIES[name]
    config, model = getattr(melreformer_hf, family.config), getattr(melreformer_hf, family.model)
    assert config.model_type == f"melreformer_{name}" and model.config_class is config
    assert transformers.AutoConfig.for_model(f"melreformer_{name}").__class__ is config
    with torch.device("meta"):
        for auto in ("AutoModel", *family.auto_models):
            assert type(getattr(transformers, auto).from_config(config())) is model
    assert bool(getattr(config(), "preprocessor_config", None)) == (family.feature_extractor is not None)
    assert model.__module__ == f"melreformer_hf.models.{name}.modeling_{name}"


def test_every_family_and_pipeline_of_the_public_names_is_in_the_table():
    public = set(melreformer_hf.__all__)
    assert {name for name in public if name.endswith("Model")} - {"IdeaUNetModel"} == {
        family.model for family in FAMILIES.values()
    }
    assert {name for name in public if name.endswith("Pipeline")} == set(PIPELINES)


def test_language_models_are_causal_and_codecs_tokenize_audio():
    assert {name for name in FAMILIES if "AutoModelForCausalLM" in FAMILIES[name].auto_models} == {
        "class_gpt",
        "gpt_vae",
    }
    assert FAMILIES["soundstream"].auto_models == ("AutoModelForAudioTokenization",)


def test_registering_again_changes_nothing():
    known = [dict(transformers.CONFIG_MAPPING._extra_content), dict(transformers.MODEL_MAPPING._extra_content)]
    register()
    register()
    again = [dict(transformers.CONFIG_MAPPING._extra_content), dict(transformers.MODEL_MAPPING._extra_content)]
    assert again == known and all(f"melreformer_{name}" in known[0] for name in FAMILIES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folders of a vocoder, a class GPT, a tokenizer and a pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    config = melreformer_hf.HifiVocoderConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    melreformer_hf.HifiVocoderModel(config).save_pretrained(folder / "vocoder")
    small = {"vocab_size": 16, "block_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    known = {key: value for key, value in small.items() if key in melreformer_hf.ClassGptConfig().to_dict()}
    melreformer_hf.ClassGptModel(melreformer_hf.ClassGptConfig(**known)).save_pretrained(folder / "gpt")
    melreformer_hf.MidiTokenizer().save_pretrained(folder / "tokens")
    tiny_pipeline().save_pretrained(folder / "pipe")
    return folder


LOAD = """
folder = sys.argv[1]
print(*(type(loaded).__name__ for loaded in (
    AutoConfig.from_pretrained(folder + "/vocoder"),
    AutoModel.from_pretrained(folder + "/vocoder"),
    AutoFeatureExtractor.from_pretrained(folder + "/vocoder"),
    AutoModelForCausalLM.from_pretrained(folder + "/gpt"),
    AutoTokenizer.from_pretrained(folder + "/tokens"),
    DiffusionPipeline.from_pretrained(folder + "/pipe"),
)))
"""
NAMES = """
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoTokenizer
from diffusers import DiffusionPipeline
"""
LOADED = "HifiVocoderConfig HifiVocoderModel MelFeatureExtractor ClassGptModel MidiTokenizer MelReformerPipeline"


@pytest.mark.parametrize(
    "first",
    [
        "from melreformer_hf.audio.mel import MelConfig",
        "import transformers, melreformer_hf",
        NAMES + "import melreformer_hf",
        "from importlib.util import find_spec; import melreformer_hf; find_spec('transformers.models.auto.modeling_auto')",
    ],
    ids=["package", "transformers", "auto-classes", "find-spec"],
)
def test_saved_models_load_by_the_libraries_own_names_whatever_came_first(saved, first):
    assert python(f"import sys\n{first}\n{NAMES}{LOAD}", str(saved)).splitlines()[-1] == LOADED


def test_a_pipeline_names_the_package_and_loads_from_older_files_too(saved, tmp_path):
    from diffusers import DiffusionPipeline

    index = json.loads((saved / "pipe" / "model_index.json").read_text())
    assert index["vocoder"] == ["melreformer_hf", "HifiVocoderModel"] and index["idea"][0] == "melreformer_hf"
    shutil.copytree(saved / "pipe", tmp_path / "older")
    for part in ("idea", "expansion", "vocoder"):
        index[part][0] = getattr(melreformer_hf, index[part][1]).__module__
    (tmp_path / "older" / "model_index.json").write_text(json.dumps(index))
    for cls in (DiffusionPipeline, melreformer_hf.MelReformerPipeline):
        loaded = cls.from_pretrained(tmp_path / "older")
        assert type(loaded) is melreformer_hf.MelReformerPipeline
        expected = tiny_pipeline().vocoder.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.vocoder.state_dict().items())


def test_the_bundled_pipeline_loads_generically_in_full_precision():
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(BUNDLED / "piano-tiny")
    assert type(pipe) is melreformer_hf.MelReformerPipeline
    parts = [pipe.idea, pipe.expansion, pipe.vocoder]
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("part", ["expansion", "vocoder"])
def test_parts_of_pipelines_bring_their_feature_extractor(saved, part):
    for folder in (saved / "pipe" / part, BUNDLED / "piano-tiny" / part):
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        assert type(extractor) is melreformer_hf.MelFeatureExtractor
        extractor.mel_config.check_matches(transformers.AutoConfig.from_pretrained(folder).mel_config)
