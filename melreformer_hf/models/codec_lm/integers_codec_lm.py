"""Network layers whose results do not depend on batching, blocking, threads or the machine.

Floating sums change with their order, and library functions (exp, erf, cos) with the library. Lossless coding needs the
decoder to find the encoder's probabilities to the bit. Here every sum is taken over integers, held in float64 and
small enough that no partial sum exceeds 2 ** 53, so that any order gives the same result; everything else is made of
single additions, multiplications, divisions and square roots, which IEEE 754 rounds in one way. Each vector is scaled by
the power of two above its own largest entry (block floating point), so that its neighbors do not matter.

All values are float64. Precision is about six decimal digits of each vector's largest entry.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy
import torch

EXACT_BITS = 52  # bits of sums, one below the 53 of float64
_WEIGHT_BITS = 20
_PROBABILITY_BITS = 30
_SMALLEST = 1e-200
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_EXP_TERMS = [1.0 / math.factorial(n) for n in range(13, -1, -1)]
_ERF_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021164")
_COSINE_TERMS = [(-1.0) ** n / math.factorial(2 * n) for n in range(7, -1, -1)]
_SINE_TERMS = [(-1.0) ** n / math.factorial(2 * n + 1) for n in range(7, -1, -1)]


def bits_of(count: int) -> int:
    """Smallest b with 2 ** b >= count."""
    return (count - 1).bit_length()


def to_integers(values: torch.Tensor, bits: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of at most `bits` bits and the power of two they count, for each vector along `dim`.

    Args:
        values: float64.
        bits: size of the integers.
        dim: axis of the vectors.

    Returns:
        integers of the shape of `values` as float64, and steps of the same shape with size 1 along `dim`.
    """
    largest = values.abs().amax(dim=dim, keepdim=True)
    largest = torch.where(largest > _SMALLEST, largest, torch.ones_like(largest))
    # largest / mantissa is the power of two above it, without a logarithm, which libraries round differently.
    mantissa, _ = torch.frexp(largest)
    step = (largest / mantissa) * 2.0**-bits
    return (values / step).round(), step


class FixedPointLinear:
    """Linear layer.

    Args:
        weight: (out, in).
        bias: (out,).

    Raises:
        ValueError: `in` is too large for exact sums.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        # A sum of `in` products of 20-bit weights and these integers must stay below 2^52.
        self.bits = EXACT_BITS - _WEIGHT_BITS - bits_of(weight.shape[1])
        if self.bits < 16:
            raise ValueError(f"weight must have at most 65536 inputs for exact sums, got {weight.shape[1]}.")
        integers, step = to_integers(weight.double(), _WEIGHT_BITS)
        self.weight, self.step = integers.T.contiguous(), step[:, 0]
        self.bias = bias.double()

    def __call__(self, values: torch.Tensor, num_outputs: int | None = None) -> torch.Tensor:
        """(..., in) -> (..., out), or its first `num_outputs`."""
        integers, step = to_integers(values, self.bits)
        return (integers @ self.weight[:, :num_outputs]) * (step * self.step[:num_outputs]) + self.bias[:num_outputs]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What the result depends on."""
        return self.weight, self.step, self.bias


class FixedPointNorm:
    """Layer norm with gain and bias (size,)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        self.weight, self.bias, self.eps = weight.double(), bias.double(), eps

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(..., size) -> (..., size)."""
        size = values.shape[-1]
        integers, step = to_integers(values, EXACT_BITS - bits_of(size))
        # Times `size` instead of minus the mean: the mean of integers is no integer.
        centered = (integers * size - integers.sum(dim=-1, keepdim=True)) * step / size
        # Half the bits, so that the squares add up exactly.
        short, step = to_integers(centered, (EXACT_BITS - bits_of(size)) // 2)
        variance = (short * short).sum(dim=-1, keepdim=True) * (step * step) / size
        return centered / (variance + self.eps).sqrt() * self.weight + self.bias

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What the result depends on."""
        return self.weight, self.bias


def _polynomial(terms: list[float] | tuple[float, ...], argument):
    value = argument * 0.0 + terms[0]
    for term in terms[1:]:
        value = value * argument
        value = value + term
    return value


def exp(values: torch.Tensor) -> torch.Tensor:
    """Exponential of float64 values from -inf to 700; below -700 that of -700, about 1e-304."""
    values = values.clamp(min=-700.0)
    # e^v = 2^p e^r with r = v - p ln 2 in +-0.35, where 14 terms of the series are exact to the last bits.
    power = (values * 1.4426950408889634).round()
    # ln 2 in two parts: power * high has no rounding, so that the difference keeps its digits.
    rest = values - power * _LN2_HIGH
    rest = rest - power * _LN2_LOW
    # 2^p by its bits: the exponent field of a float64, 1023 + p, shifted behind 52 bits of mantissa.
    return _polynomial(_EXP_TERMS, rest) * ((power.long() + 1023) << 52).view(torch.float64)


def gelu(values: torch.Tensor) -> torch.Tensor:
    """GELU with the error function of Abramowitz and Stegun 7.1.26 (error below 1.5e-7)."""
    size = values.abs() * 0.7071067811865476
    # erf(x) = 1 - (a1 t + ... + a5 t^5) e^(-x^2), t = 1 / (1 + p x)
    t = 1.0 / (size * 0.3275911 + 1.0)
    error_function = 1.0 - _polynomial(_ERF_TERMS, t) * t * exp(-(size * size))
    return values * 0.5 * (values.sign() * error_function + 1.0)


def attend_integers(
    query: torch.Tensor,
    key: tuple[torch.Tensor, torch.Tensor],
    value: tuple[torch.Tensor, torch.Tensor],
    visible: torch.Tensor | None,
    most_visible: int,
) -> torch.Tensor:
    """Softmax attention; keys that no query of the call sees change nothing.

    Args:
        query: (..., query, head_dim).
        key: `to_integers` of (..., key, head_dim) with `attention_bits(head_dim)`.
        value: `to_integers` of (..., key, head_dim) with `attention_bits(most_visible)`.
        visible: (query, key) bool; `None` where every query sees every key.
        most_visible: keys that a query sees at most, in any call.

    Returns:
        (..., query, head_dim).
    """
    head_dim = query.shape[-1]
    integers, step = to_integers(query, attention_bits(head_dim))
    scores = (integers @ key[0].mT) * (step * key[1].mT) / math.sqrt(head_dim)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    weights = exp(scores - scores.amax(dim=-1, keepdim=True))
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)
    # Probabilities as integers before they are summed: the total is the same in any order of keys.
    bits = attention_bits(most_visible)
    total = (weights * 2.0**bits).round().sum(dim=-1, keepdim=True) * 2.0**-bits
    shares, step = to_integers(weights * value[1].mT, bits)
    return (shares @ value[0]) * step / total


def attention_bits(count: int) -> int:
    """Bits of each factor in a sum of `count` products."""
    return (EXACT_BITS - bits_of(count)) // 2


def cumulative_ranges(logits: torch.Tensor, total_range_bits: int, min_range: int = 2) -> torch.Tensor:
    """Integer cumulative distributions of softmax(logits) for a range coder.

    Args:
        logits: (..., symbol) float64.
        total_range_bits: logarithm of the total range, at most 32.
        min_range: least range of a symbol.

    Returns:
        (..., symbol) int64, the last of each row at most `2 ** total_range_bits`.
    """
    room = 2**total_range_bits - min_range * logits.shape[-1]
    if room < 0 or total_range_bits + _PROBABILITY_BITS > 62:
        raise ValueError(
            f"total_range_bits must be at most {62 - _PROBABILITY_BITS} and enough for {logits.shape[-1]} ranges of "
            f"{min_range}, got {total_range_bits}."
        )
    weights = exp(logits - logits.amax(dim=-1, keepdim=True))
    weights = (weights * 2.0**_PROBABILITY_BITS).round().long()
    # Floors of shares of what is left when every symbol has its least range: the sum never exceeds the total.
    ranges = weights * room // weights.sum(dim=-1, keepdim=True) + min_range
    return ranges.cumsum(dim=-1)


class FixedPointPositions:
    """Cosines, then sines, of `position * period ** (-i / (width / 2 - 1))`.

    Angles are counted in units of 2 ** -64 turns, which wrap around exactly at any position.

    Args:
        width: even, at least 4.
        period: of the slowest wave, divided by 2 pi.
    """

    def __init__(self, width: int, period: float) -> None:
        half = width // 2
        with localcontext() as context:
            # A turn is known to 2^-64 of itself; positions multiply that error, not the angle's.
            context.prec = 50
            rates = [Decimal(period) ** (Decimal(-i) / Decimal(half - 1)) / _TWO_PI for i in range(half)]
            turns = [int((rate * 2**64).to_integral_value()) % 2**64 for rate in rates]
        self.turns = numpy.array(turns, dtype=numpy.uint64)

    def __call__(self, first: int, count: int) -> torch.Tensor:
        """Codes of `count` positions from `first` on: (count, width)."""
        places = numpy.arange(first, first + count, dtype=numpy.uint64)
        # uint64 wraps around at 2^64, a whole turn; the 53 highest bits fit into a float64 exactly.
        phases = (places[:, None] * self.turns) >> numpy.uint64(11)
        quarters = phases.astype(numpy.float64) * 2.0**-51
        nearest = numpy.rint(quarters)
        # Within an eighth of a turn of the nearest quadrant, where short series are exact enough.
        angle = (quarters - nearest) * 1.5707963267948966
        square = angle * angle
        cosine = _polynomial(_COSINE_TERMS, square)
        sine = _polynomial(_SINE_TERMS, square) * angle
        quadrant = nearest.astype(numpy.int64) % 4
        cosines = numpy.choose(quadrant, [cosine, -sine, -cosine, sine])
        sines = numpy.choose(quadrant, [sine, cosine, -sine, -cosine])
        return torch.from_numpy(numpy.concatenate([cosines, sines], axis=-1))


__all__ = [
    "FixedPointLinear",
    "FixedPointNorm",
    "FixedPointPositions",
    "attend_integers",
    "attention_bits",
    "cumulative_ranges",
    "exp",
    "gelu",
    "to_integers",
]
