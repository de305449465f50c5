"""Speed, time to first audio and memory of music by way of notes: composer, performer, vocoder.

    python benchmarks/notes.py --threads 2
    python benchmarks/notes.py --seconds 60 --seeds 0 1 2 3 --composer runs/composer/final

Pieces differ in how many notes they have, and notes are what costs: so several seeds, notes per minute beside each speed,
and the composer's share in milliseconds of processor time per note, which other programs on the machine change least.

Each length runs in a process of its own, so that the peak memory (resident set) is that of the length alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

WARM_UP_SECONDS = 3.0
MOST_ALONE_SECONDS = 30.0  # of the composer alone


def measure(checkpoint: str, composer: str | None, seconds: float, seeds: Sequence[int], threads: int) -> list[dict]:
    """Stream one piece per seed: seconds to the first chunk and to the end, notes, processor milliseconds that composing
    takes per note when it runs alone, and the peak resident set in MB."""
    import torch

    from melreformer_hf import MidiGenerationPipeline, NoteTransformerModel

    torch.set_num_threads(threads)
    parts = {} if composer is None else {"composer": NoteTransformerModel.from_pretrained(composer).eval()}
    pipe = MidiGenerationPipeline.from_pretrained(checkpoint, **parts)
    # First calls allocate and choose kernels.
    for _ in pipe.stream(WARM_UP_SECONDS, generator=torch.Generator().manual_seed(999)):
        pass
    rows = []
    for seed in seeds:
        notes, first, made = [], None, 0
        started = time.perf_counter()
        for chunk in pipe.stream(
            seconds, generator=torch.Generator().manual_seed(seed), callback_on_note=notes.append
        ):
            first = first or time.perf_counter() - started
            made += chunk.shape[-1]
        total, length = time.perf_counter() - started, made / pipe.sampling_rate
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"seed": seed, "first": first, "total": total, "ratio": length / total, "peak_mb": peak})
        rows[-1]["notes_per_minute"] = 60 * len(notes) / length
    torch.set_num_threads(1)
    started = time.thread_time()
    composed = pipe.compose(min(seconds, MOST_ALONE_SECONDS), generator=torch.Generator().manual_seed(seeds[0])).notes
    milliseconds = 1000 * (time.thread_time() - started) / max(len(composed), 1)
    return [{**row, "ms_per_note": milliseconds} for row in rows]


def run_one(arguments: argparse.Namespace, seconds: float) -> list[dict]:
    """Measure one length in a process of its own."""
    command = [sys.executable, __file__, "--one", "--checkpoint", arguments.checkpoint, "--seconds", str(seconds)]
    command += ["--threads", str(arguments.threads), "--seeds", *map(str, arguments.seeds)]
    command += [] if arguments.composer is None else ["--composer", arguments.composer]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as commands choose it
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(result.stdout.strip().splitlines()[-1])


def main(words: Sequence[str] | None = None) -> None:
    """Print one row per length and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="piano-tiny", help="bundled name, folder or Hub id")
    parser.add_argument("--composer", help="folder of another composer, in place of the checkpoint's")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads; with two or more, one of them composes while others play"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        default=[10.0, 60.0, 600.0],
        help="lengths; memory should not grow with them",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one piece of each length for each")
    parser.add_argument("--one", action="store_true", help="measure the only length in this process, print JSON")
    arguments = parser.parse_args(words)
    if arguments.one:
        rows = measure(
            arguments.checkpoint, arguments.composer, arguments.seconds[0], arguments.seeds, arguments.threads
        )
        print(json.dumps(rows))
        return
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.checkpoint}")
    print(
        "| seconds | seed | notes per minute | times real time | first audio after (s) | composing (processor ms per note) "
        "| peak resident set (MB) |"
    )
    print("|---|---|---|---|---|---|---|")
    for seconds in arguments.seconds:
        for row in run_one(arguments, seconds):
            print(
                f"| {seconds:g} | {row['seed']} | {row['notes_per_minute']:.0f} | {row['ratio']:.1f} | {row['first']:.2f} | "
                f"{row['ms_per_note']:.1f} | {row['peak_mb']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
