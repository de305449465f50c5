"""Datasets of other programs train without being built: one global sequence, exact positions, splits, bad rows."""

from __future__ import annotations

import io
import itertools
import json
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from audio_files import tone
from foreign_datasets import (
    GENRES,
    RATE,
    WRITERS,
    encode,
    recordings,
    write_audiofolder,
    write_parquet,
    write_webdataset,
)
from torch.utils.data import DataLoader

from melreformer_hf.data import foreign, rows
from melreformer_hf.data.batches import BatchStream
from melreformer_hf.data.encoded import EncodedAudio
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.data.rows import RowReader

WINDOW = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    return {kind: str(write(root / kind, recordings())) for kind, write in WRITERS.items()}


@pytest.fixture(params=sorted(WRITERS))
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(foreign.RowCropStream.__init__, "__defaults__", (0, 0, 1, WINDOW))


def make(folder, rank=0, world_size=1, split="train", **arguments):
    opened = open_recordings(folder, split, label_column="genre" if "parquet" in folder else "label")
    arguments = {"seed": 3, "multiple": 256, **arguments}
    return opened.crops(2048, 8192, rank=rank, world_size=world_size, **arguments)


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(left, right):
    assert [(item["index"], item["recording"]) for item in left] == [(i["index"], i["recording"]) for i in right]
    assert all(torch.equal(a["waveform"], b["waveform"]) for a, b in zip(left, right, strict=True))


def test_the_datasets_library_reads_the_same_layouts(folders):
    import datasets

    kinds = [type(datasets.load_dataset_builder(folder)).__mro__[1].__name__ for _, folder in sorted(folders.items())]
    assert kinds == ["AudioFolder", "Parquet", "WebDataset"]


def test_items_keep_names_labels_and_metadata(folder):
    items = take(make(folder), 120)
    lengths = [item["num_samples"] for item in items]
    assert all(item["waveform"].shape == (item["num_samples"],) for item in items)
    assert all(length % 256 == 0 for length in lengths) and 2048 <= min(lengths) and max(lengths) <= 8192
    assert len(set(lengths)) > 15 and [item["index"] for item in items] == list(range(120))
    for item in items:
        number = int(item["recording"].split("take")[1][:2])
        assert item["label"] == GENRES[number % 2] and "vector" not in item
        assert item.get("title", f"Title take{number:02d}") == f"Title take{number:02d}"
    labels = open_recordings(folder, "train", label_column="genre" if "parquet" in folder else "label").labels
    assert labels == (None if "webdataset" in folder else GENRES)


def test_processes_share_one_global_sequence(folder):
    alone = take(make(folder), 90)
    assert alone[0]["anchor"]["epoch"] == 0 and alone[-1]["anchor"]["epoch"] > 0
    for world_size in (2, 3):
        parts = [take(make(folder, rank, world_size), 90 // world_size) for rank in range(world_size)]
        same(sorted(itertools.chain(*parts), key=lambda item: item["index"]), alone)


def prepare(item, generator):
    return {"index": item["index"], "start": item["waveform"][:2048], "name": item["recording"]}


def batches(stream, workers, count):
    loader = DataLoader(BatchStream(stream, prepare, 2), batch_size=None, num_workers=workers)
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_training_resumes_to_the_item(folder, workers, world_size):
    """The trainer's protocol: batches from workers, their anchors to `advance`, the state through JSON."""
    reference = {item["index"]: item for item in take(make(folder), 60)}
    seen = []
    for rank in range(world_size):
        stream = make(folder, rank, world_size)
        for batch in batches(stream, workers, 30 // world_size // 2):
            stream.advance(2, batch.anchor)
        resumed = make(folder, rank, world_size)
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        for batch in batches(resumed, workers, 30 // world_size // 2):
            seen += batch.tensors["index"].tolist()
            for index, start, name in zip(*(batch.tensors[key] for key in ("index", "start", "name")), strict=True):
                item = reference[index.item()]
                assert item["recording"] == name and torch.equal(item["waveform"][:2048], start)
    first = 30 // world_size // 2 * 2 * world_size
    assert sorted(seen) == list(range(first, 2 * first))


@pytest.mark.parametrize("position", [1, 17, 40, 55])
def test_resuming_does_not_read_the_epoch_again(folder, position, monkeypatch):
    stream = make(folder)
    take(stream, position)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = take(stream, 4)
    resumed = make(folder)
    resumed.load_state_dict(state)
    read = []
    original = foreign.RowCropStream._crops_of

    def counted(self, row, epoch, number):
        read.append(row.name)
        return original(self, row, epoch, number)

    monkeypatch.setattr(foreign.RowCropStream, "_crops_of", counted)
    same(take(resumed, 4), expected)
    assert len(read) <= 2 * WINDOW
    resumed = make(folder)
    resumed.load_state_dict({**state, "anchor": None})  # without it: from the beginning, the same items
    same(take(resumed, 4), expected)


def test_windows_are_bounded_in_memory_too(folders, monkeypatch):
    rows = [item["anchor"]["row"] for item in take(make(folders["parquet"]), 60) if item["anchor"]["epoch"] == 0]
    assert set(np.diff(sorted(set(rows)))) <= {WINDOW, WINDOW + 1, WINDOW + 2, WINDOW + 3}  # some are held out
    monkeypatch.setattr(foreign, "WINDOW_BYTES", 1000)
    rows = [item["anchor"]["row"] for item in take(make(folders["parquet"]), 60) if item["anchor"]["epoch"] == 0]
    assert len(set(rows)) > 6  # every recording is a window of its own


def test_items_are_reached_in_any_order_and_copies_share_nothing(folder):
    stream = make(folder)
    forward = take(make(folder), 30)
    picked = [stream.item(index) for index in (20, 3, 29, 20)]
    same(picked, [forward[index] for index in (20, 3, 29, 20)])
    copied = pickle.loads(pickle.dumps(stream))
    same([copied.item(5)], [forward[5]])


def test_epochs_and_seeds_differ_and_hours_count(folder):
    told = open_recordings(folder, "train").crops(2048, 4096)
    assert (told.seed, told.rank, told.world_size, told.settings.multiple) == (0, 0, 1, 1)
    items = take(make(folder), 600)
    epochs = [[i["recording"] for i in items if i["anchor"]["epoch"] == e] for e in (0, 1)]
    assert epochs[0][:20] != epochs[1][:20]
    assert [i["anchor"]["row"] for i in items if i["anchor"]["epoch"] == 1][0] == 0  # every epoch begins anew
    assert [i["recording"] for i in take(make(folder, seed=4), 20)] != [i["recording"] for i in items[:20]]
    samples = {}
    for item in items:
        samples[item["recording"]] = samples.get(item["recording"], 0) + item["num_samples"]
    long = [count for name, count in samples.items() if int(name.split("take")[1][:2]) % 3 == 2]
    short = [count for name, count in samples.items() if int(name.split("take")[1][:2]) % 3 == 0]
    assert 2.0 < np.mean(long) / np.mean(short) < 4.5  # three seconds beside one


def test_any_whole_number_is_a_seed(folder):
    found = [[item["recording"] for item in take(make(folder, seed=seed), 12)] for seed in (-1, -2, 2**64 - 1, 2**70)]
    assert found[0] == found[2] and found[0] != found[1]


def names_of(folder, split):
    return {item["recording"] for item in open_recordings(folder, split).whole(10**8, 100)}


def test_missing_splits_are_carved_out_of_train_and_that_is_said_once(tmp_path, caplog):
    folder = str(write_audiofolder(tmp_path / "x", recordings(100, 0.1)))
    with caplog.at_level(logging.WARNING, "melreformer_hf.data.foreign"):
        found = {split: names_of(folder, split) for split in ("train", "validation", "test")}
    assert len(caplog.records) == 1 and "no split of its own for validation and test" in caplog.text
    assert sum(map(len, found.values())) == 100 == len(set().union(*found.values()))
    assert 3 <= len(found["validation"]) <= 20 and 3 <= len(found["test"]) <= 20
    write_audiofolder(tmp_path / "x", [(f"new{name}", data) for name, data in recordings(20, 0.1)])
    assert found["validation"] <= names_of(folder, "validation")


def test_splits_of_the_dataset_are_used(tmp_path):
    write_parquet(tmp_path, recordings(12), "train")
    held_out = [(f"other{name}", data) for name, data in recordings(4)]
    write_parquet(tmp_path, held_out, "validation", shards=1)
    found = {split: names_of(str(tmp_path), split) for split in ("train", "validation", "test")}
    assert found["validation"] == {f"{name}.wav" for name, _ in held_out}
    assert len(found["train"]) + len(found["test"]) == 12 and found["test"]
    assert found["train"] & found["test"] == set()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_handful_of_recordings(tmp_path, count):
    folder = str(write_audiofolder(tmp_path, recordings(count)))
    if count == 1:
        with pytest.raises(ValueError, match="no recording for the split 'validation'"):
            open_recordings(folder, "validation")
        return
    assert names_of(folder, "train") and names_of(folder, "validation")
    crops = open_recordings(folder, "validation").fixed_crops(4000, 5)
    again = open_recordings(folder, "validation").fixed_crops(4000, 5)
    assert len(crops) == 5 and {crop["waveform"].shape for crop in crops} == {(4000,)}
    assert all(torch.equal(a["waveform"], b["waveform"]) for a, b in zip(crops, again, strict=True))
    with pytest.raises(ValueError, match="has num_samples=100000000"):
        open_recordings(folder, "validation").fixed_crops(10**8, 1)


def test_metadata_tables_beside_the_audio_are_delivered(tmp_path):
    write_audiofolder(tmp_path, recordings(4))
    rows = "\n".join(f"{GENRES[i % 2]}/take{i:02d}.wav,{60 + i},mood{i % 2}" for i in range(4))
    (tmp_path / "metadata.csv").write_text(f"file_name,tempo,mood\n{rows}\n")
    opened = open_recordings(str(tmp_path), "train", label_column="mood")
    assert opened.labels == ("mood0", "mood1")
    for item in take(opened.crops(2048, 4096), 10):
        number = int(item["recording"][-6:-4])
        assert item["tempo"] == str(60 + number) and item["label"] == f"mood{number % 2}"


def test_other_rates_and_channels_are_converted_as_the_whole_would_be(tmp_path):
    time = np.arange(3 * 44100) / 44100
    sides = np.stack([np.sin(2 * np.pi * 300 * time), 0.5 * np.sin(2 * np.pi * 700 * time)], 1).astype(np.float32)
    items = [(f"take{i:02d}", encode(sides, 44100, "FLAC")) for i in range(3)]
    folder = str(write_parquet(tmp_path, items, shards=1))
    stereo = open_recordings(folder, "train", sampling_rate=22050)
    assert stereo.channels == 2 and open_recordings(folder, "train").sampling_rate == 44100
    row = next(stereo._rows())
    part = row.audio.read(22050, 11025, 22050, 2)
    seconds = torch.arange(22050, 22050 + 11025) / 22050
    expected = torch.stack([torch.sin(2 * torch.pi * 300 * seconds), 0.5 * torch.sin(2 * torch.pi * 700 * seconds)])
    torch.testing.assert_close(part, expected, rtol=0, atol=1e-3)
    mono = open_recordings(folder, "train", sampling_rate=22050, channels=1).fixed_crops(22050, 1)[0]["waveform"]
    assert mono.shape == (22050,)
    assert open_recordings(folder, "train", channels=2).fixed_crops(100, 1)[0]["waveform"].shape == (2, 100)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_parts_are_those_of_the_whole(tmp_path, format):
    data = encode(tone(3.0, 440.0, RATE), RATE, format)
    (tmp_path / "x").write_bytes(data)
    whole = torch.from_numpy(soundfile.read(tmp_path / "x", dtype="float32")[0])
    audio = EncodedAudio("x", data)
    assert abs(audio.num_samples(RATE) - len(whole)) < 2000
    for start, length in ((0, 1000), (20001, 4096), (len(whole) - 500, 500)):
        part = audio.read(start, length, RATE, 1)
        torch.testing.assert_close(part, whole[start : start + length], rtol=0, atol=2e-3)


def test_what_a_header_promises_too_much_is_silence():
    data = encode(tone(1.0, 440.0, RATE))
    audio = EncodedAudio("x", data, (RATE + 1000, RATE, 1))
    part = audio.read(RATE - 500, 1500, RATE, 1)
    assert part.shape == (1500,) and part[:500].abs().max() > 0.1 and not part[500:].any()
    sides = encode(np.stack([tone(1.0, 440.0, RATE), tone(1.0, 660.0, RATE)], 1), RATE)
    stereo = EncodedAudio("x", sides, (RATE + 1000, RATE, 2)).read(RATE - 500, 1500, RATE, 2)
    assert stereo.shape == (2, 1500) and (stereo[:, :500].abs().amax(1) > 0.1).all() and not stereo[:, 500:].any()
    with pytest.raises(ValueError, match="x ends before its header says"):
        EncodedAudio("x", data, (3 * RATE, RATE, 1)).read(0, 2 * RATE, RATE, 1)


def test_bad_recordings_are_left_out(tmp_path, caplog):
    good = recordings(4)
    broken = [("bad", b"no audio"), ("short", encode(tone(0.05, rate=RATE))), ("nan", encode_nan())]
    cut = encode(tone(3.0, rate=RATE), format="FLAC")
    folder = str(write_parquet(tmp_path, [*good, *broken, ("cut", cut[: len(cut) // 8])], shards=1))
    file = next(Path(folder).rglob("*.parquet"))
    table = pq.read_table(file)
    row = {"audio": None, "genre": 0, "title": "nothing", "vector": []}
    pq.write_table(pa.concat_tables([pa.Table.from_pylist([row], schema=table.schema), table]), file)
    with caplog.at_level(logging.WARNING, "melreformer_hf.data.foreign"):
        items = take(open_recordings(folder, "train").crops(2048, 4096, seed=1), 60)
    names = {item["recording"] for item in items}
    # What is there of the one that was cut short is music, too.
    assert names - {"cut.wav"} <= {f"{name}.wav" for name, _ in good} and len(names - {"cut.wav"}) >= 2
    assert " at 0x" not in caplog.text  # the same message each time, so that it is told once
    assert "bad.wav is left out" in caplog.text or "bad.wav" not in names_of(folder, "train")
    assert all(torch.isfinite(item["waveform"]).all() for item in items)
    with pytest.raises(ValueError, match="No recording of the split 'train' has min_samples"):
        take(open_recordings(folder, "train").crops(10**8, 10**8), 1)


def without_audio(folder: Path, names: list[str]) -> str:
    """A tar file in front of the others whose samples have metadata only."""
    with tarfile.open(folder / "train-9999.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(f"{name}.json")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    return str(folder)


def test_samples_of_a_tar_file_without_audio_are_left_out(tmp_path, caplog, monkeypatch):
    folder = without_audio(write_webdataset(tmp_path, recordings(4), shards=1), ["silent1", "silent2"])
    with caplog.at_level(logging.WARNING, "melreformer_hf.data.rows"):
        for seed in range(4):  # the tar file without audio comes first or last
            source = open_recordings(folder, "train").source
            reader = source.read(seed, 0)
            names = [row.name for row in reader]
            assert sorted(names) == [f"take{i:02d}" for i in range(4)]
            assert [row.name for row in source.read(seed, 0, reader.state())] == []
    assert "silent1 is left out: its tar file has ['json'] of it, and no 'audio'" in caplog.text
    with pytest.raises(ValueError, match="audio_column must be one of .'json'.*'flac'"):
        list(rows.TarRows([f"{folder}/train-9999.tar"], "flac").read(0, 0))
    monkeypatch.setattr(rows, "_SILENT_SAMPLES", 2)
    source, given = rows.TarRows(["a tar file"] * 3, "flac"), []
    monkeypatch.setattr(source, "samples", lambda url: (given.append(url) or ("x", {"json": b""}) for _ in range(9)))
    with pytest.raises(ValueError, match="audio_column must be one of .'json'.*'flac'"):
        list(source.read(0, 0))
    assert len(given) == 2  # not after the whole dataset


def encode_nan() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(RATE, np.nan, dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_recordings_without_a_class_have_no_label(tmp_path):
    folder = str(write_parquet(tmp_path, recordings(3), shards=1))
    file = next(Path(folder).rglob("*.parquet"))
    table = pq.read_table(file)
    place = table.schema.get_field_index("genre")
    classes = pa.array([None, -1, 1], pa.int64())  # as test sets on the Hub say that a class is not told
    pq.write_table(table.set_column(place, table.schema.field(place), classes), file)
    source = open_recordings(folder, "train", label_column="genre").source
    told = {row.name: (row.metadata.get("label"), row.metadata.get("genre")) for row in source.read(0, 0)}
    assert told == {"take00.wav": (None, None), "take01.wav": (None, None), "take02.wav": ("wild", "wild")}


def test_silent_places_are_given_rarely(tmp_path):
    half = np.concatenate([0.3 * np.sin(np.arange(2 * RATE) / 10), np.zeros(2 * RATE)]).astype(np.float32)
    folder = str(write_audiofolder(tmp_path, [(f"take{i:02d}", encode(half)) for i in range(3)]))
    opened = open_recordings(folder, "train")

    def share(**arguments):
        items = take(opened.crops(1600, 1600, seed=1, **arguments), 300)
        return sum(item["waveform"].abs().max().item() < 1e-3 for item in items) / 300

    assert abs(share(silence_weight=1.0) - 0.5) < 0.1 and share() < 0.2 and share(silence_weight=0.0) < 0.03


def test_wrong_columns_splits_and_paths_are_refused(folders, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="audio_column must be one of .'audio', 'genre', 'title', 'vector'.*'sound'"):
        open_recordings(folders["parquet"], "train", audio_column="sound")
    with pytest.raises(ValueError, match="audio_column must be 'audio' of a folder of audio files.*'sound'"):
        open_recordings(folders["audiofolder"], "train", audio_column="sound")
    with pytest.raises(ValueError, match="split must be one of .'train'.*'evaluation'"):
        open_recordings(folders["parquet"], "evaluation")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    # Not a question to the Hub: the first part is a folder here.
    with pytest.raises(ValueError, match="got data/mien, which is neither: .*Did you mean 'mine'"):
        open_recordings("data/mien", "train")
    for name in ("./mine", "/no/such/folder", "a/b/c", "nowhere", "~/nowhere-at-all"):
        with pytest.raises(ValueError, match="there is no such folder"):
            open_recordings(name, "train")
    with pytest.raises(ValueError, match="must hold audio|holds no"):
        open_recordings("data/mine", "train")
    (tmp_path / "song.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="song.wav, which is a file"):
        open_recordings("./song.wav", "train")
    with pytest.raises(ValueError, match="hf://datasets/user/name, got hf://datasets/music"):
        open_recordings("hf://datasets/music", "train")


def test_readers_know_their_place(folders):
    for kind, folder in folders.items():
        source = open_recordings(folder, "train").source
        reader: RowReader = source.read(1, 2)
        before = [next(reader).name for _ in range(5)]
        state = json.loads(json.dumps(reader.state()))
        after = [row.name for row in reader]
        assert [row.name for row in source.read(1, 2, state)] == after, kind
        assert len(before) + len(after) == 12 and len({*before, *after}) == 12
