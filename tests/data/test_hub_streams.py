"""Crops of datasets that the `datasets` library streams: exact positions, hours, processes, bad rows."""

from __future__ import annotations

import io
import itertools
import logging

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, tone
from torch.utils.data import DataLoader

from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.hub_streams import DatasetCropStream, stream_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A built dataset in four shards: twelve short recordings and one that makes half of the hours."""
    root = tmp_path_factory.mktemp("rows")
    (root / "in").mkdir()
    for index in range(12):
        soundfile.write(root / "in" / f"piece{index:02d}.wav", tone(2.0, 200.0 + 20 * index), RATE)
    soundfile.write(root / "in" / "long.wav", tone(24.0, 150.0), RATE)
    config = BuildConfig(workers=1, test_fraction=0.0, validation_fraction=0.0, shard_minutes=0.14)
    report = build_dataset(root / "in", root / "out", config, progress=False)
    assert report["splits"]["train"]["shards"] == 4
    return str(root / "out")


def make(folder, **arguments):
    arguments = {"seed": 3, "multiple": 256, "window_rows": 3, **arguments}
    return DatasetCropStream(stream_rows(folder), RATE, 2048, 16384, **arguments)


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(left, right):
    assert [item["recording"] for item in left] == [item["recording"] for item in right]
    assert all(torch.equal(a["waveform"], b["waveform"]) for a, b in zip(left, right, strict=True))


def epoch_of(stream):
    """Crops until every row was read once."""
    items = []
    for item in stream:
        if stream.state_dict()["epoch"]:
            break
        items.append(item)
    return items


def test_crops_keep_to_their_lengths_and_hours_count(folder):
    items = take(make(folder), 400)
    lengths = [item["num_samples"] for item in items]
    assert all(item["waveform"].shape == (item["num_samples"],) for item in items)
    assert all(length % 256 == 0 for length in lengths) and 2048 <= min(lengths) and max(lengths) <= 16384
    assert len(set(lengths)) > 20
    share = sum(item["num_samples"] for item in items if item["recording"] == "long") / sum(lengths)
    assert abs(share - 0.5) < 0.12
    assert len({item["recording"] for item in items}) == 13


@pytest.mark.parametrize("position", [0, 1, 17, 60, 150])
def test_a_saved_position_continues_exactly(folder, position):
    stream = make(folder)
    take(stream, position)
    state = stream.state_dict()
    expected = take(stream, 60)
    resumed = make(folder)
    resumed.load_state_dict(state)
    same(take(resumed, 60), expected)


def test_epochs_and_seeds_differ(folder):
    stream = make(folder)
    first = epoch_of(stream)
    second = epoch_of(make(folder, seed=4))
    assert {item["recording"] for item in first} == {item["recording"] for item in second}
    assert [item["recording"] for item in first] != [item["recording"] for item in second]
    again = take(stream, 20)
    assert stream.state_dict()["epoch"] == 1
    assert [item["recording"] for item in again] != [item["recording"] for item in first[:20]]


def test_processes_and_workers_divide_the_rows(folder):
    alone = {item["recording"] for item in epoch_of(make(folder))}
    parts = [{item["recording"] for item in epoch_of(make(folder, rank=rank, world_size=2))} for rank in range(2)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == alone
    loader = DataLoader(make(folder), batch_size=None, num_workers=2)
    assert {item["recording"] for item in take(loader, 300)} == alone


def rows_of(samples: list[tuple[str, bytes]]):
    """A foreign dataset: other column names, one row per file."""
    table = {"sound": [{"bytes": data, "path": name} for name, data in samples]}
    features = datasets.Features({"sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    return datasets.Dataset.from_dict(table, features=features).to_iterable_dataset()


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


def test_other_datasets_are_resampled_and_bad_rows_left_out(caplog):
    stereo = np.stack([tone(1.0, rate=44100)] * 2, axis=1)
    rows = rows_of([("good.wav", wav(stereo, 44100)), ("bad.mp3", b"no audio"), ("short.wav", wav(tone(0.05)))])
    stream = DatasetCropStream(stream_rows(rows, audio_column="sound"), RATE, 4096, 4096, audio_column="sound")
    with caplog.at_level(logging.WARNING, "melreformer_hf.data.hub_streams"):
        items = take(stream, 12)
    assert {item["recording"] for item in items} == {"good.wav"} and {item["num_samples"] for item in items} == {4096}
    spectrum = torch.fft.rfft(items[0]["waveform"] * torch.hann_window(4096)).abs()
    assert abs(spectrum.argmax().item() * RATE / 4096 - 440) < 6
    assert "bad.mp3 is left out" in caplog.text


def test_bad_requests(folder):
    with pytest.raises(ValueError, match="audio_column.*'sound'"):
        stream_rows(folder, audio_column="sound")
    with pytest.raises(ValueError, match="min_samples"):
        DatasetCropStream(stream_rows(folder), RATE, 4096, 2048)
    with pytest.raises(ValueError, match="rank=2"):
        make(folder, rank=2, world_size=2)
    with pytest.raises(ValueError, match="window_rows"):
        make(folder, window_rows=0)
    with pytest.raises(ValueError, match="lower min_samples"):
        take(DatasetCropStream(stream_rows(folder), RATE, 10**8, 10**8), 1)
    with pytest.raises(ValueError, match="seed 3, this one 9"):
        make(folder, seed=9).load_state_dict(make(folder).state_dict())
