"""A small dataset of performances: sine tones, and the notes that they are played from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.performances import NOTES_FILE, write_notes
from melreformer_hf.data.performing import KEYS_ALONE
from melreformer_hf.nn.sounding import SoundingNotes

RATE = 22050


def tone(pitch: float, velocity: float, seconds: float) -> np.ndarray:
    """A tone that fades by 1 neper per second, as loud as its velocity."""
    times = np.arange(round(seconds * RATE)) / RATE
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12)
    return 0.2 * (velocity / 80) ** 2 * np.exp(-times) * np.sin(2 * np.pi * frequency * times)


def performance(notes: SoundingNotes, seconds: float) -> np.ndarray:
    wave = np.zeros(round(seconds * RATE))
    for onset, release, pitch, velocity in zip(notes.onset, notes.release, notes.pitch, notes.velocity, strict=True):
        begin = round(onset * RATE)
        sound = tone(pitch, velocity, min(release, seconds) - onset)[: len(wave) - begin]
        wave[begin : begin + len(sound)] += sound
    return wave


def build_performances(root: Path) -> Path:
    """A dataset of two performances to train on, one to validate, one to test, and single keys; its folder."""
    folder = root / "wav"
    random, tables = np.random.default_rng(0), {}
    for name in ("train/one", "train/two", "validation/three", "test/four"):
        onset = np.sort(random.uniform(0.1, 3.5, 8))
        release = onset + random.uniform(0.1, 0.5, 8)
        tables[name] = SoundingNotes(onset, release, random.integers(48, 72, 8), random.integers(30, 120, 8))
    alone = np.arange(24)
    tables[KEYS_ALONE] = SoundingNotes(0.5 + 1.5 * alone, 1.8 + 1.5 * alone, 48 + alone, np.full(24, 100))
    rows = ["file_name,split"]
    for name, table in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        wave = performance(table, 37.0 if name == KEYS_ALONE else 4.0)
        soundfile.write(folder / f"{name}.wav", wave, RATE)
        rows.append(f"{name}.wav,{name.split('/')[0].replace('calibration', 'train')}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    build_dataset(folder, root / "set", BuildConfig(), progress=False)
    write_notes(root / "set" / NOTES_FILE, tables)
    return root / "set"
