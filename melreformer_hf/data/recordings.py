"""The recordings of one split of a dataset, whoever made it: crops to train on, and what is held out."""

from __future__ import annotations

import abc
import dataclasses
import math

import numpy as np
import torch

from melreformer_hf.data.streams import ItemStream

# Keys of an item; a metadata column of the same name is delivered as NAME_column.
RESERVED = ("waveform", "recording", "num_samples", "index", "anchor")
SILENCE_BLOCK_SECONDS = 0.05
SILENCE_LEVEL = 1e-3  # -60 dB of full scale
_ATTEMPTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Which crops a stream gives.

    Args:
        min_samples: shortest crop in samples; shorter recordings are left out.
        max_samples: longest crop; lengths are log-uniform between the two, shorter recordings are given whole.
        multiple: lengths are rounded down to multiples of this many samples.
        silence_weight: how often a crop that is mostly silent (more than half of its blocks of 50 ms below -60 dB) is
            given beside another one: 1 keeps all, 0 drops them (eight places are tried).
        whole_share: share of the crops that are the whole recording, where it has at most `whole_samples`.
        whole_samples: longest recording that is given whole; `None` is any.

    Raises:
        ValueError: lengths out of order, or a weight or share outside [0, 1].
    """

    min_samples: int
    max_samples: int
    multiple: int = 1
    silence_weight: float = 1.0
    whole_share: float = 0.0
    whole_samples: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.multiple <= self.min_samples <= self.max_samples:
            raise ValueError(
                "0 < multiple <= min_samples <= max_samples must hold, got "
                f"{self.multiple}, {self.min_samples}, {self.max_samples}."
            )
        if not 0 <= self.silence_weight <= 1:
            raise ValueError(f"silence_weight must be in [0, 1], got {self.silence_weight}.")
        if not 0 <= self.whole_share <= 1:
            raise ValueError(f"whole_share must be in [0, 1], got {self.whole_share}.")
        if self.whole_samples is not None and self.whole_samples < self.min_samples:
            raise ValueError(
                f"whole_samples must be at least min_samples={self.min_samples}, got {self.whole_samples}."
            )

    @property
    def attempts(self) -> int:
        """Places that are tried for one crop."""
        return _ATTEMPTS if self.silence_weight < 1 else 1

    @property
    def mean_samples(self) -> float:
        """Expected length of a crop."""
        ratio = self.max_samples / self.min_samples
        return (self.max_samples - self.min_samples) / math.log(ratio) if ratio > 1 else float(self.min_samples)

    def place(self, total: int, random: np.random.Generator) -> tuple[int, int]:
        """(start, length) of a random crop of a recording of `total` samples."""
        # Only drawn where it is asked for: other streams stay as they were.
        if self.whole_share and random.random() < self.whole_share and total <= (self.whole_samples or total):
            return 0, max(total // self.multiple, 1) * self.multiple
        low, high = math.log(self.min_samples), math.log(self.max_samples)
        length = min(int(math.exp(low + (high - low) * random.random()) + 0.5), total)
        length = max(length // self.multiple, 1) * self.multiple
        return int(random.integers(total - length + 1)), length

    def is_kept(self, waveform: torch.Tensor, sampling_rate: int, random: np.random.Generator) -> bool:
        """Whether a crop stays; one that is mostly silent stays with a probability of `silence_weight`."""
        if self.silence_weight == 1 or not is_mostly_silent(waveform, sampling_rate):
            return True
        return random.random() < self.silence_weight


def is_mostly_silent(waveform: torch.Tensor, sampling_rate: int) -> bool:
    """Whether more than half of the blocks of 50 ms of (..., samples) are below -60 dB of full scale."""
    size = max(1, min(waveform.shape[-1], round(SILENCE_BLOCK_SECONDS * sampling_rate)))
    blocks = waveform.unfold(-1, size, size)  # (..., block, sample)
    level = blocks.square().mean(-1).sqrt()
    loudest = level.reshape(-1, level.shape[-1]).amax(0)  # a block is silent where all channels are
    return bool((loudest < SILENCE_LEVEL).float().mean() > 0.5)


class Recordings(abc.ABC):
    """One split of a dataset.

    Items are dicts: `waveform` float32, (samples,) of mono and (channel, samples) otherwise, `recording` (its name),
    `num_samples`, `index`, and what the dataset knows besides: `label` and its metadata columns.

    Attributes:
        sampling_rate: samples per second of the waveforms.
        channels: of the waveforms.
        split: its name.
        labels: names of all labels in order, `None` where the dataset does not tell.
        silence_weight: default of `CropSettings.silence_weight`.
    """

    sampling_rate: int
    channels: int
    split: str
    labels: tuple[str, ...] | None
    silence_weight: float = 1.0

    @property
    @abc.abstractmethod
    def hours(self) -> float | None:
        """Hours of audio in the split, `None` where it is streamed."""

    @abc.abstractmethod
    def _crops(self, settings: CropSettings, seed: int, rank: int, world_size: int) -> ItemStream: ...

    def crops(
        self,
        min_samples: int,
        max_samples: int,
        *,
        seed: int = 0,
        multiple: int = 1,
        rank: int = 0,
        world_size: int = 1,
        silence_weight: float | None = None,
        whole_share: float = 0.0,
        whole_samples: int | None = None,
    ) -> ItemStream:
        """An endless stream of random crops, weighted by hours.

        Args:
            min_samples: see `CropSettings`, as `max_samples` and `multiple`.
            max_samples: as there.
            seed: of the sequence.
            multiple: as there.
            rank: index of this process.
            world_size: number of processes.
            silence_weight: as there; default: what the dataset was built with.
            whole_share: as there.
            whole_samples: as there.

        Raises:
            ValueError: lengths out of order, or no recording long enough.
        """
        weight = self.silence_weight if silence_weight is None else silence_weight
        settings = CropSettings(
            min_samples=min_samples,
            max_samples=max_samples,
            multiple=multiple,
            silence_weight=weight,
            whole_share=whole_share,
            whole_samples=whole_samples,
        )
        return self._crops(settings, seed, rank, world_size)

    @abc.abstractmethod
    def fixed_crops(self, num_samples: int, count: int, seed: int = 0) -> list[dict]:
        """The same `count` crops of exactly `num_samples` samples every time.

        Raises:
            ValueError: no recording is that long.
        """

    @abc.abstractmethod
    def whole(self, max_samples: int, count: int) -> list[dict]:
        """Up to `count` recordings from beginning to end, the same every time.

        Those longer than `max_samples` are left out; where all are, the shortest one is given, cut at `max_samples`.
        """


__all__ = ["RESERVED", "CropSettings", "Recordings", "is_mostly_silent"]
