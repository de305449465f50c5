"""Uploading folders to the Hub."""

from __future__ import annotations

import os
from pathlib import Path


def push_folder(folder: str | os.PathLike, repo_id: str, repo_type: str = "model", private: bool = False) -> str:
    """Upload a folder, creating the repository if need be; interrupted uploads go on where they stopped.

    Args:
        folder: what to upload.
        repo_id: `user/name`.
        repo_type: `model`, `dataset` or `space`.
        private: visibility of a new repository.

    Returns:
        the address of the commit.

    Raises:
        ValueError: `folder` is none, or `repo_id` is not of the form user/name.
    """
    from huggingface_hub import HfApi

    if not Path(folder).is_dir():
        raise ValueError(f"folder must exist, got {folder}.")
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id must have the form user/name, got {repo_id!r}.")
    api = HfApi()
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    info = api.upload_folder(folder_path=str(folder), repo_id=repo_id, repo_type=repo_type)
    return str(info.commit_url)


__all__ = ["push_folder"]
