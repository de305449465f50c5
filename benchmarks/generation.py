"""Speed, time to first audio and memory of whole generations.

    python benchmarks/generation.py --checkpoint piano-tiny --threads 2

Each length runs in a process of its own, so that the peak memory (resident set) is that of the length alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time


def measure(checkpoint: str, seconds: float, threads: int, steps: int) -> dict[str, float]:
    """Stream one piece; seconds to the first chunk and to the end, and the peak resident set in MB."""
    import torch

    from melreformer_hf import MelReformerPipeline

    torch.set_num_threads(threads)
    pipe = MelReformerPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    for _ in pipe.stream(num_inference_steps=2, audio_length_in_s=1, generator=torch.Generator().manual_seed(1)):
        pass  # first calls allocate and choose kernels
    started = time.perf_counter()
    first, samples = None, 0
    for chunk in pipe.stream(
        num_inference_steps=steps, audio_length_in_s=seconds, generator=torch.Generator().manual_seed(0)
    ):
        first = first or time.perf_counter() - started
        samples += chunk.shape[-1]
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first": first, "total": total, "ratio": samples / pipe.sampling_rate / total, "peak_mb": peak}


def main() -> None:
    """Print one row per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="piano-tiny", help="bundled name, folder or Hub id")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of the idea")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 600.0], help="lengths")
    parser.add_argument("--one", action="store_true", help="measure the only length in this process, print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.checkpoint, arguments.seconds[0], arguments.threads, arguments.steps)))
        return
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.steps} steps")
    print("| seconds | first audio after (s) | whole (s) | times real time | peak resident set (MB) |")
    print("|---|---|---|---|---|")
    for seconds in arguments.seconds:
        command = [sys.executable, __file__, "--one", "--checkpoint", arguments.checkpoint]
        command += ["--seconds", str(seconds), "--threads", str(arguments.threads), "--steps", str(arguments.steps)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(result.stdout.strip().splitlines()[-1])
        print(
            f"| {seconds:g} | {row['first']:.2f} | {row['total']:.2f} | {row['ratio']:.1f} | {row['peak_mb']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
