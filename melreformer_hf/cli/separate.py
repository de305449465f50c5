"""`melreformer separate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from melreformer_hf._threads import choose_threads, describe_threads
from melreformer_hf.cli.generate import Device, Threads, choose_device, quiet_libraries, speed


def separate(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3, mono or stereo.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="For the stems; made when missing.")
    ] = Path("stems"),
    checkpoint: Annotated[
        str,
        typer.Option(
            help="Pipeline: name of a bundled checkpoint, folder (of `melreformer train separation`, too), or Hub id.",
            rich_help_panel="Model",
        ),
    ] = "separation-tiny",
    suffix: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="wav|flac|ogg|mp3",
            help="Of the stems. wav holds 32-bit floats, so that the stems add up to the recording.",
        ),
    ] = "wav",
    picture: Annotated[
        bool, typer.Option(help="Write FOLDER/stems.png: mels of the recording and of its stems.")
    ] = True,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Split a recording into vocals and instrumental, of any length at constant memory.

    The two add up to the recording. What fails or is interrupted leaves no stems.

    Example: melreformer separate song.mp3 --output stems
    """
    from tqdm import tqdm

    from melreformer_hf.audio.io import audio_info, encoding_of
    from melreformer_hf.nn.stems import Stems
    from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline
    from melreformer_hf.pipelines.stem_pictures import StemPictures

    encoding_of(f"stem.{suffix}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {output}.")
    rate, _, samples = audio_info(source)
    quiet_libraries()
    choose_threads(threads)
    device = choose_device(device)
    pipe = SeparationPipeline.from_pretrained(checkpoint).to(device)
    typer.echo(f"separating with {checkpoint} on {f'cpu, {describe_threads()}' if device == 'cpu' else device}")
    pictures, started, written = StemPictures(rate, samples), time.perf_counter(), 0
    layout = "{l_bar}{bar}| {n:.1f}/{total:.1f} s [{elapsed}<{remaining}]"
    with tqdm(total=samples, unit_scale=1 / rate, desc="separated", bar_format=layout) as bar:

        def told(stems: Stems) -> None:
            nonlocal written
            written += stems.vocals.shape[-1]
            bar.update(stems.vocals.shape[-1])
            if picture:
                pictures.add(stems)

        paths = pipe.separate_file(source, output, f".{suffix}", told)
    took = max(time.perf_counter() - started, 1e-9)
    if picture:
        paths = [*paths, pictures.save(output / "stems.png")]
    typer.echo(f"wrote {', '.join(map(str, paths))} ({written / rate:.1f} s, {speed(written / rate / took)})")


__all__ = ["separate"]
