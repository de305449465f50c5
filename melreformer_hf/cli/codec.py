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
    from melreformer_hf.pipelines.codecs import Codec as LoadedCodec

SUFFIX = ".mrc"
_LONGEST = (2**32 - 64) // 2  # samples: a WAV header of the largest size is what players of pipes expect

Codec = Annotated[
    str,
    typer.Option(
        help="The codec: name of a bundled one, folder of a trained one (`melreformer train codec`), or Hub id such as "
        "user/name; also an EnCodec, DAC or Mimi of transformers, such as facebook/encodec_24khz."
    ),
]
BUNDLED_CODEC = "codec-tiny"


def encode(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="WAV, FLAC, OGG or MP3; - reads a WAV file from standard input.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT.mrc", help="File of codes; - writes to standard output.")],
    codec: Codec = BUNDLED_CODEC,
    bitrate: Annotated[
        float | None,
        typer.Option(metavar="KBPS", help="Kilobits per second, at most. Default: all levels of the codec."),
    ] = None,
    entropy: Annotated[
        bool,
        typer.Option("--entropy", help="Shorten the codes, without loss, with the codec's language model; slower."),
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="There and back, hop by hop, as on a line: OUT is what is heard at the other end, a recording.",
        ),
    ] = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Compress a recording to codes, of any length at constant memory.

    What is killed leaves no file: the codes grow beside it under another name. Bits are counted, header and checksums
    included.

    Example: melreformer encode song.mp3 song.mrc --bitrate 3
    """
    if live:
        _live(source, output, codec, bitrate, entropy, threads, device)
        return
    from tqdm import tqdm

    from melreformer_hf._files import replacing
    from melreformer_hf.audio.io import stream_audio
    from melreformer_hf.pipelines.codecs import load_entropy
    from melreformer_hf.pipelines.coding import encode_stream

    if output != PIPE:
        check_output_file(Path(output), SUFFIX)
    model = load(codec, device, threads)
    language_model = load_entropy(codec) if entropy else None
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
        coded = encode_stream(model, pieces, rate, file, bitrate, bar.update, entropy=language_model)
    if not coded.num_samples:
        typer.echo("the recording is empty; so is the file", err=True)
    took = max(time.perf_counter() - started, 1e-9)
    name = "standard output" if output == PIPE else output
    typer.echo(
        f"wrote {name}: {coded.seconds:.1f} s in {coded.num_bytes:,} bytes, {coded.kbps:.2f} kbit/s, "
        f"{speed(coded.seconds / took)}",
        err=output == PIPE,
    )


def _live(
    source: str, output: str, codec: str, bitrate: float | None, entropy: bool, threads: int | None, device: str
) -> None:
    """A recording there and back, hop by hop."""
    from melreformer_hf.audio.io import encoding_of, stream_audio
    from melreformer_hf.pipelines.coding import LiveTimes, round_trip

    file = None if output == PIPE else Path(output)
    if file is not None:
        encoding_of(file)
    if entropy:
        raise ValueError(
            "--entropy is for files: a line of one hop of latency has no block to shorten, got --live too."
        )
    model = load(codec, device, threads)
    config = model.config
    rate, pieces = stream_audio(sys.stdin.buffer if source == PIPE else source, config.audio_channels)
    times = LiveTimes(config.hop_length / config.sampling_rate)
    made = round_trip(model, pieces, rate, times, bitrate)
    path = record(
        made,
        file,
        _LONGEST // config.audio_channels,
        config.sampling_rate,
        None,
        1.0,
        config.audio_channels,
        known=False,
    )
    hop, mean = 1000 * times.hop_seconds, 1000 * times.total / max(times.count, 1)
    typer.echo(
        f"{'wrote ' + str(path) if path else 'heard'}: a hop of latency, {hop:.0f} ms; {mean:.1f} ms of work for each, at most "
        f"{1000 * times.longest:.1f}; {speed(max(times.real_time_factor, 1e-9))}, "
        f"{'no hop came late' if times.kept_up else 'some hops came late'}",
        err=output == PIPE,
    )


def decode(
    source: Annotated[str, typer.Argument(metavar="FILE.mrc", help="File of codes; - reads from standard input.")],
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="WAV, FLAC, OGG or MP3; - writes WAV to standard output.")
    ],
    codec: Codec = BUNDLED_CODEC,
    partial: Annotated[
        bool, typer.Option("--partial", help="Of a damaged file or one that breaks off: decode what lies before.")
    ] = False,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Make a recording of codes audible.

    A damaged file, or one that is not complete, is refused with the byte at which that shows; --partial decodes what lies
    before it.

    Example: melreformer decode song.mrc song.wav
    """
    from melreformer_hf.audio.io import encoding_of
    from melreformer_hf.pipelines.codecs import load_entropy
    from melreformer_hf.pipelines.coding import decode_stream
    from melreformer_hf.processing.codec_files import CodecFileReader

    file = None if output == PIPE else Path(output)
    if file is not None:
        encoding_of(file)
    if source != PIPE and not Path(source).is_file():
        raise FileNotFoundError(f"No file of codes at {source}.")
    model = load(codec, device, threads)
    with ExitStack() as stack:
        stream = sys.stdin.buffer if source == PIPE else stack.enter_context(open(source, "rb"))
        reader = CodecFileReader(stream)
        language_model = None if reader.header.entropy is None else load_entropy(codec)
        chunks = decode_stream(
            model,
            reader,
            partial,
            lambda damage: typer.echo(f"{source} is not whole. {damage}", err=True),
            language_model,
        )
        config, started = model.config, time.perf_counter()
        # How long it is stands at the end of the file.
        longest = _LONGEST // config.audio_channels
        path = record(chunks, file, longest, config.sampling_rate, None, 1.0, config.audio_channels, known=False)
    if path is not None:
        seconds = (reader.num_samples or reader.num_frames * config.hop_length) / config.sampling_rate
        typer.echo(f"wrote {path} ({seconds:.1f} s, {speed(seconds / max(time.perf_counter() - started, 1e-9))})")


def load(name: str, device: str, threads: int | None) -> LoadedCodec:
    """A codec on a device.

    Raises:
        ValueError: no such device, or there is no such codec.
    """
    from melreformer_hf.pipelines.codecs import load_codec

    quiet_libraries()
    choose_threads(threads)
    device = choose_device(device)
    try:
        return load_codec(name).to(device)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


__all__ = ["decode", "encode"]
