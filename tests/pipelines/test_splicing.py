"""Where what is kept meets what is made: arcs between ideas, columns, mirrors, borders of mels, crossfades."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.pipelines.splicing import (
    PROBE_FRAMES,
    RAMP_FRAMES,
    Taken,
    Timeline,
    crossfade,
    join_mels,
    mirrored,
    slerp,
    touched_columns,
)


def test_slerp_goes_along_the_arc_and_keeps_the_contrast():
    torch.manual_seed(0)
    first, second = torch.randn(2, 8, 10), 3 * torch.randn(2, 8, 10)
    assert torch.equal(slerp(first, second, 0), first) and torch.equal(slerp(first, second, 1.0), second)
    center = (first.mean((1, 2)) + second.mean((1, 2)))[:, None, None] / 2
    ends = [(end - center).flatten(1) for end in (first, second)]
    for weight in (0.25, 0.5, 0.9):
        arm = (slerp(first, second, weight) - center).flatten(1)
        sizes = [end.norm(dim=1) for end in ends]
        torch.testing.assert_close(arm.norm(dim=1), (1 - weight) * sizes[0] + weight * sizes[1])
        whole, part = (torch.cosine_similarity(ends[0], other).acos() for other in (ends[1], arm))
        torch.testing.assert_close(part, weight * whole, rtol=0, atol=1e-3)
    torch.testing.assert_close(slerp(first, second, 0.5)[:1], slerp(first[:1], second[:1], 0.5))
    for other in (first, 2 * center - first):  # the same, and the opposite: there is no arc
        assert slerp(first, other, 0.3).isfinite().all()
    torch.testing.assert_close(slerp(first, first, 0.3), first)


@pytest.mark.parametrize(("frames", "columns"), [(100, 32), (32, 32), (20, 32), (97, 10)])
def test_columns_that_a_span_touches_are_those_that_change_with_it(frames, columns):
    for span in ((0, 3), (frames // 2, frames // 2 + 2), (frames - 1, frames)):
        mel = torch.randn(4, frames)
        other = mel.clone()
        other[:, span[0] : span[1]] += 100.0
        changed = (resize_mel(other, columns) - resize_mel(mel, columns)).abs().amax(0) > 1e-3
        assert torch.equal(touched_columns(frames, span, columns)[0], changed)


def test_mirrors_stand_at_both_ends():
    mel = torch.arange(4.0)[None]
    assert mirrored(mel, 0, 0)[0].tolist() == [0, 1, 2, 3]
    assert mirrored(mel, 2, 3)[0].tolist() == [1, 0, 0, 1, 2, 3, 3, 2, 1]
    assert mirrored(mel, 0, 10)[0].tolist() == [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2]


@pytest.mark.parametrize("sizes", [[120], [1] * 120, [37, 3, 50, 30]])
@pytest.mark.parametrize("span", [(40, 90), (0, 60), (60, 120), (40, 44), (1, 119)])
def test_a_made_mel_has_no_step_where_it_meets_what_is_kept(sizes, span):
    torch.manual_seed(0)
    begin, end = span
    base = torch.randn(6, 120).cumsum(1) * 0.01
    kept, made = base.clone(), base + 2.0  # the same music, but two nats too loud
    kept[:, begin:end] = -50.0
    pieces = list(join_mels(kept, made[None].split(sizes, dim=-1), span, floor=-99.0))
    joined = torch.cat(pieces, dim=-1)[0]
    assert joined.shape == kept.shape
    outside = torch.ones(120, dtype=torch.bool)
    outside[begin:end] = False
    assert torch.equal(joined[:, outside], kept[:, outside])
    assert joined.diff(dim=1).abs().max() < 0.2
    middle = (begin + end) // 2
    if begin and end < 120 and end - begin > 2 * RAMP_FRAMES:  # far from both borders nothing is taken off
        torch.testing.assert_close(joined[:, middle], made[:, middle])
    whole = list(join_mels(kept, [made[None]], span, floor=-99.0))
    torch.testing.assert_close(torch.cat(whole, dim=-1)[0], joined)
    quiet = torch.cat(list(join_mels(kept + 60, [made[None]], span, floor=5.0)), dim=-1)[0]
    assert quiet[:, begin:end].min() >= 5.0


def test_what_is_settled_does_not_wait():
    kept, told = torch.zeros(2, 200), []

    def made():
        for index in range(20):
            told.append(index)
            yield torch.zeros(1, 2, 10)

    joined = join_mels(kept, made(), (50, 150), floor=-9.0)
    assert next(joined).shape[-1] == 50 and told == list(range(5))
    assert next(joined).shape[-1] == 10 and told == list(range(6))
    rest = list(joined)
    # The last frames of the span wait for what tells how far they are off.
    assert PROBE_FRAMES + RAMP_FRAMES <= max(piece.shape[-1] for piece in rest) <= PROBE_FRAMES + RAMP_FRAMES + 10


def test_crossfades_keep_the_power_and_equal_sounds():
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 1, 4096)
    torch.testing.assert_close(crossfade(first, first), first, rtol=0, atol=1e-5)
    mixed = crossfade(first, second)
    power = mixed[0, 0].reshape(8, -1).square().mean(1)
    assert power.min() > 0.8 and power.max() < 1.2
    torch.testing.assert_close(mixed[..., :4], first[..., :4], rtol=0, atol=1e-2)
    torch.testing.assert_close(mixed[..., -4:], second[..., -4:], rtol=0, atol=1e-2)
    opposite = crossfade(first, -first)
    assert opposite.isfinite().all() and opposite.abs().max() <= 2 * first.abs().max()
    assert crossfade(first[..., :0], second[..., :0]).shape[-1] == 0
    silent = torch.zeros(1, 1, 64)
    assert torch.equal(crossfade(silent, silent), silent)


def test_sound_is_taken_in_other_pieces_than_it_comes():
    sound = torch.arange(100.0)[None]
    taken = Taken(sound.split(7, dim=-1))
    assert torch.equal(taken.whole(10), sound[:, :10])
    parts = list(taken.pieces(50))
    assert len(parts) > 2 and torch.equal(torch.cat(parts, dim=-1), sound[:, 10:60])
    assert list(taken.pieces(0)) == [] and torch.equal(taken.whole(40), sound[:, 60:])


def test_windows_end_at_the_context_the_next_span_and_the_piece():
    timeline = Timeline(torch.zeros(1000), torch.zeros(1, 100), ((0, 10), (60, 100)))
    assert timeline.window(0, 20) == (0, 30) and timeline.window(1, 20) == (40, 100)
    assert timeline.window(0, 90) == (0, 60) and timeline.window(1, 90) == (10, 100)
    assert math.isclose(timeline.num_frames, 100)
