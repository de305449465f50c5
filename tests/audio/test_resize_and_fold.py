"""Area resizing and folding."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.audio.fold import fold, unfold
from melreformer_hf.audio.resize import resize_mel


def mel(frames: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, frames, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize(("frames", "columns"), [(96, 24), (100, 33), (2049, 256), (7, 6), (4, 1)])
def test_area_equals_the_average_of_a_finely_repeated_signal(frames, columns):
    source = mel(frames)
    fine = source.repeat_interleave(columns, dim=-1)  # every column of the result is a whole number of these
    expected = fine.reshape(2, 5, columns, frames).mean(-1)
    torch.testing.assert_close(resize_mel(source, columns), expected, rtol=1e-5, atol=1e-5)


def test_area_keeps_the_mean_of_a_long_piece():
    source = mel(40_000, 1) - 11.0
    torch.testing.assert_close(resize_mel(source, 256).mean(-1), source.mean(-1), rtol=0, atol=1e-4)


def test_growing_interpolates_and_equal_size_is_the_identity():
    source = mel(10)
    assert resize_mel(source, 10) is source
    grown = resize_mel(source, 40)
    assert grown.shape[-1] == 40
    expected = torch.nn.functional.interpolate(source, size=40, mode="linear", align_corners=False)
    torch.testing.assert_close(grown, expected)


def test_point_sampling_reads_two_columns_of_a_window():
    source = torch.arange(64.0).reshape(1, 1, 64)
    torch.testing.assert_close(resize_mel(source, 2, mode="point")[0, 0], torch.tensor([15.5, 47.5]))
    silent = source.clone()
    silent[..., :15] = 0.0
    torch.testing.assert_close(resize_mel(silent, 2, mode="point"), resize_mel(source, 2, mode="point"))
    assert not torch.equal(resize_mel(silent, 2), resize_mel(source, 2))


def test_resize_is_differentiable():
    source = mel(50).requires_grad_(True)
    resize_mel(source, 7).square().sum().backward()
    assert source.grad.isfinite().all() and (source.grad != 0).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((mel(5), 0), "at least 1, got 0"), ((mel(5), 3, "cubic"), "cubic"), ((mel(0), 3), "frame")],
)
def test_resize_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        resize_mel(*arguments)


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 64])
def test_fold_is_inverted_for_any_length(frames):
    source = mel(frames)
    tokens = fold(source, 8, pad_value=-1.0)
    assert tokens.shape == (2, -(-frames // 8), 40)
    assert torch.equal(unfold(tokens, 8, frames), source)
    assert (unfold(tokens, 8)[..., frames:] == -1.0).all()


def test_fold_is_mel_major():
    source = mel(8)
    tokens = fold(source, 4)
    assert tokens[1, 1, 2 * 4 + 3] == source[1, 2, 4 + 3]


def test_fold_refuses():
    with pytest.raises(ValueError, match="fold_size must be at least 1, got 0"):
        fold(mel(4), 0)
    with pytest.raises(ValueError, match="num_frames"):
        unfold(fold(mel(4), 4), 4, 9)
