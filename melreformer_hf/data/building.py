"""From a folder of audio files to sharded Parquet: decoded and resampled once, so that no epoch is slower than another."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from melreformer_hf._files import replacing_folder
from melreformer_hf.audio.io import AUDIO_SUFFIXES, read_audio
from melreformer_hf.data.shard_writing import DATASET_FILE, SEGMENT_SECONDS, ShardWriter, encode_segments
from melreformer_hf.data.sources import Source, check_output, describe_sources, labels_of
from melreformer_hf.data.splits import HELD_OUT, assign_splits

MAX_SAMPLING_RATE = 655350
MAX_CHANNELS = 8
UNREAD_SUFFIXES = (
    *(".m4a", ".aac", ".mp4", ".wma", ".aif", ".aiff", ".opus", ".ape", ".wv", ".alac", ".amr", ".au", ".caf", ".mka"),
    *(".webm", ".m4b", ".oga", ".ra", ".dsf", ".mp2", ".ac3"),
)
# A lone recording that is at least this long is held out in part.
_CUT_SECONDS = 30.0


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


# Which part of a recording goes to which split: split, begin, end; shares of its length.
_Parts = tuple[tuple[str, float, float], ...]


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
    check_output(output, config.overwrite, DATASET_FILE)
    files, unread = _find_files(folder)
    sources = describe_sources(files, folder, config.metadata, config.license, config.label)
    with replacing_folder(output) as building:
        report, columns = _write(sources, folder, building, config, progress)
        report["skipped"] += unread
        _describe(building, report, config, labels_of(sources), columns)
    return report


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


def _plan(sources: Sequence[Source], config: BuildConfig) -> tuple[dict[Path, _Parts], list[str]]:
    """The parts of every recording, and notes."""
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    if len(sources) == 1 and sources[0].split in (None, "train") and any(fractions.values()):
        parts, end = [], 1.0
        for split in reversed(HELD_OUT):
            parts += [(split, end - fractions[split], end)] if fractions[split] else []
            end -= fractions[split]
        return {sources[0].path: (("train", 0.0, end), *reversed(parts))}, []
    splits, notes = assign_splits({source.recording: source.split for source in sources}, *fractions.values())
    return {source.path: ((splits[source.recording], 0.0, 1.0),) for source in sources}, notes


def _decode(source: Source, parts: _Parts, config: BuildConfig) -> list[tuple[str, dict, list[bytes], int]] | str:
    """(split, row, segments, samples) of every part, or why the file cannot be used."""
    rate = config.sampling_rate
    try:
        waveform, _ = read_audio(source.path, rate, channels=config.channels)
        if waveform.shape[-1] < rate // 10:
            raise ValueError(f"{source.path} is shorter than 0.1 s ({waveform.shape[-1]} samples).")
        if waveform.abs().max() < 1e-4:
            raise ValueError(f"{source.path} is silent (peak below -80 dB).")
    except (ValueError, OSError) as error:
        return str(error)
    samples = waveform.reshape(config.channels, -1).T.numpy() / max(1.0, float(waveform.abs().max()))
    if len(parts) > 1 and len(samples) < _CUT_SECONDS * rate:
        parts = (("train", 0.0, 1.0),)
    result = []
    for split, begin, end in parts:
        piece = samples[round(begin * len(samples)) : round(end * len(samples))]
        name = source.recording if split == "train" or len(parts) == 1 else f"{source.recording} ({split})"
        result.append((split, {**source.row, "recording": name}, encode_segments(piece, rate), len(piece)))
    return result


def _write(
    sources: list[Source], folder: Path, building: Path, config: BuildConfig, progress: bool
) -> tuple[dict, list[str]]:
    """Write all shards; once more without the unusable files where these leave a held-out split empty."""
    skipped: list[dict] = []
    while True:
        plan, notes = _plan(sources, config)
        shutil.rmtree(building / "data", ignore_errors=True)
        (building / "data").mkdir()
        writers, reasons = _write_shards(sources, plan, building, config, progress)
        # The report may be published: it names files inside the folder, not where the folder is.
        skipped += [
            {"file": path.relative_to(folder).as_posix(), "reason": reason.replace(f"{folder}{os.sep}", "")}
            for path, reason in reasons.items()
        ]
        planned = {part[0] for parts in plan.values() for part in parts}
        usable = [source for source in sources if source.path not in reasons]
        if not usable:
            raise ValueError(f"No file in {folder} is usable; the first: {skipped[:3]}.")
        if planned <= writers.keys() or not reasons:
            break
        sources = usable
    if len(usable) == 1 and len(writers) > 1:
        notes.append("There is one recording: its end is held out. Metrics tell little about other recordings.")
    elif len(sources) == 1 and planned - writers.keys():
        notes.append(f"validation and test are missing: one recording, shorter than {_CUT_SECONDS:g} s.")
    licenses = [source.row["license"] for source in usable]
    splits = {
        name: {
            "recordings": writer.recordings,
            "hours": round(writer.total / config.sampling_rate / 3600, 4),
            "shards": writer.shards,
        }
        for name, writer in sorted(writers.items())
    }
    counted = {name: licenses.count(name) for name in sorted(set(licenses))}
    report = {"splits": splits, "licenses": counted, "skipped": skipped, "notes": notes}
    return report, _columns(sources)


def _columns(sources: Sequence[Source]) -> list[str]:
    return sorted({column for source in sources for column in source.row} - {"recording"})


def _write_shards(
    sources: Sequence[Source], plan: dict[Path, _Parts], building: Path, config: BuildConfig, progress: bool
) -> tuple[dict[str, ShardWriter], dict[Path, str]]:
    columns, limit = _columns(sources), config.shard_minutes * 60 * config.sampling_rate
    writers: dict[str, ShardWriter] = {}
    reasons: dict[Path, str] = {}
    with ThreadPoolExecutor(config.workers) as pool:  # decoding and encoding release the lock
        results = pool.map(lambda source: _decode(source, plan[source.path], config), sources)
        bar = tqdm(results, total=len(sources), desc="building", disable=not progress)
        for source, result in zip(sources, bar, strict=True):
            if isinstance(result, str):
                reasons[source.path] = result
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
    lines += ["`melreformer_hf`; its trainings take this dataset's id as `--dataset`."]
    return "\n".join([*lines, ""])


__all__ = ["DATASET_FILE", "BuildConfig", "build_dataset"]
