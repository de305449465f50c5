"""Opening a dataset: what `melreformer data build` made, or any audio dataset that the `datasets` library reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

from melreformer_hf._text import suggest
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.foreign import ForeignRecordings
from melreformer_hf.data.layouts import Layout
from melreformer_hf.data.recordings import Recordings
from melreformer_hf.data.shard_writing import DATASET_FILE
from melreformer_hf.data.shards import REMOTE

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_recordings(
    dataset: str | Path,
    split: str,
    *,
    sampling_rate: int | None = None,
    channels: int | None = None,
    audio_column: str = "audio",
    label_column: str = "label",
    cache_minutes: float = 120.0,
) -> Recordings:
    """The recordings of one split.

    Args:
        dataset: a folder, `user/name` on the Hub, or `hf://datasets/user/name`; `@revision` and `:configuration` may
            follow a name on the Hub. What `melreformer data build` made is downloaded once, or read as needed after
            `hf://`; any other audio dataset (Parquet with an audio column, folders of audio, WebDataset) is streamed.
        split: `train`, `validation` or `test`.
        sampling_rate: samples per second that are needed; built datasets must have it, others are resampled. `None`: as
            stored.
        channels: 1 for mono, 2 for stereo; `None`: as stored.
        audio_column: the column with the audio; of datasets of other programs, as the next.
        label_column: the column that becomes `label`.
        cache_minutes: decoded audio kept in memory, in minutes; of built datasets.

    Raises:
        ValueError: no such dataset, split or column, or it has another sampling rate or other channels.
    """
    dataset = os.path.expanduser(dataset)
    if not is_built(dataset):
        layout = Layout(dataset) if os.path.isdir(dataset) else Layout(*_hub_name(dataset))
        return ForeignRecordings(layout, split, sampling_rate, channels, audio_column, label_column)
    store = BuiltRecordings(dataset, split, cache_minutes, channels)
    if sampling_rate is not None and store.sampling_rate != sampling_rate:
        raise ValueError(
            f"The dataset {dataset} has {store.sampling_rate} samples per second, needed are {sampling_rate}. Build it "
            f"with --sampling-rate {sampling_rate}, or give the model a contract of the dataset's rate under "
            "`model: {mel: ...}`."
        )
    return store


def is_built(dataset: str | Path) -> bool:
    """Whether `melreformer data build` made a dataset; a folder that is not there is an error, not a question to the Hub.

    Raises:
        ValueError: no such folder, or no such dataset on the Hub.
    """
    name = str(dataset)
    if os.path.isdir(name):
        return (Path(name) / DATASET_FILE).is_file()
    repo_id, config_name, revision = _hub_name(name)
    if not name.startswith(REMOTE):
        check_path(repo_id)
    elif not _HUB_ID.fullmatch(repo_id):
        raise ValueError(f"dataset must be {REMOTE}user/name, got {dataset}.")
    return config_name is None and _is_built_on_the_hub(repo_id, revision, name)


def _hub_name(dataset: str) -> tuple[str, str | None, str | None]:
    """(user/name, configuration, revision) of `[hf://datasets/]user/name[@revision][:configuration]`."""
    name, _, config_name = dataset.removeprefix(REMOTE).rstrip("/").partition(":")
    repo_id, _, revision = name.partition("@")
    return repo_id, config_name or None, revision or None


def check_path(name: str) -> None:
    """Refuse what is neither a folder nor a Hub id.

    What looks like a path (it begins with a dot, a slash or ~, has no or several slashes, or its first part is a folder
    here) is taken for one: a slip of the pen should not end in an error of the network.

    Raises:
        ValueError: it looks like a path.
    """
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or os.path.isabs(name) or "\\" in name
    if _HUB_ID.fullmatch(name) and not looks_like_path and not path.parent.is_dir():
        return
    if path.is_file():
        raise ValueError(f"dataset must be a folder or a Hub id like user/name, got {name}, which is a file.")
    message = (
        f"dataset must be a folder or a Hub id like user/name, got {name}, which is neither: there is no such folder."
    )
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    raise ValueError(f"{message} {suggest(path.name, siblings)}".rstrip())


def _is_built_on_the_hub(repo_id: str, revision: str | None, given: str) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        hf_hub_download(repo_id, DATASET_FILE, repo_type="dataset", revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"dataset must be a folder or exist on the Hub, got {given}, which does not (or is private): {error}"
        ) from error
    except LocalEntryNotFoundError as error:  # not in the cache, and the Hub is out of reach
        raise ValueError(f"dataset {given} is no folder here, and the Hub cannot be reached: {error}") from error
    except EntryNotFoundError:
        return False
    return True


__all__ = ["check_path", "is_built", "open_recordings"]
