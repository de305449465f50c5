"""Generate music, or expand a recording, and write it to a WAV file while it is made.

    python examples/generate_music.py --seconds 60 --seed 7 --output song.wav
    python examples/generate_music.py --recording piano.mp3 --output again.wav
    python examples/generate_music.py --checkpoint user/my-pipeline --device cuda --dtype bfloat16

Memory does not grow with the length: chunks go to the file as they come.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile
import torch

from melreformer_hf import MelReformerPipeline
from melreformer_hf.audio.io import read_audio

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
    words.add_argument("--output", type=Path, default=Path("song.wav"), help="WAV file (default: %(default)s)")
    words.add_argument(
        "--seconds",
        type=float,
        help="length of the music in seconds; default: drawn by the model, or the length of the recording",
    )
    words.add_argument("--seed", type=int, default=0, help="the same seed gives the same music (default: %(default)s)")
    words.add_argument("--steps", type=int, default=20, help="denoising steps of the idea (default: %(default)s)")
    words.add_argument(
        "--recording", type=Path, help="WAV, FLAC, OGG or MP3 to shrink to its idea and expand; default: a new idea"
    )
    words.add_argument("--chunk-seconds", type=float, default=0.75, help="audio per chunk (default: %(default)s)")
    words.add_argument("--device", default="cpu", help="cpu, cuda or cuda:NUMBER (default: %(default)s)")
    words.add_argument("--dtype", choices=DTYPES, default="float32", help="precision (default: %(default)s)")
    return words


def chunks_of(pipe: MelReformerPipeline, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """(1, samples) chunks of a new piece or of an expanded recording."""
    if options.recording is not None:
        waveform, rate = read_audio(options.recording, pipe.sampling_rate)
        return pipe.expand_stream(waveform, rate, options.seconds, options.chunk_seconds)
    return pipe.stream(
        num_inference_steps=options.steps,
        audio_length_in_s=options.seconds,
        generator=torch.Generator().manual_seed(options.seed),
        chunk_length_in_s=options.chunk_seconds,
    )


def write_while_made(chunks: Iterator[torch.Tensor], path: Path, rate: int) -> float:
    """Write chunks to a 16-bit WAV file and return its length in seconds; louder than full scale is clipped."""
    temporary, samples, started = path.with_name(f".{path.name}.partial"), 0, time.perf_counter()
    try:
        with soundfile.SoundFile(str(temporary), "w", rate, channels=1, format="WAV", subtype="PCM_16") as file:
            for chunk in chunks:
                if samples == 0:
                    print(f"first sound after {time.perf_counter() - started:.2f} s")
                file.write(chunk[0].clamp(-1, 1).cpu().numpy())
                samples += chunk.shape[-1]
                print(f"\r{samples / rate:7.1f} s of music", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return samples / rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, generate or expand, write; a wrong value ends with one line and exit code 2."""
    words = parser()
    options = words.parse_args(arguments)
    if not options.output.parent.is_dir():
        words.error(f"--output: there is no folder {options.output.parent}.")
    try:
        pipe = MelReformerPipeline.from_pretrained(options.checkpoint, dtype=DTYPES[options.dtype]).to(options.device)
        started = time.perf_counter()
        seconds = write_while_made(chunks_of(pipe, options), options.output, pipe.sampling_rate)
    except (ValueError, OSError) as error:
        words.error(str(error))
    took = time.perf_counter() - started
    print(f"wrote {options.output}: {seconds:.1f} s of music in {took:.1f} s, {seconds / took:.2f} x real time")


if __name__ == "__main__":
    main()
