"""MIDI to audio with FluidSynth: hours of expressive music in minutes."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from melreformer_hf._files import replacing
from melreformer_hf.audio.io import read_audio, write_audio
from melreformer_hf.data.metadata import check_metadata, find_row, read_metadata

MIDI_SUFFIXES = (".mid", ".midi")
_NO_SOUND_FONT = re.compile(
    r"(failed|unable|couldn't) to (load|open) .{0,200}sound ?font|not a sound ?font", re.I | re.S
)
METADATA_FIELDS = ("file_name", "recording", "split", "license", "attribution", "source")
# Columns that are understood under another name, and become one of the fields above.
_RENAMED = ("path", "licence", "source_repo")


@dataclass
class RenderReport:
    """What a rendering did: files written, kept from an earlier run, and failed (path, reason)."""

    rendered: list[str]
    kept: list[str]
    failed: list[tuple[str, str]]


def require_fluidsynth(soundfont: str | os.PathLike) -> None:
    """Raise with the fix in the message when the synthesizer or the sound font is missing, or the file is none."""
    if shutil.which("fluidsynth") is None:
        raise FileNotFoundError(
            "The program `fluidsynth` is not on the PATH. Install it, for example with `apt-get install fluidsynth`."
        )
    if not Path(soundfont).is_file():
        raise FileNotFoundError(
            f"No sound font at {soundfont}. FluidR3 (MIT licence) comes with `apt-get install fluid-soundfont-gm` "
            "as /usr/share/sounds/sf2/FluidR3_GM.sf2."
        )
    with open(soundfont, "rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise ValueError(f"soundfont must be an SF2 or SF3 file, got {soundfont}, which is none.")


def render_file(
    midi: Path, output: Path, soundfont: str | os.PathLike, sampling_rate: int, gain: float, channels: int = 1
) -> None:
    """Render one MIDI file to a 16-bit WAV file.

    Raises:
        ValueError: FluidSynth fails, cannot load the sound font, or renders nothing.
    """
    raw = output.with_name(f".{output.stem}.partial.wav")
    command = ["fluidsynth", "-ni", "-q", "-g", str(gain), "-r", str(sampling_rate), "-T", "wav", "-F", str(raw)]
    # Without this, a sound font that fails to load is replaced by the machine's default without a word.
    command += ["-o", "synth.default-soundfont=none"]
    try:
        result = subprocess.run([*command, str(soundfont), str(midi)], capture_output=True, text=True, check=False)
        said = f"{result.stderr.strip()} {result.stdout.strip()}".strip()
        if result.returncode or not raw.is_file():
            raise ValueError(f"fluidsynth failed on {midi}: {said[-300:] or 'no output'}")
        if _NO_SOUND_FONT.search(said):
            raise ValueError(f"fluidsynth could not load the sound font {soundfont}: {said[-300:]}")
        waveform, rate = read_audio(raw, channels=channels)
        if waveform.abs().max() < 1e-4:
            raise ValueError(
                f"{midi} renders to silence: has {soundfont} the instruments that it plays? {said[-200:]}"
            )
        write_audio(output, waveform, rate)
    finally:
        raw.unlink(missing_ok=True)


def render_folder(
    midi_dir: Path,
    output: Path,
    soundfont: Path,
    *,
    metadata: Path | None = None,
    sampling_rate: int = 22050,
    gain: float = 0.5,
    channels: int = 1,
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
        channels: 1 for mono, 2 for stereo.
        workers: renderings at a time.
        progress: show a bar.

    Returns:
        RenderReport; failures are listed, not raised.

    Raises:
        FileNotFoundError: program, sound font or folder missing.
        ValueError: the folder has no MIDI file, `metadata` names none of its files, or the sound font is none.
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
            render_file(midi, target, soundfont, sampling_rate, gain, channels)
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
        others = sorted({column for row in rows.values() for column in row if column} - {*METADATA_FIELDS, *_RENAMED})
        writer = csv.DictWriter(file, (*METADATA_FIELDS, *others))
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
                    **{column: row.get(column) or "" for column in others},
                }
            )


__all__ = ["RenderReport", "render_file", "render_folder", "require_fluidsynth"]
