"""Writing Parquet shards of recordings, in the form that trainings reach into at any place."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SEGMENT_SECONDS = 30
DATASET_FILE = "dataset.json"


def encode_flac(samples: np.ndarray, sampling_rate: int) -> bytes:
    """(samples, channel) float to 16-bit FLAC."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_segments(samples: np.ndarray, sampling_rate: int) -> list[bytes]:
    """A recording, (samples, channel), as FLAC segments of at most `SEGMENT_SECONDS`."""
    step = SEGMENT_SECONDS * sampling_rate
    return [encode_flac(samples[begin : begin + step], sampling_rate) for begin in range(0, len(samples), step)]


class ShardWriter:
    """Writes the segments of one split into numbered Parquet files of bounded length.

    Args:
        folder: where the files go.
        split: first part of their names.
        columns: text columns of a recording beside its name.
        max_samples: samples per file; a longer recording gets a file of its own.
    """

    def __init__(self, folder: Path, split: str, columns: Sequence[str], max_samples: float) -> None:
        self.folder, self.split, self.columns, self.limit = folder, split, tuple(columns), max_samples
        self.rows: list[dict] = []
        self.samples = self.shards = self.total = self.recordings = 0

    def add(self, row: dict[str, str], segments: Sequence[bytes], samples: int) -> None:
        """Add a recording: `recording` and the columns, its segments, its length in samples."""
        if self.rows and self.samples + samples > self.limit:
            self.flush()
        for index, data in enumerate(segments):
            place = {"segment": index, "num_segments": len(segments), "total_samples": samples}
            audio = {"bytes": data, "path": f"{row['recording']}-{index:04d}.flac"}
            self.rows.append({**row, **place, "audio": audio})
        self.samples += samples
        self.total += samples
        self.recordings += 1

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.rows:
            return
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, numbers = datasets.Value("string"), datasets.Value("int32")
        features = datasets.Features(
            {
                "audio": datasets.Audio(decode=False),
                "recording": text,
                "segment": numbers,
                "num_segments": numbers,
                "total_samples": datasets.Value("int64"),
                **{column: text for column in self.columns},
            }
        )
        table = pa.Table.from_pylist(self.rows, schema=features.arrow_schema)
        path = self.folder / f"{self.split}-{self.shards:05d}.parquet"
        # One row group per segment keeps random access cheap; FLAC does not compress further.
        pq.write_table(table, path, row_group_size=1, compression="none")
        self.shards += 1
        self.rows, self.samples = [], 0


__all__ = ["DATASET_FILE", "SEGMENT_SECONDS", "ShardWriter", "encode_flac", "encode_segments"]
