"""MIDI to audio with FluidSynth: hours of expressive music in minutes."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from melreformer_hf._files import replacing
from melreformer_hf.audio.io import read_audio, write_wav

MIDI_SUFFIXES = (".mid", ".midi")
METADATA_FIELDS = ("file_name", "recording", "split", "license", "attribution", "source")


@dataclass
class RenderReport:
    """What a rendering did: files written, kept from an earlier run, and failed (path, reason)."""

    rendered: list[str]
    kept: list[str]
    failed: list[tuple[str, str]]


def require_fluidsynth(soundfont: str | os.PathLike) -> None:
    """Raise with the fix in the message when the synthesizer or the sound font is missing."""
    if shutil.which("fluidsynth") is None:
        raise FileNotFoundError(
            "The program `fluidsynth` is not on the PATH. Install it, for example with `apt-get install fluidsynth`."
        )
    if not Path(soundfont).is_file():
        raise FileNotFoundError(
            f"No sound font at {soundfont}. FluidR3 (MIT licence) comes with `apt-get install fluid-soundfont-gm` "
            "as /usr/share/sounds/sf2/FluidR3_GM.sf2."
        )


def render_file(midi: Path, output: Path, soundfont: str | os.PathLike, sampling_rate: int, gain: float) -> None:
    """Render one MIDI file to a mono 16-bit WAV file.

    Raises:
        ValueError: FluidSynth fails or renders nothing.
    """
    raw = output.with_name(f".{output.stem}.partial.wav")
    command = ["fluidsynth", "-ni", "-q", "-g", str(gain), "-r", str(sampling_rate), "-T", "wav", "-F", str(raw)]
    try:
        result = subprocess.run([*command, str(soundfont), str(midi)], capture_output=True, text=True, check=False)
        if result.returncode or not raw.is_file():
            raise ValueError(f"fluidsynth failed on {midi}: {result.stderr.strip()[-300:] or 'no output'}")
        waveform, rate = read_audio(raw)
        if waveform.abs().max() < 1e-4:
            raise ValueError(f"{midi} renders to silence.")
        write_wav(output, waveform, rate)
    finally:
        raw.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a metadata CSV by file name; a `path` column (as in a manifest) serves as well as `file_name`.

    Raises:
        ValueError: not text in UTF-8, no column for the name, a row without a name, or two rows that contradict.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin the file with a mark
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from error
    columns = {str(name) for name in rows[0]} if rows else {"file_name"}
    if not {"file_name", "path"} & columns:
        raise ValueError(f"{path} must have a column file_name or path, got {sorted(columns)}.")
    named: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        name = row.get("file_name") or row.get("path")
        if not name:
            raise ValueError(f"Row {number} of {path} must name a file in column file_name or path, got {row}.")
        if named.get(name, row) != row:
            raise ValueError(f"{path} tells two things about {name!r}; the second time in row {number}.")
        named[name] = row
    return named


def find_row(metadata: dict[str, dict[str, str]], file: Path, root: Path) -> dict[str, str]:
    """The metadata row of a file: by its path inside `root`, or by any suffix of its full path."""
    relative = file.relative_to(root).as_posix()
    if relative in metadata:
        return metadata[relative]
    parts = file.resolve().parts
    for start in range(1, len(parts)):
        row = metadata.get("/".join(parts[start:]))
        if row is not None:
            return row
    return {}


def check_metadata(metadata: dict[str, dict[str, str]], files: list[Path], root: Path) -> None:
    """Refuse metadata that names none of the files: licences and splits would be lost without a word.

    Raises:
        ValueError: there are rows, and no file has one.
    """
    if metadata and not any(find_row(metadata, file, root) for file in files):
        raise ValueError(
            f"metadata names none of the files in {root}: it has {next(iter(metadata))!r}, the folder "
            f"{files[0].relative_to(root).as_posix()!r}. Name files by their path inside the folder."
        )


def render_folder(
    midi_dir: Path,
    output: Path,
    soundfont: Path,
    *,
    metadata: Path | None = None,
    sampling_rate: int = 22050,
    gain: float = 0.5,
    workers: int = 2,
    progress: bool = True,
) -> RenderReport:
    """Render every MIDI file of a folder; files that are there already are kept, so that a second call resumes.

    Args:
        midi_dir: folder searched recursively for .mid and .midi.
        output: folder for the WAV files (same sub-folders) and `metadata.csv`.
        soundfont: SF2 or SF3 file.
        metadata: CSV with licence, attribution and split columns by file_name or path; copied to the output's.
        sampling_rate: samples per second.
        gain: FluidSynth's master gain, 0.5 leaves head room for full chords.
        workers: renderings at a time.
        progress: show a bar.

    Returns:
        RenderReport; failures are listed, not raised.

    Raises:
        FileNotFoundError: program, sound font or folder missing.
        ValueError: the folder has no MIDI file, or `metadata` names none of its files.
    """
    require_fluidsynth(soundfont)
    files = sorted(path for path in Path(midi_dir).rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)
    if not files:
        raise ValueError(f"midi_dir must hold .mid or .midi files, found none in {midi_dir}.")
    rows = read_metadata(metadata) if metadata is not None else {}
    check_metadata(rows, files, Path(midi_dir))
    report = RenderReport([], [], [])

    def render(midi: Path) -> tuple[str, str, str]:
        target = output / midi.relative_to(midi_dir).with_suffix(".wav")
        name = target.relative_to(output).as_posix()
        if target.is_file():
            return "kept", name, ""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            render_file(midi, target, soundfont, sampling_rate, gain)
        except (ValueError, OSError) as error:
            return "failed", str(midi), str(error)
        return "rendered", name, ""

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for state, name, reason in tqdm(
            pool.map(render, files), total=len(files), desc="rendering", disable=not progress
        ):
            if state == "failed":
                report.failed.append((name, reason))
            else:
                getattr(report, state).append(name)
    _write_metadata(midi_dir, output, files, rows, report)
    return report


def _write_metadata(midi_dir: Path, output: Path, files: list[Path], rows: dict, report: RenderReport) -> None:
    done = set(report.rendered) | set(report.kept)
    with replacing(output / "metadata.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, METADATA_FIELDS)
        writer.writeheader()
        for midi in files:
            name = midi.relative_to(midi_dir).with_suffix(".wav").as_posix()
            if name not in done:
                continue
            row = find_row(rows, midi, Path(midi_dir))
            writer.writerow(
                {
                    "file_name": name,
                    "recording": Path(name).with_suffix("").as_posix(),
                    "split": row.get("split", ""),
                    "license": row.get("license") or row.get("licence", ""),
                    "attribution": row.get("attribution", ""),
                    "source": row.get("source") or row.get("source_repo", ""),
                }
            )


__all__ = [
    "RenderReport",
    "check_metadata",
    "find_row",
    "read_metadata",
    "render_file",
    "render_folder",
    "require_fluidsynth",
]
