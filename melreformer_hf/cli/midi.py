"""`melreformer midi`: write notes, play them, hear them, and show them as tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melreformer_hf._files import write_text
from melreformer_hf.cli.generate import (
    PIPE,
    Checkpoint,
    Device,
    KeepLevel,
    Num,
    Peak,
    Seed,
    Threads,
    check_length,
    choose_device,
    load_pipeline,
    output_names,
    quiet_libraries,
    tell_speed,
)
from melreformer_hf.cli.pieces import compose_files, play_file, save_notes, write_files

if TYPE_CHECKING:
    import torch

    from melreformer_hf.pipelines.composing import Score
    from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline

app = typer.Typer(
    help="Music as notes: compose, continue, fill and accompany; perform MIDI files; transcribe recordings; tokens.\n\n"
    "Example: melreformer midi continue sketch.mid --seconds 60 --output piece.wav",
    no_args_is_help=True,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="MIDI file.")]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write: .mid for the notes alone; .wav, .flac, .ogg or .mp3 for music, with FILE.mid beside it. "
        "A picture, FILE.png, shows the piano roll. - writes WAV to standard output.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=10, help="Below 1 the likelier notes come more often, above 1 the unlikelier. Default: 1."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=1e-6, max=1, help="Choose among the likeliest values that together have this probability. Default: 0.98."
    ),
]
Synth = Annotated[
    str,
    typer.Option(
        help="What plays: performer, the checkpoint's own; or sampled, the piano that comes with the package."
    ),
]


@app.command("compose")
def midi_compose(
    seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Length of a piece, 1 to 21600. Default: the composer ends it."),
    ] = None,
    output: Output = "piece.wav",
    seed: Seed = None,
    num: Num = 1,
    temperature: Temperature = None,
    top_p: TopP = None,
    synth: Synth = "performer",
    peak: Peak = None,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Compose a piece from nothing, and play it.

    Example: melreformer midi compose --seconds 30 --output piece.mid --seed 7
    """
    files = output_names(output, num, notes=True)
    check_length(seconds)
    pipe = _load(checkpoint, device, threads, output, synth)
    compose_files(pipe, files, seconds, seed, _level(peak, keep_level), synth, temperature, top_p)


@app.command("continue")
def midi_continue(
    file: File,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Length of the whole piece. Default: the composer ends it."),
    ] = None,
    output: Output = "continued.wav",
    seed: Seed = None,
    num: Num = 1,
    temperature: Temperature = None,
    top_p: TopP = None,
    synth: Synth = "performer",
    peak: Peak = None,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Go on where a MIDI file ends; its own notes stay as they are.

    Example: melreformer midi continue sketch.mid --seconds 60 --output whole.mid
    """
    files = output_names(output, num, notes=True)
    check_length(seconds)
    given = _read(file)
    pipe = _load(checkpoint, device, threads, output, synth)

    def write(generator: torch.Generator) -> Score:
        return _score(
            pipe.continue_(
                given, seconds, temperature=temperature, top_p=top_p, generator=generator, output_type="notes"
            )
        )

    write_files(pipe, files, write, seed, f"after {file}", _level(peak, keep_level), synth, seconds)


@app.command("fill")
def midi_fill(
    file: File,
    start: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Where the gap begins.")],
    end: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Where it ends.")],
    output: Output = "filled.wav",
    seed: Seed = None,
    num: Num = 1,
    temperature: Temperature = None,
    top_p: TopP = None,
    synth: Synth = "performer",
    peak: Peak = None,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Write anew what lies between two times of a MIDI file; everything else stays as it is.

    Example: melreformer midi fill sketch.mid --start 10 --end 20 --output filled.mid
    """
    files = output_names(output, num, notes=True)
    if end <= start:
        raise ValueError(f"--end must lie after --start, got {start:g} and {end:g}.")
    given = _read(file)
    pipe = _load(checkpoint, device, threads, output, synth)

    def write(generator: torch.Generator) -> Score:
        return _score(
            pipe.fill(
                given, start, end, temperature=temperature, top_p=top_p, generator=generator, output_type="notes"
            )
        )

    origin = f"{file}, {start:g} to {end:g} s"
    write_files(pipe, files, write, seed, origin, _level(peak, keep_level), synth, None)


@app.command("accompany")
def midi_accompany(
    file: File,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length of the piece. Default: the melody's.")
    ] = None,
    output: Output = "accompanied.wav",
    seed: Seed = None,
    num: Num = 1,
    temperature: Temperature = None,
    top_p: TopP = None,
    synth: Synth = "performer",
    peak: Peak = None,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Write an accompaniment to the melody in a MIDI file; the melody stays as it is.

    Example: melreformer midi accompany melody.mid --output song.wav --seed 3
    """
    files = output_names(output, num, notes=True)
    check_length(seconds)
    given = _read(file)
    pipe = _load(checkpoint, device, threads, output, synth)

    def write(generator: torch.Generator) -> Score:
        return _score(
            pipe.accompany(
                given, seconds, temperature=temperature, top_p=top_p, generator=generator, output_type="notes"
            )
        )

    write_files(pipe, files, write, seed, f"to {file}", _level(peak, keep_level), synth, seconds)


@app.command("perform")
def midi_perform(
    file: File,
    output: Output = "performed.wav",
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop after so many seconds. Default: play all of it.")
    ] = None,
    synth: Synth = "performer",
    peak: Peak = None,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Play a MIDI file: its notes, velocities and sustain pedal, on the piano. Drums are left out.

    Example: melreformer midi perform sonata.mid --output sonata.flac --synth sampled
    """
    (target,) = output_names(output, 1)
    check_length(seconds)
    given = _read(file)
    pipe = _load(checkpoint, device, threads, output, synth)
    play_file(pipe, target, given, f"of {file}", _level(peak, keep_level), synth, seconds, time.perf_counter(), False)


@app.command("transcribe")
def midi_transcribe(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="WAV, FLAC, OGG or MP3 file of a piano.")],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="MIDI file to write; FILE.png shows the piano roll."),
    ] = "notes.mid",
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Write down the notes of a recording as a MIDI file.

    Example: melreformer midi transcribe recording.mp3 --output notes.mid
    """
    from melreformer_hf._threads import choose_threads
    from melreformer_hf.pipelines.outputs import MIDI_OUTPUTS

    if Path(output).suffix.lower() not in MIDI_OUTPUTS:
        raise ValueError(f"--output must end in .mid, got {output!r}.")
    (target,) = output_names(output, 1, notes=True)
    if not recording.is_file():
        raise FileNotFoundError(f"No audio file at {recording}.")
    from melreformer_hf.audio.io import read_audio
    from melreformer_hf.pipelines.composing import Score
    from melreformer_hf.processing.midi.notes import import_mido

    import_mido()  # missed before hours of listening rather than after
    quiet_libraries()
    choose_threads(threads)
    ear = _ear(checkpoint).to(choose_device(device))
    waveform, rate = read_audio(recording, ear.config.sampling_rate)
    started = time.perf_counter()
    notes = ear.transcribe(waveform, rate)
    if not notes:
        raise ValueError(f"No notes were heard in {recording}: is it silent, or no piano?")
    seconds = len(waveform) / rate
    written = save_notes(Score(notes), target, seconds, f"heard in {recording}")
    typer.echo(f"wrote {written} ({len(notes)} notes in {seconds:.1f} s)")
    tell_speed(seconds, started)


@app.command("tokenize")
def midi_tokenize(
    file: File,
    scheme: Annotated[str, typer.Option(help="arrival, interarrival or note_tuple: see docs/midi.md.")] = "arrival",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Text file for the token numbers. Default: show them."),
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="Names of the tokens instead of their numbers.")] = False,
    start: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Leave out what begins before.")
    ] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Leave out what begins later.")] = None,
) -> None:
    """Show a MIDI file as the tokens of MidiTokenizer, or write them: numbers with spaces between them.

    Example: melreformer midi tokenize song.mid --scheme note_tuple --end 10 --names
    """
    if not file.is_file():
        raise FileNotFoundError(f"No MIDI file at {file}.")
    from melreformer_hf.processing.tokenization_midi import MidiTokenizer

    tokenizer = MidiTokenizer(scheme=scheme)
    ids = tokenizer.encode_midi(str(file), start=start, end=end)
    text = " ".join(tokenizer.convert_ids_to_tokens(ids) if names else map(str, ids))
    if output is None:
        typer.echo(text)
    else:
        write_text(output, text + "\n")
        typer.echo(f"wrote {len(ids)} tokens of {tokenizer.vocab_size} to {output}")


def _score(output) -> Score:
    from melreformer_hf.pipelines.composing import Score

    return Score(output.notes[0], output.pedal[0])


def _read(file: Path) -> Score:
    """A MIDI file that has something to play, read before the models are loaded."""
    if not file.is_file():
        raise FileNotFoundError(f"No MIDI file at {file}.")
    from melreformer_hf.pipelines.hearing import score_of

    return score_of(file)


def _load(checkpoint: str, device: str, threads: int | None, output: str, synth: str) -> MidiGenerationPipeline:
    """The pipeline of notes of a checkpoint.

    Raises:
        ValueError: an unknown synthesizer, or the checkpoint has no composer.
    """
    from melreformer_hf.pipelines.loading import parts_of
    from melreformer_hf.pipelines.pipeline_midi_generation import SYNTHS
    from melreformer_hf.processing.midi.notes import import_mido

    if synth not in SYNTHS:
        raise ValueError(f"--synth must be one of {', '.join(SYNTHS)}, got {synth!r}.")
    import_mido()  # files of notes are written at the end of the work
    if missing := {"composer", "performer", "vocoder"} - parts_of(checkpoint):
        raise ValueError(f"--checkpoint {checkpoint} has no {' and no '.join(sorted(missing))}.")
    return load_pipeline(checkpoint, device, threads, to_stderr=output == PIPE, notes=True)


def _ear(checkpoint: str):
    """The ear of a pipeline's checkpoint, or one that was saved alone."""
    from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
    from melreformer_hf.pipelines.loading import locate, parts_of

    if (Path(checkpoint) / "config.json").is_file():
        return NoteEarModel.from_pretrained(checkpoint).eval()
    if "ear" not in parts_of(checkpoint):
        raise ValueError(f"--checkpoint {checkpoint} has no ear: it cannot transcribe.")
    folder = locate(checkpoint)
    if folder is None:
        return NoteEarModel.from_pretrained(checkpoint, subfolder="ear").eval()
    return NoteEarModel.from_pretrained(folder / "ear").eval()


def _level(peak: float | None, keep_level: bool) -> float | None:
    return None if keep_level else -1.0 if peak is None else peak


__all__ = ["app"]
