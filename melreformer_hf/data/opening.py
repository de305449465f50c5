"""Opening a dataset: what `melreformer data build` made, or any audio dataset that the `datasets` library reads."""

from __future__ import annotations

from pathlib import Path

from melreformer_hf.data.built import RecordingStore
from melreformer_hf.data.recordings import Recordings


def open_recordings(
    dataset: str | Path,
    split: str,
    *,
    sampling_rate: int | None = None,
    channels: int | None = None,
    audio_column: str = "audio",
    cache_minutes: float = 120.0,
) -> Recordings:
    """The recordings of one split.

    Args:
        dataset: folder made by `melreformer data build`, its id `user/name` on the Hub (downloaded once), or
            `hf://datasets/user/name` (read as needed).
        split: `train`, `validation` or `test`.
        sampling_rate: samples per second that are needed; `None`: as stored.
        channels: 1 for mono, 2 for stereo; `None`: as stored.
        audio_column: the column with the audio; of datasets of other programs.
        cache_minutes: decoded audio kept in memory, in minutes; of built datasets.

    Raises:
        ValueError: no such dataset or split, or it has another sampling rate or other channels.
    """
    store = RecordingStore(dataset, split, cache_minutes, channels)
    if sampling_rate is not None and store.sampling_rate != sampling_rate:
        raise ValueError(
            f"The dataset {dataset} has {store.sampling_rate} samples per second, needed are {sampling_rate}. Build it "
            f"with --sampling-rate {sampling_rate}, or give the model a contract of the dataset's rate under "
            "`model: {mel: ...}`."
        )
    return store


__all__ = ["open_recordings"]
