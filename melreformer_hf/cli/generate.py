"""`melreformer generate` and `melreformer expand`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from melreformer_hf.cli.errors import check_output_file

MIN_SECONDS = 1.0
MAX_SECONDS = 6 * 3600.0
PIECE_FRAMES = 64

Checkpoint = Annotated[
    str,
    typer.Option(
        help="Pipeline: name of a bundled checkpoint, folder, or Hub id such as user/name.", rich_help_panel="Model"
    ),
]
Peak = Annotated[
    float,
    typer.Option(
        max=0.0,
        metavar="DB",
        help="Level of the file's loudest sample in dB of full scale; the model itself is as soft as its training data.",
    ),
]
KeepLevel = Annotated[bool, typer.Option("--keep-level", help="Write the model's own level instead.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.", rich_help_panel="Machine")
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:NUMBER, or auto: a GPU where there is one, else the CPU.", rich_help_panel="Machine"
    ),
]


def generate(
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of a piece, 1 to 21600 (6 hours). Default: the model draws a length."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FILE.wav", help="WAV file to write; FILE.png beside it shows idea and mel.")
    ] = Path("song.wav"),
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            metavar="NUMBER",
            help="The same seed gives the same music. Default: a new one, which is printed.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="Denoising steps of the idea: fewer are faster, coarser.")
    ] = 20,
    num_waveforms: Annotated[
        int,
        typer.Option(
            min=1, metavar="NUMBER", help="Pieces to generate; several are numbered: FILE-0.wav, FILE-1.wav."
        ),
    ] = 1,
    peak: Peak = -1.0,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Generate music and write it as a WAV file, with a picture of its idea and mel.

    Nothing is downloaded for a bundled checkpoint.

    Example: melreformer generate --seconds 20 --output song.wav --seed 7
    """
    check_output_file(output, ".wav")
    check_seconds(seconds)
    level = None if keep_level else peak
    pipe = load_pipeline(checkpoint, device, threads)
    import torch

    seed = torch.seed() % 2**32 if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    pipe.set_progress_bar_config(desc="idea", unit="step")
    ideas, num_frames = pipe.sample_idea(steps, seconds, num_waveforms, generator)
    result = _render(pipe, ideas, num_frames)
    _report(result, pipe.mel_config, output, time.perf_counter() - started, f"seed {seed}", level)


def expand(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="WAV, FLAC, OGG or MP3 file.")],
    output: Annotated[
        Path, typer.Option(metavar="FILE.wav", help="WAV file to write; FILE.png beside it shows idea and mel.")
    ] = Path("expanded.wav"),
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Length of the result, 1 to 21600 (6 hours). Default: the recording's length."
        ),
    ] = None,
    peak: Peak = -1.0,
    keep_level: KeepLevel = False,
    checkpoint: Checkpoint = "piano-tiny",
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Shrink a recording to its idea and let the model expand that to full length again.

    The bundled model knows piano only: whatever it hears, it plays as piano.

    Example: melreformer expand song.mp3 --output again.wav
    """
    check_output_file(output, ".wav")
    check_seconds(seconds)
    level = None if keep_level else peak
    if not recording.is_file():
        raise FileNotFoundError(f"No audio file at {recording}.")
    from melreformer_hf.audio.io import read_audio

    pipe = load_pipeline(checkpoint, device, threads)
    waveform, rate = read_audio(recording, pipe.sampling_rate)
    started = time.perf_counter()
    idea, num_frames = pipe.idea_of(waveform, rate)
    if seconds is not None:
        num_frames = num_frames.new_tensor([pipe.frames_of(seconds)])
    result = _render(pipe, idea, num_frames)
    _report(result, pipe.mel_config, output, time.perf_counter() - started, f"from {recording}", level)


def check_seconds(seconds: float | None) -> None:
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


def load_pipeline(checkpoint: str, device: str, threads: int | None):
    """The pipeline, on a device, without the progress bars of its libraries."""
    import torch

    from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

    quiet_libraries()
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(device)
    started = time.perf_counter()
    pipe = MelReformerPipeline.from_pretrained(checkpoint).to(device)
    where = f"cpu, {torch.get_num_threads()} threads" if device == "cpu" else device
    typer.echo(f"loaded {checkpoint} in {time.perf_counter() - started:.1f} s, on {where}")
    return pipe


def _render(pipe, ideas, num_frames):
    """Expand ideas and make them audible below a progress bar: the samples of the pipeline's own call."""
    import torch
    from tqdm import tqdm

    from melreformer_hf.pipelines.pipeline_utils import MusicPipelineOutput

    samples, rate = num_frames * pipe.mel_config.hop_length, pipe.sampling_rate
    mels, chunks = [], []
    layout = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of music [{elapsed}<{remaining}]"
    with tqdm(total=int(samples.max()), unit_scale=1 / rate, desc="music", bar_format=layout) as bar:
        pieces = pipe.stream_idea(
            ideas, num_frames, PIECE_FRAMES / pipe.mel_config.frame_rate, callback_on_mel=mels.append
        )
        for chunk in pieces:
            chunks.append(chunk)
            bar.update(chunk.shape[-1])
    return MusicPipelineOutput(torch.cat(chunks, -1), torch.cat(mels, -1), ideas.float(), num_frames, samples, rate)


def _report(result, mel_config, output: Path, seconds: float, origin: str, level: float | None) -> None:
    from melreformer_hf.plotting import save_idea_and_mel

    for index, path in enumerate(result.save(output, level)):
        frames = int(result.num_frames[index])
        picture = path.with_suffix(".png")
        save_idea_and_mel(result.ideas[index], result.mels[index, :, :frames], mel_config, picture, origin)
        typer.echo(f"wrote {path} ({result.durations[index]:.1f} s, {origin}) and {picture}")
    typer.echo(f"{sum(result.durations):.1f} s of music in {seconds:.1f} s: {speed(sum(result.durations) / seconds)}")


def speed(factor: float) -> str:
    """Words for seconds of music per second of work."""
    if factor >= 1:
        return f"{factor:.1f} times faster than real time"
    return f"{1 / factor:.1f} times slower than real time"


__all__ = ["check_seconds", "choose_device", "expand", "generate", "load_pipeline", "quiet_libraries", "speed"]
