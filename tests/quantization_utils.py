"""Small quantizers and their training, for tests."""

from __future__ import annotations

import torch

from melreformer_hf.nn.quantization import ResidualVectorQuantizer

DIM, SIZE, LEVELS = 12, 20, 4
KINDS = {
    "ema": {},
    "gradient": {"update": "gradient"},
    "factorized": {"update": "gradient", "codebook_dim": 3, "normalize": True},
    "factorized_ema": {"codebook_dim": 5},
    "shared": {"shared_codebook": True},
    "sizes": {"codebook_size": [20, 9, 8, 3], "decay": [0.9, 0.8, 0.99, 0.5]},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(rows: int = 3, frames: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, DIM, frames, generator=generator(seed))


def build(kind: str = "ema", **changes) -> ResidualVectorQuantizer:
    torch.manual_seed(0)
    arguments = {"codebook_size": SIZE, **KINDS[kind], **changes}
    return ResidualVectorQuantizer(DIM, num_quantizers=LEVELS, **arguments)


def learn(quantizer: ResidualVectorQuantizer, *batches: torch.Tensor, seed: int = 0, **arguments):
    """One training step over micro batches; the output of the last."""
    for hidden in batches:
        output = quantizer(hidden, generator=generator(seed), **arguments)
        quantizer.accumulate(output)
    assert quantizer.update_codebooks(generator(seed))
    return output


def trained(kind: str = "ema", steps: int = 3, **changes) -> ResidualVectorQuantizer:
    quantizer = build(kind, **changes).train()
    for step in range(steps):
        learn(quantizer, batch(seed=step), seed=step)
    return quantizer


def state_of(quantizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def assert_same_state(one, other, rtol=0.0, atol=0.0) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=rtol, atol=atol, msg=name)
