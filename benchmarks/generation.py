"""Speed, time to first audio and memory of whole generations.

    python benchmarks/generation.py --checkpoint piano-tiny --threads 2
    python benchmarks/generation.py --seconds 10 --load

`--load` measures beside other programs, one per core, with threads that spin while they wait, OpenMP's default, and with
what commands, the demo and streams choose.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def measure(checkpoint: str, seconds: float, threads: int, steps: int | None, whole: bool = False) -> dict[str, float]:
    """Stream one piece, or make it in one call; seconds to the first chunk and to the end, and the peak resident set in MB."""
    import torch

    from melreformer_hf import MelReformerPipeline

    torch.set_num_threads(threads)
    pipe = MelReformerPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    for _ in pipe.stream(num_inference_steps=2, audio_length_in_s=1, generator=torch.Generator().manual_seed(1)):
        pass  # first calls allocate and choose kernels
    started = time.perf_counter()
    first, samples = None, 0
    arguments = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
    for chunk in [pipe(seconds, **arguments).audios] if whole else pipe.stream(seconds, **arguments):
        first = first or time.perf_counter() - started
        samples += chunk.shape[-1]
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": first, "total": total, "ratio": samples / pipe.sampling_rate / total, "peak_mb": peak}


BUSY = "while True: pass"
# How many threads run: torch's own number, as in a whole call; as `stream` chooses when torch is loaded already; as
# commands and the demo choose, before it is loaded.
CHOICES = {
    "whole call, spinning threads": ("ACTIVE", ["--whole"]),
    "`stream`, spinning threads": ("ACTIVE", []),
    "whole call, sleeping threads": ("PASSIVE", ["--whole"]),
    "`stream`, sleeping threads (commands, demo)": ("PASSIVE", []),
}


@contextmanager
def busy_cores(programs: int) -> Iterator[None]:
    """Inside, so many other programs each keep a core busy; the load average has had time to tell."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(programs)]
    try:
        time.sleep(20)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run_one(
    arguments: argparse.Namespace, seconds: float, extra: Sequence[str] = (), policy: str | None = None
) -> dict:
    """Measure one length in a process of its own."""
    command = [sys.executable, __file__, "--one", "--checkpoint", arguments.checkpoint, "--seconds", str(seconds)]
    command += ["--threads", str(arguments.threads), *extra]
    command += [] if arguments.steps is None else ["--steps", str(arguments.steps)]
    environment = os.environ if policy is None else {**os.environ, "OMP_WAIT_POLICY": policy}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(result.stdout.strip().splitlines()[-1])


def table_under_load(arguments: argparse.Namespace) -> None:
    """Print one row per way to choose threads, alone and beside one busy program per core."""
    seconds, cores = arguments.seconds[0], os.cpu_count() or 1
    print(
        f"| {seconds:g} s of music | alone (s) | beside {cores} busy programs (s) | slowest of {arguments.repeat} (s) |"
    )
    print("|---|---|---|---|")
    alone = {name: run_one(arguments, seconds, extra, policy) for name, (policy, extra) in CHOICES.items()}
    with busy_cores(cores):
        for name, (policy, extra) in CHOICES.items():
            rows = sorted(run_one(arguments, seconds, extra, policy)["total"] for _ in range(arguments.repeat))
            middle = rows[len(rows) // 2]
            print(f"| {name} | {alone[name]['total']:.1f} | {middle:.1f} | {rows[-1]:.1f} |", flush=True)


def main() -> None:
    """Print one row per length, or with --load per way to choose threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="piano-tiny", help="bundled name, folder or Hub id")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, help="denoising steps of the idea (default: the model's own)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 600.0], help="lengths")
    parser.add_argument(
        "--load", action="store_true", help="measure the first length beside one busy program per core"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs per row of --load")
    parser.add_argument("--one", action="store_true", help="measure the only length in this process, print JSON")
    parser.add_argument("--whole", action="store_true", help="with --one: one call in place of a stream")
    arguments = parser.parse_args()
    if arguments.one:
        numbers = (arguments.seconds[0], arguments.threads, arguments.steps, arguments.whole)
        print(json.dumps(measure(arguments.checkpoint, *numbers)))
        return
    steps = "the model's own number of" if arguments.steps is None else arguments.steps
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {steps} steps")
    if arguments.load:
        table_under_load(arguments)
        return
    print("| seconds | first audio after (s) | whole (s) | times real time | peak resident set (MB) |")
    print("|---|---|---|---|---|")
    for seconds in arguments.seconds:
        row = run_one(arguments, seconds)
        print(
            f"| {seconds:g} | {row['first']:.2f} | {row['total']:.2f} | {row['ratio']:.1f} | {row['peak_mb']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
