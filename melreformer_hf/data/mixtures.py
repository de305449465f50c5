"""Mixtures of two streams, with what they were made of: for separation."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from melreformer_hf.data.streams import ItemStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """How two waveforms are mixed; each is drawn for each source by itself.

    Args:
        gains_db: lowest and highest gain in dB; uniform between them.
        swap_channels: probability that left and right change places.
        mute: probability that a source is silent; never both.

    Raises:
        ValueError: gains out of order, or no probability.
    """

    gains_db: tuple[float, float] = (-6.0, 6.0)
    swap_channels: float = 0.5
    mute: float = 0.05

    def __post_init__(self) -> None:
        if not self.gains_db[0] <= self.gains_db[1]:
            raise ValueError(f"gains_db must be (lowest, highest), got {self.gains_db}.")
        for name in ("swap_channels", "mute"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {getattr(self, name)}.")


class MixtureStream(ItemStream):
    """Items of two streams of equal crops, mixed.

    Item `i` mixes item `i` of both; give them different seeds when both read the same recordings. Positions of the two
    are not used: this stream owns the position.

    Args:
        first: for example vocals.
        second: for example accompaniment.
        settings: gains, swaps, mutes.
        seed: of what is drawn here.

    Yields:
        dict of `waveform`, the mixture (samples,) or (channel, samples), `sources` (2, ...) as they sound in it,
        `gains_db` (2,), minus infinity of a muted one, `first` and `second` (the items' names, labels and metadata),
        `num_samples`, `index`.

    Raises:
        ValueError: the streams belong to different processes, or (when iterated) their channels differ.
    """

    def __init__(
        self, first: ItemStream, second: ItemStream, settings: MixtureSettings | None = None, seed: int = 0
    ) -> None:
        if (first.rank, first.world_size) != (second.rank, second.world_size):
            raise ValueError(
                f"Both streams must have one rank and world_size, got {first.rank} of {first.world_size} and "
                f"{second.rank} of {second.world_size}."
            )
        super().__init__(seed, first.rank, first.world_size)
        self.first, self.second, self.settings = first, second, settings or MixtureSettings()

    def __getstate__(self) -> dict:
        # A copy must not share what its streams have open.
        return {**self.__dict__, "first": copy.copy(self.first), "second": copy.copy(self.second)}

    def seek(self, anchor: dict | None) -> None:
        """Both streams go to their parts of the anchor."""
        for name in ("first", "second"):
            getattr(self, name).seek(anchor and anchor[name])

    def item(self, index: int) -> dict:
        """The mixture at `index` of the global sequence."""
        items = [self.first.item(index), self.second.item(index)]
        waveforms = [item.pop("waveform") for item in items]
        if waveforms[0].shape[:-1] != waveforms[1].shape[:-1]:
            shapes = [tuple(waveform.shape) for waveform in waveforms]
            raise ValueError(
                f"Both streams must give the same channels, got shapes {shapes}; open both with channels=."
            )
        random = self.random(index)
        length = min(waveform.shape[-1] for waveform in waveforms)
        gains = random.uniform(*self.settings.gains_db, size=2)
        swapped = random.random(2) < self.settings.swap_channels
        muted = random.random(2) < self.settings.mute
        if muted.all():
            muted[int(random.integers(2))] = False
        gains[muted] = -np.inf
        sources = torch.stack(
            [
                (waveform.flip(0) if swap and waveform.ndim > 1 else waveform)[..., :length] * float(10 ** (gain / 20))
                for waveform, gain, swap in zip(waveforms, gains, swapped, strict=True)
            ]
        )
        anchors = {name: item.pop("anchor", None) for name, item in zip(("first", "second"), items, strict=True)}
        told = {
            name: {key: value for key, value in item.items() if key not in ("index", "num_samples")}
            for name, item in zip(("first", "second"), items, strict=True)
        }
        anchored = {"anchor": anchors} if any(anchors.values()) else {}
        gains_db = torch.from_numpy(gains).float()
        mixed = {"waveform": sources.sum(0), "sources": sources, "gains_db": gains_db, "num_samples": length}
        return {**mixed, **told, "index": index, **anchored}


__all__ = ["MixtureSettings", "MixtureStream"]
