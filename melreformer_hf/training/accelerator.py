"""The devices and processes of a training."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from melreformer_hf.training.config import TrainingConfig


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        ValueError: fp16 on a CPU, or launched processes that did not find each other.
    """
    cpu = config.cpu or not torch.accelerator.is_available()
    if cpu and config.mixed_precision == "fp16":
        raise ValueError(
            "mixed_precision must be no or bf16 on a CPU, got fp16, which is about a hundred times slower there."
        )
    accelerator = Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)
    # Accelerate falls back to one process without a word when its environment is incomplete.
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched (WORLD_SIZE) but {accelerator.num_processes} found each other: each "
            "would train alone. On CPUs set ACCELERATE_USE_CPU=true in the environment."
        )
    return accelerator


__all__ = ["make_accelerator"]
