"""`melreformer evaluate`: every number of a pipeline on a dataset, as a table and as JSON."""

from __future__ import annotations

import csv
import json

import pytest
import soundfile
from audio_files import RATE, tone
from pipeline_utils_for_tests import tiny_pipeline
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.data.building import BuildConfig, build_dataset


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders of a pipeline and of a dataset with four recordings, two of them the test."""
    root = tmp_path_factory.mktemp("evaluate")
    tiny_pipeline().save_pretrained(root / "pipe")
    (root / "wav").mkdir()
    with open(root / "wav" / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "split"])
        for index, split in enumerate(("train", "test", "test", "validation")):
            soundfile.write(root / "wav" / f"{index}.wav", tone(3.0 + index, 200.0 * (index + 1)), RATE)
            rows.writerow([f"{index}.wav", split])
    build_dataset(root / "wav", root / "data", BuildConfig(workers=1), progress=False)
    return root


def evaluate(files, *words: str):
    fixed = ("evaluate", "--checkpoint", str(files / "pipe"), "--dataset", str(files / "data"))
    return CliRunner().invoke(app, [*fixed, *words])


def test_all_parts_are_measured_and_repeat(files, tmp_path):
    words = (
        "--crops",
        "2",
        "--pieces",
        "1",
        "--crop-seconds",
        "1.5",
        "--seconds",
        "1",
        "--steps",
        "2",
        "--generated",
        "2",
    )
    results = []
    for name in ("a.json", "b.json"):
        result = evaluate(files, *words, "--output", str(tmp_path / name))
        assert result.exit_code == 0, result.output
        results.append(json.loads((tmp_path / name).read_text()))
    first, second = (values["metrics"] for values in results)
    assert set(first) == {"vocoder", "expansion", "idea", "music", "generation"}
    for part in ("vocoder", "expansion", "idea", "music"):
        for name, value in first[part].items():
            if "real_time" not in name and "second" not in name:
                assert value == pytest.approx(second[part][name], rel=1e-4), name
    assert {"mel_l1", "griffin_lim_mel_l1"} <= set(first["vocoder"])
    assert {"crops_sharpness", "pieces_drift", "crops_seam"} <= set(first["expansion"])
    assert {"frechet_audio_distance", "frechet_real_against_real", "duration_ks"} <= set(first["music"])
    counts = results[0]["n"]
    assert counts["vocoder"] == {"crops": 2} and counts["expansion"] == {"crops": 2, "pieces": 1}
    assert counts["idea"] == {"held-out ideas": 2, "sampled ideas": 2}
    assert counts["music"] == {"generated pieces": 2, "held-out crops": 4, "training crops": 4}
    assert "split 'test' of" in result.output and "expansion: 2 crops, 1 pieces" in result.output
    assert "embedding log-mel statistics" in result.output
    assert first["generation"]["seconds_of_audio"] == pytest.approx(1.0, abs=0.02)
    assert 0 < first["generation"]["seconds_to_first_audio"] <= first["generation"]["seconds_in_all"]
    rows = [line for line in result.output.splitlines() if line.startswith("| ")]
    assert rows[0] == "| part | metric | value |" and len(rows) == 1 + sum(map(len, first.values()))
    assert results[0]["settings"]["crops"] == 2 and not list(tmp_path.glob(".*"))


def test_single_parts_and_longer_crops(files, tmp_path):
    output = ("--output", str(tmp_path / "a.json"))
    result = evaluate(files, "--parts", "generation", "--seconds", "0.5", "--steps", "1", *output)
    assert result.exit_code == 0 and set(json.loads((tmp_path / "a.json").read_text())["metrics"]) == {"generation"}
    result = evaluate(files, "--parts", "vocoder", "--crop-seconds", "60", *output)
    assert isinstance(result.exception, ValueError) and "No recording" in str(result.exception)
    result = evaluate(files, "--split", "validation", *output)
    assert isinstance(result.exception, ValueError) and "validation" in str(result.exception)


def test_what_was_measured_outlives_a_part_that_fails(files, tmp_path, monkeypatch):
    output = tmp_path / "part.json"

    def fails(*given):
        raise ValueError("No recording is long enough.")

    monkeypatch.setattr("melreformer_hf.cli.evaluate._measure_expansion", fails)
    words = ("--parts", "vocoder,expansion", "--crops", "1", "--crop-seconds", "1.5")
    result = evaluate(files, *words, "--output", str(output))
    assert result.exit_code != 0
    for part in ("expansion: No recording is long enough.", "--crop-seconds", f"measured before is in {output}"):
        assert part in str(result.exception)
    assert set(json.loads(output.read_text())["metrics"]) == {"vocoder"}


def test_crops_longer_than_every_recording_name_their_option(files, tmp_path):
    result = evaluate(files, "--parts", "vocoder", "--crop-seconds", "60", "--output", str(tmp_path / "none.json"))
    assert result.exit_code != 0 and "See --crop-seconds" in str(result.exception)
    assert "measured before" not in str(result.exception) and not (tmp_path / "none.json").exists()
