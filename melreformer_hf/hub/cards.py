"""Model cards of pipelines: what it is, how to use it, what it was trained on, how well it does."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

LIBRARY = "melreformer_hf"
TEMPLATE = Path(__file__).with_name("pipeline_card.md")


def write_pipeline_card(folder: str | os.PathLike, class_name: str, details: dict | None = None) -> Path:
    """Write README.md of a saved pipeline; a card that is there already is kept.

    Args:
        folder: the saved pipeline.
        class_name: the pipeline's class.
        details: optional texts `title`, `license`, `data`, `recipe`, `metrics` (Markdown).

    Returns:
        path of the card.
    """
    path = Path(folder) / "README.md"
    if path.is_file():
        return path
    details = details or {}
    data = ModelCardData(
        license=details.get("license", "apache-2.0"),
        library_name=LIBRARY,
        pipeline_tag="text-to-audio",
        tags=["music", "unconditional-audio-generation", "mel-spectrogram", "vocoder"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        class_name=class_name,
        title=details.get("title", class_name),
        data=details.get("data", "Not stated by whoever saved this pipeline."),
        recipe=details.get("recipe", "Not stated by whoever saved this pipeline."),
        metrics=details.get("metrics", "Not stated by whoever saved this pipeline."),
    )
    temporary = path.with_name(".README.md.partial")
    temporary.write_text(str(card), encoding="utf-8")
    os.replace(temporary, path)
    return path


__all__ = ["write_pipeline_card"]
