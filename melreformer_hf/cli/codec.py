"""`melreformer encode` and `melreformer decode`."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melreformer_hf._threads import choose_threads
from melreformer_hf.cli.errors import check_output_file
from melreformer_hf.cli.generate import PIPE, Device, Threads, choose_device, quiet_libraries, record, speed

if TYPE_CHECKING:
    from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel

SUFFIX = ".mrc"

Codec = Annotated[
    str,
    typer.Option(help="The codec: folder of a trained one (`melreformer train codec`), or Hub id such as user/name."),
]


def encode(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3; - reads a WAV file from standard input.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT.mrc", help="File of codes; - writes to standard output.")],
    codec: Codec,
    bitrate: Annotated[
        float | None,
        typer.Option(metavar="KBPS", help="Kilobits per second, at most. Default: all levels of the codec."),
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Compress a recording to codes, of any length at constant memory.

    What is killed leaves no file: the codes grow beside it under another name. Bits are counted, header and checksums
    included.

    Example: melreformer encode song.mp3 song.mrc --codec runs/codec_tiny/best --bitrate 3
    """
    from tqdm import tqdm

    from melreformer_hf._files import replacing
    from melreformer_hf.audio.io import stream_audio
    from melreformer_hf.pipelines.coding import encode_stream

    if output != PIPE:
        check_output_file(Path(output), SUFFIX)
    model = load_codec(codec, device, threads)
    rate, pieces = stream_audio(sys.stdin.buffer if source == PIPE else source, model.config.audio_channels)
    started = time.perf_counter()
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(unit_scale=1 / model.config.sampling_rate, desc="encoded", bar_format="{desc}: {n:.1f} s [{elapsed}]")
        )
        if output == PIPE:
            file = sys.stdout.buffer
        else:
            file = stack.enter_context(open(stack.enter_context(replacing(output)), "wb"))
        coded = encode_stream(model, pieces, rate, file, bitrate, bar.update)
    if not coded.num_samples:
        typer.echo("the recording is empty; so is the file", err=True)
    took = max(time.perf_counter() - started, 1e-9)
    name = "standard output" if output == PIPE else output
    typer.echo(
        f"wrote {name}: {coded.seconds:.1f} s in {coded.num_bytes:,} bytes, {coded.kbps:.2f} kbit/s, "
        f"{speed(coded.seconds / took)}",
        err=output == PIPE,
    )


def decode(
    source: Annotated[str, typer.Argument(metavar="FILE.mrc", help="File of codes; - reads from standard input.")],
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="WAV, FLAC, OGG or MP3; - writes WAV to standard output.")
    ],
    codec: Codec,
    partial: Annotated[
        bool, typer.Option("--partial", help="Of a damaged file or one that breaks off: decode what lies before.")
    ] = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Make a recording of codes audible.

    A damaged file, or one that is not complete, is refused with the byte at which that shows; --partial decodes what lies
    before it.

    Example: melreformer decode song.mrc song.wav --codec runs/codec_tiny/best
    """
    from melreformer_hf.audio.io import encoding_of
    from melreformer_hf.pipelines.coding import decode_stream
    from melreformer_hf.processing.codec_files import CodecFileReader

    file = None if output == PIPE else Path(output)
    if file is not None:
        encoding_of(file)
    if source != PIPE and not Path(source).is_file():
        raise FileNotFoundError(f"No file of codes at {source}.")
    model = load_codec(codec, device, threads)
    with ExitStack() as stack:
        stream = sys.stdin.buffer if source == PIPE else stack.enter_context(open(source, "rb"))
        reader = CodecFileReader(stream)
        chunks = decode_stream(
            model, reader, partial, lambda damage: typer.echo(f"{source} is not whole. {damage}", err=True)
        )
        config, started = model.config, time.perf_counter()
        # How long it is stands at the end of the file; a WAV header of the largest size is what players of pipes expect.
        longest = (2**32 - 64) // (2 * config.audio_channels)
        path = record(chunks, file, longest, config.sampling_rate, None, 1.0, config.audio_channels, known=False)
    if path is not None:
        seconds = (reader.num_samples or reader.num_frames * config.hop_length) / config.sampling_rate
        typer.echo(f"wrote {path} ({seconds:.1f} s, {speed(seconds / max(time.perf_counter() - started, 1e-9))})")


def load_codec(name: str, device: str, threads: int | None) -> SoundStreamModel:
    """A codec on a device.

    Raises:
        ValueError: no such device, or the model is none.
    """
    import torch

    from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
    from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel

    quiet_libraries()
    choose_threads(threads)
    device = choose_device(device)
    try:
        values, _ = SoundStreamConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--codec must be the folder or Hub id of a codec, got {name}: {error}") from error
    if values.get("model_type") != SoundStreamConfig.model_type:
        raise ValueError(
            f"--codec must be the folder or Hub id of a codec (SoundStreamModel), got {name} of model type {values.get('model_type')!r}."
        )
    return SoundStreamModel.from_pretrained(name, dtype=torch.float32).eval().to(device)


__all__ = ["decode", "encode"]
