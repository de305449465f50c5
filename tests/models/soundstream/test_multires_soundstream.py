"""Multiresolution convolution and wavelet upsampler: causality, streams, cost, wavelets."""

from __future__ import annotations

import math

import pytest
import torch
from testing_utils import assert_error
from torch.utils.flop_counter import FlopCounterMode

from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d, WaveletSynthesis, WaveletUpsampler
from melreformer_hf.models.soundstream.wavelets_soundstream import daubechies_filters
from melreformer_hf.nn.conv import StreamStep

TREES = {
    "fading": {"kernel_size": 3, "depth": 4},
    "fading, by length": {"kernel_size": 2, "max_length": 33},
    "uniform": {"kernel_size": 3, "depth": 4, "tree": "uniform", "memory_size": 9},
    "uniform, more weights than coefficients": {"kernel_size": 2, "depth": 2, "tree": "uniform", "memory_size": 9},
}


@pytest.fixture(params=TREES, ids=str)
def layer(request):
    torch.manual_seed(0)
    return MultiresConv1d(3, **TREES[request.param]).eval()


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(40,), (1,) * 40, (3, 0, 20, 17)])
def test_a_stream_equals_the_whole(layer, sizes):
    hidden = torch.randn(2, 3, 40)
    memory, pieces, sizes_kept = None, [], []
    for chunk in hidden.split(sizes, dim=-1):
        piece, memory = layer.step(chunk, memory)
        pieces.append(piece)
        sizes_kept.append([part.shape[-1] for part in memory])
    assert all(kept == sizes_kept[0] for kept in sizes_kept), "the memory does not grow"
    torch.testing.assert_close(torch.cat(pieces, dim=-1), layer(hidden), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_past_does_not_see_the_future(layer):
    hidden = torch.randn(1, 3, 30)
    changed = hidden.clone()
    changed[..., 20:] += 1.0
    assert torch.equal(layer(changed)[..., :20], layer(hidden)[..., :20])
    assert not torch.allclose(layer(changed)[..., 20], layer(hidden)[..., 20])


@torch.no_grad()
def test_the_receptive_field_is_what_it_says():
    torch.manual_seed(0)
    layer = MultiresConv1d(1, kernel_size=3, depth=3)
    impulse = torch.zeros(1, 1, 40)
    impulse[..., 0] = 1.0
    response, _ = layer.mix(impulse, layer._begin(impulse))
    assert layer.receptive_field == 15
    assert response[..., layer.receptive_field - 1] != 0
    assert not response[..., layer.receptive_field :].any()


def operations(length: int) -> int:
    layer = MultiresConv1d(2, kernel_size=2, max_length=length)
    assert layer.receptive_field >= length
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        layer(torch.zeros(1, 2, length))
    return counter.get_total_flops()


def test_the_cost_is_length_times_log_length():
    def cost(length):
        return operations(length) / (length * math.ceil(math.log2(length)))

    assert cost(64) == cost(512) == cost(2048) > 0


def test_every_weight_of_a_uniform_tree_learns():
    torch.manual_seed(0)
    layer = MultiresConv1d(2, kernel_size=3, depth=4, tree="uniform", memory_size=9)
    layer(torch.randn(1, 2, 50)).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.ne(0).all()


def test_a_wavelet_is_where_training_begins():
    layer = MultiresConv1d(3, kernel_size=4, depth=2, wavelet="db2")
    torch.testing.assert_close(layer.low_pass[2, 0], daubechies_filters(2)[0])
    taps = ([0.5, 0.5], [0.5, -0.5])
    torch.testing.assert_close(
        MultiresConv1d(1, kernel_size=2, depth=2, wavelet=taps).high_pass[0, 0], torch.tensor(taps[1])
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"kernel_size": 1, "max_length": 9}, ("kernel_size", "got 1")),
        ({"kernel_size": 2}, ("depth or max_length", "None and None")),
        ({"kernel_size": 2, "depth": 2, "tree": "oak"}, ("tree", "'oak'")),
        ({"kernel_size": 2, "depth": 2, "tree": "uniform"}, ("memory_size", "None")),
        ({"kernel_size": 2, "depth": 2, "wavelet": "db2"}, ("kernel_size must be 4", "got 2")),
        ({"kernel_size": 2, "depth": 2, "wavelet": "mexh"}, ("wavelet", "'mexh'")),
    ],
)
def test_wrong_arguments_are_refused(arguments, fragments):
    with pytest.raises(ValueError) as error:
        MultiresConv1d(1, **arguments)
    assert_error(error, *fragments)


def test_broken_original_weights_are_refused():
    layer = MultiresConv1d(2, kernel_size=3, depth=2)
    weights, arguments = layer.to_original_state_dict(), {"d_model": 2, "kernel_size": 3, "depth": 2}
    with pytest.raises(ValueError, match="unexpected key 'h2'"):
        MultiresConv1d.from_original({**weights, "h2": weights["h1"]}, arguments)
    with pytest.raises(ValueError, match="missing key 'w'"):
        MultiresConv1d.from_original({k: v for k, v in weights.items() if k != "w"}, arguments)
    with pytest.raises(ValueError, match="shape"):
        MultiresConv1d.from_original(weights, {**arguments, "depth": 3})
    with pytest.raises(ValueError, match="kernel"):
        MultiresConv1d.from_original(weights, {**arguments, "kernel": 3})


@torch.no_grad()
def test_synthesis_adds_overlapping_atoms():
    torch.manual_seed(0)
    synthesis = WaveletSynthesis(5, rate=3, num_frames=4)
    amplitudes = torch.randn(2, 5, 7)
    expected = torch.zeros(2, 5, 7 * 3 + 9)
    for frame in range(7):
        expected[..., frame * 3 : frame * 3 + 12] += amplitudes[..., frame, None] * synthesis.atoms()
    torch.testing.assert_close(synthesis(amplitudes), expected[..., :21])
    torch.testing.assert_close(synthesis.atoms().square().sum(dim=-1), torch.full((5,), 3.0))


@torch.no_grad()
def test_the_upsampler_streams_and_is_causal():
    torch.manual_seed(0)
    upsampler = WaveletUpsampler(3, 2, rate=4)
    hidden = torch.randn(2, 3, 12)
    whole = upsampler(hidden)
    assert whole.shape == (2, 2, 48)
    memory, pieces = None, []
    for chunk in hidden.split((1, 5, 0, 2, 4), dim=-1):
        step = StreamStep(memory)
        pieces.append(upsampler(chunk, step))
        memory = step.new_memory
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, rtol=1e-5, atol=1e-6)
    changed = hidden.clone()
    changed[..., 8:] += 1.0
    assert torch.equal(upsampler(changed)[..., :32], whole[..., :32])


def test_the_upsampler_learns_to_beat_repetition():
    """Sums of sines, every fourth sample kept: the error falls far below that of repeating samples."""
    generator = torch.Generator().manual_seed(0)

    def batch(size):
        frequency = 1 + 3 * torch.rand(size, 6, 1, generator=generator)
        phase = 2 * math.pi * torch.rand(size, 6, 1, generator=generator)
        signal = (2 * math.pi * frequency * torch.arange(128) / 64 + phase).sin().sum(dim=1, keepdim=True)
        return signal, signal[..., ::4]

    torch.manual_seed(0)
    upsampler = WaveletUpsampler(1, 1, rate=4, num_atoms=16, kernel_size=7)
    optimizer = torch.optim.Adam(upsampler.parameters(), lr=1e-2)
    for _ in range(60):
        signal, kept = batch(16)
        loss = (upsampler(kept) - signal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in upsampler.parameters())
    signal, kept = batch(64)
    repeated = kept.repeat_interleave(4, dim=-1)
    with torch.no_grad():
        error, baseline = (upsampler(kept) - signal)[..., 32:], (repeated - signal)[..., 32:]
    assert error.square().mean() < 0.5 * baseline.square().mean()
