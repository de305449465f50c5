"""From a folder of audio files to sharded Parquet: decoded and resampled once, so that no epoch is slower than another."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from melreformer_hf._files import replacing_folder
from melreformer_hf.audio.io import AUDIO_SUFFIXES, read_audio
from melreformer_hf.data.metadata import check_metadata, default_metadata, find_row, folder_label, read_metadata
from melreformer_hf.data.recordings import RESERVED
from melreformer_hf.data.shard_writing import DATASET_FILE, SEGMENT_SECONDS, ShardWriter, encode_segments
from melreformer_hf.data.splits import HELD_OUT, assign_splits

MAX_SAMPLING_RATE = 655350
MAX_CHANNELS = 8
LABEL_OF_FOLDER = "folder"
UNREAD_SUFFIXES = (
    *(".m4a", ".aac", ".mp4", ".wma", ".aif", ".aiff", ".opus", ".ape", ".wv", ".alac", ".amr", ".au", ".caf", ".mka"),
    *(".webm", ".m4b", ".oga", ".ra", ".dsf", ".mp2", ".ac3"),
)
# A lone recording that is at least this long is held out in part.
_CUT_SECONDS = 30.0
_SPLIT_NAME = re.compile(r"\w+([.-]\w+)*")  # it becomes the name of a file
_OWN_COLUMNS = ("audio", "segment", "num_segments", "total_samples")
_TOLD = ("file_name", "path", "recording", "split", "license", "licence", "attribution", "source", "source_repo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How a folder becomes a dataset.

    Args:
        sampling_rate: samples per second of every recording in the dataset.
        channels: of every recording: 1 mixes down to mono, 2 keeps stereo (and repeats mono).
        license: licence of recordings whose metadata name none.
        metadata: CSV or JSON lines with columns file_name (or path), split, license, attribution, source, recording;
            all optional but the first. Other columns are kept. Default: `metadata.csv` or `metadata.jsonl` in the folder.
        label: `folder` labels a recording by the folder that it lies in, a column of the metadata by its value;
            `None` takes the column `label` where there is one.
        validation_fraction: share of the recordings that go to `validation`, by a hash of the recording's name, so that
            adding files moves none; 0 wants none. See `assign_splits`.
        test_fraction: the same for `test`.
        silence_weight: how often trainings take a crop that is mostly silent (more than half of it below -60 dB) beside
            another one: 1 like others, 0 never.
        shard_minutes: audio per Parquet file, in minutes.
        workers: recordings decoded at a time.
        overwrite: replace a dataset that is there already.
    """

    sampling_rate: int = 22050
    channels: int = 1
    license: str = "unknown"
    metadata: Path | None = None
    label: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    silence_weight: float = 0.1
    shard_minutes: float = 20.0
    workers: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        held_out = self.validation_fraction + self.test_fraction
        rules = [
            (
                "sampling_rate",
                0 < self.sampling_rate <= MAX_SAMPLING_RATE,
                f"be in 1..{MAX_SAMPLING_RATE} (FLAC's most)",
            ),
            ("channels", 1 <= self.channels <= MAX_CHANNELS, f"be in 1..{MAX_CHANNELS} (FLAC's most)"),
            ("validation_fraction", 0 <= self.validation_fraction < 1, "be in [0, 1)"),
            ("test_fraction", 0 <= self.test_fraction < 1, "be in [0, 1)"),
            ("test_fraction", held_out < 1, f"leave something to train on beside {self.validation_fraction}"),
            ("silence_weight", 0 <= self.silence_weight <= 1, "be in [0, 1]"),
            ("shard_minutes", self.shard_minutes > 0, "be positive"),
            ("workers", self.workers >= 1, "be at least 1"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}.")


@dataclasses.dataclass
class _Task:
    """One file: what is known about it, and which part of it goes to which split (split, begin, end; shares)."""

    path: Path
    row: dict[str, str]
    split: str | None
    parts: tuple[tuple[str, float, float], ...] = ()


def build_dataset(folder: Path, output: Path, config: BuildConfig, progress: bool = True) -> dict:
    """Build a dataset with the splits train, validation and test; it appears at `output` complete or not at all.

    Args:
        folder: searched recursively for WAV, FLAC, OGG and MP3.
        output: folder of the dataset; must be new or empty, or a dataset when `config.overwrite` is set.
        config: see `BuildConfig`.
        progress: show a bar.

    Returns:
        the report also written to `report.json`: hours and recordings per split, skipped files with reasons, notes.

    Raises:
        ValueError: no audio file found, none usable, metadata for none of them or with splits that are no words, two
            recordings of one name, no such label column, or `output` holds something else or a dataset.
    """
    folder, output = Path(folder), Path(output)
    _check_output(output, config.overwrite)
    files, unread = _find_files(folder)
    path = config.metadata or default_metadata(folder)
    metadata = read_metadata(path) if path else {}
    check_metadata(metadata, files, folder)
    tasks = [_task_of(file, folder, metadata, config) for file in files]
    _check_tasks(tasks, config, metadata)
    with replacing_folder(output) as building:
        report, columns = _write(tasks, folder, building, config, progress)
        report["skipped"] += unread
        labels = sorted({task.row["label"] for task in tasks if task.row.get("label")})
        _describe(building, report, config, labels, columns)
    return report


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / DATASET_FILE).is_file():
        raise ValueError(f"--output must be a new folder or a dataset built before, got {output} with other content.")
    if not overwrite:
        raise ValueError(f"--output {output} holds a dataset already. Add --overwrite to replace it.")


def _find_files(folder: Path) -> tuple[list[Path], list[dict[str, str]]]:
    """Audio files, and those of types that are not read, with the reason."""
    if not folder.is_dir():
        raise ValueError(f"DIR must be a folder of audio files, got {folder}, which is none.")
    found = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    files = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    unread = [
        {
            "file": path.relative_to(folder).as_posix(),
            "reason": f"{path.suffix} is not read; convert it to WAV, FLAC, OGG or MP3, for example with ffmpeg.",
        }
        for path in found
        if path.suffix.lower() in UNREAD_SUFFIXES and path.is_file()
    ]
    if not files:
        others = f"; {len(unread)} of types that are not read, such as {unread[0]['file']}" if unread else ""
        raise ValueError(f"DIR must hold audio files ({', '.join(AUDIO_SUFFIXES)}), found none in {folder}{others}.")
    return files, unread


def _task_of(path: Path, folder: Path, metadata: dict, config: BuildConfig) -> _Task:
    told = find_row(metadata, path, folder)
    row = {
        "recording": told.get("recording") or path.relative_to(folder).with_suffix("").as_posix(),
        "license": told.get("license") or told.get("licence") or config.license,
        "attribution": told.get("attribution") or "",
        "source": told.get("source") or told.get("source_repo") or path.relative_to(folder).as_posix(),
    }
    for column, value in told.items():
        if column and column not in _TOLD:  # a row with more cells than the header has a column without a name
            taken = column in RESERVED or column in _OWN_COLUMNS
            row[f"{column}_column" if taken else column] = value or ""
    if config.label is not None:
        label = folder_label(path, folder) if config.label == LABEL_OF_FOLDER else told.get(config.label)
        row["label"] = label or ""
    return _Task(path, row, told.get("split") or None)


def _check_tasks(tasks: Sequence[_Task], config: BuildConfig, metadata: dict) -> None:
    seen: set[str] = set()
    for task in tasks:
        recording = task.row["recording"]
        if task.split is not None and not _SPLIT_NAME.fullmatch(task.split):
            raise ValueError(
                f"split must be a word such as train or test, got {task.split!r} for {recording!r} in the metadata."
            )
        if recording in seen:
            raise ValueError(f"The recording {recording!r} appears twice, the second time as {task.path}. Rename one.")
        seen.add(recording)
    if config.label not in (None, LABEL_OF_FOLDER) and not any(task.row["label"] for task in tasks):
        columns = sorted({column for row in metadata.values() for column in row if column})
        raise ValueError(
            f"label must be {LABEL_OF_FOLDER!r} or a column of the metadata {columns}, got {config.label!r}."
        )
    if config.label == LABEL_OF_FOLDER and not any(task.row["label"] for task in tasks):
        raise ValueError(
            "label 'folder' needs files in folders of their own inside DIR, got all of them in DIR itself."
        )


def _plan(tasks: Sequence[_Task], config: BuildConfig) -> list[str]:
    """Give every task its parts; returns the notes."""
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    if len(tasks) == 1 and tasks[0].split in (None, "train") and any(fractions.values()):
        parts, end = [], 1.0
        for split in reversed(HELD_OUT):
            parts += [(split, end - fractions[split], end)] if fractions[split] else []
            end -= fractions[split]
        tasks[0].parts = (("train", 0.0, end), *reversed(parts))
        return []
    splits, notes = assign_splits({task.row["recording"]: task.split for task in tasks}, *fractions.values())
    for task in tasks:
        task.parts = ((splits[task.row["recording"]], 0.0, 1.0),)
    return notes


def _decode(task: _Task, config: BuildConfig) -> list[tuple[str, dict, list[bytes], int]] | str:
    """(split, row, segments, samples) of every part, or why the file cannot be used."""
    rate = config.sampling_rate
    try:
        waveform, _ = read_audio(task.path, rate, channels=config.channels)
        if waveform.shape[-1] < rate // 10:
            raise ValueError(f"{task.path} is shorter than 0.1 s ({waveform.shape[-1]} samples).")
        if waveform.abs().max() < 1e-4:
            raise ValueError(f"{task.path} is silent (peak below -80 dB).")
    except (ValueError, OSError) as error:
        return str(error)
    samples = waveform.reshape(config.channels, -1).T.numpy() / max(1.0, float(waveform.abs().max()))
    parts = task.parts if len(samples) >= _CUT_SECONDS * rate or len(task.parts) == 1 else (("train", 0.0, 1.0),)
    result = []
    for split, begin, end in parts:
        piece = samples[round(begin * len(samples)) : round(end * len(samples))]
        name = task.row["recording"] if split == "train" or len(parts) == 1 else f"{task.row['recording']} ({split})"
        result.append((split, {**task.row, "recording": name}, encode_segments(piece, rate), len(piece)))
    return result


def _write(
    tasks: list[_Task], folder: Path, building: Path, config: BuildConfig, progress: bool
) -> tuple[dict, list[str]]:
    """Write all shards; once more without the unusable files where these leave a held-out split empty."""
    skipped: list[dict] = []
    while True:
        notes = _plan(tasks, config)
        shutil.rmtree(building / "data", ignore_errors=True)
        (building / "data").mkdir()
        writers, reasons = _write_shards(tasks, building, config, progress)
        # The report may be published: it names files inside the folder, not where the folder is.
        skipped += [
            {"file": path.relative_to(folder).as_posix(), "reason": reason.replace(f"{folder}{os.sep}", "")}
            for path, reason in reasons.items()
        ]
        planned = {part[0] for task in tasks for part in task.parts}
        usable = [task for task in tasks if task.path not in reasons]
        if not usable:
            raise ValueError(f"No file in {folder} is usable; the first: {skipped[:3]}.")
        if planned <= writers.keys() or not reasons:
            break
        tasks = usable
    if len(usable) == 1 and len(writers) > 1:
        notes.append("There is one recording: its end is held out. Metrics tell little about other recordings.")
    elif len(tasks) == 1 and planned - writers.keys():
        notes.append(f"validation and test are missing: one recording, shorter than {_CUT_SECONDS:g} s.")
    licenses = [task.row["license"] for task in usable]
    columns = sorted({column for task in tasks for column in task.row} - {"recording"})
    splits = {
        name: {
            "recordings": writer.recordings,
            "hours": round(writer.total / config.sampling_rate / 3600, 4),
            "shards": writer.shards,
        }
        for name, writer in sorted(writers.items())
    }
    counted = {name: licenses.count(name) for name in sorted(set(licenses))}
    return {"splits": splits, "licenses": counted, "skipped": skipped, "notes": notes}, columns


def _write_shards(
    tasks: Sequence[_Task], building: Path, config: BuildConfig, progress: bool
) -> tuple[dict[str, ShardWriter], dict[Path, str]]:
    columns = sorted({column for task in tasks for column in task.row} - {"recording"})
    limit = config.shard_minutes * 60 * config.sampling_rate
    writers: dict[str, ShardWriter] = {}
    reasons: dict[Path, str] = {}
    with ThreadPoolExecutor(config.workers) as pool:  # decoding and encoding release the lock
        results = pool.map(lambda task: _decode(task, config), tasks)
        bar = tqdm(results, total=len(tasks), desc="building", disable=not progress)
        for task, result in zip(tasks, bar, strict=True):
            if isinstance(result, str):
                reasons[task.path] = result
                continue
            for split, row, segments, samples in result:
                if split not in writers:
                    writers[split] = ShardWriter(building / "data", split, columns, limit)
                writers[split].add(row, segments, samples)
    for writer in writers.values():
        writer.flush()
    return writers, reasons


def _describe(building: Path, report: dict, config: BuildConfig, labels: list[str], columns: list[str]) -> None:
    """Write what goes beside the shards: the dataset's description, the report, the card."""
    info = {
        "format": 1,
        "sampling_rate": config.sampling_rate,
        "channels": config.channels,
        "silence_weight": config.silence_weight,
        "labels": labels,
        "columns": columns,
        "splits": report["splits"],
    }
    (building / DATASET_FILE).write_text(json.dumps(info, indent=1))
    (building / "report.json").write_text(json.dumps(report, indent=1))
    (building / "README.md").write_text(_card(report, config, labels))


def _card(report: dict, config: BuildConfig, labels: list[str]) -> str:
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
    kind = {1: "Mono", 2: "Stereo"}.get(config.channels, f"{config.channels} channels")
    lines += ["", f"{kind}, {config.sampling_rate} samples per second, FLAC segments of at most {SEGMENT_SECONDS} s."]
    lines += [f"Labels: {', '.join(labels)}."] if 0 < len(labels) <= 100 else []
    lines += report["notes"]
    lines += ["Each row names licence and attribution of its recording.", "", "Made by `melreformer data build` of"]
    lines += [
        "[melreformer_hf](https://pypi.org/project/melreformer_hf); its trainings take this dataset's id as `--dataset`."
    ]
    return "\n".join([*lines, ""])


__all__ = ["DATASET_FILE", "LABEL_OF_FOLDER", "BuildConfig", "build_dataset"]
