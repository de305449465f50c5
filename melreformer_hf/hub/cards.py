"""Model cards: what it is, how to use it, what it was trained on, how well it does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from melreformer_hf._files import write_text
from melreformer_hf._text import suggest

LIBRARY = "melreformer_hf"
CARD_NAME = "README.md"
# What a saver may say, and what the card says otherwise.
DETAILS: dict[str, object] = {
    "title": None,
    "license": "unknown",
    "tags": (),
    "data": "Not stated by whoever saved this.",
    "recipe": "Not stated by whoever saved this.",
    "metrics": "Not stated by whoever saved this.",
}

# heading of each text in the templates
SECTIONS = {"data": "Training data", "recipe": "Recipe", "metrics": "Metrics"}


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
    loaded_from: str | None = None,
    **texts: object,
) -> Path:
    """Write README.md of a saved model or pipeline; one that is there already is kept, unless `details` are given.

    Without `details`, what was loaded keeps the card that it was loaded with. The card of a pipeline gives a part that
    is saved alone its data, recipe, metrics and licence.

    Args:
        folder: what was saved.
        template: Jinja template of the card.
        class_name: class of what was saved.
        details: texts `title`, `data`, `recipe`, `metrics` (Markdown), `license` (the Hub's identifier) and further
            `tags`; all optional.
        pipeline_tag: the Hub's task.
        tags: the Hub's tags.
        repo_id: id for the example that loads it; default: the folder's name.
        loaded_from: folder or Hub id that it was loaded from, if it was.
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
    repo_id = repo_id or Path(folder).resolve().name
    loaded = find_card(loaded_from) if loaded_from and details is None else None
    if loaded is not None and f"{class_name}.from_pretrained(" in loaded:
        return write_text(path, with_repo_id(loaded, repo_id))
    if loaded is not None:
        filled = check_details(details_of(loaded))
    data = ModelCardData(
        license=filled.pop("license"),
        library_name=LIBRARY,
        pipeline_tag=pipeline_tag,
        tags=[*dict.fromkeys([*tags, *filled.pop("tags")])],
    )
    title = filled.pop("title") or class_name
    texts = {**texts, **filled, "title": title, "class_name": class_name, "repo_id": repo_id}
    return write_text(path, str(ModelCard.from_template(data, template_path=str(template), **texts)))


def find_card(source: str) -> str | None:
    """Text of the card of a saved model or pipeline, or of the pipeline that it is a part of; None without one.

    Args:
        source: folder, or Hub id; its card is taken from the cache, else fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        for place in (folder, folder.resolve().parent):
            if (place / CARD_NAME).is_file() and (place == folder or (place / "model_index.json").is_file()):
                return (place / CARD_NAME).read_text(encoding="utf-8")
        return None
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        return None
    try:
        return Path(hf_hub_download(source, CARD_NAME)).read_text(encoding="utf-8")
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError):
        return None


def with_repo_id(card: str, repo_id: str) -> str:
    """A card whose examples load from `repo_id`."""
    return re.sub(r'(\.from_pretrained\(")[^"]*("\))', lambda match: f"{match[1]}{repo_id}{match[2]}", card)


def details_of(card: str) -> dict[str, object]:
    """The texts of a card that a model or pipeline of this package was saved with: `license`, `data`, ..., as far as known.

    Args:
        card: text of the card.
    """
    loaded = ModelCard(card)
    details: dict[str, object] = {"license": loaded.data.license} if loaded.data.license else {}
    for key, heading in SECTIONS.items():
        found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", loaded.text, re.MULTILINE | re.DOTALL)
        if found and found[1].strip() not in ("", DETAILS[key]):
            details[key] = found[1].strip()
    return details


def joined_details(parts: Mapping[str, str]) -> dict[str, object]:
    """The texts of a pipeline's card from the cards of its parts.

    Args:
        parts: name of each part -> folder or Hub id of it.

    Returns:
        `data`, `recipe` and `metrics` part by part; `license` where all parts have the same one.
    """
    cards = {name: card for name, source in parts.items() if (card := find_card(source)) is not None}
    known = {name: details_of(card) for name, card in cards.items()}
    joined: dict[str, object] = {}
    for key in SECTIONS:
        told = {name: details[key] for name, details in known.items() if key in details}
        if told:
            joined[key] = "\n\n".join(f"**{name}**: {text}" for name, text in told.items())
    licenses = {known.get(name, {}).get("license", DETAILS["license"]) for name in parts}
    return {**joined, "license": licenses.pop() if len(licenses) == 1 else DETAILS["license"]}


__all__ = [
    "CARD_NAME",
    "DETAILS",
    "check_details",
    "details_of",
    "find_card",
    "joined_details",
    "with_repo_id",
    "write_card",
]
