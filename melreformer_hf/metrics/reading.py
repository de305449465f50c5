"""How the `evaluate` modules read their inputs: lists, as Arrow stores them, become tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from melreformer_hf.audio.mel import MelConfig


def mel_config(mel: str | Mapping) -> MelConfig:
    """A contract by the name of a preset, or by its fields."""
    return MelConfig.preset(mel) if isinstance(mel, str) else MelConfig.from_dict(dict(mel))


def tensors(rows: Sequence) -> list[torch.Tensor]:
    """One float32 tensor per row."""
    return [torch.as_tensor(row, dtype=torch.float32) for row in rows]


def pairs(predictions: Sequence, references: Sequence) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of predictions and references, row by row.

    Raises:
        ValueError: there are none.
    """
    if not len(predictions):
        raise ValueError("predictions must hold at least one row, got none.")
    return list(zip(tensors(predictions), tensors(references), strict=True))


def joined_codes(recordings: Sequence) -> torch.Tensor:
    """Codes of recordings of different lengths, each quantizers x frames, one after another: (1, quantizer, frame).

    Raises:
        ValueError: the numbers of quantizers differ, or there are no codes.
    """
    rows = [torch.as_tensor(row, dtype=torch.long) for row in recordings]
    if not rows or any(row.ndim != 2 or len(row) != len(rows[0]) for row in rows):
        shapes = [tuple(row.shape) for row in rows]
        raise ValueError(
            f"predictions must be codes of shape (quantizer, frame), as many quantizers each, got {shapes}."
        )
    return torch.cat(rows, dim=1)[None]


__all__ = ["joined_codes", "mel_config", "pairs", "tensors"]
