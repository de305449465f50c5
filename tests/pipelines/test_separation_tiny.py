"""The bundled separator: found by its name, small, and it knows a piano from a voice."""

from __future__ import annotations

from pathlib import Path

import torch

from melreformer_hf import SeparationPipeline
from melreformer_hf.audio.io import read_audio
from melreformer_hf.metrics import sdr, si_sdr
from melreformer_hf.pipelines.loading import BUNDLED

ROOT = Path(__file__).parents[2]
FOLDER = BUNDLED / "separation-tiny"


def sung(seconds: float, rate: int) -> torch.Tensor:
    """A vowel with vibrato: harmonics of a pulse train under the formants of an a."""
    time = torch.arange(round(seconds * rate)) / rate
    pitch = 220 * 2 ** ((0.5 * torch.sin(2 * torch.pi * 5.5 * time) + 2 * torch.floor(time * 2) % 5) / 12)
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / rate
    made = torch.zeros_like(time)
    for harmonic in range(1, 30):
        frequency = 220.0 * harmonic
        level = sum(gain / (1 + ((frequency - at) / 120) ** 2) for at, gain in ((700, 1.0), (1150, 0.6), (2800, 0.2)))
        made += level * torch.sin(harmonic * phase)
    return 0.1 * made / made.square().mean().sqrt()


def test_it_is_small_and_says_what_it_is():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 8e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in card and "## Training data" in card and "SI-SDR" in card


def test_a_piano_stays_in_the_instrumental_and_a_voice_leaves_it():
    pipe = SeparationPipeline.from_pretrained("separation-tiny")
    assert pipe.separator.dtype == torch.float32
    piano, rate = read_audio(ROOT / "spaces" / "melreformer" / "prelude.ogg", 22050)
    piano = piano[: 6 * rate] * 0.1 / piano[: 6 * rate].square().mean().sqrt()
    alone = pipe(piano, rate)
    assert sdr(alone.instrumental[0], piano) > 8
    voice = sung(len(piano) / rate, rate)[: len(piano)]
    mixed = pipe(piano + voice, rate)
    assert si_sdr(mixed.vocals[0], voice) > si_sdr(piano + voice, voice) + 3
