"""Overlapped synthesis: equal to the whole signal, as early as the reach allows, with no more memory than it needs."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.nn.streaming import Backlog, Overlap, Stage, run_stages, stream_with_overlap

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


def stage(before: int, after: int, worked: list[int]) -> Stage:
    """Sums up neighbors and the place, beside which a second tensor goes along."""
    synthesize = synthesizer(before, after)

    def work(frames, first):
        values, names = frames
        worked.append(values.shape[1])
        return synthesize(values.transpose(1, 2), first)[..., ::HOP].transpose(1, 2), names

    return Stage(work, (before, after))


@pytest.mark.parametrize("sizes", [[1] * 12, [12], [3, 0, 7, 2]])
def test_stages_make_of_pieces_what_they_make_of_the_whole(sizes):
    stages = [stage(2, 3, []), stage(0, 0, []), stage(1, 0, []), stage(0, 4, [])]
    frames, names = torch.randn(1, 12, 1, generator=torch.Generator().manual_seed(0)), torch.arange(12)[None]
    whole = (frames, names)
    for one in stages:
        whole = one.work(whole, 0)
    backlogs, made, given = tuple(Backlog() for _ in stages), [], 0
    for chunk in (*zip(frames.split(sizes, 1), names.split(sizes, 1), strict=True), None):
        told = None if chunk is None or not chunk[0].shape[1] else chunk
        found, backlogs = run_stages(stages, backlogs, told, last=chunk is None)
        given += 0 if told is None else told[0].shape[1]
        if found is not None:
            made.append(found)
        # Three and four frames to come, no more and no less, keep a frame waiting.
        assert sum(values.shape[1] for values, _ in made) == (12 if chunk is None else max(0, given - 7))
    for index, expected in enumerate(whole):
        torch.testing.assert_close(torch.cat([piece[index] for piece in made], 1), expected)


def test_every_stage_computes_its_own_surroundings_again_and_no_more():
    worked: list[list[int]] = [[], [], []]
    stages, backlogs = [stage(2, 2, each) for each in worked], tuple(Backlog() for _ in range(3))
    for _ in range(6):
        _, backlogs = run_stages(stages, backlogs, (torch.zeros(1, 10, 1), torch.zeros(1, 10)), last=False)
    assert [each[-1] for each in worked] == [14] * 3  # 10 and a reach of 2 to each side; all reaches would make it 22
    assert all(value.shape[1] == 4 for backlog in backlogs for value in backlog.held)
