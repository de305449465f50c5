"""Causal convolutions: they do not see the future, and a stream of any chunks equals the whole signal."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error
from torch import nn

from melreformer_hf.nn.conv import (
    CausalConv1d,
    CausalConvTranspose1d,
    StreamStep,
    apply_weight_norm,
    remove_weight_norm,
    run_whole,
)

CASES = {
    "plain": (lambda: CausalConv1d(3, 4, 5), 1),
    "dilated": (lambda: CausalConv1d(3, 4, 3, dilation=4), 1),
    "pointwise": (lambda: CausalConv1d(3, 4, 1), 1),
    "strided": (lambda: CausalConv1d(3, 4, 6, stride=3), 3),
    "strided, no overlap": (lambda: CausalConv1d(3, 4, 3, stride=3), 3),
    "grouped": (lambda: CausalConv1d(3, 6, 4, stride=2, groups=3, bias=False), 2),
    "transposed": (lambda: CausalConvTranspose1d(3, 4, 6, stride=3), 1 / 3),
    "transposed, odd": (lambda: CausalConvTranspose1d(3, 4, 7, stride=2), 1 / 2),
    "transposed, long": (lambda: CausalConvTranspose1d(3, 4, 11), 1),
    "transposed, no bias": (lambda: CausalConvTranspose1d(3, 6, 4, stride=4, groups=3, bias=False), 1 / 4),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    torch.manual_seed(0)
    build, stride = CASES[request.param]
    return build(), stride


@torch.no_grad()
def test_the_past_does_not_see_the_future(case):
    layer, stride = case
    hidden = torch.randn(2, 3, 24)
    whole = layer(hidden)
    assert whole.shape[-1] == round(24 / stride)
    for first_changed in (1, 6, 7, 23):
        changed = hidden.clone()
        changed[..., first_changed:] += 1.0
        settled = int(first_changed // stride if stride >= 1 else first_changed / stride)
        assert torch.equal(layer(changed)[..., :settled], whole[..., :settled])
        assert not torch.allclose(layer(changed)[..., settled], whole[..., settled])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(24,), (1,) * 24, (5, 0, 2, 11, 6), (2, 22)])
def test_a_stream_equals_the_whole(case, sizes):
    layer, _ = case
    hidden = torch.randn(2, 3, sum(sizes))
    memory, pieces = None, []
    for chunk in hidden.split(sizes, dim=-1):
        before = None if memory is None else memory.clone()
        piece, after = layer.step(chunk, memory)
        if before is not None:
            assert torch.equal(before, memory), "a step leaves the memory it was given as it was"
        memory = after
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), layer(hidden), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_an_incomplete_stride_is_held_back_and_padded_in_a_whole_signal():
    layer = CausalConv1d(1, 2, 8, stride=4)
    hidden = torch.randn(1, 1, 10)
    piece, memory = layer.step(hidden, None)
    assert piece.shape[-1] == 2
    rest, _ = layer.step(torch.zeros(1, 1, 2), memory)
    torch.testing.assert_close(torch.cat([piece, rest], dim=-1), layer(hidden))


class TwoConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = CausalConv1d(2, 3, 4, stride=2)
        self.up = CausalConvTranspose1d(3, 2, 4, stride=2)

    def forward(self, hidden, run=run_whole):
        return run(self.up, torch.tanh(run(self.down, hidden)))


@torch.no_grad()
def test_a_network_streams_and_a_memory_can_be_continued_twice():
    torch.manual_seed(0)
    network = TwoConvolutions()
    start, one, two = torch.randn(1, 2, 7), torch.randn(1, 2, 9), torch.randn(1, 2, 5)
    step = StreamStep()
    begun = network(start, step)
    for rest in (one, two):
        ended = network(rest, StreamStep(step.new_memory))
        whole = network(torch.cat([start, rest], dim=-1))
        torch.testing.assert_close(torch.cat([begun, ended], dim=-1), whole[..., : begun.shape[-1] + ended.shape[-1]])


@torch.no_grad()
def test_weight_norm_streams_too():
    torch.manual_seed(0)
    network = TwoConvolutions()
    hidden = torch.randn(1, 2, 12)
    expected = network(hidden)
    apply_weight_norm(network)
    torch.testing.assert_close(network(hidden, StreamStep()), expected)
    remove_weight_norm(network)
    torch.testing.assert_close(network(hidden), expected)


def test_gradients_flow_through_memories():
    layer = CausalConvTranspose1d(1, 1, 4, stride=2)
    hidden = torch.randn(1, 1, 6, requires_grad=True)
    first, memory = layer.step(hidden[..., :2], None)
    second, _ = layer.step(hidden[..., 2:], memory)
    (gradient,) = torch.autograd.grad(torch.cat([first, second], dim=-1).square().sum(), hidden)
    (expected,) = torch.autograd.grad(layer(hidden).square().sum(), hidden)
    torch.testing.assert_close(gradient, expected)


def test_kernels_shorter_than_the_stride_are_refused():
    with pytest.raises(ValueError) as error:
        CausalConv1d(1, 1, 2, stride=3)
    assert_error(error, "kernel_size", "got kernel_size 2", "stride 3")
    with pytest.raises(ValueError) as error:
        CausalConvTranspose1d(1, 1, 2, stride=3)
    assert_error(error, "at least the stride 3", "got 2")


def test_biases_are_learned_unless_declined():
    for layer in (CausalConv1d, CausalConvTranspose1d):
        assert layer(2, 3, 4).bias.shape == (3,) and layer(2, 3, 4, bias=False).bias is None
