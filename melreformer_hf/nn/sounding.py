"""Notes as an instrument hears them: when the hammer strikes, and when the damper falls."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

Column = np.ndarray | torch.Tensor


@dataclass
class SoundingNotes:
    """Notes with the moment their damper falls, one entry per note and column, in any order.

    Args:
        onset: (note,) seconds at which the note is struck.
        release: (note,) seconds at which its damper falls: the key goes up, or later the pedal; `inf` where that is not
            known yet.
        pitch: (note,) MIDI pitch, 0..127.
        velocity: (note,) MIDI velocity, 1..127.

    Raises:
        ValueError: the columns are not of one length.
    """

    onset: Column
    release: Column
    pitch: Column
    velocity: Column

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) > 1 or len(shapes["onset"]) != 1:
            raise ValueError(f"SoundingNotes must have columns of one shape (note,), got {shapes}.")

    def __len__(self) -> int:
        return len(self.onset)

    def where(self, chosen: Column) -> SoundingNotes:
        """The notes at which `chosen`, (note,) bool, is true."""
        return SoundingNotes(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def as_arrays(self) -> SoundingNotes:
        """The same with numpy columns on the CPU: times as float64, pitch and velocity as int64."""
        columns = [torch.as_tensor(getattr(self, field.name)).detach().cpu().numpy() for field in fields(self)]
        kinds = (np.float64, np.float64, np.int64, np.int64)
        return SoundingNotes(*(column.astype(kind) for column, kind in zip(columns, kinds, strict=True)))

    def joined(self, others: SoundingNotes) -> SoundingNotes:
        """These notes, then others; both with numpy columns."""
        pairs = ((getattr(self, field.name), getattr(others, field.name)) for field in fields(self))
        return SoundingNotes(*(np.concatenate(pair) for pair in pairs))

    @classmethod
    def none(cls) -> SoundingNotes:
        """No notes, with numpy columns."""
        return cls(np.empty(0), np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))


__all__ = ["SoundingNotes"]
