"""Generate music, or expand a recording, and write it to an audio file while it is made.

    python examples/generate_music.py --seconds 60 --seed 7 --output song.mp3
    python examples/generate_music.py --recording piano.mp3 --output again.wav
    python examples/generate_music.py --checkpoint user/my-pipeline --device cuda --dtype bfloat16

Memory does not grow with the length: chunks go to the file as they come. What was made is kept when it is interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads must not spin beside other programs

import torch

from melreformer_hf import MelReformerPipeline
from melreformer_hf._threads import choose_threads
from melreformer_hf.audio.io import read_audio
from melreformer_hf.pipelines.writing import Written, write_stream

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--checkpoint",
        default="piano-tiny",
        help="pipeline: bundled name, folder, or Hub id such as user/name (default: %(default)s)",
    )
    words.add_argument(
        "--output", type=Path, default=Path("song.wav"), help=".wav, .flac, .ogg or .mp3 (default: %(default)s)"
    )
    words.add_argument(
        "--seconds",
        type=float,
        help="length of the music in seconds; default: drawn by the model, or the length of the recording",
    )
    words.add_argument("--seed", type=int, default=0, help="the same seed gives the same music (default: %(default)s)")
    words.add_argument("--steps", type=int, help="denoising steps of the idea (default: the model's own)")
    words.add_argument(
        "--recording", type=Path, help="WAV, FLAC, OGG or MP3 to shrink to its idea and expand; default: a new idea"
    )
    words.add_argument("--chunk-seconds", type=float, default=0.75, help="audio per chunk (default: %(default)s)")
    words.add_argument("--device", default="cpu", help="cpu, cuda or cuda:NUMBER (default: %(default)s)")
    words.add_argument("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    return words


def write(pipe: MelReformerPipeline, options: argparse.Namespace) -> Written:
    """Write a new piece, loud enough to hear, or an expanded recording, as loud as it was."""
    if options.recording is not None:
        waveform, rate = read_audio(options.recording, pipe.sampling_rate)
        chunks = pipe.expand_stream(
            waveform,
            rate,
            options.seconds,
            chunk_length_in_s=options.chunk_seconds,
            generator=torch.Generator().manual_seed(options.seed),
        )
    else:
        chunks = pipe.stream(
            options.seconds,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(options.seed),
            chunk_length_in_s=options.chunk_seconds,
        )
    started, samples = time.perf_counter(), 0

    def tell(chunk: torch.Tensor) -> None:
        nonlocal samples
        if samples == 0:
            print(f"first sound after {time.perf_counter() - started:.2f} s")
        samples += chunk.shape[-1]
        print(f"\r{samples / pipe.sampling_rate:7.1f} s of music", end="", file=sys.stderr, flush=True)

    peak_db = None if options.recording is not None else -1.0
    return write_stream(chunks, options.output, pipe.sampling_rate, peak_db, tell)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, generate or expand, write; a wrong value ends with one line and exit code 2."""
    words = parser()
    options = words.parse_args(arguments)
    choose_threads()
    try:
        pipe = MelReformerPipeline.from_pretrained(options.checkpoint, dtype=DTYPES[options.dtype]).to(options.device)
        started = time.perf_counter()
        written = write(pipe, options)
    except (ValueError, OSError) as error:
        words.error(str(error))
    seconds, took = written.num_samples / pipe.sampling_rate, time.perf_counter() - started
    print(f"\nwrote {written.path}: {seconds:.1f} s of music in {took:.1f} s, {seconds / took:.2f} x real time")
    if written.stopped is not None:
        words.error(f"stopped before the end: {written.stopped!r}")


if __name__ == "__main__":
    main()
