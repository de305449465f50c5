"""Uploading folders to the Hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from melreformer_hf._files import write_text
from melreformer_hf.hub.cards import CARD_NAME, with_repo_id

# A training's folder holds its checkpoints: optimizer states, which nobody loads and which are pickles.
IGNORED = ["checkpoints/step-*", ".*.partial*", "**/.*.partial*"]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    repo_type: str = "model",
    private: bool | None = None,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder in one commit, creating the repository if need be.

    Files whose content has arrived before are not sent again: an interrupted upload goes on with the next file.
    The checkpoints that a training needs to continue, and unfinished files, are left out. A model card that says how to
    load the folder is changed to say how to load the repository.

    Args:
        folder: what to upload.
        repo_id: `user/name`, or `name` for the user's own.
        repo_type: `model`, `dataset` or `space`.
        private: visibility of a new repository; `None` is the account's default.
        commit_message: of the commit.
        commit_description: of the commit.
        token: access token; `None` is the one of `hf auth login` or of the variable HF_TOKEN.
        revision: branch, made when missing.
        create_pr: whether to open a pull request rather than to commit.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: `folder` is none, is empty, or `repo_id` or `repo_type` is not of the form above.
        PermissionError: the Hub does not let this user write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    _check_upload(Path(folder), repo_id, repo_type)
    if repo_type == "model" and repo_id.count("/") == 1:
        _name_in_card(Path(folder), repo_id)
    api = HfApi(token=token)
    space = {"space_sdk": "gradio"} if repo_type == "space" else {}
    try:
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **space).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        info = api.upload_folder(
            folder_path=os.fspath(folder),
            repo_id=repo_id,
            repo_type=repo_type,
            commit_message=commit_message or f"Upload {repo_type}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=IGNORED,
        )
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise PermissionError(
                f"The Hub refused to write to {repo_id}: log in with `hf auth login` (or set HF_TOKEN), with a token that "
                f"may write there. It answered: {error.server_message or error.response.status_code}"
            ) from error
        raise
    return str(info.pr_url or info.commit_url)


def _check_upload(folder: Path, repo_id: str, repo_type: str) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"folder must exist and hold files, got {folder}.")
    if repo_type not in ("model", "dataset", "space"):
        raise ValueError(f"repo_type must be model, dataset or space, got {repo_type!r}.")
    if repo_id.count("/") > 1 or not all(repo_id.split("/")):
        raise ValueError(f"repo_id must have the form user/name, got {repo_id!r}.")


def _name_in_card(folder: Path, repo_id: str) -> None:
    # What was saved to a folder says how to load that folder; on the Hub it has another name.
    path = folder / CARD_NAME
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    if f'.from_pretrained("{folder.resolve().name}")' in card:
        write_text(path, with_repo_id(card, repo_id))


def fetch_card(repo_id: str, target: Path, token: str | bool | None = None) -> bool:
    """Copy the card that a model repository has to `target`; False when there is no such card or repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    api = HfApi(token=token)
    try:
        shutil.copyfile(api.hf_hub_download(repo_id, CARD_NAME), target)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return False
    return True


__all__ = ["fetch_card", "push_folder"]
