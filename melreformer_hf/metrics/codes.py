"""How a codec or a tokenizer uses its codebooks, and what its codes cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from melreformer_hf.nn.quantization import perplexity_of


def _counts(audio_codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """(batch, quantizer, frame) to the counts (quantizer, codeword); -1 (a level left out) does not count."""
    if audio_codes.ndim != 3 or not audio_codes.numel() or audio_codes.is_floating_point():
        raise ValueError(
            f"audio_codes must be whole numbers (batch, quantizer, frame), got {tuple(audio_codes.shape)} "
            f"{audio_codes.dtype}."
        )
    if audio_codes.min() < -1 or audio_codes.max() >= codebook_size:
        raise ValueError(
            f"audio_codes must be below codebook_size={codebook_size} (-1: left out), got {int(audio_codes.min())} to "
            f"{int(audio_codes.max())}."
        )
    levels = audio_codes.transpose(0, 1).flatten(1)  # (quantizer, batch * frame)
    return torch.stack([torch.bincount(level[level >= 0], minlength=codebook_size) for level in levels])


def codebook_usage(audio_codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Share of the codewords that occur, (quantizer,) in 0..1.

    Args:
        audio_codes: (batch, quantizer, frame) whole numbers; -1 where a level was left out.
        codebook_size: codewords per quantizer.

    Raises:
        ValueError: another shape or type, or a code outside the codebook.
    """
    return (_counts(audio_codes, codebook_size) > 0).float().mean(1)


def codebook_perplexity(audio_codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Exponential of the entropy of code use, (quantizer,) in 1..codebook_size; arguments as `codebook_usage`."""
    return perplexity_of(_counts(audio_codes, codebook_size).float())


def bits_per_second(
    frame_rate: float, codebook_sizes: int | Sequence[int], num_quantizers: int | None = None
) -> float:
    """Nominal bit rate of codes: frames per second times the sum of log2 of the codebooks' sizes.

    Args:
        frame_rate: frames of codes per second.
        codebook_sizes: codewords of each quantizer; or of all, with `num_quantizers`.
        num_quantizers: how many, when `codebook_sizes` is one number.

    Raises:
        ValueError: a size below 1, or one number without `num_quantizers`.
    """
    if isinstance(codebook_sizes, int):
        if num_quantizers is None:
            raise ValueError("num_quantizers must be given where codebook_sizes is one number, got None.")
        codebook_sizes = [codebook_sizes] * num_quantizers
    if not codebook_sizes or min(codebook_sizes) < 1 or not frame_rate > 0:
        raise ValueError(
            f"codebook_sizes must be 1 or more and frame_rate above 0, got {codebook_sizes} and {frame_rate}."
        )
    return frame_rate * sum(math.log2(size) for size in codebook_sizes)


def entropy_bits_per_second(audio_codes: torch.Tensor, codebook_size: int, frame_rate: float) -> float:
    """Bit rate that an ideal entropy coder reaches with one fixed table per quantizer: the entropy of code use.

    Args:
        audio_codes: (batch, quantizer, frame); see `codebook_usage`.
        codebook_size: codewords per quantizer.
        frame_rate: frames of codes per second.
    """
    return frame_rate * codebook_perplexity(audio_codes, codebook_size).log2().sum().item()


__all__ = ["bits_per_second", "codebook_perplexity", "codebook_usage", "entropy_bits_per_second"]
