"""`melreformer sound`: sounds of a class, gaps that are repaired, one sound turned into another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melreformer_hf._threads import choose_threads, describe_threads
from melreformer_hf.cli.generate import (
    PIPE,
    Device,
    Num,
    Seed,
    Threads,
    choose_device,
    output_names,
    quiet_libraries,
    record,
    seeds,
)

if TYPE_CHECKING:
    import torch

    from melreformer_hf.nn.token_drawing import TokenSampling
    from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

BUNDLED = "sounds-tiny"
_GUIDANCE = 2.0  # what most classes are recognised best with
app = typer.Typer(
    help="Sounds from tokens: of a class, repaired, or between two recordings.\n\n"
    "Example: melreformer sound --class dog --seed 7 --output dog.wav",
)

Checkpoint = Annotated[
    str,
    typer.Option(
        help="Pipeline of sounds: folder, Hub id such as user/name, or the name of a bundled checkpoint.",
        rich_help_panel="Model",
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write: .wav, .flac, .ogg or .mp3; a picture of the mel, FILE.png, lies beside it.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(help="Divides the logits: below 1 likelier tokens, above 1 more daring ones.", metavar="NUMBER"),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw among the likeliest so many.", metavar="NUMBER")]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw among the likeliest tokens that together reach this probability.", metavar="0..1"),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="How much the class is exaggerated: 1 not at all, 3 much. Default: 2 for a class, where the checkpoint can.",
        metavar="NUMBER",
    ),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token every time, draw nothing.")]
ClassName = Annotated[
    str | None,
    typer.Option("--class", metavar="NAME", help="Class of the sound. Default: any, where the checkpoint knows that."),
]


@app.callback(invoke_without_command=True)
def sound(
    context: typer.Context,
    name: ClassName = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length. Default: what the model sees at once.")
    ] = None,
    output: Output = "sound.wav",
    continued: Annotated[
        Path | None,
        typer.Option(
            "--continue", metavar="RECORDING", help="Go on with a recording, of which the first half is kept."
        ),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How much of --continue is kept. Default: its first half.")
    ] = None,
    seed: Seed = None,
    num: Num = 1,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    greedy: Greedy = False,
    checkpoint: Checkpoint = BUNDLED,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Draw sounds of a class, and write them.

    Example: melreformer sound --class dog --num 3 --seed 7 --output dog.wav
    """
    if context.invoked_subcommand is not None:
        return
    files = output_names(output, num)
    sampling = _sampling(greedy, temperature, top_k, top_p, guidance)
    if continued is not None:
        _check_file(continued)
    pipe = load_sounds(checkpoint, device, threads, to_stderr=output == PIPE)
    known = pipe.class_names
    if name is not None and known and name not in known:
        raise ValueError(f"--class must be one of {', '.join(known)}, got {name!r}.")
    if guidance is None and name is not None and _can_guide(pipe):
        sampling = dataclasses.replace(sampling, guidance_scale=_GUIDANCE)
    beginning = {"recording": continued, "keep_in_s": keep} if continued is not None else {"keep_in_s": keep}
    for file, (own, generator) in zip(files, seeds(seed, num), strict=True):
        made = pipe(name, seconds, **beginning, sampling=sampling, generator=generator)
        what = name or "any class"
        _write(pipe, file, made, f"{what}, seed {own}")


@app.command("repair")
def repair(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="WAV, FLAC, OGG or MP3 file.")],
    starts: Annotated[
        list[float], typer.Option("--from", metavar="SECONDS", help="Where a gap begins. Repeat it for several gaps.")
    ],
    ends: Annotated[
        list[float],
        typer.Option("--to", metavar="SECONDS", help="Where it ends; one for each --from, in their order."),
    ],
    output: Output = "repaired.wav",
    name: ClassName = None,
    seed: Seed = None,
    num: Num = 1,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = None,
    greedy: Greedy = False,
    checkpoint: Checkpoint = BUNDLED,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Fill gaps of a recording from what is on both of their sides; the rest keeps its samples.

    Example: melreformer sound repair in.wav --from 1.2 --to 1.8 --output repaired.wav
    """
    files = output_names(output, num)
    sampling = _sampling(greedy, temperature, top_k, top_p, guidance)
    _check_file(recording)
    if len(starts) != len(ends):
        raise ValueError(f"--from and --to must be as many, got {len(starts)} and {len(ends)}.")
    spans = list(zip(starts, ends, strict=True))
    pipe = load_sounds(checkpoint, device, threads, to_stderr=output == PIPE)
    told = ", ".join(f"{start:g} to {end:g} s" for start, end in spans)
    for file, (own, generator) in zip(files, seeds(seed, num), strict=True):
        made = pipe.repair(recording, spans, name, sampling=sampling, generator=generator)
        _write(pipe, file, made, f"{recording.name} repaired from {told}, seed {own}")


@app.command("interpolate")
def interpolate(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="WAV, FLAC, OGG or MP3 file: where it begins.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Where it ends.")],
    steps: Annotated[int, typer.Option(min=2, metavar="NUMBER", help="Sounds on the way, both ends included.")] = 5,
    output: Output = "between.wav",
    draw: Annotated[
        bool,
        typer.Option(
            "--draw", help="Draw tokens, with the same numbers in every step, and do not take the likeliest."
        ),
    ] = False,
    seed: Seed = None,
    checkpoint: Checkpoint = BUNDLED,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Sounds on the way from one recording to another, in FILE-0, FILE-1, ...

    Example: melreformer sound interpolate a.wav b.wav --steps 5 --output between.wav
    """
    if output == PIPE:
        raise ValueError("--output must be the name of a file: several sounds are written, got -.")
    files = output_names(output, steps)
    for file in (first, second):
        _check_file(file)
    pipe = load_sounds(checkpoint, device, threads, to_stderr=output == PIPE)
    ((own, generator),) = seeds(seed, 1)
    sampling = _sampling(not draw, 1.0, None, None, 1.0)
    made = pipe.interpolate(first, second, steps, sampling=sampling, generator=generator)
    for index, file in enumerate(files):
        share = index / (steps - 1)
        origin = f"{share:.0%} of the way from {first.name} to {second.name}, seed {own}"
        _write(pipe, file, made, origin, index)


def _can_guide(pipe: TokenGenerationPipeline) -> bool:
    """Whether the pipeline knows what is not of a class."""
    from melreformer_hf.pipelines.pipeline_utils import bare

    return pipe.class_gpt is not None and bare(pipe.class_gpt).config.null_class


def _sampling(
    greedy: bool, temperature: float, top_k: int | None, top_p: float | None, guidance: float | None
) -> TokenSampling:
    from melreformer_hf.nn.token_drawing import TokenSampling

    try:
        return TokenSampling(
            do_sample=not greedy,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=1.0 if guidance is None else guidance,
        )
    except ValueError as error:
        raise ValueError(f"--{str(error).replace('guidance_scale', 'guidance').replace('top_', 'top-')}") from error


def _check_file(recording: Path) -> None:
    if not recording.is_file():
        raise FileNotFoundError(f"No audio file at {recording}.")


def load_sounds(
    checkpoint: str, device: str, threads: int | None, option: str = "--checkpoint", to_stderr: bool = False
) -> TokenGenerationPipeline:
    """A pipeline of sounds on a device.

    Raises:
        ValueError: the checkpoint is none of sounds; names the option that asked for it.
    """
    from melreformer_hf.pipelines.loading import parts_of
    from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

    quiet_libraries()
    choose_threads(threads)
    device, started = choose_device(device), time.perf_counter()
    if "mel_vqvae" not in parts_of(checkpoint):
        raise ValueError(f"{option} must be a pipeline of sounds, with a mel_vqvae, got {checkpoint}.")
    pipe = TokenGenerationPipeline.from_pretrained(checkpoint).to(device)
    where = f"cpu, {describe_threads()}" if device == "cpu" else device
    typer.echo(f"loaded {checkpoint} in {time.perf_counter() - started:.1f} s, on {where}", err=to_stderr)
    return pipe


def _write(pipe: TokenGenerationPipeline, file: Path | None, made, origin: str, row: int = 0) -> None:
    """Write one row of an output, and a picture beside it."""
    from melreformer_hf.plotting import Panel, save_panels

    samples = int(made.num_samples[row])
    chunks: Iterator[torch.Tensor] = iter([made.audios[row : row + 1, :, :samples].cpu()])
    gain = 1.0
    if file is None and made.peak_db is not None:
        gain = 10 ** (made.peak_db / 20) / max(float(made.audios[row].abs().max()), 1e-4)
    path = record(chunks, file, samples, pipe.sampling_rate, made.peak_db, gain)
    if path is None:
        return
    picture = path.with_suffix(".png")
    panel = Panel(made.mels[row].cpu(), origin, samples / pipe.sampling_rate)
    save_panels([panel], pipe.mel_config, picture)
    typer.echo(f"wrote {path} ({samples / pipe.sampling_rate:.1f} s, {origin}) and {picture}")


__all__ = ["BUNDLED", "app", "interpolate", "load_sounds", "repair", "sound"]
