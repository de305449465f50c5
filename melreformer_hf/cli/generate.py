"""`melreformer generate` and `melreformer expand`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melreformer_hf._errors import EXIT_INTERRUPTED
from melreformer_hf._threads import choose_threads, describe_threads

if TYPE_CHECKING:
    import torch

    from melreformer_hf.nn.ideas import IdeaSample
    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
    from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline

MIN_SECONDS = 1.0
MAX_SECONDS = 6 * 3600.0
PIPE = "-"

Checkpoint = Annotated[
    str,
    typer.Option(
        help="Pipeline: name of a bundled checkpoint, folder, or Hub id such as user/name.", rich_help_panel="Model"
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write: .wav, .flac, .ogg or .mp3; a picture beside it, FILE.png, shows the mel and what it came from; "
        "FILE.mid holds its notes, where some were written. - writes WAV to standard output while it is made.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**63 - 1,
        metavar="NUMBER",
        help="The same seed gives the same music. Default: a new one, which is printed.",
    ),
]
Num = Annotated[
    int,
    typer.Option(
        "--num",
        "-n",
        min=1,
        metavar="NUMBER",
        help="Pieces, each with a seed of its own, which is printed: SEED, SEED + 1, ... in FILE-0, FILE-1, ...",
    ),
]
Peak = Annotated[
    float | None,
    typer.Option(
        max=0.0,
        metavar="DB",
        help="Level of the file's loudest sample in dB of full scale. Default: -1 for generated music, which the model "
        "plays as softly as its training data; the recording's own level for an expanded one.",
    ),
]
KeepLevel = Annotated[bool, typer.Option("--keep-level", help="Write the model's own level instead.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads. Default: at most one per available core.", rich_help_panel="Machine"),
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:NUMBER, or auto: a GPU where there is one, else the CPU.", rich_help_panel="Machine"
    ),
]

IdeaFrom = Annotated[
    str | None,
    typer.Option(
        metavar="noise|notes",
        help="What an idea is drawn from (--from idea): noise, by the idea model, so that the first sound comes at once; "
        "or notes that the composer writes first, which give it a beat. Default: notes, where the checkpoint has a composer "
        "and neither --steps nor --midi is given.",
    ),
]


def generate(
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of a piece, 1 to 21600 (6 hours). Default: the model draws a length."
        ),
    ] = None,
    output: Output = "song.wav",
    seed: Seed = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="notes|idea",
            help="What the music grows from: notes that a composer writes, or a small idea that is expanded. "
            "Default: notes, where the checkpoint has a composer.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="Denoising steps of the idea (--from idea). Default: the model's own, 4 in piano-tiny; more change little.",
        ),
    ] = None,
    idea_from: IdeaFrom = None,
    midi: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A sketch in notes (--from idea): the checkpoint's performer plays it, and its idea is expanded in place of "
            "one that is drawn. To draw something like it, see melreformer edit vary.",
        ),
    ] = None,
    num: Num = 1,
    peak: Peak = None,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Generate music and write it while it is made, with its notes and a picture.

    A composer writes notes and a performer plays them; with --from idea a small idea of the whole piece is drawn, or that
    of a MIDI file is taken, and expanded. Any length takes the same memory; what was made is kept when it is interrupted.
    Nothing is downloaded for a bundled checkpoint.

    Example: melreformer generate --seconds 20 --output song.mp3 --seed 7
    """
    files = output_names(output, num)
    check_length(seconds)
    level = None if keep_level else -1.0 if peak is None else peak
    notes = choose_source(source, steps, checkpoint, midi, idea_from) == "notes"
    pipe = load_pipeline(checkpoint, device, threads, to_stderr=output == PIPE, notes=notes)
    if notes:
        from melreformer_hf.cli.pieces import compose_files

        compose_files(pipe, files, seconds, seed, level)
        return
    pipe.set_progress_bar_config(desc="idea", unit="step")
    for file, (own, generator) in zip(files, seeds(seed, num), strict=True):
        grow_idea(pipe, file, seconds, steps, midi, idea_from, generator, level, own)


def grow_idea(
    pipe: MelReformerPipeline,
    file: Path | None,
    seconds: float | None,
    steps: int | None,
    midi: Path | None,
    idea_from: str | None,
    generator: torch.Generator,
    peak_db: float | None,
    seed: int,
) -> None:
    """Draw an idea, compose one, or take that of a sketch, and write its music."""
    from melreformer_hf.pipelines.pipeline_utils import row_generators

    started, rows = time.perf_counter(), row_generators(generator, 1)
    if idea_from is None and steps is None and None not in (pipe.composer, pipe.performer):
        idea_from = "notes"
    if midi is not None:
        drawn = pipe.idea_of_midi(midi, seconds)
    elif idea_from == "notes":
        drawn = pipe.compose_idea(seconds, generator=rows)
    else:
        drawn = pipe.sample_idea(seconds, num_inference_steps=steps, generator=rows)
    origin = f"seed {seed}" if midi is None else f"from {midi}, seed {seed}"
    render_piece(pipe, drawn, file, peak_db, origin, started, rows)


def expand(
    recording: Annotated[
        Path, typer.Argument(metavar="RECORDING", help="WAV, FLAC, OGG or MP3 file; or a MIDI file.")
    ],
    output: Output = "expanded.wav",
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of the result, 1 to 21600 (6 hours). Default: the recording's length."
        ),
    ] = None,
    synth: Annotated[
        str | None,
        typer.Option(
            metavar="performer|sampled",
            help="What plays a MIDI file: the checkpoint's performer, or the piano that comes with the package. "
            "Default: the performer, where there is one.",
        ),
    ] = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Shrink a recording to its idea and let the model expand that to full length again, as loud as the recording.

    A MIDI file is a sketch: it is played, and its idea is expanded. The bundled model knows piano only: whatever it hears,
    it plays as piano. Other changes to recordings: melreformer edit.

    Example: melreformer expand song.mp3 --output again.wav
    """
    (file,) = output_names(output, 1)
    check_length(seconds)
    if not recording.is_file():
        raise FileNotFoundError(f"No audio file at {recording}.")
    from melreformer_hf.audio.io import read_audio
    from melreformer_hf.pipelines.hearing import score_of
    from melreformer_hf.pipelines.outputs import MIDI_OUTPUTS

    sketch = score_of(recording) if recording.suffix.lower() in MIDI_OUTPUTS else None
    if sketch is None and synth is not None:
        raise ValueError(f"--synth is for MIDI files, {recording} is none; leave it out, got {synth!r}.")
    pipe = load_pipeline(checkpoint, device, threads, to_stderr=output == PIPE)
    started = time.perf_counter()
    if sketch is not None:
        drawn = pipe.idea_of_midi(sketch, seconds, synth=synth)
    else:
        drawn = pipe.idea_of(*read_audio(recording, pipe.sampling_rate), seconds)
    render_piece(pipe, drawn, file, peak, f"from {recording}", started)


def choose_source(
    source: str | None, steps: int | None, checkpoint: str, midi: Path | None = None, idea_from: str | None = None
) -> str:
    """`notes` or `idea`: what was asked for, or the best that the checkpoint has.

    Raises:
        ValueError: another word, options of the other source, or a checkpoint without it.
    """
    from melreformer_hf.pipelines.loading import parts_of

    if source not in (None, "notes", "idea"):
        raise ValueError(f"--from must be notes or idea, got {source!r}.")
    parts = parts_of(checkpoint)
    found = [name for name, part in (("notes", "composer"), ("idea", "idea")) if part in parts]
    if not found:
        raise ValueError(f"--checkpoint {checkpoint} has neither a composer nor an idea model: it generates nothing.")
    if midi is not None and steps is not None:
        raise ValueError(
            "--steps is for ideas that are drawn: that of --midi is taken as it is. See melreformer edit vary."
        )
    if midi is not None and not midi.is_file():
        raise FileNotFoundError(f"No MIDI file at {midi}.")
    check_idea_source(idea_from, steps, midi, parts)
    if source is None:
        # Steps, sketches and sources are the idea's: who names them wants one.
        named = any(value is not None for value in (steps, midi, idea_from))
        source = "idea" if named and "idea" in found else found[0]
    if source not in found:
        raise ValueError(f"--from {source}: {checkpoint} has no {'composer' if source == 'notes' else 'idea model'}.")
    if midi is not None and source == "notes":
        raise ValueError("--midi is a sketch for --from idea. To go on with its notes, see melreformer midi continue.")
    if steps is not None and source == "notes":
        raise ValueError("--steps is for --from idea: notes are written without denoising.")
    if idea_from is not None and source == "notes":
        raise ValueError("--idea-from is for --from idea: with --from notes there is no idea.")
    return source


def check_idea_source(idea_from: str | None, steps: int | None, midi: Path | None, parts: Container[str]) -> None:
    """Refuse a source of ideas that is not known, not there, or does not go with what else was asked for.

    Raises:
        ValueError: names what to change.
    """
    if idea_from not in (None, "noise", "notes"):
        raise ValueError(f"--idea-from must be noise or notes, got {idea_from!r}.")
    if idea_from is not None and midi is not None:
        raise ValueError("--idea-from and --midi both say where the idea comes from; give one of them.")
    if idea_from == "notes":
        if steps is not None:
            raise ValueError("--steps is for --idea-from noise: notes are written without denoising.")
        for part in ("composer", "performer"):
            if part not in parts:
                raise ValueError(f"--idea-from notes: the checkpoint has no {part}.")


def seeds(seed: int | None, count: int) -> Iterator[tuple[int, torch.Generator]]:
    """Seeds SEED, SEED + 1, ..., each with its generator; without a seed the first is new."""
    import torch

    first = torch.seed() % 2**32 if seed is None else seed
    for index in range(count):
        own = (first + index) % 2**63
        yield own, torch.Generator().manual_seed(own)


def output_names(output: str, count: int, notes: bool = False) -> list[Path | None]:
    """The files to write, `None` for standard output; refused before hours of work go into them.

    Args:
        output: name of a file, or `-`.
        count: pieces.
        notes: whether MIDI files may be written, too.

    Raises:
        ValueError: a suffix that is not written, a folder of that name, or several pieces for a pipe.
    """
    if output == PIPE:
        if count > 1:
            raise ValueError(f"--num must be 1 with --output -, got {count}.")
        if sys.stdout.isatty():
            raise ValueError("--output - writes WAV to standard output: pipe it, for example into aplay or a file.")
        return [None]
    from melreformer_hf.audio.io import AUDIO_SUFFIXES, encoding_of
    from melreformer_hf.pipelines.outputs import MIDI_OUTPUTS, numbered

    path = Path(output)
    if notes and path.suffix.lower() not in (*MIDI_OUTPUTS, *AUDIO_SUFFIXES):
        known = ", ".join((MIDI_OUTPUTS[0], *AUDIO_SUFFIXES))
        raise ValueError(f"--output must end in {known}, got {output!r}.")
    if not (notes and path.suffix.lower() in MIDI_OUTPUTS):
        encoding_of(path)
    if path.is_dir():
        raise ValueError(f"--output must be a file, got the folder {path}.")
    return list(numbered(path, count))


def check_length(seconds: float | None) -> None:
    """Refuse a length before the models are loaded.

    Raises:
        ValueError: shorter than a second, longer than six hours, or not a number.
    """
    if seconds is not None and not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"--seconds must be a number from {MIN_SECONDS:g} to {MAX_SECONDS:.0f} (6 hours), got {seconds:g}."
        )


def choose_device(device: str) -> str:
    """A device that is there; `auto` prefers a GPU.

    Raises:
        ValueError: an unknown device, or one that this machine or this build of torch lacks.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or not (number or "0").isdigit():
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:NUMBER, got {device!r}.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: torch {torch.__version__} finds no such device here. Use cpu or auto.")
    return device


def quiet_libraries() -> None:
    """Silence the progress bars of loading and saving, which take no time here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()


def load_pipeline(
    checkpoint: str, device: str, threads: int | None, to_stderr: bool = False, notes: bool = False
) -> MelReformerPipeline | MidiGenerationPipeline:
    """A checkpoint's pipeline of ideas, or of notes, on a device, without the progress bars of its libraries."""
    if notes:
        from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline as Pipeline
    else:
        from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline as Pipeline

    quiet_libraries()
    choose_threads(threads)
    device = choose_device(device)
    started = time.perf_counter()
    pipe = Pipeline.from_pretrained(checkpoint).to(device)
    where = f"cpu, {describe_threads()}" if device == "cpu" else device
    typer.echo(f"loaded {checkpoint} in {time.perf_counter() - started:.1f} s, on {where}", err=to_stderr)
    return pipe


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM is as Ctrl-C: what was made is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def render_piece(
    pipe: MelReformerPipeline,
    drawn: IdeaSample,
    file: Path | None,
    peak_db: float | None,
    origin: str,
    started: float,
    generator: list[torch.Generator] | None = None,
) -> None:
    """Write one idea's music, a picture beside it, and say what was written.

    Args:
        pipe: the pipeline.
        drawn: ideas (1, mel, column) and num_frames (1,).
        file: to write; `None` is standard output.
        peak_db: level of the loudest sample; `None` keeps the pipeline's.
        origin: where the idea is from, in words.
        started: when work on it began, of `time.perf_counter`.
        generator: of the row, of what an expansion that samples draws.

    Raises:
        OSError: the disk is full; what was made is kept, and the message says where.
        typer.Exit: interrupted; what was made is kept.
    """
    from melreformer_hf.plotting import MelSummary, save_idea_and_mel

    frames = int(drawn.num_frames[0])
    summary = MelSummary(frames)
    chunks = pipe.stream_idea(*drawn, callback_on_mel=lambda mel: summary.add(mel[0]), generator=generator)
    # The loudest sample is not known before the end: into a pipe the level is that of the idea made audible.
    gain = 1.0 if peak_db is None or file is not None else pipe.live_gain(drawn.ideas)
    path = record(chunks, file, frames * pipe.mel_config.hop_length, pipe.sampling_rate, peak_db, gain)
    if path is None:
        return
    picture = path.with_suffix(".png")
    save_idea_and_mel(drawn.ideas[0], summary.mel(), pipe.mel_config, picture, origin, num_frames=frames)
    seconds = frames / pipe.mel_config.frame_rate
    typer.echo(f"wrote {path} ({seconds:.1f} s, {origin}) and {picture}")
    tell_speed(seconds, started)


def record(
    chunks: Iterator[torch.Tensor],
    file: Path | None,
    samples: int,
    rate: int,
    peak_db: float | None,
    gain: float,
    channels: int = 1,
    known: bool = True,
) -> Path | None:
    """Write music while it is made, with a progress bar.

    Args:
        chunks: (1, channel, sample) one after another.
        file: to write; `None` is standard output.
        samples: how many there will be, at most where that is not known.
        rate: samples per second.
        peak_db: level of the loudest sample; `None` keeps that of the chunks.
        gain: of what goes to standard output, whose loudest sample is not known beforehand.
        channels: of the chunks.
        known: whether the number of samples is.

    Returns:
        the file, `None` for standard output.

    Raises:
        OSError: the disk is full; what was made is kept, and the message says where.
        typer.Exit: interrupted; what was made is kept.
    """
    from tqdm import tqdm

    from melreformer_hf.pipelines import writing

    layout = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of music [{elapsed}<{remaining}]"
    layout = layout if known else "{desc}: {n:.1f} s [{elapsed}]"
    with (
        _terminated_as_interrupted(),
        tqdm(total=samples, unit_scale=1 / rate, desc="music", bar_format=layout) as bar,
    ):

        def advance(chunk: torch.Tensor) -> None:
            bar.update(chunk.shape[-1])

        if file is None:
            writing.write_to_pipe(chunks, sys.stdout.buffer, samples, rate, gain, advance, channels)
            return None
        written = writing.write_stream(chunks, file, rate, peak_db, advance, channels)
    whole = f"of {samples / rate:.1f} " if known else ""
    kept = f"the {written.num_samples / rate:.1f} {whole}s that were made are in {written.path}"
    if isinstance(written.stopped, KeyboardInterrupt):
        typer.echo(f"interrupted: {kept}")
        raise typer.Exit(EXIT_INTERRUPTED)
    if written.stopped is not None:
        raise OSError(f"{_why(written.stopped)}: {kept}.") from written.stopped
    return written.path


def tell_speed(seconds: float, started: float) -> None:
    """Say how long music took; `started` is of `time.perf_counter`."""
    took = time.perf_counter() - started
    typer.echo(f"{seconds:.1f} s of music in {took:.1f} s: {speed(seconds / took)}")


def _why(error: OSError) -> str:
    """What the system says, without its numbers; a full disk in words that leave room for where the music is."""
    if error.errno == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        return "The disk is full"
    return (error.strerror or str(error)).rstrip(".")


def speed(factor: float) -> str:
    """Words for seconds of music per second of work."""
    if factor >= 1:
        return f"{factor:.1f} times faster than real time"
    return f"{1 / factor:.1f} times slower than real time"


__all__ = [
    "check_length",
    "choose_device",
    "choose_source",
    "expand",
    "generate",
    "grow_idea",
    "load_pipeline",
    "output_names",
    "quiet_libraries",
    "record",
    "seeds",
    "speed",
    "tell_speed",
]
