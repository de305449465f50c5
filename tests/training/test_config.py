"""Settings: YAML, command line, and messages that say what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from testing_utils import assert_error

from melreformer_hf.training.config import TrainingConfig, build_dataclass
from melreformer_hf.training.recipes.conv_upsampler import ConvUpsamplerRecipe
from melreformer_hf.training.recipes.expansion import ExpansionRecipe
from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionRecipe
from melreformer_hf.training.recipes.vocoder import VocoderRecipe

ROOT = Path(__file__).parents[2]
NEEDED = {"dataset": "data", "output_dir": "out", "max_steps": 1}
RECIPES = [VocoderRecipe, ExpansionRecipe, ConvUpsamplerRecipe, IdeaDiffusionRecipe]


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("max_steps: 5\nbatch_size: 3\nmodel: {hidden_size: 8, kernel_size: 3}\nlearning_rate: 1e-3\n")
    words = ["--config", str(file), "--dataset", "d", "--output_dir", "o", "--max_steps", "7"]
    words += ["--model.hidden_size", "16", "--options.preset=tiny", "--adam_betas", "0.8,0.9", "--cpu", "true"]
    config = TrainingConfig.from_command_line(VocoderRecipe, words)
    assert (config.max_steps, config.batch_size, config.learning_rate) == (7, 3, 1e-3)
    assert config.model == {"hidden_size": 16, "kernel_size": 3} and config.options == {"preset": "tiny"}
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
    ],
)
def test_wrong_settings_are_refused(values, fragments):
    with pytest.raises(ValueError) as error:
        build_dataclass(TrainingConfig, {**NEEDED, **values}, "The training config")
    assert_error(error, *fragments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_stepps", "3"], "Did you mean --max_steps"),
        (["--model.hidden_size"], "needs a value"),
        (["stray"], "stray"),
        (["--max_steps", "none"], "max_steps"),
    ],
)
def test_wrong_command_lines_end_with_a_message(words, message, capsys):
    base = ["--dataset", "d", "--output_dir", "o", "--max_steps", "1"]
    with pytest.raises(SystemExit) as exit:
        TrainingConfig.from_command_line(VocoderRecipe, [*base, *words])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


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


def test_every_example_config_builds_its_recipe():
    files = sorted((ROOT / "examples/configs").glob("*.yaml"))
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
