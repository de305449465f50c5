"""The bundled sounds: they load by name, sound like their classes, and say whose recordings they come from."""

from __future__ import annotations

import csv

import pytest
import torch

from melreformer_hf import TokenGenerationPipeline, TokenSampling
from melreformer_hf.pipelines.loading import BUNDLED

FOLDER = BUNDLED / "sounds-tiny"


@pytest.fixture(scope="module")
def pipe() -> TokenGenerationPipeline:
    return TokenGenerationPipeline.from_pretrained("sounds-tiny")


def test_it_is_small_and_only_weights_and_texts():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".csv", ""}


def test_every_clip_has_a_free_licence_and_an_author(pipe):
    rows = list(csv.DictReader((FOLDER / "ATTRIBUTION.csv").read_text().splitlines()))
    assert {row["license"] for row in rows} == {"CC0-1.0", "CC-BY-3.0"}
    assert all(row["author and source"] for row in rows) and {row["class"] for row in rows} == set(pipe.class_names)
    card = (FOLDER / "README.md").read_text()
    for name in pipe.class_names:
        given = [
            sum(row["class"] == name and row["license"] == kind for row in rows) for kind in ("CC0-1.0", "CC-BY-3.0")
        ]
        assert f"| {name} | {given[0]} | {given[1]} |" in card
    assert "license: cc-by-sa-4.0" in card


def test_a_class_sounds_like_itself(pipe):
    sampling, seeds = TokenSampling(guidance_scale=2.0), [torch.Generator().manual_seed(i) for i in range(8)]
    output = pipe(["rain", "clock_tick"], num_waveforms_per_prompt=4, sampling=sampling, generator=seeds)
    assert output.mels.isfinite().all()
    # Rain falls all the time; between its ticks a clock is silent.
    level = output.mels.mean(1)  # (sound, frame)
    steady = level.std(1)
    assert steady[:4].median() < steady[4:].median()
