"""MIDI to audio, hours of expressive music in minutes: with FluidSynth, or with the package's own sampled piano.

FluidSynth plays every controller of a file, with reverb and chorus; the sampled piano plays notes, velocities and the
sustain pedal, dry and without drums, and needs no program beside the package.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from melreformer_hf._files import replacing
from melreformer_hf.audio.io import open_audio, read_audio, write_audio
from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.data.metadata import check_metadata, find_row, read_metadata
from melreformer_hf.processing.midi.notes import DRUMS, import_mido, read_notes
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.sounding import sounding_notes

MIDI_SUFFIXES = (".mid", ".midi")
SYNTHS = ("auto", "fluidsynth", "sampled")
_NO_SOUND_FONT = re.compile(
    r"(failed|unable|couldn't) to (load|open) .{0,200}sound ?font|not a sound ?font", re.I | re.S
)
# A score that lasts longer is damaged (one wrong time makes weeks of silence), and would fill the disk.
_LONGEST_SECONDS = 3 * 3600
# Softer than this is silence.
_SILENCE = 1e-4
# A synthesizer that writes nothing for so long does not go on.
_PATIENCE_SECONDS = 120.0
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
    midi: Path,
    output: Path,
    soundfont: str | os.PathLike,
    sampling_rate: int,
    gain: float,
    channels: int = 1,
    stopping: threading.Event | None = None,
) -> None:
    """Render one MIDI file to a 16-bit WAV file.

    Raises:
        ValueError: FluidSynth fails, stands still, cannot load the sound font, renders nothing or more than three hours;
            or `stopping` was set by another thread, which ends FluidSynth.
    """
    raw = output.with_name(f".{output.stem}.partial.wav")
    command = ["fluidsynth", "-ni", "-q", "-g", str(gain), "-r", str(sampling_rate), "-T", "wav", "-F", str(raw)]
    # Without this, a sound font that fails to load is replaced by the machine's default without a word.
    command += ["-o", "synth.default-soundfont=none"]
    try:
        longest = _LONGEST_SECONDS * sampling_rate * 4  # bytes: FluidSynth writes 16 bits of two channels
        code, said = _run([*command, str(soundfont), str(midi)], raw, longest, stopping or threading.Event())
        if code or not raw.is_file():
            raise ValueError(f"fluidsynth failed on {midi}: {said[-300:] or 'no output'}")
        if _NO_SOUND_FONT.search(said):
            raise ValueError(f"fluidsynth could not load the sound font {soundfont}: {said[-300:]}")
        waveform, rate = read_audio(raw, channels=channels)
        if waveform.abs().max() < _SILENCE:
            raise ValueError(
                f"{midi} renders to silence: has {soundfont} the instruments that it plays? {said[-200:]}"
            )
        write_audio(output, waveform, rate)
    finally:
        raw.unlink(missing_ok=True)


def _run(command: list[str], raw: Path, longest: int, stopping: threading.Event) -> tuple[int, str]:
    """Exit status and words of a synthesizer that writes `raw`, watched: it always comes to an end.

    Its words go to a file: a pipe would be waited for as long as any process that it started holds the other end.
    """
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words) as process:
            try:
                _watch(process, raw, longest, stopping)
            finally:
                process.kill()  # nothing happens to one that has ended
        words.seek(0)
        return process.returncode, words.read().decode(errors="replace").strip()


def _watch(process: subprocess.Popen, raw: Path, longest: int, stopping: threading.Event) -> None:
    """Wait for a synthesizer.

    Raises:
        ValueError: it stands still, writes too much, or is to be stopped.
    """
    before, since = -1, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.5)
            return
        except subprocess.TimeoutExpired:
            size = raw.stat().st_size if raw.is_file() else 0
        if size != before:
            before, since = size, time.monotonic()
        if stopping.is_set():
            raise ValueError("stopped")
        if size > longest:
            raise ValueError(f"{process.args[-1]} lasts longer than {_LONGEST_SECONDS // 3600} hours: is it damaged?")
        if time.monotonic() - since > _PATIENCE_SECONDS:
            raise ValueError(f"fluidsynth stood still for {_PATIENCE_SECONDS:g} s on {process.args[-1]}.")


def choose_synth(synth: str, soundfont: str | os.PathLike | None) -> str:
    """`fluidsynth` or `sampled`: what was asked for, or with `auto` what is at hand.

    Args:
        synth: one of `SYNTHS`; `auto` is FluidSynth where it is installed and a sound font is given.
        soundfont: file, or `None`; only the sampled piano comes with one.

    Raises:
        FileNotFoundError: FluidSynth or the sound font is missing.
        ValueError: another word, no sound font for FluidSynth, or a file that is none.
        ImportError: the sampled piano needs mido to read files.
    """
    if synth not in SYNTHS:
        raise ValueError(f"synth must be one of {SYNTHS}, got {synth!r}.")
    if synth == "auto":
        synth = "fluidsynth" if soundfont is not None and shutil.which("fluidsynth") else "sampled"
    if synth == "fluidsynth":
        if soundfont is None:
            raise ValueError("synth 'fluidsynth' needs a soundfont; only 'sampled' has one of its own.")
        require_fluidsynth(soundfont)
    else:
        import_mido()
    return synth


def render_sampled(
    midi: Path, output: Path, instrument: SampledInstrument, channels: int = 1, stopping: threading.Event | None = None
) -> None:
    """Render one MIDI file to a 16-bit WAV file with a sampled instrument; chords beyond full scale are clipped.

    Args:
        midi: the file.
        output: WAV file; its folder exists.
        instrument: what plays; its sampling rate is the file's.
        channels: 1 or 2.
        stopping: set by another thread, it ends the rendering.

    Raises:
        ValueError: a damaged MIDI file, one without notes, one that renders to silence or lasts more than three hours;
            or `stopping` was set.
    """
    notes, pedal = read_notes(midi), read_pedal(midi)
    parts = {}
    for program in sorted({note.instrument for note in notes} - {DRUMS}):
        parts[program] = sounding_notes([note for note in notes if note.instrument == program], pedal)
    if not parts:
        raise ValueError(f"{midi} holds no notes{' but drums, which are not played' if notes else ''}.")
    end = max(float(part.release.max()) for part in parts.values()) + instrument.longest_tail
    if end > _LONGEST_SECONDS:
        raise ValueError(f"{midi} lasts longer than {_LONGEST_SECONDS // 3600} hours: is it damaged?")
    samples, peak = round(end * instrument.sampling_rate), 0.0
    streams = [instrument.stream(part, samples, channels=channels, program=name) for name, part in parts.items()]
    with (
        replacing(output) as partial,
        open_audio(partial, output, instrument.sampling_rate, channels) as write,
    ):
        for pieces in zip(*streams, strict=True):
            if stopping is not None and stopping.is_set():
                raise ValueError("stopped")
            mixed = sum(pieces)
            peak = max(peak, mixed.abs().max().item())
            write(mixed)
        if peak < _SILENCE:
            programs = sorted(parts)
            raise ValueError(f"{midi} renders to silence: has {instrument.font.path} the instruments {programs}?")


def _player(
    synth: str, soundfont: Path | None, rate: int, gain: float, channels: int, stopping: threading.Event
) -> Callable[[Path, Path], None]:
    """What renders one file, from any thread; a bad font is told here, before any file."""
    if synth == "fluidsynth":
        return lambda midi, target: render_file(midi, target, soundfont, rate, gain, channels, stopping)
    spare = [SampledInstrument(soundfont, rate, gain)]

    def play(midi: Path, target: Path) -> None:
        # An instrument keeps the tones that it has made and serves one thread at a time.
        instrument = spare.pop() if spare else SampledInstrument(soundfont, rate, gain)
        try:
            render_sampled(midi, target, instrument, channels, stopping)
        finally:
            spare.append(instrument)

    return play


def render_folder(
    midi_dir: Path,
    output: Path,
    soundfont: Path | None = None,
    *,
    synth: str = "auto",
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
        soundfont: SF2 or SF3 file; default: the sampled piano's own.
        synth: `fluidsynth`, `sampled`, or `auto`, see `choose_synth`.
        metadata: CSV with licence, attribution and split columns by file_name or path; copied to the output's.
        sampling_rate: samples per second.
        gain: on FluidSynth's scale, 0.5 leaves head room for full chords.
        channels: 1 for mono, 2 for stereo.
        workers: renderings at a time.
        progress: show a bar.

    Returns:
        RenderReport; failures are listed, not raised.

    Raises:
        FileNotFoundError: program, sound font or folder missing.
        ValueError: the folder has no MIDI file, `metadata` names none of its files, or the sound font is none.
        ImportError: mido is not installed (`sampled`).
    """
    stopping = threading.Event()
    play = _player(choose_synth(synth, soundfont), soundfont, sampling_rate, gain, channels, stopping)
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
            play(midi, target)
        except (ValueError, OSError) as error:
            return "failed", str(midi), str(error)
        return "rendered", name, ""

    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for state, name, reason in tqdm(
            pool.map(render, files), total=len(files), desc="rendering", disable=not progress
        ):
            if state == "failed":
                report.failed.append((name, reason))
            else:
                getattr(report, state).append(name)
    finally:  # Ctrl-C: neither the files at hand nor those that wait are rendered before the program ends
        stopping.set()
        pool.shutdown(cancel_futures=True)
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


__all__ = [
    "SYNTHS",
    "RenderReport",
    "choose_synth",
    "render_file",
    "render_folder",
    "render_sampled",
    "require_fluidsynth",
]
