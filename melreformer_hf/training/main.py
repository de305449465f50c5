"""Entry point of the training examples: arguments in, trained model out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from melreformer_hf.training.config import parse_arguments


def main(recipe_class: type, recipe_config: type, arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Parse the command line, train, print the last metrics; wrong settings end with a message and exit code 2."""
    from melreformer_hf.training.loop import train

    description = f"{recipe_class.__doc__} Start it with `accelerate launch`, or plainly with python on one device."
    try:
        training, recipe = parse_arguments(recipe_config, description, arguments)
        built = recipe_class(recipe, training)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    metrics = train(built, training)
    print({name: round(value, 4) for name, value in metrics.items()})
    return metrics


__all__ = ["main"]
