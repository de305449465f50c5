"""The command line of the trainings: words in, trained model out."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from melreformer_hf._errors import told_in_one_line
from melreformer_hf.configs import configs_of, purpose
from melreformer_hf.training.recipes import RECIPES, find_recipe

if TYPE_CHECKING:
    from melreformer_hf.training.config import TrainingConfig
    from melreformer_hf.training.recipes.base import Recipe

_USAGE = """usage: accelerate launch -m melreformer_hf.training RECIPE --config NAME --dataset DIR [--FIELD VALUE ...]

RECIPE --help explains every setting. The recipes and their configs:
"""


def main(recipe: str | type[Recipe] | None = None, arguments: Sequence[object] | None = None) -> dict[str, float]:
    """Train what a command line says; mistakes end with one line on stderr and exit code 2.

    Args:
        recipe: its name or class; default: the first word.
        arguments: words; default: the process's own. `--traceback` shows where an error came from.

    Returns:
        metrics of the last validation.
    """
    words = [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    if recipe is None:
        if not words or words[0] in ("--list", "--help", "-h"):
            print("" if words[:1] == ["--list"] else _USAGE, list_recipes(), sep="")
            return {}
        recipe = words.pop(0)
    with told_in_one_line(lambda: traceback):
        return train_words(recipe, words)


def train_words(recipe: str | type[Recipe], words: Sequence[str]) -> dict[str, float]:
    """Train a recipe with the settings of a command line, and print the last metrics.

    Raises:
        ValueError: unknown recipe, unknown or wrong settings, unfit data.
        FileNotFoundError: no such config or dataset.
        ModuleNotFoundError: the extra `train` is not installed.
    """
    recipe_class = find_recipe(recipe) if isinstance(recipe, str) else recipe
    from melreformer_hf.training.config import TrainingConfig

    config = TrainingConfig.from_command_line(recipe_class, words)
    from melreformer_hf.training.loop import Trainer

    recipe = recipe_class(config)
    further = {
        name: _dataset(recipe, dataclasses.replace(config, dataset=getattr(recipe.options, name)))
        for name in recipe.further_datasets
    }
    options = {**config.options, **further}
    config = dataclasses.replace(config, dataset=_dataset(recipe, config), options=options)
    recipe = recipe_class(config)
    trainer = Trainer(recipe, config)
    metrics = trainer.run()
    if trainer.accelerator.is_main_process:
        print(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        print(f"The trained model and its card are in {config.output_dir}, the best one in {config.output_dir}/best.")
    return metrics


def _dataset(recipe: Recipe, config: TrainingConfig) -> str:
    """What the recipe reads: `config.dataset`, or what is made of it when it is a folder of files."""
    from melreformer_hf.training.folders import dataset_of, notes_dataset_of, performances_of

    if recipe.reads_notes:
        return notes_dataset_of(config, recipe.scheme)
    mel = getattr(recipe, "mel", None)
    if recipe.reads_performances:
        return performances_of(config, mel.sampling_rate)
    return config.dataset if mel is None else dataset_of(config, mel.sampling_rate, recipe.reads_labels)


def list_recipes() -> str:
    """Recipes with one line each, and their configs."""
    lines = []
    for name, place in RECIPES.items():
        module, _, attribute = place.partition(":")
        lines.append(f"{name:<16}{_summary(module, attribute)}")
        lines += [f"  {size:<14}{purpose(path)}" for size, path in configs_of(name).items()]
    return "\n".join(lines)


def _summary(module: str, attribute: str) -> str:
    # Read, not imported: recipes load torch and more, which takes seconds.
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute)
    return (ast.get_docstring(found) or "").split("\n")[0]


__all__ = ["list_recipes", "main", "train_words"]
