"""From a folder of files to a dataset, and from that to crops in an order that resumes exactly."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, tone, write_music
from borders import check_borders, from_one
from torch.utils.data import DataLoader

from melreformer_hf.data.batches import BatchStream
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.built import BuiltCropStream, BuiltRecordings
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.data.recordings import CropSettings, is_mostly_silent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    write_music(folder / "in", count=6)
    soundfile.write(folder / "in" / "long.flac", tone(65.0, 330.0), RATE)
    soundfile.write(folder / "in" / "high.wav", tone(2.0, 600.0, 44100), 44100)
    (folder / "in" / "broken.mp3").write_bytes(b"no audio")
    soundfile.write(folder / "in" / "silent.wav", np.zeros(RATE, dtype=np.float32), RATE)
    soundfile.write(folder / "in" / "one.wav", np.ones(1, dtype=np.float32), RATE)
    rows = ["file_name,split,license,attribution"]
    rows += [f"piece{i}.{s},test,CC0-1.0,Somebody" for i, s in ((0, "wav"), (1, "flac"))]
    rows += ["long.flac,train,CC-BY-4.0,Me", "high.wav,train,,"]
    (folder / "in" / "metadata.csv").write_text("\n".join(rows))
    config = BuildConfig(workers=2, license="CC-BY-3.0", test_fraction=0.0, validation_fraction=0.0, shard_minutes=0.2)
    report = build_dataset(folder / "in", folder / "out", config, progress=False)
    return folder / "out", report


def test_report_counts_and_skips(dataset):
    folder, report = dataset
    assert report["splits"]["test"]["recordings"] == 2 and report["splits"]["train"]["recordings"] == 6
    skipped = {item["file"]: item["reason"] for item in report["skipped"]}
    assert set(skipped) == {"broken.mp3", "silent.wav", "one.wav"}
    assert "silent" in skipped["silent.wav"] and "decoded" in skipped["broken.mp3"]
    assert str(folder.parent) not in json.dumps(report)
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["splits"]["train"]["shards"] > 1
    assert not list(folder.parent.glob(".*partial*"))


def test_licences_travel_and_splits_do_not_share_recordings(dataset):
    import pyarrow.parquet as pq

    folder, _ = dataset
    seen: dict[str, set] = {}
    for path in (folder / "data").glob("*.parquet"):
        table = pq.read_table(path).to_pydict()
        for name, license in zip(table["recording"], table["license"], strict=True):
            seen.setdefault(path.name.split("-")[0], set()).add((name, license))
    names = {split: {name for name, _ in rows} for split, rows in seen.items()}
    assert not names["train"] & names["test"]
    licences = dict(seen["train"] | seen["test"])
    assert licences["piece0"] == "CC0-1.0" and licences["long"] == "CC-BY-4.0" and licences["piece2"] == "CC-BY-3.0"


def test_the_datasets_library_streams_it(dataset):
    import datasets

    folder, _ = dataset
    stream = datasets.load_dataset("parquet", data_files=str(folder / "data/train-*.parquet"), streaming=True)["train"]
    row = next(iter(stream))
    assert row["audio"]["bytes"][:4] == b"fLaC" and isinstance(stream.features["audio"], datasets.Audio)


def test_reading_across_segments_equals_the_file(dataset):
    store = BuiltRecordings(dataset[0], "train")
    recording = next(item for item in store.recordings if item.name == "long")
    whole = store.read(recording)
    expected = torch.from_numpy(soundfile.read(dataset[0].parent / "in/long.flac", dtype="float32")[0])
    torch.testing.assert_close(whole, expected, rtol=0, atol=2e-4)
    start = 30 * RATE - 1000
    assert torch.equal(store.read(recording, start, 5000), whole[start : start + 5000])
    with pytest.raises(ValueError, match="must lie inside long"):
        store.read(recording, 0, recording.num_samples + 1)


def test_what_a_small_cache_decodes_in_parts_is_what_a_large_one_holds(dataset):
    small, large = (BuiltRecordings(dataset[0], "train", minutes) for minutes in (0.1, 60.0))
    generator = np.random.default_rng(0)
    for recording in small.recordings:
        for _ in range(6):
            start = int(generator.integers(recording.num_samples - 1))
            length = int(generator.integers(1, min(40 * RATE, recording.num_samples - start) + 1))
            assert torch.equal(small.read(recording, start, length), large.read(recording, start, length))
        last = recording.num_samples - 1
        assert torch.equal(small.read(recording, last, 1), large.read(recording, last, 1))
    held = [sum(part.size for part in store._cache.values()) for store in (small, large)]
    assert held[0] <= 4 * 30 * RATE and held[1] == sum(item.num_samples for item in large.recordings)


def crops(stream, count):
    return [(item["index"], item["recording"], item["waveform"]) for item in itertools.islice(stream, count)]


def same(left, right):
    assert [item[:2] for item in left] == [item[:2] for item in right]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(left, right, strict=True))


def make(dataset, **arguments):
    return BuiltRecordings(dataset[0], "train").crops(2000, 40000, seed=3, multiple=256, **arguments)


def test_lengths_and_weights(dataset):
    items = crops(make(dataset), 300)
    lengths = [waveform.numel() for _, _, waveform in items]
    assert min(lengths) >= 1792 and max(lengths) <= 40000 and all(length % 256 == 0 for length in lengths)
    assert len(set(lengths)) > 50
    store = BuiltRecordings(dataset[0])
    for told in (store.crops(2000, 2000), BuiltCropStream(store, CropSettings(min_samples=9, max_samples=9))):
        assert (told.seed, told.rank, told.world_size) == (0, 0, 1) and told.settings.multiple == 1
    share = sum(name == "long" for _, name, _ in items) / 300
    hours = {item.name: item.num_samples for item in BuiltRecordings(dataset[0], "train").recordings}
    assert abs(share - hours["long"] / sum(hours.values())) < 0.1  # weighted by hours, not by files


def test_position_is_saved_and_restored(dataset):
    uninterrupted = crops(make(dataset), 20)
    resumed = make(dataset)
    resumed.load_state_dict({"position": 7, "seed": 3, "anchor": None})
    same(crops(resumed, 13), uninterrupted[7:])
    with pytest.raises(ValueError, match="seed 4"):
        resumed.load_state_dict({"position": 7, "seed": 4})


def test_processes_and_workers_divide_one_global_sequence(dataset):
    alone = crops(make(dataset), 24)
    parts = [crops(make(dataset, rank=rank, world_size=3), 8) for rank in range(3)]
    same(sorted(itertools.chain(*parts), key=lambda item: item[0]), alone)
    loader = DataLoader(BatchStream(make(dataset), lambda item, _: item, 1), batch_size=None, num_workers=2)
    batches = [batch.tensors for batch in itertools.islice(loader, 24)]
    same([(b["index"].item(), b["recording"][0], b["waveform"][0]) for b in batches], alone)


def test_fixed_crops_and_whole_recordings(dataset):
    store = BuiltRecordings(dataset[0], "test")
    first, second = (store.fixed_crops(30000, 5, seed=1) for _ in range(2))
    assert all(torch.equal(a["waveform"], b["waveform"]) for a, b in zip(first, second, strict=True))
    assert {crop["recording"] for crop in first} == {"piece0", "piece1"}
    assert [item["num_samples"] for item in store.whole(5000, 2)] == [5000]  # none is so short: the shortest, cut
    assert {item["recording"] for item in store.whole(10**6, 2)} == {"piece0", "piece1"}
    with pytest.raises(ValueError, match="num_samples"):
        store.fixed_crops(10**8, 1)


def test_bad_requests(dataset, tmp_path):
    with pytest.raises(ValueError, match="split must be one of"):
        BuiltRecordings(dataset[0], "validation")
    with pytest.raises(ValueError, match="melreformer data build"):
        BuiltRecordings(tmp_path)
    with pytest.raises(ValueError, match="neither"):
        open_recordings("no_such_folder", "train")
    with pytest.raises(ValueError, match="min_samples"):
        BuiltRecordings(dataset[0], "test").crops(10**8, 10**8)
    with pytest.raises(ValueError, match="found none"):
        build_dataset(tmp_path, tmp_path / "out", BuildConfig())
    with pytest.raises(ValueError, match="workers"):
        BuildConfig(workers=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="other content"):
        build_dataset(dataset[0].parent / "in", tmp_path / "mine", BuildConfig())
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def _write(path, samples, rate=RATE, **options):
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate, **options)


def test_bad_files_are_listed_and_odd_ones_are_used(tmp_path):
    """Each in its own way: nothing stops the build, nothing is left out without a reason."""
    music, whole = tmp_path / "in", tone(1.0)
    (music / "folder.wav").mkdir(parents=True)
    odd = {"eight.wav": np.stack([whole] * 8, axis=1), "loud.wav": whole * 1e6, "stereo.wav": np.stack([whole] * 2, 1)}
    for name, samples in odd.items():
        _write(music / name, samples, subtype="FLOAT")
    _write(music / "rate.flac", tone(1.0, 300.0, 48000), 48000)
    bad = {
        "nan.wav": np.full(RATE, np.nan),
        "inf.wav": np.full(RATE, np.inf),
        "empty.wav": [],
        "silent.wav": np.zeros(RATE),
    }
    for name, samples in {**bad, "short.wav": whole[:100]}.items():
        _write(music / name, samples, subtype="FLOAT")
    _write(music / "cut.flac", whole)
    (music / "cut.flac").write_bytes((music / "cut.flac").read_bytes()[:1000])
    (music / "text.ogg").write_text("no music")
    (music / "nothing.mp3").touch()
    report = build_dataset(
        music, tmp_path / "out", BuildConfig(test_fraction=0.0, validation_fraction=0.0), progress=False
    )
    skipped = {item["file"]: item["reason"] for item in report["skipped"]}
    expected = {"nan.wav": "NaN", "inf.wav": "infinite", "empty.wav": "no samples", "silent.wav": "silent"}
    expected |= {
        "short.wav": "shorter than 0.1 s",
        "cut.flac": "decoded",
        "text.ogg": "decoded",
        "nothing.mp3": "decoded",
    }
    expected |= {"folder.wav": "No audio file"}
    assert set(skipped) == set(expected)
    assert all(fragment in skipped[name] for name, fragment in expected.items()), skipped
    store = BuiltRecordings(tmp_path / "out")
    read = {item.name: store.read(item) for item in store.recordings}
    assert set(read) == {"eight", "loud", "stereo", "rate"}
    for name, waveform in read.items():
        assert waveform.numel() == RATE and waveform.abs().max() <= 1.0, name
    torch.testing.assert_close(read["eight"], read["stereo"], rtol=0, atol=1e-4)  # channels are averaged
    torch.testing.assert_close(read["loud"], read["stereo"] / read["stereo"].abs().max(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        ("file_name,split\na.wav,../outside\n", "split must be a word"),
        ("file_name,split\na.wav,one/two\n", "split must be a word"),
        ("name,split\na.wav,train\n", "column file_name or path"),
        ("file_name,split\n,train\n", "Row 2 .* must name a file"),
        ("file_name,split\na.wav,train\na.wav,test\n", "two things about 'a.wav'"),
        ("file_name,split\nother.wav,train\n", "names none of the files"),
        (b"file_name,split\n\xff\xfe.wav,train\n", "UTF-8"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, rows, fragment):
    _write(tmp_path / "a.wav", tone(0.5))
    (tmp_path / "metadata.csv").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    with pytest.raises(ValueError, match=fragment):
        build_dataset(tmp_path, tmp_path / "out", BuildConfig(), progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "metadata.csv"]


def test_metadata_of_a_spreadsheet_is_read(tmp_path):
    _write(tmp_path / "a.wav", tone(0.5))
    (tmp_path / "metadata.csv").write_text("file_name,split\na.wav,validation\n", encoding="utf-8-sig")
    report = build_dataset(tmp_path, tmp_path / "out", BuildConfig(), progress=False)
    assert list(report["splits"]) == ["validation"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("sampling_rate", 10**9), ("sampling_rate", -1), ("test_fraction", float("nan")), ("test_fraction", -0.1)]
    + [
        ("validation_fraction", 1.0),
        ("channels", 0),
        ("channels", 9),
        ("silence_weight", 1.5),
        ("test_fraction", 0.95),
    ]
    + [("shard_minutes", 0), ("shard_minutes", float("nan")), ("workers", -2)],
)
def test_absurd_settings_of_a_build_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*got {value}"):
        BuildConfig(**{field: value})


def test_other_audio_types_are_named_and_datasets_not_replaced(tmp_path):
    _write(tmp_path / "in.wav", tone(1.0))
    (tmp_path / "song.M4A").write_bytes(b"....")
    (tmp_path / "notes.txt").write_text("no audio")
    report = build_dataset(tmp_path, tmp_path / "out", BuildConfig(), progress=False)
    assert [item["file"] for item in report["skipped"]] == ["song.M4A"]
    assert ".M4A is not read; convert it" in report["skipped"][0]["reason"]
    before = (tmp_path / "out" / "dataset.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds a dataset already. Add --overwrite"):
        build_dataset(tmp_path, tmp_path / "out", BuildConfig(), progress=False)
    assert (tmp_path / "out" / "dataset.json").stat().st_mtime_ns == before
    build_dataset(tmp_path, tmp_path / "out", BuildConfig(overwrite=True, channels=2), progress=False)
    assert BuiltRecordings(tmp_path / "out").channels == 2
    (tmp_path / "in.wav").unlink()
    with pytest.raises(ValueError, match="found none in .*1 of types that are not read, such as song.M4A"):
        build_dataset(tmp_path, tmp_path / "new", BuildConfig(), progress=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Stereo recordings of two instruments in folders of their own, one with a tempo in the metadata."""
    root = tmp_path_factory.mktemp("labelled")
    for index in range(6):
        folder = root / ("piano", "drums")[index % 2]
        folder.mkdir(exist_ok=True)
        sides = np.stack([tone(2.0, 220.0), 0.5 * tone(2.0, 440.0)], axis=1)
        _write(folder / f"take{index}.wav", sides)
    rows = [{"file_name": "piano/take0.wav", "tempo": 120, "index": "first"}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = BuildConfig(channels=2, label="folder", test_fraction=0.0, validation_fraction=0.0, workers=1)
    build_dataset(root, root / "out", config, progress=False)
    return root


def test_stereo_labels_and_metadata_are_delivered(labelled):
    recordings = open_recordings(labelled / "out", "train", sampling_rate=RATE)
    assert recordings.channels == 2 and recordings.labels == ("drums", "piano")
    left = torch.from_numpy(tone(2.0, 220.0))
    for item in itertools.islice(recordings.crops(4000, 8000), 12):
        assert item["waveform"].shape == (2, item["num_samples"])
        assert item["label"] == item["recording"].split("/")[0] and item["license"] == "unknown"
        if item["recording"] == "piano/take0":
            assert item["tempo"] == "120" and item["index_column"] == "first" and isinstance(item["index"], int)
    whole = recordings.whole(10**6, 1)[0]["waveform"]
    torch.testing.assert_close(whole[0], left, rtol=0, atol=2e-4)
    torch.testing.assert_close(whole[1], torch.from_numpy(0.5 * tone(2.0, 440.0)), rtol=0, atol=2e-4)
    mono = open_recordings(labelled / "out", "train", channels=1).whole(10**6, 1)[0]["waveform"]
    torch.testing.assert_close(mono, whole.mean(0))


def test_mono_is_repeated_and_other_contracts_refused(labelled, dataset):
    assert open_recordings(dataset[0], "test", channels=2).fixed_crops(2000, 1)[0]["waveform"].shape == (2, 2000)
    with pytest.raises(ValueError, match="channels must be 1 or 2"):
        open_recordings(labelled / "out", "train", channels=4)
    with pytest.raises(ValueError, match="22050 samples per second, needed are 16000.*--sampling-rate 16000"):
        open_recordings(dataset[0], "train", sampling_rate=16000)


@pytest.mark.parametrize(("label", "fragment"), [("genre", "column of the metadata .'file_name', 'index', 'tempo'.")])
def test_labels_that_are_not_there_are_refused(labelled, tmp_path, label, fragment):
    with pytest.raises(ValueError, match=fragment):
        build_dataset(labelled, tmp_path / "out", BuildConfig(label=label), progress=False)
    _write(tmp_path / "a.wav", tone(0.5))
    with pytest.raises(ValueError, match="folders of their own"):
        build_dataset(tmp_path, tmp_path / "out", BuildConfig(label="folder"), progress=False)


@pytest.mark.parametrize(
    ("level", "share", "silent"), [(0.9e-3, 0.55, True), (1.1e-3, 0.55, False), (0.9e-3, 0.45, False)]
)
def test_what_is_mostly_silent(level, share, silent):
    """More than half of the blocks of 50 ms below -60 dB of full scale; loud in one channel is loud."""
    waveform = torch.full((20000,), 0.1)
    waveform[: int(share * 20000)] = level
    assert is_mostly_silent(waveform, 20000) == silent
    assert not is_mostly_silent(torch.stack([waveform, torch.full_like(waveform, 0.1)]), 20000)
    assert is_mostly_silent(torch.zeros(3), 20000)


def test_lengths_of_crops_are_log_uniform():
    settings = CropSettings(min_samples=1000, max_samples=8000)
    random = np.random.default_rng(0)
    places = [settings.place(10000, random) for _ in range(4000)]
    lengths = np.array([length for _, length in places])
    # A third of the lengths lies in each doubling.
    shares = [((lengths >= low) & (lengths < 2 * low)).mean() for low in (1000, 2000, 4000)]
    assert np.allclose(shares, 1 / 3, atol=0.03) and abs(lengths.mean() / settings.mean_samples - 1) < 0.03
    starts = np.array([start / (10000 - length) for start, length in places])
    assert abs(starts.mean() - 0.5) < 0.02 and starts.min() < 0.01 and starts.max() > 0.99


def silent_share(recordings, **arguments):
    items = itertools.islice(recordings.crops(2205, 2205, seed=1, **arguments), 300)
    return sum(item["waveform"].abs().max().item() < 1e-3 for item in items) / 300


def test_silent_crops_are_rare_by_default_and_never_come_with_a_weight_of_zero(tmp_path):
    half = np.concatenate([0.3 * np.sin(np.arange(4 * RATE) / 10), np.zeros(4 * RATE)])
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in" / "half.wav", half)
    fractions = {"validation_fraction": 0.0, "test_fraction": 0.0}
    build_dataset(tmp_path / "in", tmp_path / "default", BuildConfig(**fractions), progress=False)
    recordings = open_recordings(tmp_path / "default", "train")
    # One silent place in two; it counts a tenth: 0.05 of 0.55.
    assert abs(silent_share(recordings) - 1 / 11) < 0.05
    assert silent_share(recordings, silence_weight=0.0) < 0.02
    assert abs(silent_share(recordings, silence_weight=1.0) - 0.5) < 0.08
    build_dataset(tmp_path / "in", tmp_path / "kept", BuildConfig(**fractions, silence_weight=1.0), progress=False)
    assert abs(silent_share(open_recordings(tmp_path / "kept", "train")) - 0.5) < 0.08
    with pytest.raises(ValueError, match="silence_weight"):
        recordings.crops(2205, 2205, silence_weight=2.0)


def test_borders_of_a_build():
    inside, outside = from_one("sampling_rate", "channels", "workers")
    none = {"validation_fraction": 0.0, "test_fraction": 0.0}
    inside |= {
        "sampling_rate": (1, 655350),
        "channels": (1, 8),
        "validation_fraction": ({**none, "validation_fraction": 0.99}, 0.0),
        "test_fraction": ({**none, "test_fraction": 0.99}, 0.0),
        "silence_weight": (0.0, 1.0),
        "shard_minutes": (1e-3,),
    }
    outside |= {
        "sampling_rate": (0, 655351),
        "channels": (0, 9),
        "validation_fraction": (-0.01, {**none, "validation_fraction": 1.0}),
        "test_fraction": (-0.01, {**none, "test_fraction": 1.0}, {"validation_fraction": 0.5, "test_fraction": 0.5}),
        "silence_weight": (-0.01, 1.01),
        "shard_minutes": (0.0,),
    }
    check_borders(BuildConfig, inside, outside)


def test_borders_of_crops():
    inside = {
        "min_samples": ({"min_samples": 1, "max_samples": 1}, {"min_samples": 5, "max_samples": 5, "multiple": 5}),
        "silence_weight": (0.0, 1.0),
    }
    outside = {
        "min_samples": (0, 11, {"min_samples": 5, "multiple": 6}),
        "multiple": (0, -1),
        "silence_weight": (-0.01, 1.01),
    }
    check_borders(CropSettings, inside, outside, min_samples=2, max_samples=10)
    assert CropSettings(min_samples=4, max_samples=4).mean_samples == 4
    assert CropSettings(min_samples=1, max_samples=8).mean_samples == pytest.approx(7 / math.log(8))


def test_a_share_of_the_crops_is_the_whole_recording():
    settings = CropSettings(min_samples=1000, max_samples=8000, multiple=10, whole_share=0.5, whole_samples=50_005)
    random = np.random.default_rng(0)
    drawn = [settings.place(50_005, random) for _ in range(400)]
    whole = [place for place in drawn if place == (0, 50_000)]
    assert 160 < len(whole) < 240 and all(
        length <= 8000 for place in drawn if place not in whole for length in place[1:]
    )
    # Longer ones are never given whole.
    assert all(settings.place(50_006, random)[1] <= 8000 for _ in range(50))
    assert CropSettings(min_samples=9, max_samples=9, whole_share=1.0).place(77, random) == (0, 77)
    for wrong, told in (
        ({"whole_share": 1.5}, "whole_share"),
        ({"whole_share": 1.0, "whole_samples": 8}, "whole_samples"),
    ):
        with pytest.raises(ValueError, match=told):
            CropSettings(min_samples=9, max_samples=9, **wrong)


def test_recordings_give_whole_pieces_on_request(dataset):
    recordings = BuiltRecordings(dataset[0], "train")
    lengths = {item.num_samples for item in recordings.recordings}
    items = itertools.islice(recordings.crops(1000, 2000, whole_share=1.0, silence_weight=1.0), 8)
    assert {item["num_samples"] for item in items} <= lengths
    short = itertools.islice(recordings.crops(1000, 2000, whole_share=1.0, whole_samples=1000), 8)
    assert all(item["num_samples"] <= 2000 for item in short)
