"""Overlapped synthesis of a stream, exact because the overlap is the receptive field; what vocoders share of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

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


Frames = tuple[torch.Tensor, ...]  # of the same stretch of a signal, (batch, frame, ...) each


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of the stages that make a synthesizer: frames to as many frames.

    Args:
        work: given frames and the number of the first of them.
        reach: frames (before, after) that an output frame depends on.
    """

    work: Callable[[Frames, int], Frames]
    reach: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Backlog:
    """What a stage of a stream remembers between two chunks; fields as in `Overlap`, frames as in `Frames`."""

    held: Frames | None = None
    context: int = 0
    first_frame: int = 0

    def settle(self, stage: Stage, frames: Frames | None, last: bool) -> tuple[Frames | None, Backlog]:
        """Work on further frames: those whose future is known, or at the end of the signal (`last`) all.

        Returns:
            the stage's frames, or `None` where there are none, and what to remember.
        """
        held = self.held
        if frames is not None:
            held = frames if held is None else tuple(torch.cat(pair, dim=1) for pair in zip(held, frames, strict=True))
        waiting = 0 if held is None else held[0].shape[1] - self.context
        settled = waiting - (0 if last else stage.reach[1])
        if settled < 1:
            return None, dataclasses.replace(self, held=held)
        context = self.context + settled
        made = tuple(value[:, self.context : context] for value in stage.work(held, self.first_frame))
        dropped = max(0, context - stage.reach[0])
        kept = tuple(value[:, dropped:] for value in held)
        return made, Backlog(kept, context - dropped, self.first_frame + dropped)


def run_stages(
    stages: Sequence[Stage], backlogs: tuple[Backlog, ...], frames: Frames | None, last: bool
) -> tuple[Frames | None, tuple[Backlog, ...]]:
    """Stages one after another over the next chunk of a stream.

    Every stage is computed again only as far as its own reach, not as far as that of all stages: with many stages and
    short chunks most of the work is saved.

    Args:
        stages: from the first to the last.
        backlogs: one for each; new ones begin a stream.
        frames: the chunk, `None` for none.
        last: whether the signal ends with it.

    Returns:
        frames of the last stage that are settled, `None` where there are none, and the new backlogs.
    """
    later = []
    for stage, backlog in zip(stages, backlogs, strict=True):
        frames, backlog = backlog.settle(stage, frames, last)
        later.append(backlog)
    return frames, tuple(later)


class MelStreamingMixin:
    """Streaming of a vocoder, which has `num_mel_bins`, `receptive_field_frames` and `hop_length`."""

    def synthesize_piece(self, module: Callable, mel: torch.Tensor, first_frame: int) -> torch.Tensor:
        """Waveform of a piece, (batch, mel, frame) -> (batch, sample), by this vocoder or a wrapper around it."""
        return module(mel, return_dict=True).waveform

    def check_stream_length(self, frames: int) -> None:
        """Refuse a stream that ended after so many frames; a vocoder without a shortest length refuses none."""

    def checked_mel_chunks(self, mel_chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The chunks, each checked when it comes.

        Raises:
            ValueError: a chunk is not (batch, num_mel_bins, frames), no floating point tensor, or not finite.
        """
        bins, frames = self.num_mel_bins, 0
        for chunk in mel_chunks:
            if chunk.ndim != 3 or chunk.shape[1] != bins or not chunk.is_floating_point():
                raise ValueError(
                    f"every mel chunk must be floating point (batch, {bins}, frames), got {tuple(chunk.shape)} of "
                    f"{chunk.dtype}."
                )
            if not chunk.isfinite().all():
                raise ValueError("every mel chunk must be finite, got NaN or infinite log-mels.")
            frames += chunk.shape[-1]
            yield chunk
        if frames:
            self.check_stream_length(frames)

    @torch.no_grad()
    def stream(self, mel_chunks: Iterable[torch.Tensor], module: Callable | None = None) -> Iterator[torch.Tensor]:
        """Synthesize a mel that arrives in chunks; the concatenated output equals that of the whole mel.

        Every piece is computed with as much context as its receptive field asks for, so the output lags
        `receptive_field_frames[1]` frames behind the input. Memory does not grow with the length.

        Args:
            mel_chunks: tensors (batch, mel, any number of frames), one after another in time.
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.

        Yields:
            (batch, sample); the samples of all frames that are settled.

        Raises:
            ValueError: see `checked_mel_chunks` and `check_stream_length`.
        """
        yield from self.stream_checked(self.checked_mel_chunks(mel_chunks), self if module is None else module)

    def stream_checked(self, chunks: Iterable[torch.Tensor], step: Callable) -> Iterator[torch.Tensor]:
        """`stream` of chunks that are in order, by this vocoder or a wrapper around it."""

        def synthesize(mel: torch.Tensor, first_frame: int) -> torch.Tensor:
            return self.synthesize_piece(step, mel, first_frame)

        yield from stream_with_overlap(synthesize, chunks, self.receptive_field_frames, self.hop_length)


__all__ = ["Backlog", "Frames", "MelStreamingMixin", "Overlap", "Stage", "run_stages", "stream_with_overlap"]
