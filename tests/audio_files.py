"""Small recordings for tests, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 22050


def tone(seconds: float, frequency: float = 440.0, rate: int = RATE) -> np.ndarray:
    """A decaying tone, float32, (samples,)."""
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time) * np.exp(-(time % 1.0))).astype(np.float32)


def write_music(folder: Path, count: int = 6, seconds: float = 3.0) -> None:
    """A folder with recordings in every format, rates and channels mixed."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        samples = tone(seconds + index, 200.0 + 50 * index)
        suffix = ("wav", "flac", "ogg", "mp3")[index % 4]
        soundfile.write(folder / f"piece{index}.{suffix}", samples, RATE)
