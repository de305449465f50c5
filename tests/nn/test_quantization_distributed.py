"""Codebooks of several processes learn as one: each sees a part of the batch, all keep the same state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from melreformer_hf.nn.quantization import ResidualVectorQuantizer, distributed

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
        quantizer(hidden[2 * rank : 2 * rank + 2])
    save_file(quantizer.state_dict(), f"{folder}/{name}{rank}.safetensors")
distributed.destroy_process_group()
"""


@pytest.mark.slow
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
        alone(torch.randn(4, 6, 20))
    for name in ("plain", "all"):
        states = [load_file(tmp_path / f"{name}{rank}.safetensors") for rank in range(2)]
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0, msg=f"{name} {key}")
            if name == "plain":
                torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_statistics_are_summed_once_per_level(monkeypatch):
    """What every process adds passes through the one sum: doubling it is training on the batch twice."""
    hidden = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
    quantizers = []
    for _ in range(2):
        torch.manual_seed(0)
        quantizers.append(ResidualVectorQuantizer(6, 16, 3, kmeans_iterations=0, restart_threshold=0.0).train())
    quantizers[0](hidden.repeat(2, 1, 1))

    def double(*tensors):
        for tensor in tensors:
            tensor *= 2

    monkeypatch.setattr("melreformer_hf.nn.quantization.codebook.sum_over_processes", double)
    quantizers[1](hidden)
    for key, value in quantizers[0].state_dict().items():
        torch.testing.assert_close(quantizers[1].state_dict()[key], value, rtol=1e-5, atol=1e-6, msg=key)
    assert not distributed.is_distributed()
