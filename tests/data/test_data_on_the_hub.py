"""Datasets on the Hub: built and pushed by the command, streamed and downloaded by trainings, positions kept."""

from __future__ import annotations

import json

import pytest
import soundfile
from audio_files import RATE, tone
from foreign_datasets import recordings, write_parquet
from hub_server import HubServer, python

# Every line of its output is a list of [recording, samples, checksum] of the crops of one stream.
CROPS = """
import hashlib, itertools, json, sys
from melreformer_hf.data.opening import open_recordings

def show(items):
    print(json.dumps([[i["recording"], i["num_samples"], hashlib.sha1(i["waveform"].numpy().tobytes()).hexdigest()]
                      for i in items]))

state = json.loads(sys.argv[2])
stream = open_recordings(sys.argv[1], "train").crops(2048, 40000, seed=5, multiple=256)
if state:
    stream.load_state_dict(state)
show(itertools.islice(stream, 12))
print(json.dumps(stream.state_dict()))
show(itertools.islice(stream, 12))
show(open_recordings(sys.argv[1], "test").fixed_crops(20000, 2))
"""
OPEN = "import sys; from melreformer_hf.data.opening import open_recordings; open_recordings(sys.argv[1], 'train')"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def built(hub, tmp_path_factory):
    """Folder of a dataset that the command built and pushed as user/music: 7 recordings to train on, 2 held out."""
    root = tmp_path_factory.mktemp("music")
    (root / "in").mkdir()
    names = [f"piece{index}" for index in range(8)]
    for index, name in enumerate(names):
        soundfile.write(root / "in" / f"{name}.wav", tone(2.0 + index, 200.0 + 40 * index), RATE)
    soundfile.write(root / "in" / "long.flac", tone(45.0, 330.0), RATE)
    rows = ["file_name,split,license"] + [f"{name}.wav,test,CC0-1.0" for name in names[:2]]
    rows += [f"{name}.wav,train,CC-BY-4.0" for name in names[2:]] + ["long.flac,train,CC-BY-4.0"]
    (root / "in" / "metadata.csv").write_text("\n".join(rows))
    words = ("-m", "melreformer_hf.cli", "data", "build", root / "in", "--output", root / "out", "--workers", "1")
    words += ("--validation-fraction", "0")
    text = python(hub, root / "home", *words, "--push-to-hub", "user/music", token=hub.token)
    assert f"uploaded to {hub.url}/datasets/user/music/commit/" in text
    return root / "out"


def test_the_command_pushes_shards_report_and_card(hub, built):
    files = hub.repository("datasets", "user/music").files()
    local = {path.relative_to(built).as_posix(): path.read_bytes() for path in built.rglob("*") if path.is_file()}
    assert {name: file.data for name, file in files.items() if name != ".gitattributes"} == local
    assert all(file.large == name.endswith(".parquet") for name, file in files.items())
    card = files["README.md"].data.decode()
    assert "melreformer_hf" in card and "| CC-BY-4.0 | 7 |" in card and "| CC0-1.0 | 2 |" in card


def test_streams_from_the_hub_equal_the_folder_and_continue_in_another_process(hub, built, tmp_path):
    local = python(hub, tmp_path / "a", "-c", CROPS, built, "null").splitlines()
    before = len(hub.log)
    streamed = python(hub, tmp_path / "b", "-c", CROPS, "hf://datasets/user/music", "null").splitlines()
    assert streamed == local and len(json.loads(streamed[0])) == 12
    shards = [entry for entry in hub.log[before:] if entry[0] == "GET" and "/cdn/" in entry[1]]
    assert shards and all(span is not None and status == 206 for _, _, span, status in shards)
    assert not list((tmp_path / "b").rglob("*.parquet"))  # nothing but what was asked for, and nothing stored
    resumed = python(hub, tmp_path / "c", "-c", CROPS, "user/music", streamed[1]).splitlines()
    assert resumed[0] == streamed[2]  # downloaded, streamed: one sequence


def test_datasets_of_others_stream_from_the_hub_and_continue_in_another_process(hub, tmp_path):
    """Nothing is built, nothing is stored; the folder gives the same items."""
    write_parquet(tmp_path / "other", recordings(9))
    write_parquet(tmp_path / "other", recordings(3, 1.5), "test", shards=1)
    configs = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: data/{train}\n  - split: test\n    path: data/test-*"
        for name, train in (("default", "train-*"), ("small", "train-00001-*"))
    )
    (tmp_path / "other" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    push = (
        "import sys; from melreformer_hf.hub.push import push_folder; push_folder(sys.argv[1], sys.argv[2], 'dataset')"
    )
    python(hub, tmp_path / "home", "-c", push, tmp_path / "other", "user/other", token=hub.token)
    local = python(hub, tmp_path / "a", "-c", CROPS, tmp_path / "other", "null").splitlines()
    streamed = python(hub, tmp_path / "b", "-c", CROPS, "user/other", "null").splitlines()
    assert streamed[0] == local[0] and streamed[3] == local[3] and json.loads(streamed[1])["anchor"]
    resumed = python(hub, tmp_path / "c", "-c", CROPS, "hf://datasets/user/other", streamed[1]).splitlines()
    assert resumed[0] == streamed[2] == local[2]
    small = python(hub, tmp_path / "c", "-c", CROPS, "user/other:small", "null").splitlines()
    assert {name for name, *_ in json.loads(small[0])} <= {f"take{number:02d}.wav" for number in (1, 4, 7)}
    assert not list((tmp_path / "b").rglob("*.parquet"))


def test_an_interrupted_download_keeps_the_files_that_arrived(hub, built, tmp_path):
    hub.cuts["data/train-00000.parquet"] = [-1]
    assert "503" in python(hub, tmp_path, "-c", OPEN, "user/music", fails=True)
    before = len(hub.log)
    python(hub, tmp_path, "-c", OPEN, "user/music")
    fetched = [path.rsplit("/", 1)[-1] for method, path, _, status in hub.log[before:] if "/cdn/" in path]
    assert fetched == ["train-00000.parquet"]


@pytest.mark.parametrize("name", ["user/nothing", "hf://datasets/user/nothing"])
def test_datasets_that_are_not_there_are_refused(hub, built, tmp_path, name):
    message = python(hub, tmp_path, "-c", OPEN, name, fails=True).splitlines()
    assert any(line.startswith("ValueError: dataset must") and name in line for line in message)
