"""`melreformer generate` and `melreformer expand`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from melreformer_hf.cli.errors import check_output_file

Checkpoint = Annotated[str, typer.Option(help="Pipeline: bundled name, folder, or Hub id.", rich_help_panel="Model")]


def generate(
    seconds: Annotated[float | None, typer.Option(help="Length; left out, the model draws one.")] = None,
    output: Annotated[Path, typer.Option(help="WAV file to write; a picture goes beside it.")] = Path("song.wav"),
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same music. Default: a new one.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the idea.")] = 20,
    num_waveforms: Annotated[int, typer.Option(min=1, help="Pieces to generate.")] = 1,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
) -> None:
    """Generate music and write it as a WAV file, with a picture of its mel and idea.

    Example: melreformer generate --seconds 20 --output song.wav --seed 7
    """
    check_output_file(output, ".wav")
    check_seconds(seconds)
    pipe = load_pipeline(checkpoint, device, threads)
    import torch

    seed = torch.seed() % 2**32 if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    result = pipe(
        num_inference_steps=steps,
        audio_length_in_s=seconds,
        num_waveforms_per_prompt=num_waveforms,
        generator=generator,
    )
    _report(result, output, time.perf_counter() - started, f"seed {seed}")


def expand(
    recording: Annotated[Path, typer.Argument(help="WAV, FLAC, OGG or MP3 file.")],
    output: Annotated[Path, typer.Option(help="WAV file to write; a picture goes beside it.")] = Path("expanded.wav"),
    seconds: Annotated[float | None, typer.Option(help="Length of the result; default: the recording's.")] = None,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
) -> None:
    """Shrink a recording to its idea and let the model expand that to full length again.

    Example: melreformer expand song.mp3 --output again.wav
    """
    check_output_file(output, ".wav")
    check_seconds(seconds)
    if not recording.is_file():
        raise FileNotFoundError(f"No audio file at {recording}.")
    from melreformer_hf.audio.io import read_audio

    pipe = load_pipeline(checkpoint, device, threads)
    waveform, rate = read_audio(recording, pipe.sampling_rate)
    started = time.perf_counter()
    result = pipe.expand(waveform, rate, audio_length_in_s=seconds)
    _report(result, output, time.perf_counter() - started, f"from {recording}")


def check_seconds(seconds: float | None) -> None:
    """Refuse a length before the models are loaded; the pipeline knows the upper bound.

    Raises:
        ValueError: zero, negative, infinite or not a number.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be a positive number, got {seconds}.")


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


def load_pipeline(checkpoint: str, device: str, threads: int | None):
    """The pipeline, on a device, without the progress bars of its libraries."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(device)
    started = time.perf_counter()
    pipe = MelReformerPipeline.from_pretrained(checkpoint).to(device)
    typer.echo(f"loaded {checkpoint} in {time.perf_counter() - started:.1f} s, on {device}")
    return pipe


def _report(result, output: Path, seconds: float, origin: str) -> None:
    from melreformer_hf.audio.pictures import idea_and_mel

    for index, path in enumerate(result.save(output)):
        frames = int(result.num_frames[index])
        picture = path.with_suffix(".png")
        idea_and_mel(result.ideas[index], result.mels[index, :, :frames], picture)
        typer.echo(f"wrote {path} ({result.durations[index]:.1f} s, {origin}) and {picture}")
    total = sum(result.durations)
    typer.echo(f"{total:.1f} s of audio in {seconds:.1f} s: {total / seconds:.1f} times faster than real time")


__all__ = ["check_seconds", "choose_device", "expand", "generate", "load_pipeline"]
