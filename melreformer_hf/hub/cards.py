"""Model cards: what it is, how to use it, what it was trained on, how well it does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from melreformer_hf._files import write_text
from melreformer_hf._text import suggest

LIBRARY = "melreformer_hf"
UNKNOWN_REPO = "PATH_OR_HUB_ID"
CARD_NAME = "README.md"
# What a saver may say, and what the card says otherwise.
DETAILS: dict[str, object] = {
    "title": None,
    "license": "apache-2.0",
    "tags": (),
    "data": "Not stated by whoever saved this.",
    "recipe": "Not stated by whoever saved this.",
    "metrics": "Not stated by whoever saved this.",
}


def check_details(details: Mapping[str, object] | None) -> dict[str, object]:
    """The texts of a card, completed.

    Raises:
        ValueError: an unknown key; the message suggests a known one.
    """
    for key in details or {}:
        if key not in DETAILS:
            raise ValueError(f"A card has no text {key!r} (received {details[key]!r}). {suggest(key, DETAILS)}")
    return {**DETAILS, **(details or {})}


def write_card(
    folder: str | os.PathLike,
    template: Path,
    class_name: str,
    details: Mapping[str, object] | None = None,
    *,
    pipeline_tag: str = "text-to-audio",
    tags: Sequence[str] = (),
    repo_id: str | None = None,
    **texts: object,
) -> Path:
    """Write README.md of a saved model or pipeline; one that is there already is kept, unless `details` are given.

    Args:
        folder: what was saved.
        template: Jinja template of the card.
        class_name: class of what was saved.
        details: texts `title`, `data`, `recipe`, `metrics` (Markdown), `license` (the Hub's identifier) and further
            `tags`; all optional.
        pipeline_tag: the Hub's task.
        tags: the Hub's tags.
        repo_id: id for the example that loads it, when known.
        texts: whatever else the template asks for.

    Returns:
        path of the card.

    Raises:
        ValueError: unknown key in `details`.
    """
    path = Path(folder) / CARD_NAME
    filled = check_details(details)
    if path.is_file() and details is None:
        return path
    data = ModelCardData(
        license=filled.pop("license"),
        library_name=LIBRARY,
        pipeline_tag=pipeline_tag,
        tags=[*dict.fromkeys([*tags, *filled.pop("tags")])],
    )
    title = filled.pop("title") or class_name
    texts = {**texts, **filled, "title": title, "class_name": class_name, "repo_id": repo_id or UNKNOWN_REPO}
    card = ModelCard.from_template(data, template_path=str(template), **texts)
    return write_text(path, str(card))


__all__ = ["CARD_NAME", "DETAILS", "check_details", "write_card"]
