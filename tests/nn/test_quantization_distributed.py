"""Codebooks of several processes learn as one: each sees a part of the batch, all keep the same state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from melreformer_hf.nn.quantization import ResidualVectorQuantizer

WORKER = """
import sys
import torch
from torch import distributed
from safetensors.torch import save_file
from melreformer_hf.nn.quantization import ResidualVectorQuantizer

folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
for name, options in (("plain", {"kmeans_iterations": 0, "restart_threshold": 0.0}), ("all", {"restart_threshold": 0.5})):
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(6, 16, 3, decay=0.8, **options).train()
    for step in range(3):
        torch.manual_seed(step)
        hidden = torch.randn(4, 6, 20)
        torch.manual_seed(100 * rank + step)
        for part in hidden[2 * rank : 2 * rank + 2].split(1) if rank else [hidden[:2]]:
            quantizer.accumulate(quantizer(part))
        quantizer.update_codebooks()
    # One process has nothing, then one has a broken sample: neither waits, both agree.
    if rank == 0:
        quantizer.accumulate(quantizer(hidden))
    learned = quantizer.update_codebooks()
    quantizer.accumulate(quantizer(hidden * float("nan") if rank else hidden))
    assert learned and not quantizer.update_codebooks()
    save_file(quantizer.state_dict(), f"{folder}/{name}{rank}.safetensors")
distributed.destroy_process_group()
"""


def test_two_processes_learn_as_one(tmp_path):
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    torch.manual_seed(0)
    alone = ResidualVectorQuantizer(6, 16, 3, decay=0.8, kmeans_iterations=0, restart_threshold=0.0).train()
    for step in range(3):
        torch.manual_seed(step)
        hidden = torch.randn(4, 6, 20)
        alone.accumulate(alone(hidden))
        alone.update_codebooks()
    alone.accumulate(alone(hidden))
    alone.update_codebooks()
    for name in ("plain", "all"):
        states = [load_file(tmp_path / f"{name}{rank}.safetensors") for rank in range(2)]
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0, msg=f"{name} {key}")
            if name == "plain":
                torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5, msg=key)
