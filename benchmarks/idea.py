"""Idea model speed beside a plain diffusers UNet, in one run: `python benchmarks/idea.py --help`.

Every network denoises ideas of the same size from the same noise. The table shows parameters, operations per step,
milliseconds per step in float32 and under bfloat16 autocast, and seconds per idea with each sampler. The peer works on
single pixels, as image diffusion does. Weights are fresh unless `--model` names a folder: times hold, ideas mean nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from melreformer_hf.models.idea_unet.unet_idea import PRESETS, IdeaUNetModel, make_scheduler

PEER = "diffusers UNet2DModel on pixels"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a saved IdeaUNetModel, measured as well")
    parser.add_argument(
        "--presets", nargs="*", default=["tiny"], choices=sorted(PRESETS), help="fresh sizes (default: tiny)"
    )
    parser.add_argument("--dpm-steps", type=int, default=25, help="steps of DPM-Solver++ (default: 25)")
    parser.add_argument("--ddim-steps", type=int, default=50, help="steps of DDIM (default: 50)")
    parser.add_argument("--batch", type=int, default=1, help="ideas drawn together (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats, the fastest counts (default: 5)")
    arguments = parser.parse_args()
    if min(arguments.dpm_steps, arguments.ddim_steps, arguments.batch, arguments.threads, arguments.repeats) < 1:
        parser.error("steps, --batch, --threads and --repeats must be at least 1")
    return arguments


def build_networks(arguments: argparse.Namespace) -> dict[str, nn.Module]:
    peer = UNet2DModel(
        sample_size=(128, 256),
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 128, 160),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )
    networks: dict[str, nn.Module] = {PEER: peer}
    networks.update({f"IdeaUNetModel {name}": IdeaUNetModel.preset(name) for name in arguments.presets})
    if arguments.model is not None:
        networks[f"IdeaUNetModel {arguments.model}"] = IdeaUNetModel.from_pretrained(arguments.model)
    return {name: network.eval() for name, network in networks.items()}


def step_of(network: nn.Module, batch: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """One evaluation; the idea model is told durations, the peer knows none."""
    if isinstance(network, IdeaUNetModel):
        durations = torch.full((batch,), 11.0)
        return lambda sample, timestep: network(sample, timestep, durations).sample
    return lambda sample, timestep: network(sample, timestep).sample


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs after one that warms up."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def draw(step: Callable, sampler: str, steps: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler = make_scheduler(sampler)
    scheduler.set_timesteps(steps)
    sample = noise
    for timestep in scheduler.timesteps:
        sample = scheduler.step(step(sample, timestep).float(), timestep, sample, return_dict=False)[0]
    return sample


def measure(network: nn.Module, arguments: argparse.Namespace) -> list[float]:
    """Millions of parameters, GFLOP per idea, ms (float32, bfloat16), seconds per idea (DPM-Solver++, DDIM)."""
    step, batch, repeats = step_of(network, arguments.batch), arguments.batch, arguments.repeats
    noise = torch.randn(batch, 1, 128, 256, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor(500)
    with FlopCounterMode(display=False) as counter:
        step(noise, timestep)
    plain = fastest(lambda: step(noise, timestep), repeats)
    with torch.autocast("cpu", torch.bfloat16):
        half = fastest(lambda: step(noise, timestep), repeats)
    draws = max(1, repeats // 2)
    solver = fastest(lambda: draw(step, "dpm", arguments.dpm_steps, noise), draws)
    ddim = fastest(lambda: draw(step, "ddim", arguments.ddim_steps, noise), draws)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    per_idea = [counter.get_total_flops() / 1e9, 1e3 * plain, 1e3 * half, solver, ddim]
    return [millions, *(value / batch for value in per_idea)]


@torch.no_grad()
def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = {name: measure(network, arguments) for name, network in build_networks(arguments).items()}
    print(f"{arguments.threads} threads, batch {arguments.batch}, torch {torch.__version__}; times are per idea")
    solver, ddim = f"DPM-Solver++ {arguments.dpm_steps}, s", f"DDIM {arguments.ddim_steps}, s"
    heads = ["network", "M parameters", "GFLOP", "float32, ms", "bfloat16, ms", solver, ddim, "times the peer's speed"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, values in rows.items():
        cells = [f"{value:.3g}" for value in (*values, rows[PEER][2] / values[2])]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
