"""From a folder of audio files to sharded Parquet: decoded and resampled once, so that no epoch is slower than another."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from melreformer_hf.audio.io import AUDIO_SUFFIXES, read_audio
from melreformer_hf.data.rendering import check_metadata, find_row, read_metadata

SEGMENT_SECONDS = 30
DATASET_FILE = "dataset.json"
MAX_SAMPLING_RATE = 655350
_SPLIT_NAME = re.compile(r"\w+([.-]\w+)*")  # it becomes the name of a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How a folder becomes a dataset.

    Args:
        sampling_rate: samples per second of every recording in the dataset.
        license: licence of recordings whose metadata name none.
        metadata: CSV with columns file_name (or path), split, license, attribution, source, recording; all optional
            but the first.
        test_fraction: share of recordings without a split in the metadata that go to `test`, chosen by a hash of the
            recording's name, so that adding files moves none.
        shard_minutes: audio per Parquet file, in minutes.
        workers: recordings decoded at a time.
    """

    sampling_rate: int = 22050
    license: str = "unknown"
    metadata: Path | None = None
    test_fraction: float = 0.1
    shard_minutes: float = 20.0
    workers: int = 2

    def __post_init__(self) -> None:
        rules = [
            (
                "sampling_rate",
                0 < self.sampling_rate <= MAX_SAMPLING_RATE,
                f"be in 1..{MAX_SAMPLING_RATE} (FLAC's most)",
            ),
            ("test_fraction", 0 <= self.test_fraction < 1, "be in [0, 1)"),
            ("shard_minutes", self.shard_minutes > 0, "be positive"),
            ("workers", self.workers >= 1, "be at least 1"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}.")


def split_of(recording: str, test_fraction: float) -> str:
    """`test` for a fixed share of all names, else `train`; depends on the name alone."""
    digest = int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big")
    return "test" if digest / 2**64 < test_fraction else "train"


def _encode(samples: np.ndarray, sampling_rate: int) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _decode_recording(task: tuple[str, dict, int]) -> tuple[dict, list[bytes], int] | tuple[str, str]:
    path, row, sampling_rate = task
    try:
        waveform, _ = read_audio(path, sampling_rate)
        if waveform.numel() < sampling_rate // 10:
            raise ValueError(f"{path} is shorter than 0.1 s ({waveform.numel()} samples).")
        if waveform.abs().max() < 1e-4:
            raise ValueError(f"{path} is silent (peak below -80 dB).")
    except (ValueError, OSError) as error:
        return path, str(error)
    samples = waveform.numpy() / max(1.0, float(waveform.abs().max()))
    step = SEGMENT_SECONDS * sampling_rate
    return row, [_encode(samples[i : i + step], sampling_rate) for i in range(0, samples.size, step)], samples.size


class _ShardWriter:
    """Writes the rows of one split into numbered Parquet files of bounded length."""

    def __init__(self, folder: Path, split: str, config: BuildConfig) -> None:
        self.folder, self.split = folder, split
        self.limit = config.shard_minutes * 60 * config.sampling_rate
        self.rows: list[dict] = []
        self.samples = self.shards = self.total = 0

    def add(self, rows: list[dict], samples: int) -> None:
        if self.rows and self.samples + samples > self.limit:
            self.flush()
        self.rows += rows
        self.samples += samples
        self.total += samples

    def flush(self) -> None:
        if not self.rows:
            return
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        features = datasets.Features(
            {
                "audio": datasets.Audio(decode=False),
                "recording": datasets.Value("string"),
                "segment": datasets.Value("int32"),
                "num_segments": datasets.Value("int32"),
                "total_samples": datasets.Value("int64"),
                "license": datasets.Value("string"),
                "attribution": datasets.Value("string"),
                "source": datasets.Value("string"),
            }
        )
        table = pa.Table.from_pylist(self.rows, schema=features.arrow_schema)
        path = self.folder / f"{self.split}-{self.shards:05d}.parquet"
        # One row group per segment keeps random access cheap; FLAC does not compress further.
        pq.write_table(table, path, row_group_size=1, compression="none")
        self.shards += 1
        self.rows, self.samples = [], 0


def build_dataset(folder: Path, output: Path, config: BuildConfig, progress: bool = True) -> dict:
    """Build a dataset; it appears at `output` complete or not at all.

    Args:
        folder: searched recursively for WAV, FLAC, OGG and MP3.
        output: folder of the dataset; must not exist yet, or hold an unfinished or a former dataset.
        config: see `BuildConfig`.
        progress: show a bar.

    Returns:
        the report also written to `report.json`: hours and recordings per split, skipped files with reasons.

    Raises:
        ValueError: no audio file found, none usable, metadata for none of them or with splits that are no words, two
            recordings of one name, or `output` holds something else.
    """
    folder, output = Path(folder), Path(output)
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise ValueError(f"DIR must hold audio files ({', '.join(AUDIO_SUFFIXES)}), found none in {folder}.")
    if output.exists() and any(output.iterdir()) and not (output / DATASET_FILE).is_file():
        raise ValueError(f"--output must be a new folder or a dataset built before, got {output} with other content.")
    metadata_path = config.metadata or (folder / "metadata.csv" if (folder / "metadata.csv").is_file() else None)
    metadata = read_metadata(metadata_path) if metadata_path else {}
    check_metadata(metadata, files, folder)
    tasks = [(str(path), _row_of(path, folder, metadata, config), config.sampling_rate) for path in files]
    _check_rows(tasks)
    building = output.with_name(f".{output.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    (building / "data").mkdir(parents=True)
    report = _write_shards(tasks, folder, building, config, progress)
    if not report["splits"]:
        shutil.rmtree(building)
        raise ValueError(f"No file in {folder} is usable; the first: {report['skipped'][:3]}.")
    (building / "report.json").write_text(json.dumps(report, indent=1))
    (building / DATASET_FILE).write_text(
        json.dumps({"format": 1, "sampling_rate": config.sampling_rate, "splits": report["splits"]}, indent=1)
    )
    (building / "README.md").write_text(_card(report, config))
    if output.exists():
        shutil.rmtree(output)
    os.replace(building, output)
    return report


def _row_of(path: Path, folder: Path, metadata: dict, config: BuildConfig) -> dict:
    row = find_row(metadata, path, folder)
    recording = row.get("recording") or path.relative_to(folder).with_suffix("").as_posix()
    return {
        "recording": recording,
        "split": row.get("split") or split_of(recording, config.test_fraction),
        "license": row.get("license") or row.get("licence") or config.license,
        "attribution": row.get("attribution") or "",
        "source": row.get("source") or row.get("source_repo") or path.relative_to(folder).as_posix(),
    }


def _check_rows(tasks: list[tuple[str, dict, int]]) -> None:
    seen: dict[str, str] = {}
    for path, row, _ in tasks:
        if not _SPLIT_NAME.fullmatch(row["split"]):
            raise ValueError(
                f"split must be a word such as train or test, got {row['split']!r} for {row['recording']!r} in the metadata."
            )
        if row["recording"] in seen:
            raise ValueError(
                f"The recording {row['recording']!r} appears twice, the second time as {path}. Rename one."
            )
        seen[row["recording"]] = path


def _write_shards(tasks: list, folder: Path, building: Path, config: BuildConfig, progress: bool) -> dict:
    writers: dict[str, _ShardWriter] = {}
    recordings: dict[str, int] = {}
    licenses: dict[str, int] = {}
    skipped: list[dict] = []
    with ThreadPoolExecutor(config.workers) as pool:  # decoding and encoding release the lock
        results = pool.map(_decode_recording, tasks)
        for result in tqdm(results, total=len(tasks), desc="building", disable=not progress):
            if len(result) == 2:
                # The report may be published: it names files inside the folder, not where the folder is.
                file, reason = (text.replace(f"{folder}{os.sep}", "") for text in result)
                skipped.append({"file": file, "reason": reason})
                continue
            row, segments, samples = result
            split = row.pop("split")
            writer = writers.setdefault(split, _ShardWriter(building / "data", split, config))
            recordings[split] = recordings.get(split, 0) + 1
            licenses[row["license"]] = licenses.get(row["license"], 0) + 1
            rows = [
                {
                    **row,
                    "audio": {"bytes": data, "path": f"{row['recording']}-{index:04d}.flac"},
                    "segment": index,
                    "num_segments": len(segments),
                    "total_samples": samples,
                }
                for index, data in enumerate(segments)
            ]
            writer.add(rows, samples)
    for writer in writers.values():
        writer.flush()
    splits = {
        name: {
            "recordings": recordings[name],
            "hours": round(writer.total / config.sampling_rate / 3600, 4),
            "shards": writer.shards,
        }
        for name, writer in sorted(writers.items())
    }
    return {"splits": splits, "licenses": dict(sorted(licenses.items())), "skipped": skipped}


def _card(report: dict, config: BuildConfig) -> str:
    lines = [
        "---",
        "tags:",
        "- audio",
        "- music",
        "- melreformer_hf",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for name in report["splits"]:
        lines += [f"  - split: {name}", f"    path: data/{name}-[0-9]*.parquet"]
    lines += ["---", "", "# Recordings", "", "| split | recordings | hours |", "|---|---|---|"]
    lines += [f"| {name} | {info['recordings']} | {info['hours']} |" for name, info in report["splits"].items()]
    lines += ["", "| licence | recordings |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in report["licenses"].items()]
    lines += ["", f"Mono, {config.sampling_rate} samples per second, FLAC segments of at most {SEGMENT_SECONDS} s."]
    lines += ["Each row names licence and attribution of its recording.", "", "Made by `melreformer data build` of"]
    lines += [
        "[melreformer_hf](https://pypi.org/project/melreformer_hf); its trainings take this dataset's id as `--dataset`."
    ]
    return "\n".join([*lines, ""])


__all__ = ["DATASET_FILE", "SEGMENT_SECONDS", "BuildConfig", "build_dataset", "split_of"]
