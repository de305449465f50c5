"""`melreformer generate` and `melreformer expand`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[str, typer.Option(help="Pipeline: bundled name, folder, or Hub id.", rich_help_panel="Model")]


def generate(
    seconds: Annotated[float | None, typer.Option(help="Length; left out, the model draws one.")] = None,
    output: Annotated[Path, typer.Option(help="WAV file to write; a picture goes beside it.")] = Path("song.wav"),
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same music. Default: a new one.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the idea.")] = 20,
    num_waveforms: Annotated[int, typer.Option(min=1, help="Pieces to generate.")] = 1,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Generate music and write it as a WAV file, with a picture of its mel and idea.

    Example: melreformer generate --seconds 20 --output song.wav --seed 7
    """
    pipe = _load(checkpoint, device, threads)
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Shrink a recording to its idea and let the model expand that to full length again.

    Example: melreformer expand song.mp3 --output again.wav
    """
    from melreformer_hf.audio.io import read_audio

    pipe = _load(checkpoint, device, threads)
    waveform, rate = read_audio(recording, pipe.sampling_rate)
    started = time.perf_counter()
    result = pipe.expand(waveform, rate, audio_length_in_s=seconds)
    _report(result, output, time.perf_counter() - started, f"from {recording}")


def _load(checkpoint: str, device: str, threads: int | None):
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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


__all__ = ["expand", "generate"]
