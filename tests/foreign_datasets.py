"""Datasets in the layouts of other people, made on the spot: Parquet, a folder of audio, WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from audio_files import tone

RATE = 16000
GENRES = ("calm", "wild")


def encode(samples: np.ndarray, rate: int = RATE, format: str = "WAV") -> bytes:
    """Content of an audio file; samples (frame,) or (frame, channel)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()


def recordings(count: int = 12, seconds: float = 1.0) -> list[tuple[str, bytes]]:
    """(name, content) of recordings of different lengths and pitches."""
    return [(f"take{i:02d}", encode(tone(seconds + i % 3, 200.0 + 20 * i, RATE))) for i in range(count)]


def write_parquet(folder: Path, items: list[tuple[str, bytes]], split: str = "train", shards: int = 3) -> Path:
    """As `Dataset.push_to_hub` lays it out: an audio column, a class, a text, and something heavy."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features(
        {
            "audio": datasets.Audio(decode=False),
            "genre": datasets.ClassLabel(names=list(GENRES)),
            "title": datasets.Value("string"),
            "vector": datasets.Sequence(datasets.Value("float32")),
        }
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        rows = [
            {
                "audio": {"bytes": data, "path": f"{name}.wav"},
                "genre": number % 2,
                "title": f"Title {name}",
                "vector": [0.0] * 4,
            }
            for number, (name, data) in enumerate(items)
            if number % shards == shard
        ]
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        pq.write_table(table, folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet", row_group_size=2)
    return folder


def write_audiofolder(folder: Path, items: list[tuple[str, bytes]]) -> Path:
    """One folder per genre."""
    for number, (name, data) in enumerate(items):
        path = folder / GENRES[number % 2] / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_webdataset(folder: Path, items: list[tuple[str, bytes]], shards: int = 2) -> Path:
    """Tar files with an audio file and a JSON file per recording."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:04d}.tar", "w") as archive:
            for number, (name, data) in enumerate(items):
                if number % shards != shard:
                    continue
                told = {"label": GENRES[number % 2], "title": f"Title {name}"}
                for suffix, content in (("wav", data), ("json", json.dumps(told).encode())):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


WRITERS = {"parquet": write_parquet, "audiofolder": write_audiofolder, "webdataset": write_webdataset}
