"""Settings: YAML, command line, and messages that say what to do."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from borders import check_borders, from_one
from testing_utils import assert_error
from training_utils import started

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.configs import configs_of, find_config, purpose
from melreformer_hf.training.arguments import read_yaml
from melreformer_hf.training.config import TrainingConfig, build_dataclass
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes import RECIPES as RECIPE_NAMES
from melreformer_hf.training.recipes import find_recipe
from melreformer_hf.training.recipes.composer import ComposerRecipe
from melreformer_hf.training.recipes.conv_upsampler import ConvUpsamplerRecipe
from melreformer_hf.training.recipes.expansion import ExpansionRecipe
from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionRecipe
from melreformer_hf.training.recipes.midi_lm import MidiLMRecipe
from melreformer_hf.training.recipes.vocoder import VocoderRecipe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "melreformer_hf/configs"
NEEDED = {"dataset": "data", "output_dir": "out", "max_steps": 1}
RECIPES = [VocoderRecipe, ExpansionRecipe, ConvUpsamplerRecipe, IdeaDiffusionRecipe, ComposerRecipe, MidiLMRecipe]


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("max_steps: 5\nbatch_size: 3\nmodel: {hidden_size: 8, kernel_size: 3}\nlearning_rate: 1e-3\n")
    words = ["--config", str(file), "--dataset", "d", "--output_dir", "o", "--max_steps", "7"]
    words += ["--model.hidden_size", "16", "--options.preset=tiny", "--adam_betas", "0.8,0.9", "--cpu", "true"]
    config = TrainingConfig.from_command_line(VocoderRecipe, words)
    assert (config.max_steps, config.batch_size, config.learning_rate) == (7, 3, 1e-3)
    assert config.model == {"hidden_size": 16, "kernel_size": 3} and config.options["preset"] == "tiny"
    assert config.adam_betas == (0.8, 0.9) and config.cpu is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_steps = 3


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"max_step": 1}, ["max_step", "Did you mean 'max_steps'"]),
        ({"max_steps": None}, ["max_steps", "max_minutes"]),
        ({"batch_size": 0}, ["batch_size", "at least 1", "0"]),
        ({"batch_size": "many"}, ["batch_size", "int", "many"]),
        ({"batch_size": 1.5}, ["batch_size", "int", "1.5"]),
        ({"learning_rate": -1.0}, ["learning_rate", "positive", "-1"]),
        ({"mixed_precision": "fp8"}, ["mixed_precision", "bf16", "fp8"]),
        ({"ema_decay": 1.0}, ["ema_decay", "[0, 1)"]),
        ({"dataset": ""}, ["dataset", "data build"]),
        ({"adam_betas": [0.9, 1.0]}, ["adam_betas", "1.0"]),
        ({"max_minutes": float("nan")}, ["max_minutes", "positive", "nan"]),
        ({"max_minutes": -5}, ["max_minutes", "positive", "-5"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "positive", "nan"]),
        ({"cache_minutes": -1}, ["cache_minutes", "-1"]),
        ({"cpu": "maybe"}, ["cpu", "bool", "maybe"]),
        ({"model": [1]}, ["model", "dict", "[1]"]),
    ],
)
def test_wrong_settings_are_refused(values, fragments):
    with pytest.raises(ValueError) as error:
        build_dataclass(TrainingConfig, {**NEEDED, **values}, "The training config")
    assert_error(error, *fragments)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--max_stepps", "3"], ["'--max_stepps'", "Did you mean '--max_steps'?"]),
        (["--max_step", "3"], ["'--max_step'", "Did you mean '--max_steps'?"]),  # no abbreviations either
        (["--options.presett", "3"], ["Did you mean '--options.preset'?"]),
        (["--model.hidden_size"], ["--model: expected one argument"]),
        (["stray"], ["unknown argument 'stray'"]),
        (["--batch_size", "none"], ["batch_size must be int", "None"]),
        (["--max_steps", "many"], ["max_steps must be int or null", "many"]),
        (["--adam_betas", "0.9"], ["adam_betas must be a list [float, float]", "0.9"]),
        (["--options.stft_weight", "loud"], ["options.stft_weight must be float", "loud"]),
        (["--options.stft_weight", "-1"], ["options.stft_weight must not be negative"]),
        (["--config", "nowhere.yaml"], ["No config file at nowhere.yaml"]),
        (["--config", "tinny"], ["vocoder has no config 'tinny'", "Did you mean 'tiny'?"]),
        (["--config", "expansion_tiny"], ["vocoder has no config 'expansion_tiny'"]),
        (["--max_steps", "none"], ["max_steps must be given unless max_minutes is"]),
    ],
)
def test_wrong_command_lines_end_with_a_message(words, fragments, capsys):
    base = ["--dataset", "d", "--output_dir", "o", "--max_steps", "1"]
    with pytest.raises(SystemExit) as stop:
        main("vocoder", [*base, *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert all(fragment in error for fragment in fragments), error


def test_wrong_files_are_named(tmp_path):
    for content, fragment in (
        (b"max_step: 5", "Did you mean 'max_steps'?"),
        (b"options: {presett: 1}", "options.preset"),
    ):
        (tmp_path / "wrong.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(fragment)):
            TrainingConfig.from_command_line(VocoderRecipe, ["--config", tmp_path / "wrong.yaml"])
    for content in (b"a: [", b"a: \xff", b"- 1"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(ValueError, match="bad.yaml"):
            TrainingConfig.from_yaml(tmp_path / "bad.yaml")
        with pytest.raises(ValueError, match="bad.yaml"):
            TrainingConfig.from_command_line(VocoderRecipe, ["--config", tmp_path / "bad.yaml"])


def test_numbers_are_read_as_people_and_json_write_them(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1e-09\nb: -2E+3\nc: 1.5e3\nd: 1e-3x\ne: [1e5, 1]\nf: '1e-5'\n")
    expected = {"a": 1e-9, "b": -2000.0, "c": 1500.0, "d": "1e-3x", "e": [1e5, 1], "f": "1e-5"}
    assert read_yaml(tmp_path / "a.yaml") == expected
    mel = MelConfig.preset("hifigan").to_dict()
    words = [
        "--dataset",
        "d",
        "--output_dir",
        "o",
        "--max-steps=1",
        "--model.mel",
        json.dumps(mel),
        "--model.x",
        "1e-9",
    ]
    config = TrainingConfig.from_command_line(
        VocoderRecipe, [*words, "--max_minutes", "none", "--cpu", "--progress-bar", "no"]
    )
    assert config.model == {"mel": mel, "x": 1e-9} and config.max_minutes is None
    assert (config.max_steps, config.cpu, config.progress_bar) == (1, True, False)


def test_the_printed_configuration_is_a_configuration(tmp_path, capsys):
    given = ["--config", "tiny", "--dataset", "d", "--options.crop_frames", "32", "--model", "{hidden_size: 16}"]
    with pytest.raises(SystemExit) as stop:
        TrainingConfig.from_command_line(VocoderRecipe, [*given, "--print-config"])
    assert not stop.value.code
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = TrainingConfig.from_command_line(VocoderRecipe, ["--config", tmp_path / "printed.yaml"])
    assert printed == TrainingConfig.from_command_line(VocoderRecipe, given) and printed.options["crop_frames"] == 32
    # What is typed wins wherever it stands.
    late = TrainingConfig.from_command_line(VocoderRecipe, ["--batch_size", "5", *given])
    assert late.batch_size == 5 and late.output_dir == "runs/vocoder_tiny"


def test_recipes_and_their_configs_are_listed(capsys):
    assert main(arguments=["--list"]) == {}
    listed = capsys.readouterr().out
    for name in RECIPE_NAMES:
        assert f"{name} " in listed and find_recipe(name).name == name
        for size, path in configs_of(name).items():
            assert f"  {size} " in listed and purpose(path) in listed
            assert find_config(size, name) == find_config(path.stem, name) == find_config(path, name) == path
    with pytest.raises(SystemExit):
        main(arguments=["vocodder"])
    assert "'vocoder'" in capsys.readouterr().err
    assert not main(arguments=[]) and "usage: accelerate launch" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_unknown_recipe_options_are_refused(recipe):
    with pytest.raises(ValueError) as error:
        recipe(TrainingConfig(**NEEDED, options={"validation_splt": 3}))
    assert_error(error, recipe.name, "validation_splt", "Did you mean 'validation_split'")


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_teaches_every_setting(recipe, capsys):
    with pytest.raises(SystemExit):
        TrainingConfig.from_command_line(recipe, ["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainingConfig):
        assert f"--{field.name}" in text, field.name
    for field in dataclasses.fields(recipe.Options):
        assert field.name in text and field.metadata["help"].split()[0] in text, field.name


def example_configs() -> list[tuple[Path, type]]:
    by_name = {recipe.name: recipe for recipe in RECIPES}
    files = sorted(CONFIGS.glob("*.yaml"))
    return [(file, by_name[name]) for file in files if (name := file.stem.rsplit("_", 1)[0]) in by_name]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_example_config_builds_its_models_without_memory(recipe):
    # Fitting the idea model to recordings needs recordings; its sizes do not.
    fitted = {"fit_crops": 0} if recipe is IdeaDiffusionRecipe else {}
    counts = {}
    for file in [file for file, owner in example_configs() if owner is recipe]:
        with torch.device("meta"):
            modules = started(recipe(TrainingConfig.from_yaml(file, {"dataset": "d", "options": fitted})))
        assert all(parameter.is_meta for module in modules.values() for parameter in module.parameters())
        counts[file.stem] = sum(parameter.numel() for parameter in modules["model"].parameters())
    assert counts[f"{recipe.name}_base"] > counts[f"{recipe.name}_tiny"] > 1e6, counts


SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "melreformer_hf/training").rglob("*.py")))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_is_used(recipe):
    """A setting that is read nowhere but where it is declared would be parsed and ignored."""
    every = {"validate_every_steps", "validate_every_minutes", "save_every_steps", "save_every_minutes"}
    for owner, cls in (("config", TrainingConfig), ("options", recipe.Options)):
        for field in dataclasses.fields(cls):
            name = field.name.split("_", 1)[1] if field.name in every else field.name  # read as <what>_every_steps
            used = re.search(rf"\b{owner}\.{name}\b", SOURCES) or f'}}_{name}"' in SOURCES
            assert used, f"{owner}.{field.name} is read nowhere"


def test_every_example_config_builds_its_recipe():
    files = sorted(CONFIGS.glob("*.yaml"))
    by_name = {recipe.name: recipe for recipe in RECIPES}
    used = set()
    for file in files:
        name = file.stem.rsplit("_", 1)[0]
        if name in by_name:
            by_name[name](TrainingConfig.from_yaml(file, {"dataset": "d"}))
            used.add(name)
    assert used == set(by_name)


def test_settings_survive_a_round_trip():
    config = TrainingConfig(**NEEDED, adam_betas=(0.5, 0.6), model={"a": 1})
    assert build_dataclass(TrainingConfig, config.to_dict(), "The training config") == config


def test_borders_of_the_settings():
    inside, outside = from_one(
        *("batch_size", "gradient_accumulation_steps", "log_every_steps", "keep_checkpoints", "prefetch_batches"),
        *("max_nonfinite_steps", "max_steps", "validate_every_steps", "save_every_steps"),
    )
    positive = ("max_minutes", "validate_every_minutes", "save_every_minutes", "discriminator_learning_rate")
    positive += ("learning_rate", "adam_epsilon", "max_grad_norm")
    not_negative = ("warmup_steps", "num_workers", "cache_minutes", "weight_decay")
    inside |= dict.fromkeys(positive, (1e-9,)) | dict.fromkeys(not_negative, (0,))
    outside |= dict.fromkeys(positive, (0.0,)) | dict.fromkeys(not_negative, (-1,))
    inside |= {"final_learning_rate_ratio": (0.0, 1.0), "ema_decay": (0.0, 0.9999), "adam_betas": ((0.0, 0.999),)}
    inside["max_minutes"] = ({"max_minutes": 1e-9, "max_steps": None},)
    outside |= {
        "final_learning_rate_ratio": (-0.01, 1.01),
        "ema_decay": (-0.01, 1.0),
        "adam_betas": ((0.9, 1.0), (-0.01, 0.9)),
        "output_dir": ("",),
    }
    check_borders(TrainingConfig, inside, outside, **NEEDED)
