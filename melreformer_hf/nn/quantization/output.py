"""What every quantizer returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class QuantizerOutput(ModelOutput):
    """Output of a quantizer.

    Args:
        quantized: (batch, dim, frame) sum of the chosen codewords; gradients pass straight through to the input.
        audio_codes: (batch, quantizer, frame) int64; -1 where quantizer dropout left a level out.
        loss: scalar, commitment and codebook terms with their weights.
        perplexity: (quantizer,) exponential of the entropy of code use in this batch.
    """

    quantized: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None


def perplexity_of(counts: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of code use: (..., codeword) counts -> (...)."""
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.exp(-(share * torch.log(share + 1e-10)).sum(-1))


__all__ = ["QuantizerOutput", "perplexity_of"]
