"""Arithmetic coding of symbols under given integer distributions.

The bytes are those of the arithmetic coder of facebookresearch/encodec (Defossez, Copet, Synnaeve, Adi, High Fidelity
Neural Audio Compression, arXiv 2210.13438). A distribution over n symbols is a cumulative row c of n integers: symbol s
owns the range from c[s - 1] (0 for the first symbol) up to c[s] of a total of 2 ** total_range_bits, and every range is
at least two wide.

Deviations: integer arithmetic throughout (the original divides in double precision, which is exact up to 26 bits); all
bits that a symbol settles leave at once; streams that end too early, or hold more than was asked for, are refused.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy
import torch

MAX_TOTAL_RANGE_BITS = 30
_MIN_RANGE = 2


def quantized_cdf(
    probabilities: torch.Tensor, total_range_bits: int = 24, roundoff: float = 1e-8, min_range: int = _MIN_RANGE
) -> torch.Tensor:
    """Integer cumulative distributions of floating probabilities, by the rule of the original.

    Probabilities are floored to multiples of `roundoff` and mixed with the uniform distribution so that every symbol
    has a range of at least `min_range`. Rows that rounding makes sum to more than 1, which the original cannot code,
    take the surplus from their likeliest symbol. The last bits of probabilities decide about the result: a coder and a
    decoder need equal ones to the bit.

    Args:
        probabilities: (..., symbol), each row sums to 1 up to rounding.
        total_range_bits: logarithm of the total range.
        roundoff: step of the floor; 0 for none.
        min_range: at least 2.

    Returns:
        (..., symbol) int64.

    Raises:
        ValueError: min_range is below 2, the total range is too small for so many symbols, or rows do not sum to 1.
    """
    _check_bits(total_range_bits)
    total, count = 2**total_range_bits, probabilities.shape[-1]
    share = min_range * count / total
    if min_range < _MIN_RANGE or share > 1:
        raise ValueError(
            f"min_range must be at least {_MIN_RANGE} and {count} symbols of it fit into 2 ** total_range_bits, got "
            f"min_range={min_range} and total_range_bits={total_range_bits}."
        )
    probabilities = probabilities.detach()
    if roundoff:
        probabilities = (probabilities / roundoff).floor() * roundoff
    # In this order of operations, as the original rounds; regrouped it would give other bytes.
    ranges = (((1 - share) * total) * probabilities).floor().long() + min_range
    # Probabilities in float32 may sum to a little more than 1.
    surplus = (ranges.sum(dim=-1, keepdim=True) - total).clamp(min=0)
    widest = ranges.argmax(dim=-1, keepdim=True)
    ranges.scatter_add_(-1, widest, -surplus)
    if (ranges < min_range).any():
        raise ValueError(
            f"probabilities must be in [0, 1] and sum to 1, got sums up to {probabilities.sum(-1).max()}."
        )
    return ranges.cumsum(dim=-1)


def _check_bits(total_range_bits: int) -> None:
    if not 2 <= total_range_bits <= MAX_TOTAL_RANGE_BITS:
        raise ValueError(f"total_range_bits must be from 2 to {MAX_TOTAL_RANGE_BITS}, got {total_range_bits}.")


def _check_rows(cdfs: object, total_range_bits: int) -> numpy.ndarray:
    rows = numpy.asarray(cdfs, dtype=numpy.int64)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"cdfs must be (row, symbol), got shape {rows.shape}.")
    narrow = numpy.diff(rows, axis=1, prepend=0) < _MIN_RANGE
    wide = rows[:, -1] > 2**total_range_bits
    if narrow.any() or wide.any():
        row = int(numpy.flatnonzero(narrow.any(axis=1) | wide)[0])
        raise ValueError(
            f"cdfs must give every symbol a range of at least {_MIN_RANGE} within {2**total_range_bits}: row {row} "
            "does not. Use quantized_cdf, or more total_range_bits."
        )
    return rows


class _Interval:
    """The interval [low, high] of `width` bits that the coded number lies in."""

    def __init__(self, total_range_bits: int) -> None:
        _check_bits(total_range_bits)
        self.total_range_bits = total_range_bits
        self.low = self.high = self.width = 0

    def missing_bits(self) -> int:
        """Bits to append until the interval is at least 2 ** total_range_bits wide."""
        return max(0, self.total_range_bits + 1 - (self.high - self.low + 1).bit_length())

    def append(self, bits: int) -> None:
        # Zeros behind low, ones behind high: the interval keeps its ends, with more digits.
        self.low <<= bits
        self.high = ((self.high + 1) << bits) - 1
        self.width += bits

    def narrow(self, range_low: int, range_high: int) -> None:
        """Keep the part of the symbol that owns [range_low, range_high) of the total."""
        # Of `size` numbers the symbol gets its share of the total, both ends rounded inwards so that symbols do not
        # overlap.
        size, bits = self.high - self.low + 1, self.total_range_bits
        self.high = self.low + (((range_high - 1) * size) >> bits)
        self.low += -((-range_low * size) >> bits)

    def settle(self) -> int:
        """Drop the leading bits that low and high share; returns how many."""
        # Where low and high agree from the top, no later symbol can change the bit: it is settled.
        self.width, dropped = (self.low ^ self.high).bit_length(), self.width
        kept = (1 << self.width) - 1
        self.low &= kept
        self.high &= kept
        return dropped - self.width


class RangeEncoder:
    """Writes symbols.

    Args:
        total_range_bits: logarithm of the distributions' total, the decoder's too.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.codec_lm.range_coder_codec_lm import RangeDecoder, RangeEncoder, quantized_cdf
        >>> cdfs = quantized_cdf(torch.tensor([[0.5, 0.25, 0.25]]).expand(40, 3))
        >>> encoder = RangeEncoder()
        >>> encoder.encode([0, 1, 0, 2] * 10, cdfs)
        >>> data = encoder.finish()
        >>> len(data)
        11
        >>> RangeDecoder(data).decode(cdfs)[:4].tolist()
        [0, 1, 0, 2]
    """

    def __init__(self, total_range_bits: int = 24) -> None:
        self._interval = _Interval(total_range_bits)
        self._bits: list[str] = []

    def encode(self, symbols: object, cdfs: object) -> None:
        """Append symbols.

        Args:
            symbols: (row,) integers.
            cdfs: (row, symbol) integers, the distribution of each.

        Raises:
            ValueError: a symbol or a distribution is out of range, or there are not as many of both.
        """
        interval = self._interval
        rows = _check_rows(cdfs, interval.total_range_bits)
        chosen = numpy.asarray(symbols, dtype=numpy.int64)
        if chosen.shape != rows.shape[:1] or ((chosen < 0) | (chosen >= rows.shape[1])).any():
            raise ValueError(
                f"symbols must be {len(rows)} integers from 0 to {rows.shape[1] - 1}, got shape {chosen.shape}"
                + (f" with values {chosen.min()} to {chosen.max()}." if chosen.size else ".")
            )
        index = numpy.arange(len(rows))
        highs = rows[index, chosen]
        # Symbol 0 begins at 0, every other where the one before it ends.
        lows = numpy.where(chosen > 0, rows[index, chosen - 1], 0)
        for range_low, range_high in zip(lows.tolist(), highs.tolist(), strict=True):
            interval.append(interval.missing_bits())
            interval.narrow(range_low, range_high)
            # The settled bits are low's leading ones, taken before they are cut off.
            before, width = interval.low, interval.width
            settled = interval.settle()
            if settled:
                self._bits.append(format(before >> (width - settled), f"0{settled}b"))

    def finish(self) -> bytes:
        """All bytes: whole ones, the first bit of a byte being its lowest, the last byte filled up with zeros."""
        interval = self._interval
        # Any number of the interval will do; low is one.
        if interval.width:
            self._bits.append(format(interval.low, f"0{interval.width}b"))
        interval.low = interval.high = interval.width = 0
        bits = numpy.frombuffer("".join(self._bits).encode(), dtype=numpy.uint8) - ord("0")
        # Kept, so that finish may be called again.
        self._bits = ["".join(self._bits)]
        return numpy.packbits(bits, bitorder="little").tobytes()


class RangeDecoder:
    """Reads what a `RangeEncoder` wrote.

    Args:
        data: the bytes, or bytes that begin with them (see `consumed_bytes`).
        total_range_bits: as of the encoder.
    """

    def __init__(self, data: bytes, total_range_bits: int = 24) -> None:
        self._interval = _Interval(total_range_bits)
        bits = numpy.unpackbits(numpy.frombuffer(data, dtype=numpy.uint8), bitorder="little")
        self._bits = (bits + ord("0")).tobytes().decode()
        self._position = 0
        self._current = 0

    @property
    def consumed_bytes(self) -> int:
        """Bytes that the symbols so far took, the begun one included."""
        return -(-self._position // 8)

    def decode(self, cdfs: object) -> numpy.ndarray:
        """Next symbols.

        Args:
            cdfs: (row, symbol) integers, the distributions that the symbols were encoded with.

        Returns:
            (row,) int64.

        Raises:
            ValueError: the bytes end before the symbols do, or no symbol belongs to what they say.
        """
        rows = _check_rows(cdfs, self._interval.total_range_bits)
        symbols = numpy.empty(len(rows), dtype=numpy.int64)
        for index, row in enumerate(rows):
            symbols[index] = self._decode_one(row)
        return symbols

    def _decode_one(self, row: numpy.ndarray) -> int:
        interval = self._interval
        wanted = interval.missing_bits()
        if wanted:
            end = self._position + wanted
            if end > len(self._bits):
                raise ValueError(
                    f"The stream is truncated: {end} bits are needed so far, it has {len(self._bits)}. Decode the "
                    "whole stream with the distributions it was encoded with."
                )
            self._current = (self._current << wanted) | int(self._bits[self._position : end], 2)
            self._position = end
            interval.append(wanted)
        size, bits, offset = interval.high - interval.low + 1, interval.total_range_bits, self._current - interval.low
        # The first symbol whose upper end ((c - 1) * size) >> bits reaches the offset.
        least = -((-offset << bits) // size) + 1
        # For few symbols bisection in Python beats the start-up of a numpy call.
        symbol = int(row.searchsorted(least)) if len(row) > 16 else bisect_left(row.tolist(), least)
        if symbol == len(row):
            raise ValueError("The stream is corrupt: it points behind the last symbol of a distribution.")
        interval.narrow(int(row[symbol - 1]) if symbol else 0, int(row[symbol]))
        # Rounding inwards leaves numbers between two symbols, which no encoder writes.
        if self._current < interval.low:
            raise ValueError("The stream is corrupt: it points between two symbols of a distribution.")
        interval.settle()
        self._current &= (1 << interval.width) - 1
        return symbol

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            ValueError: whole bytes or bits other than zero follow the last symbol.
        """
        rest = self._bits[self._position :]
        if len(rest) >= 8 or "1" in rest:
            raise ValueError(
                f"The stream is corrupt: {len(rest)} bits follow the last symbol, where at most 7 zeros may."
            )


__all__ = ["MAX_TOTAL_RANGE_BITS", "RangeDecoder", "RangeEncoder", "quantized_cdf"]
