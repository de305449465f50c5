"""Speed of the residual quantizer beside two others, in one run, repetitions interleaved.

    python benchmarks/rvq.py --threads 2

All quantise the same vectors with the same codewords, and must find the same codes. Peers: the quantizer of transformers'
EnCodec, and vector-quantize-pytorch where it is installed (`pip install vector-quantize-pytorch`).
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

from melreformer_hf.nn.quantization import ResidualVectorQuantizer

OURS, ENCODEC, LUCIDRAINS = "melreformer_hf encode", "transformers EnCodec encode", "vector-quantize-pytorch forward"
WHOLE = "melreformer_hf forward"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="examples (default: 8)")
    parser.add_argument("--dim", type=int, default=128, help="width of a vector (default: 128)")
    parser.add_argument("--frames", type=int, default=750, help="vectors per example (default: 750)")
    parser.add_argument("--quantizers", type=int, default=8, help="levels (default: 8)")
    parser.add_argument("--codes", type=int, default=1024, help="codewords per level (default: 1024)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=15, help="timed repetitions (default: 15)")
    parser.add_argument(
        "--best", action="store_true", help="the fastest repetition counts, for machines that others use meanwhile"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments = parser.parse_args()
    for name in ("batch", "dim", "frames", "quantizers", "codes", "threads", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def build_ours(arguments: argparse.Namespace, hidden: torch.Tensor) -> ResidualVectorQuantizer:
    """A quantizer whose codewords are k-means of the remainders."""
    quantizer = ResidualVectorQuantizer(
        arguments.dim, arguments.codes, arguments.quantizers, kmeans_iterations=2, restart_threshold=0.0
    )
    quantizer.to(hidden.device).initialize_codebooks(hidden, generator=torch.Generator().manual_seed(0))
    return quantizer.eval()


def build_encodec(
    arguments: argparse.Namespace, ours: ResidualVectorQuantizer
) -> Callable[[torch.Tensor], torch.Tensor]:
    config = EncodecConfig(codebook_dim=arguments.dim, codebook_size=arguments.codes, hidden_size=arguments.dim)
    peer = EncodecResidualVectorQuantizer(config)
    peer.layers = torch.nn.ModuleList(type(peer.layers[0])(config) for _ in range(arguments.quantizers))
    peer.num_quantizers = arguments.quantizers
    for level, layer in enumerate(peer.layers):
        layer.codebook.embed.copy_(ours.codebook(level).codewords)
    peer.to(ours.codebook(0).codewords.device)
    return lambda hidden: peer.encode(hidden).transpose(0, 1)


def build_lucidrains(
    arguments: argparse.Namespace, ours: ResidualVectorQuantizer
) -> Callable[[torch.Tensor], torch.Tensor]:
    from vector_quantize_pytorch import ResidualVQ

    peer = ResidualVQ(dim=arguments.dim, codebook_size=arguments.codes, num_quantizers=arguments.quantizers).eval()
    for level, layer in enumerate(peer.layers):
        layer._codebook.embed.data.copy_(ours.codebook(level).codewords[None])
    peer.to(ours.codebook(0).codewords.device)
    return lambda hidden: peer(hidden.transpose(1, 2))[1].permute(0, 2, 1)


def seconds(run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> tuple[float, float]:
    """Seconds by the clock, and seconds of processor time, which other programs on the machine disturb less."""
    started, used = time.perf_counter(), time.process_time()
    run(hidden)
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - used


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def differing_ties(
    ours: ResidualVectorQuantizer, hidden: torch.Tensor, codes: torch.Tensor, found: torch.Tensor
) -> tuple[int, float]:
    """Vectors whose codes differ, and how much farther the first different codeword is, at most, in float64."""
    differs = (codes != found).transpose(1, 2).flatten(0, 1)
    rows = differs.any(1).nonzero().flatten()
    gap = 0.0
    for row in rows.tolist():
        level = int(differs[row].nonzero()[0])
        remainder = hidden.transpose(1, 2).flatten(0, 1)[row].double()
        chosen = [table.transpose(1, 2).flatten(0, 1)[row] for table in (codes, found)]
        for before in range(level):
            remainder = remainder - ours.codebook(before).codewords[chosen[0][before]].double()
        far = [(remainder - ours.codebook(level).codewords[pair[level]].double()).square().sum() for pair in chosen]
        gap = max(gap, abs(float(far[0] - far[1])) / float(far[0]))
    return len(rows), gap


def print_table(
    times: dict[str, list[tuple[float, float]]], ties: dict[str, tuple[int, float]], typical: Callable[[tuple], float]
) -> None:
    print(
        "| quantizer | ms | times EnCodec's speed | processor ms | times EnCodec's | vectors with other codes (gap) |"
    )
    print("|---|---|---|---|---|---|")
    middles = {name: [typical(column) for column in zip(*values, strict=True)] for name, values in times.items()}
    for name, (clock, used) in middles.items():
        count, gap = ties[name]
        cells = [name, f"{1e3 * clock:.1f}", f"{middles[ENCODEC][0] / clock:.2f}"]
        cells += [f"{1e3 * used:.1f}", f"{middles[ENCODEC][1] / used:.2f}", f"{count} ({gap:.0e})" if count else "0"]
        print("| " + " | ".join(cells) + " |")


@torch.no_grad()
def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    hidden = torch.randn(arguments.batch, arguments.dim, arguments.frames).to(arguments.device)
    ours = build_ours(arguments, hidden)
    runs = {
        ENCODEC: build_encodec(arguments, ours),
        OURS: ours.encode,
        WHOLE: lambda hidden: ours(hidden).audio_codes,
    }
    if importlib.util.find_spec("vector_quantize_pytorch") is None:
        print("vector-quantize-pytorch is not installed, its row is left out.")
    else:
        runs[LUCIDRAINS] = build_lucidrains(arguments, ours)
    codes = {name: run(hidden) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, hidden))
    sizes = (
        f"[{arguments.batch}, {arguments.dim}, {arguments.frames}], {arguments.quantizers} x {arguments.codes} codes"
    )
    print(f"{processor(hidden.device)}, {arguments.threads} threads, torch {torch.__version__}; {sizes};")
    kind, typical = ("best", min) if arguments.best else ("medians", statistics.median)
    print(f"{kind} of {arguments.repeats} interleaved repetitions, no gradients\n")
    ties = {name: differing_ties(ours, hidden, codes[ENCODEC], found) for name, found in codes.items()}
    print_table(times, ties, typical)


if __name__ == "__main__":
    main()
