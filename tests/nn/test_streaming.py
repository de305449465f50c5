"""Overlapped synthesis: equal to the whole signal, as early as the reach allows, with no more memory than it needs."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.nn.streaming import Overlap, stream_with_overlap

HOP = 4


def synthesizer(before: int, after: int):
    """Each frame's samples sum up its neighbors and its place in the signal, with zeros beyond the ends."""
    taps = torch.arange(1.0, before + after + 2)[None, None]

    def synthesize(frames: torch.Tensor, first: int) -> torch.Tensor:
        padded = torch.nn.functional.pad(frames, (before, after))
        place = torch.arange(first, first + frames.shape[-1]) * 100.0
        return (torch.nn.functional.conv1d(padded, taps) + place).repeat_interleave(HOP, -1)

    return synthesize


@pytest.mark.parametrize("reach", [(0, 0), (2, 3), (5, 0), (0, 4)])
@pytest.mark.parametrize("sizes", [[1] * 12, [12], [3, 0, 7, 2]])
def test_pieces_are_the_whole(reach, sizes):
    frames = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(0))
    synthesize = synthesizer(*reach)
    pieces = list(stream_with_overlap(synthesize, frames.split(sizes, -1), reach, HOP))
    torch.testing.assert_close(torch.cat(pieces, -1), synthesize(frames, 0))


def test_frames_are_given_as_soon_as_their_future_is_known_and_held_no_longer():
    before, after = reach = (2, 3)
    overlap, given = Overlap(), []
    for frame in range(10):
        piece, overlap = overlap.join(torch.zeros(1, 1, 1)).settle(synthesizer(*reach), reach, HOP)
        given.append(0 if piece is None else piece.shape[-1])
        assert overlap.waiting == min(frame + 1, after)
        assert overlap.context == min(max(0, frame + 1 - after), before)
        assert overlap.first_frame == max(0, frame + 1 - after - before)
    assert given == [0, 0, 0] + [HOP] * 7
    assert list(stream_with_overlap(synthesizer(*reach), [], reach, HOP)) == []
