"""`melreformer edit`: change a piece in seconds, not in pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from melreformer_hf.cli.generate import (
    MAX_SECONDS,
    PIPE,
    Checkpoint,
    Device,
    Num,
    Output,
    Seed,
    Threads,
    check_length,
    load_pipeline,
    output_names,
    record,
    seeds,
    tell_speed,
)

if TYPE_CHECKING:
    import torch

    from melreformer_hf.pipelines.editing import Source
    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
    from melreformer_hf.pipelines.pipeline_utils import RowGenerators
    from melreformer_hf.plotting import MelSummary, Panel

app = typer.Typer(
    help="Edit music in seconds: vary, blend, inpaint, extend, loop, stretch and sweep recordings or MIDI files.\n\n"
    "What is kept is kept to the last sample. A strength says how much of what was there is forgotten before it is drawn "
    "anew: 0 nothing, 1 all of it. The picture beside the music shows it before and after.\n\n"
    "Example: melreformer edit inpaint song.wav --start 8 --end 11 --output mended.wav",
    no_args_is_help=True,
)

Recording = Annotated[
    Path,
    typer.Argument(
        metavar="RECORDING", help="WAV, FLAC, OGG or MP3 file; or a MIDI file, which the checkpoint's performer plays."
    ),
]
Strength = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="How much of what was there is forgotten: 0 nothing, 1 all of it.", metavar="0..1"
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="NUMBER",
        help="Denoising steps of a whole idea, of which a lesser strength takes fewer. Default: 20.",
    ),
]
Context = Annotated[
    float,
    typer.Option(
        max=MAX_SECONDS,
        metavar="SECONDS",
        help="How much of the music on each side the new music is drawn to fit.",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Length of the result, 1 to 21600. Default: the recording's length."),
]
Peak = Annotated[
    float | None,
    typer.Option(
        max=0.0,
        metavar="DB",
        help="Level of the file's loudest sample in dB of full scale. Default: as loud as the recording is.",
    ),
]
# Gets the row of a seed and what is told of the mel; gives the length in frames, and the music while it is made.
Make: TypeAlias = "Callable[[RowGenerators, Callable[[torch.Tensor], None]], tuple[int, Iterator[torch.Tensor]]]"


@app.command("vary")
def edit_vary(
    recording: Recording,
    strength: Strength = 0.5,
    output: Output = "varied.wav",
    seconds: Seconds = None,
    seed: Seed = None,
    num: Num = 1,
    steps: Steps = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Play variations of a piece: its idea is noised to a strength, denoised and expanded.

    At 0.3 the piece is still itself, at 0.6 its relative, at 1 a stranger of the same length.

    Example: melreformer edit vary song.mp3 --strength 0.6 --num 3 --seed 7 --output varied.wav
    """
    files = output_names(output, num)
    check_length(seconds)
    pipe, source = _opened(recording, checkpoint, device, threads, output)

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        drawn = pipe.vary_idea(source, strength, seconds, num_inference_steps=steps, generator=rows)
        return int(drawn.num_frames[0]), pipe.stream_idea(*drawn, callback_on_mel=told, generator=rows)

    edit = Edit(pipe, {str(recording): source}, f"{recording.name} varied by {strength:g}", peak)
    edit.write(files, seed, make)


@app.command("blend")
def edit_blend(
    first: Recording,
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another one.")],
    weight: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="0..1", help="0 is the idea of the first, 1 that of the second."),
    ] = 0.5,
    strength: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="0..1",
            help="How much the blend is then varied: two pieces that lie over one another become one.",
        ),
    ] = 0.0,
    output: Output = "blended.wav",
    seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Length of the result, 1 to 21600. Default: between the two."),
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Play what lies between two pieces: a point on the arc between their ideas, and between their lengths.

    Example: melreformer edit blend dawn.wav dusk.wav --weight 0.4 --strength 0.5 --output noon.wav
    """
    files = output_names(output, 1)
    check_length(seconds)
    _check_file(second)
    pipe, source = _opened(first, checkpoint, device, threads, output)
    other = read_source(second, pipe)

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        drawing = {"num_inference_steps": steps, "generator": rows}
        drawn = pipe.blend_ideas(source, other, weight, strength, seconds, **drawing)
        return int(drawn.num_frames[0]), pipe.stream_idea(*drawn, callback_on_mel=told, generator=rows)

    origin = f"{weight:g} of the way from {first.name} to {second.name}"
    Edit(pipe, {str(first): source, str(second): other}, origin, peak).write(files, seed, make)


@app.command("inpaint")
def edit_inpaint(
    recording: Recording,
    start: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Where the span begins.")],
    end: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Where it ends.")],
    strength: Strength = 1.0,
    context: Context = 10.0,
    output: Output = "inpainted.wav",
    seed: Seed = None,
    num: Num = 1,
    steps: Steps = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Make a span of a piece anew; the rest is kept to the last sample, but for crossfades of 46 ms.

    Example: melreformer edit inpaint song.wav --start 8 --end 11.5 --output mended.wav
    """
    files = output_names(output, num)
    if end <= start:
        raise ValueError(f"--end must lie after --start, got {start:g} and {end:g}.")
    pipe, source = _opened(recording, checkpoint, device, threads, output)

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        place = (start, end, strength, context)
        drawing = {"num_inference_steps": steps, "generator": rows, "callback_on_mel": told}
        return edit.frames, pipe.inpaint_stream(edit.sound, *place, **drawing)

    origin = f"{recording.name}, {start:g} to {end:g} s made anew"
    edit = Edit(pipe, {str(recording): source}, origin, peak, [(start, end)])
    edit.write(files, seed, make)


@app.command("extend")
def edit_extend(
    recording: Recording,
    left: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=MAX_SECONDS, help="Seconds to add before it.")
    ] = 0.0,
    right: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=MAX_SECONDS, help="Seconds to add after it.")
    ] = 0.0,
    strength: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="0..1",
            help="What is added begins as the piece in a mirror, of which so much is forgotten.",
        ),
    ] = 0.8,
    context: Context = 10.0,
    output: Output = "extended.wav",
    seed: Seed = None,
    num: Num = 1,
    steps: Steps = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Go on with a piece before its beginning, after its end, or both; the piece itself is kept to the last sample.

    Example: melreformer edit extend song.wav --right 8 --output longer.wav --seed 3
    """
    files = output_names(output, num)
    if not left and not right:
        raise ValueError("--left or --right must be above 0: there is nothing to add.")
    pipe, source = _opened(recording, checkpoint, device, threads, output)
    rate = pipe.mel_config.frame_rate
    added = [round(seconds * rate) for seconds in (left, right)]

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        drawing = {"num_inference_steps": steps, "generator": rows, "callback_on_mel": told}
        chunks = pipe.extend_stream(edit.sound, left, right, strength, context, **drawing)
        return edit.frames + sum(added), chunks

    edit = Edit(pipe, {str(recording): source}, f"{recording.name} extended", peak, begin=added[0] / rate)
    whole = edit.begin + edit.frames / rate
    edit.spans = [(0.0, edit.begin)] * (left > 0) + [(whole, whole + added[1] / rate)] * (right > 0)
    edit.write(files, seed, make)


@app.command("loop")
def edit_loop(
    recording: Recording,
    seam: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            max=MAX_SECONDS,
            help="How much is made anew, half at the end and half at the beginning.",
        ),
    ] = 2.0,
    strength: Strength = 0.8,
    context: Context = 10.0,
    output: Output = "loop.wav",
    seed: Seed = None,
    num: Num = 1,
    steps: Steps = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Make a piece whose end leads into its beginning: played again and again it has no seam.

    Example: melreformer edit loop bars.wav --seam 1.5 --output loop.wav
    """
    if Path(output).suffix.lower() == ".mp3":
        raise ValueError("--output: an MP3 file has silence at both ends, and no loop; write .wav, .flac or .ogg.")
    files = output_names(output, num)
    pipe, source = _opened(recording, checkpoint, device, threads, output)

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        made = pipe.loop(edit.sound, seam, strength, context, num_inference_steps=steps, generator=rows)
        told(made.mels)
        return edit.frames, iter([made.audios])

    edit = Edit(pipe, {str(recording): source}, f"{recording.name} as a loop", peak)
    length = edit.frames / pipe.mel_config.frame_rate
    edit.spans = [(0.0, seam / 2), (length - seam / 2, length)]
    edit.write(files, seed, make)


@app.command("stretch")
def edit_stretch(
    recording: Recording,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length of the result, 1 to 21600. Or:")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Length of the result in lengths of the recording.")
    ] = None,
    output: Output = "stretched.wav",
    seed: Seed = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Play the same idea at another duration: more or less music, not a slower or faster tape.

    Example: melreformer edit stretch song.wav --factor 2 --output twice.wav
    """
    files = output_names(output, 1)
    if (seconds is None) == (factor is None):
        raise ValueError(f"Give --seconds or --factor, one of them; got {seconds} and {factor}.")
    if factor is not None and not 0 < factor < math.inf:
        raise ValueError(f"--factor must be a number above 0, got {factor:g}.")
    check_length(seconds)
    pipe, source = _opened(recording, checkpoint, device, threads, output)
    edit = Edit(pipe, {str(recording): source}, f"{recording.name} at another duration", peak)
    wanted = seconds if factor is None else factor * edit.frames / pipe.mel_config.frame_rate
    check_length(wanted)

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        drawn = pipe.idea_from(source, wanted)
        return int(drawn.num_frames[0]), pipe.stream_idea(*drawn, callback_on_mel=told, generator=rows)

    edit.write(files, seed, make)


@app.command("sweep")
def edit_sweep(
    recording: Annotated[
        Path | None, typer.Argument(metavar="RECORDING", help="To be varied. Default: new ideas are drawn.")
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=2, max=64, metavar="NUMBER", help="Seeds.")] = 6,
    strength: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="0..1", help="Of the variations of a recording. Default: 0.5."),
    ] = None,
    output: Output = "sweep.wav",
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of each, 1 to 21600. Default: the recording's, or what the model draws."
        ),
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    peak: Peak = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Make the same with several seeds, SEED, SEED + 1, ..., and a picture of all of them to choose from: FILE.png.

    Example: melreformer edit sweep --num 6 --seconds 20 --seed 0 --output ideas.wav
    """
    files = output_names(output, num)
    check_length(seconds)
    if recording is None and strength is not None:
        raise ValueError(f"--strength is for variations of a recording; give one, or leave it out; got {strength:g}.")
    level = -1.0 if recording is None and peak is None else peak
    from melreformer_hf.plotting import save_panels

    if recording is None:
        pipe, source = load_pipeline(checkpoint, device, threads), None
    else:
        pipe, source = _opened(recording, checkpoint, device, threads, output)
    strength = 0.5 if strength is None else strength

    def make(rows: RowGenerators, told: Callable) -> tuple[int, Iterator[torch.Tensor]]:
        drawing = {"num_inference_steps": steps, "generator": rows}
        if source is None:
            drawn = pipe.sample_idea(seconds, **drawing)
        else:
            drawn = pipe.vary_idea(source, strength, seconds, **drawing)
        return int(drawn.num_frames[0]), pipe.stream_idea(*drawn, callback_on_mel=told, generator=rows)

    origin = "drawn" if recording is None else f"{recording.name} varied by {strength:g}"
    edit = Edit(pipe, {}, origin, level)
    panels = edit.write(files, seed, make)
    picture = save_panels(panels, pipe.mel_config, Path(output).with_suffix(".png"), math.isqrt(num - 1) + 1, 460)
    typer.echo(f"all of them are in {picture}")


class Edit:
    """What is written of an edit: files of music, and pictures of it before and after.

    Args:
        pipe: the pipeline.
        before: what is edited, by name.
        origin: what is done, in words.
        peak_db: level of the loudest sample; `None` keeps that of the music.
        spans: (begin, end) in seconds of what is made anew.
        begin: where what is edited begins in the result, in seconds.
    """

    def __init__(
        self,
        pipe: MelReformerPipeline,
        before: dict[str, Source],
        origin: str,
        peak_db: float | None,
        spans: Sequence[tuple[float, float]] = (),
        begin: float = 0.0,
    ) -> None:
        self.pipe, self.origin, self.peak_db, self.spans, self.begin = pipe, origin, peak_db, spans, begin
        pipe.set_progress_bar_config(desc="idea", unit="step", leave=False)
        self.before = {name: (pipe.heard(source), pipe.sampling_rate) for name, source in before.items()}

    @property
    def sound(self) -> tuple[torch.Tensor, int]:
        """What is edited, as it is heard."""
        return next(iter(self.before.values()))

    @property
    def frames(self) -> int:
        """Its length in whole frames."""
        return len(self.sound[0]) // self.pipe.mel_config.hop_length

    def write(self, files: Sequence[Path | None], seed: int | None, make: Make) -> list[Panel]:
        """Write a file and a picture for each seed from `seed` on.

        Args:
            files: to write; `None` is standard output.
            seed: of the first; `None` is a new one.
            make: makes the music.

        Returns:
            the panels of what was made, one for each file.
        """
        from melreformer_hf.pipelines.pipeline_utils import row_generators
        from melreformer_hf.plotting import MelSummary, Panel, save_panels

        config, panels = self.pipe.mel_config, []
        for file, (own, generator) in zip(files, seeds(seed, len(files)), strict=True):
            started, told = time.perf_counter(), []
            # Nothing is told before the length is known, but of a loop, which is made as a whole.
            frames, chunks = make(row_generators(generator, 1), told.append)
            summary, length = MelSummary(frames), frames / config.frame_rate
            watched = _watched(chunks, told, summary)
            path = record(watched, file, frames * config.hop_length, self.pipe.sampling_rate, self.peak_db, 1.0)
            if path is None:
                continue
            title = f"seed {own}, {self.origin}"
            panels.append(Panel(summary.mel(), f"seed {own}" if not self.before else title, length, 0.0, self.spans))
            picture = save_panels([*self._panels(), panels[-1]], config, path.with_suffix(".png"))
            typer.echo(f"wrote {path} ({length:.1f} s, {title}) and {picture}")
            tell_speed(length, started)
        return panels

    def _panels(self) -> list[Panel]:
        from melreformer_hf.audio.mel import log_mel_spectrogram
        from melreformer_hf.plotting import Panel

        config, panels = self.pipe.mel_config, []
        for name, (waveform, rate) in self.before.items():
            mel = log_mel_spectrogram(waveform, config).cpu()
            panels.append(Panel(mel, f"before: {Path(name).name}", len(waveform) / rate, self.begin))
        return panels


def _watched(chunks: Iterator[torch.Tensor], told: list[torch.Tensor], summary: MelSummary) -> Iterator[torch.Tensor]:
    """The chunks, while what is told of their mel goes into a summary, so that no mel is kept."""
    for chunk in chunks:
        while told:
            summary.add(told.pop(0)[0])
        yield chunk


def read_source(path: Path, pipe: MelReformerPipeline) -> Source:
    """What a command edits: a recording at the pipeline's rate, or the notes of a MIDI file.

    Raises:
        ValueError: a file that cannot be read.
    """
    from melreformer_hf.audio.io import read_audio
    from melreformer_hf.pipelines.hearing import score_of
    from melreformer_hf.pipelines.outputs import MIDI_OUTPUTS

    return score_of(path) if path.suffix.lower() in MIDI_OUTPUTS else read_audio(path, pipe.sampling_rate)


def _opened(
    path: Path, checkpoint: str, device: str, threads: int | None, output: str
) -> tuple[MelReformerPipeline, Source]:
    _check_file(path)
    pipe = load_pipeline(checkpoint, device, threads, to_stderr=output == PIPE)
    return pipe, read_source(path, pipe)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")


__all__ = ["Edit", "app", "read_source"]
