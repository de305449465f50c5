"""`melreformer train`: the words go to the trainings' own parser, the same as under `accelerate launch`."""

from __future__ import annotations

from typing import Annotated

import typer

# Everything after the recipe, `--help` included, belongs to the trainings' parser.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train_recipe(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="What to train; `--list` names them all.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show recipes and their configs.")] = False,
) -> None:
    """Train a model on your own music: a dataset, a folder of recordings, or a folder of MIDI files.

    `melreformer train RECIPE --help` explains every setting of a recipe, `--print-config` prints the outcome.
    On several devices: accelerate launch -m melreformer_hf.training RECIPE ..., with the same words.

    Example: melreformer train vocoder --config tiny --dataset ~/music --max_minutes 5
    """
    from melreformer_hf.training.main import list_recipes, train_words

    if list_all:
        typer.echo(list_recipes())
    elif recipe is None or recipe in ("--help", "-h"):
        typer.echo(context.get_help())
    else:
        train_words(recipe, context.args)


__all__ = ["CONTEXT", "train_recipe"]
