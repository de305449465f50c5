"""Overlapped synthesis of a stream, exact because the overlap is the receptive field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch

Synthesize = Callable[[torch.Tensor, int], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a stream remembers between two chunks.

    Args:
        held: (batch, channel, frame) frames that were synthesized but are context still, then frames to come.
        context: how many of them are context.
        first_frame: place of the first of them in the whole signal.
    """

    held: torch.Tensor | None = None
    context: int = 0
    first_frame: int = 0

    @property
    def waiting(self) -> int:
        """Frames that are not synthesized yet."""
        return 0 if self.held is None else self.held.shape[-1] - self.context

    def join(self, chunk: torch.Tensor) -> Overlap:
        """With further frames, (batch, channel, frame)."""
        held = chunk if self.held is None else torch.cat([self.held, chunk], dim=-1)
        return dataclasses.replace(self, held=held)

    def settle(
        self, synthesize: Synthesize, receptive_field: tuple[int, int], hop_length: int, last: bool = False
    ) -> tuple[torch.Tensor | None, Overlap]:
        """Synthesize all frames whose future is known, or at the end of the signal (`last`) all.

        Returns:
            their samples, (..., sample), or `None` where there are none, and what to remember.
        """
        before, after = receptive_field
        settled = self.waiting - (0 if last else after)
        if settled < 1:
            return None, self
        context = self.context + settled
        # At the end all is given away: some synthesizers make more than hop_length samples of the last frame.
        end = None if last else context * hop_length
        piece = synthesize(self.held, self.first_frame)[..., self.context * hop_length : end]
        dropped = max(0, context - before)
        return piece, Overlap(self.held[..., dropped:], context - dropped, self.first_frame + dropped)


def stream_with_overlap(
    synthesize: Synthesize,
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
    overlap = Overlap()
    for chunk in chunks:
        piece, overlap = overlap.join(chunk).settle(synthesize, receptive_field, hop_length)
        if piece is not None:
            yield piece
    piece, _ = overlap.settle(synthesize, receptive_field, hop_length, last=True)
    if piece is not None:
        yield piece


__all__ = ["Overlap", "stream_with_overlap"]
