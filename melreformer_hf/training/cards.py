"""What a training says in the card of its model: data, recipe, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from melreformer_hf.training.config import TrainingConfig

_PLACES = ("dataset", "output_dir", "resume", "init_from", "soundfont")
# Settings that say where and how often, not how a model was trained.
_UNTOLD = (*_PLACES, "progress_bar", "cpu", "num_workers", "prefetch_batches")
_UNTOLD_ENDS = ("_every_steps", "_every_minutes", "keep_checkpoints", "cache_minutes", "max_nonfinite_steps")


def told_settings(config: TrainingConfig) -> dict:
    """A training's settings for others to read: of a file or folder its name; where it lies is nobody's business."""
    settings = config.to_dict()
    for name in _PLACES:
        if settings[name] and (Path(settings[name]).is_absolute() or Path(settings[name]).exists()):
            settings[name] = Path(settings[name]).resolve().name
    return settings


def training_card(summary: Mapping, data: str = "") -> dict[str, str]:
    """Texts of a model's card.

    Args:
        summary: what the loop writes into `training.json`.
        data: how much was trained on, in words (`Recipe.describe_data`).

    Returns:
        `data`, `recipe` and `metrics`, see `hub.cards.write_card`.
    """
    config = summary["config"]
    told = {key: value for key, value in config.items() if key not in _UNTOLD and not key.endswith(_UNTOLD_ENDS)}
    rows = "\n".join(f"| {key} | {value} |" for key, value in told.items() if value not in (None, {}))
    metrics = "\n".join(f"| {key} | {value:.4g} |" for key, value in summary["metrics"].items())
    amount = f", {data}" if data else ""
    start = f", started from `{config['init_from']}`" if config["init_from"] else ""
    return {
        "data": f"The split `train` of `{config['dataset']}`{amount}; metrics are of what is held out of it; they chose the "
        "best model.",
        "recipe": f"Recipe `{summary['recipe']}` of melreformer_hf: {summary['step']} steps of "
        f"{config['batch_size'] * config['gradient_accumulation_steps'] * summary['processes']} items in "
        f"{summary['minutes']:g} minutes{start}, averaged weights.\n\n| setting | value |\n|---|---|\n{rows}",
        "metrics": f"| metric | value |\n|---|---|\n{metrics}" if metrics else "Not measured.",
    }


__all__ = ["told_settings", "training_card"]
