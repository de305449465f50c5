"""What every model and pipeline of the package does when it is saved or pushed: it brings its card."""

from __future__ import annotations

import contextvars
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from melreformer_hf._files import write_json, write_text
from melreformer_hf.hub.cards import CARD_NAME, LIBRARY, check_details, write_card
from melreformer_hf.hub.push import fetch_card, push_folder

_saving = contextvars.ContextVar("saving", default=False)  # a pipeline saves its parts: these need no cards
_PUSH_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _forget_origin(folder: Path) -> None:
    # diffusers writes the folder that something was loaded from; where it lies is nobody's business.
    for path in (folder / "model_index.json", folder / "config.json", *folder.glob("*/config.json")):
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if values.pop("_name_or_path", None) is not None:
            write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


class HubMixin:
    """First base of a model or pipeline class: `class XPreTrainedModel(HubMixin, PreTrainedModel)`.

    `save_pretrained` writes a model card beside the weights, `push_to_hub` uploads both. The libraries' own
    `push_to_hub` would replace the card by a generic one.

    Attributes:
        card_pipeline_tag: the Hub's task of this family.
        card_tags: the Hub's tags of this family.
        card_template: name of the Jinja template beside this module.
    """

    card_pipeline_tag: ClassVar[str] = "text-to-audio"
    card_tags: ClassVar[tuple[str, ...]] = ("music", "mel-spectrogram")
    card_template: ClassVar[str] = "model_card.md"

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        card: Mapping[str, object] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs,
    ) -> None:
        """Save configuration, weights (safetensors only) and a model card; a model that hears audio also saves what
        transformers' `AutoFeatureExtractor` needs.

        Args:
            save_directory: folder; made when missing.
            card: texts of the card, see `hub.cards.write_card`. Without them a card that is there already is kept, and
                what was loaded keeps the card that it was loaded with.
            push_to_hub: whether to upload afterwards.
            repo_id: where to; default: the folder's name among the user's own repositories.
            variant: part of the weight files' names.
            max_shard_size: of one weight file.
            kwargs: the library's further arguments; with `push_to_hub` also those of `push_to_hub`.

        Raises:
            ValueError: unknown key in `card`.
        """
        check_details(card)
        pushing = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if push_to_hub and name in kwargs}
        sizes = {"variant": variant, "max_shard_size": max_shard_size}
        sizes = {name: value for name, value in sizes.items() if value is not None}
        outermost, token = not _saving.get(), _saving.set(True)
        try:
            super().save_pretrained(os.fspath(save_directory), **sizes, **kwargs)
        finally:
            _saving.reset(token)
        if kwargs.get("is_main_process", True):
            # Parts of a pipeline hear audio, too; they only need no cards of their own.
            if preprocessor := getattr(self.config, "preprocessor_config", None):
                write_json(Path(save_directory) / "preprocessor_config.json", preprocessor)
            if outermost:
                _forget_origin(Path(save_directory))
                self.write_card(save_directory, card, repo_id)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, card=card, **sizes, **pushing)

    def write_card(
        self, folder: str | os.PathLike, card: Mapping[str, object] | None = None, repo_id: str | None = None
    ) -> Path:
        """Write README.md into a folder this was saved to; see `hub.cards.write_card`."""
        cls = type(self)
        module = sys.modules[cls.__module__]
        public = cls.__name__ in getattr(sys.modules.get(LIBRARY), "__all__", ())
        return write_card(
            folder,
            Path(__file__).with_name(self.card_template),
            cls.__name__,
            card,
            pipeline_tag=self.card_pipeline_tag,
            tags=self.card_tags,
            repo_id=repo_id,
            loaded_from=self._loaded_from(),
            summary=_paragraph(inspect.getdoc(cls)),
            source=inspect.cleandoc(module.__doc__ or ""),
            import_from=LIBRARY if public else cls.__module__,
            auto_class=public and hasattr(cls, "config_class"),
            facts=self._card_facts(),
        )

    def _loaded_from(self) -> str | None:
        # transformers' models know where they come from by name_or_path, diffusers' objects by their configuration.
        if isinstance(name := getattr(self, "name_or_path", None), str):
            return name or None
        return getattr(self.config, "_name_or_path", None)

    def _card_facts(self) -> dict[str, str]:
        facts = {}
        if callable(getattr(self, "parameters", None)):  # a pipeline's is a dictionary
            facts["parameters"] = f"{sum(parameter.numel() for parameter in self.parameters()):,}"
        mel = getattr(self, "mel_config", None) or getattr(self.config, "mel_config", None)
        if mel is not None:
            values = {name: value for name, value in mel.to_dict().items() if value is not None}
            facts["mel contract"] = ", ".join(f"{name} {value}" for name, value in values.items())
        return facts

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] = (),
        card: Mapping[str, object] | None = None,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """Save to a temporary folder and upload that, in one commit.

        Args:
            repo_id: `user/name`, or `name` for the user's own; made when missing.
            commit_message: of the commit.
            commit_description: of the commit.
            private: visibility of a new repository; `None` is the account's default.
            token: access token; `None` is the one of `hf auth login` or of the variable HF_TOKEN.
            revision: branch, made when missing.
            create_pr: whether to open a pull request rather than to commit.
            tags: added to the card's.
            card: texts of the card. Without them and without `tags` a card that the repository has already is kept.
            variant: part of the weight files' names.
            max_shard_size: of one weight file.

        Returns:
            the address of the commit.

        Raises:
            ValueError: a bad id, or unknown key in `card`.
        """
        details = dict(card) if card is not None else None
        if tags:
            details = {**(details or {}), "tags": [*(details or {}).get("tags", ()), *tags]}
        with tempfile.TemporaryDirectory() as folder:
            if details is None:
                fetch_card(repo_id, Path(folder) / CARD_NAME, token=token)
            self.save_pretrained(folder, card=details, repo_id=repo_id, variant=variant, max_shard_size=max_shard_size)
            return push_folder(
                folder,
                repo_id,
                private=private,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


__all__ = ["HubMixin"]
