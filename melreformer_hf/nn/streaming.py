"""Overlapped synthesis of a stream, exact because the overlap is the receptive field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch


def stream_with_overlap(
    synthesize: Callable[[torch.Tensor, int], torch.Tensor],
    chunks: Iterable[torch.Tensor],
    receptive_field: tuple[int, int],
    hop_length: int,
) -> Iterator[torch.Tensor]:
    """Run a finite-reach synthesizer over a stream of frames.

    The two ends of the signal are computed at true ends of the input, everything else with full context, so the result
    equals that of the whole input up to rounding.

    Args:
        synthesize: (batch, channel, frame) and the number of its first frame -> (..., frame * hop_length).
        chunks: (batch, channel, any number of frames each).
        receptive_field: frames (before, after) that the samples of a frame depend on.
        hop_length: samples per frame.

    Yields:
        (..., sample), pieces that concatenate to the whole.
    """
    before, after = receptive_field
    held: torch.Tensor | None = None  # context of frames already emitted, then frames to come
    context = 0
    first_frame = 0
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=-1)
        settled = held.shape[-1] - context - after
        if settled < 1:
            continue
        piece = synthesize(held, first_frame)[..., context * hop_length : (context + settled) * hop_length]
        context += settled
        dropped = max(0, context - before)
        held = held[..., dropped:]
        context -= dropped
        first_frame += dropped
        yield piece
    if held is not None and held.shape[-1] > context:
        yield synthesize(held, first_frame)[..., context * hop_length :]


__all__ = ["stream_with_overlap"]
