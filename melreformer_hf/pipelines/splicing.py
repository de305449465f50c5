"""Where what is kept meets what is made: columns of ideas, frames of mels, samples of sound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from melreformer_hf.audio.resize import resize_mel

# Frames over which kept sound turns into made sound: 46 ms at 22,050 Hz, as long as a frame's own window.
FADE_FRAMES = 4
# Frames next to a span that tell how much the made mel is off there, and frames within it over which that is let go.
PROBE_FRAMES, RAMP_FRAMES = 4, 24


@dataclass(frozen=True)
class Timeline:
    """A piece of which some spans are to be made.

    Args:
        waveform: (frame * hop_length,) what is heard; anything within the spans.
        mel: (mel, frame) its log-mel; within the spans, what their idea begins from.
        spans: (first, last) frames of what is made, in order and apart; `last` is the frame after the span.
    """

    waveform: torch.Tensor
    mel: torch.Tensor
    spans: tuple[tuple[int, int], ...]

    @property
    def num_frames(self) -> int:
        """Its length."""
        return self.mel.shape[-1]

    def window(self, index: int, context: int) -> tuple[int, int]:
        """Frames (first, last) of a span and of what is kept around it, at most `context` frames on each side."""
        begin, end = self.spans[index]
        before = self.spans[index - 1][1] if index else 0
        after = self.spans[index + 1][0] if index + 1 < len(self.spans) else self.num_frames
        return max(before, begin - context), min(after, end + context)


def slerp(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Spherical interpolation of (batch, ...) tensors, row by row: from one to the other on the arc between them, so that
    what lies between has the contrast that a mean of both would lose.

    Their common mean is the center of the sphere, and their distances from it are interpolated linearly. Weight 0 gives
    `first`, 1 `second`, to the last number.

    Source: Shoemake, Animating Rotation with Quaternion Curves (1985).

    Args:
        first: at weight 0.
        second: at weight 1; of the same shape.
        weight: 0 to 1.
    """
    if weight in (0, 1):
        return (second if weight else first).clone()
    center = (first.flatten(1).mean(1) + second.flatten(1).mean(1)) / 2
    center = center.reshape(-1, *[1] * (first.ndim - 1))
    arms = [(end - center).flatten(1).double() for end in (first, second)]
    sizes = [arm.norm(dim=1, keepdim=True).clamp(min=1e-12) for arm in arms]
    units = [arm / size for arm, size in zip(arms, sizes, strict=True)]
    angle = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1).acos()
    # Where both point the same way, or opposite ways, there is no arc: a straight line is as good.
    flat = angle.sin() < 1e-6
    angle = torch.where(flat, torch.ones_like(angle), angle)
    shares = [((1 - weight) * angle).sin() / angle.sin(), (weight * angle).sin() / angle.sin()]
    shares = [torch.where(flat, line, arc) for arc, line in zip(shares, (1 - weight, weight), strict=True)]
    size = (1 - weight) * sizes[0] + weight * sizes[1]
    made = size * (shares[0] * units[0] + shares[1] * units[1])
    return made.reshape(first.shape).to(first.dtype) + center


def touched_columns(num_frames: int, span: tuple[int, int], num_columns: int) -> torch.Tensor:
    """(1, column) bool: the columns of an idea that depend on a span of the frames it was made of."""
    inside = torch.zeros(1, num_frames)
    inside[:, span[0] : span[1]] = 1.0
    return resize_mel(inside, num_columns) > 0


def mirrored(mel: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """(mel, frame) with so many more frames on each side, which go back and forth in it as between two mirrors."""
    length = mel.shape[-1]
    place = torch.arange(-left, length + right, device=mel.device) % (2 * length)
    return mel[:, torch.where(place < length, place, 2 * length - 1 - place)]


def join_mels(
    kept: torch.Tensor, made: Iterable[torch.Tensor], span: tuple[int, int], floor: float
) -> Iterator[torch.Tensor]:
    """A made mel within a span of a kept one, without a step where they meet.

    What the made mel is off beside the span, where both are known, is taken off within it, less and less: a sound that is
    held over the border goes on as loud as it was.

    Args:
        kept: (mel, frame) of the whole window.
        made: (1, mel, any number of frames) of the whole window, one after another in time.
        span: (first, last) frames that are made.
        floor: least value of a log-mel.

    Yields:
        (1, mel, frame), as soon as it is settled; outside the span the numbers of `kept`.
    """
    (begin, end), length = span, kept.shape[-1]
    whole, reached, done = kept.clone(), 0, 0

    def off(first: int, last: int) -> torch.Tensor:
        return (kept[:, first:last] - whole[:, first:last]).mean(-1, keepdim=True)

    for piece in made:
        whole[:, reached : reached + piece.shape[-1]] = piece[0]
        reached += piece.shape[-1]
        probed = min(end + PROBE_FRAMES, length)
        # The last frames of the span wait for what follows it.
        settled = reached if reached >= probed else min(reached, max(end - RAMP_FRAMES, begin))
        if settled <= done or reached < begin:
            continue
        frames, mel = torch.arange(done, settled, device=kept.device), whole[:, done:settled]
        shares = [ramp(frames - begin) * (begin > 0), ramp(end - 1 - frames) * (end < length)]
        # In a short span both borders would take off the same.
        shares = [share / sum(shares).clamp(min=1) for share in shares]
        if begin:
            mel = mel + off(max(begin - PROBE_FRAMES, 0), begin) * shares[0]
        if end < length and reached >= probed:
            mel = mel + off(end, probed) * shares[1]
        inside = (frames >= begin) & (frames < end)
        yield torch.where(inside, mel.clamp(min=floor), kept[:, done:settled])[None]
        done = settled


def ramp(distance: torch.Tensor) -> torch.Tensor:
    """1 at a distance of 0 frames, 0 from `RAMP_FRAMES` on, half a cosine between."""
    share = (distance / RAMP_FRAMES).clamp(0, 1)
    return 0.5 + 0.5 * (math.pi * share).cos()


def crossfade(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """From one sound to another over their whole length, (..., sample) each.

    The shares of equal sounds add up to 1, those of unrelated ones in their squares; between those, what the correlation of
    the two asks for keeps the power even.
    """
    length = before.shape[-1]
    if not length:
        return before
    share = torch.sin((torch.arange(length, device=before.device) + 0.5) * (math.pi / 2 / length)) ** 2
    both = (before * after).sum(-1, keepdim=True)
    norm = (before.square().sum(-1, keepdim=True) * after.square().sum(-1, keepdim=True)).sqrt()
    alike = torch.where(norm > 0, both / norm.clamp(min=1e-12), torch.ones_like(norm)).clamp(0, 1)
    power = (1 - share) ** 2 + share**2 + 2 * alike * share * (1 - share)
    return ((1 - share) * before + share * after) / power.sqrt()


class Taken:
    """Chunks of sound (..., sample), taken in other pieces than they come.

    Args:
        chunks: one after another.
    """

    def __init__(self, chunks: Iterable[torch.Tensor]) -> None:
        self.chunks, self.rest = iter(chunks), None

    def pieces(self, samples: int) -> Iterator[torch.Tensor]:
        """The next so many samples, as they come."""
        while samples:
            chunk = next(self.chunks) if self.rest is None else self.rest
            piece, rest = chunk[..., :samples], chunk[..., samples:]
            self.rest = rest if rest.shape[-1] else None
            samples -= piece.shape[-1]
            yield piece

    def whole(self, samples: int) -> torch.Tensor:
        """The next so many samples, at least one, in one."""
        return torch.cat(list(self.pieces(samples)), dim=-1)


__all__ = [
    "FADE_FRAMES",
    "Taken",
    "Timeline",
    "crossfade",
    "join_mels",
    "mirrored",
    "slerp",
    "touched_columns",
]
