"""The range coder: round trips, near-entropy size, refusals."""

from __future__ import annotations

import doctest

import numpy
import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.models.codec_lm import range_coder_codec_lm as range_coder
from melreformer_hf.models.codec_lm.range_coder_codec_lm import RangeDecoder, RangeEncoder, quantized_cdf


def drawn(count: int, size: int, seed: int = 0, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (count, size) and one symbol drawn from each."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(count, size, generator=generator)).softmax(dim=-1)
    return probabilities, torch.multinomial(probabilities, 1, generator=generator).flatten()


def encoded(symbols, cdfs, bits: int) -> bytes:
    encoder = RangeEncoder(bits)
    encoder.encode(symbols, cdfs)
    return encoder.finish()


@pytest.mark.parametrize("bits", [10, 16, 24, 30])
@pytest.mark.parametrize("size", [1, 2, 7, 300])
def test_round_trip_in_pieces_and_at_once(bits, size):
    probabilities, symbols = drawn(200, size, seed=bits)
    cdfs = quantized_cdf(probabilities, bits)
    data = encoded(symbols, cdfs, bits)
    encoder = RangeEncoder(bits)
    for begin, end in ((0, 1), (1, 90), (90, 200)):
        encoder.encode(symbols[begin:end], cdfs[begin:end])
    assert encoder.finish() == data
    decoder = RangeDecoder(data + b"rest", bits)
    found = [decoder.decode(cdfs[begin:end]) for begin, end in ((0, 3), (3, 200))]
    assert numpy.concatenate(found).tolist() == symbols.tolist()
    assert decoder.consumed_bytes == len(data)
    whole = RangeDecoder(data, bits)
    whole.decode(cdfs)
    whole.finish()


def test_size_is_near_the_entropy():
    probabilities, symbols = drawn(3000, 64, sharpness=3.0)
    entropy = -probabilities[torch.arange(3000), symbols].log2().sum().item()
    size = 8 * len(encoded(symbols, quantized_cdf(probabilities), 24))
    assert entropy - 8 < size < 1.001 * entropy + 32


def test_likely_and_unlikely_symbols():
    cdfs = quantized_cdf(torch.tensor([[1.0, 0.0]]).expand(4000, 2))
    assert len(encoded(torch.zeros(4000, dtype=torch.long), cdfs, 24)) <= 8
    unlikely = torch.ones(50, dtype=torch.long)
    data = encoded(unlikely, cdfs[:50], 24)
    assert 8 * len(data) <= 50 * 23 + 32
    assert RangeDecoder(data).decode(cdfs[:50]).tolist() == unlikely.tolist()


def test_cdfs_leave_a_range_for_everything():
    for values in ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1 / 3] * 3):
        for bits in (3, 8, 24):
            cdf = quantized_cdf(torch.tensor(values), bits)
            assert cdf.dtype == torch.int64 and (cdf.diff(prepend=torch.tensor([0])) >= 2).all()
            assert cdf[-1] <= 2**bits


def test_every_truncation_is_refused():
    probabilities, symbols = drawn(60, 9)
    cdfs = quantized_cdf(probabilities)
    data = encoded(symbols, cdfs, 24)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="truncated|corrupt"):
            RangeDecoder(data[:length]).decode(cdfs)


def test_bytes_behind_the_end_are_refused():
    probabilities, symbols = drawn(60, 9)
    cdfs = quantized_cdf(probabilities)
    decoder = RangeDecoder(encoded(symbols, cdfs, 24) + b"\0")
    decoder.decode(cdfs)
    with pytest.raises(ValueError, match="follow the last symbol"):
        decoder.finish()


def test_numbers_outside_every_range_are_refused():
    half = torch.tensor([[2, 2**23]])
    with pytest.raises(ValueError, match="behind the last symbol"):
        RangeDecoder(b"\xff" * 3).decode(half)


def test_wrong_arguments_are_refused():
    cdfs = quantized_cdf(torch.full((2, 4), 0.25))
    cases = (
        (lambda: RangeEncoder(31), "total_range_bits"),
        (lambda: RangeEncoder().encode([0, 4], cdfs), "symbols"),
        (lambda: RangeEncoder().encode([0, -1], cdfs), "symbols"),
        (lambda: RangeEncoder().encode([0], cdfs), "symbols"),
        (lambda: RangeEncoder().encode([0], cdfs[0]), "cdfs"),
        (lambda: RangeEncoder().encode([0], [[4, 5]]), "row 0"),
        (lambda: RangeEncoder(8).encode([0], [[100, 300]]), "row 0"),
        (lambda: quantized_cdf(torch.tensor([-1.0, 2.0])), "sum to 1"),
        (lambda: quantized_cdf(torch.ones(5), 3), "total_range_bits=3"),
        (lambda: quantized_cdf(torch.ones(5), min_range=1), "min_range=1"),
    )
    for call, part in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert_error(error, part)


def test_a_second_of_sound_comes_back():
    probabilities, symbols = drawn(600, 1024)  # 600 symbols make a second of sound at 6 kbit/s
    cdfs = quantized_cdf(probabilities)
    assert RangeDecoder(encoded(symbols, cdfs, 24)).decode(cdfs).tolist() == symbols.tolist()


def test_docstring_example():
    results = doctest.testmod(range_coder)
    assert results.attempted > 0 and results.failed == 0
