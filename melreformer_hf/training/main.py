"""Entry point of the training examples: arguments in, trained model out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError

from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.recipes.base import Recipe


def main(recipe_class: type[Recipe], arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Parse the command line, train, print the last metrics; wrong settings end with a message and exit code 2."""
    config = TrainingConfig.from_command_line(recipe_class, arguments)
    from melreformer_hf.training.loop import Trainer

    try:
        trainer = Trainer(recipe_class(config), config)
    except (ValueError, FileNotFoundError, StrictDataclassError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    metrics = trainer.run()
    if trainer.accelerator.is_main_process:
        print(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        print(f"The trained model is in {config.output_dir}, the best one in {config.output_dir}/best.")
    return metrics


__all__ = ["main"]
