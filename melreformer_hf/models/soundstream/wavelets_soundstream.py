"""Filters of orthogonal wavelets, computed from Daubechies' polynomial (Ten lectures on wavelets, chapters 6 and 8).

Signs, order and orientation are those of PyWavelets' `rec_lo` and `rec_hi`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy
import torch

_HIGHEST_DAUBECHIES = 20
_SYMLETS = range(2, 9)
_EARLY_SYMLETS = (2, 3, 7)  # those whose published tables have their weight in the first half; a mere convention


def _polynomial_zeros(order: int) -> list[complex]:
    """Zeros inside the unit circle, one of each conjugate pair, of what a filter has beside its zeros at -1."""
    # Daubechies' P(y) = sum_k C(N - 1 + k, k) y^k (chapter 6), of which |m0|^2 = cos^2N P(sin^2) is made.
    powers = [math.comb(order - 1 + power, power) for power in range(order)]
    zeros = []
    for root in numpy.roots(powers[::-1]):
        if root.imag > -1e-12:
            # y = (2 - z - 1/z) / 4 solved for z: two zeros, inverse to each other; the inner one makes the filter of
            # least delay.
            middle = 1.0 - 2.0 * root
            offset = numpy.sqrt(middle * middle - 1.0 + 0j)
            zeros.append(min(middle + offset, middle - offset, key=abs))
    return zeros


def _low_pass(order: int, zeros: Sequence[complex]) -> numpy.ndarray:
    """The filter of so many zeros at -1, and of these zeros with their conjugates; its sum is sqrt(2)."""
    every = [-1.0] * order
    for zero in zeros:
        # Conjugate pairs keep the taps real.
        every += [zero, zero.conjugate()] if abs(zero.imag) > 1e-12 else [zero.real]
    taps = numpy.poly(every).real
    return taps * (math.sqrt(2.0) / taps.sum())


def _phase_error(taps: numpy.ndarray) -> float:
    """Squared distance of a filter's phase from that of a mere delay."""
    frequencies = numpy.linspace(0.0, numpy.pi, 513)[:-1]
    response = (taps * numpy.exp(-1j * frequencies[:, None] * numpy.arange(len(taps)))).sum(axis=1)
    phase = numpy.unwrap(numpy.angle(response))
    delay = phase @ frequencies / (frequencies @ frequencies)
    return float(((phase - delay * frequencies) ** 2).sum())


def _with_high_pass(low_pass: numpy.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    # The quadrature mirror: reversed, every other sign changed, orthogonal to the low-pass at even shifts.
    high_pass = low_pass[::-1] * (-1.0) ** numpy.arange(len(low_pass))
    return torch.tensor(low_pass, dtype=torch.float32), torch.tensor(high_pass, dtype=torch.float32)


def daubechies_filters(order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthesis filters (low-pass, high-pass) of the Daubechies wavelet with `order` vanishing moments.

    Args:
        order: 1 (Haar) to 20.

    Returns:
        Two (2 * order,) float32 tensors of unit energy; their sums are sqrt(2) and 0.

    Raises:
        ValueError: the order is out of range.
    """
    if not 1 <= order <= _HIGHEST_DAUBECHIES:
        raise ValueError(f"order must be 1..{_HIGHEST_DAUBECHIES}, got {order}.")
    return _with_high_pass(_low_pass(order, _polynomial_zeros(order)))


def symlet_filters(order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthesis filters of the symlet: the choice of zeros, inside or outside the unit circle, of most nearly linear phase.

    Args:
        order: 2 to 8 vanishing moments.

    Returns:
        Two (2 * order,) float32 tensors of unit energy; their sums are sqrt(2) and 0.

    Raises:
        ValueError: the order is out of range.
    """
    if order not in _SYMLETS:
        raise ValueError(f"order must be {_SYMLETS[0]}..{_SYMLETS[-1]}, got {order}.")
    zeros = _polynomial_zeros(order)
    candidates = []
    # All ways to take each zero inside or outside the unit circle have the same magnitude; phases differ.
    for outside in itertools.product((False, True), repeat=len(zeros)):
        chosen = [1.0 / zero if out else zero for zero, out in zip(zeros, outside, strict=True)]
        candidates.append(_low_pass(order, chosen))
    taps = min(candidates, key=_phase_error)
    early = (taps**2 * numpy.arange(len(taps))).sum() < (len(taps) - 1) / 2
    return _with_high_pass(taps if early == (order in _EARLY_SYMLETS) else taps[::-1].copy())


def wavelet_filters(wavelet: str | Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Filters of a wavelet.

    Args:
        wavelet: `"haar"`, `"db1"` to `"db20"`, `"sym2"` to `"sym8"`, or two lists of taps (low-pass, high-pass).

    Returns:
        (low-pass, high-pass), (taps,) float32 each.

    Raises:
        ValueError: an unknown name, or taps of unequal numbers.
    """
    if isinstance(wavelet, str):
        name = "db1" if wavelet == "haar" else wavelet
        for prefix, filters, orders in (
            ("db", daubechies_filters, range(1, _HIGHEST_DAUBECHIES + 1)),
            ("sym", symlet_filters, _SYMLETS),
        ):
            number = name.removeprefix(prefix)
            if name.startswith(prefix) and number.isdecimal() and int(number) in orders:
                return filters(int(number))
        raise ValueError(
            f"wavelet must be 'haar', 'db1' to 'db{_HIGHEST_DAUBECHIES}', 'sym{_SYMLETS[0]}' to 'sym{_SYMLETS[-1]}' or "
            f"two lists of taps, got {wavelet!r}."
        )
    pair = [torch.as_tensor(taps, dtype=torch.float32) for taps in wavelet]
    if len(pair) != 2 or pair[0].ndim != 1 or pair[0].shape != pair[1].shape:
        raise ValueError(
            f"wavelet must be two lists of equally many taps, got shapes {[tuple(taps.shape) for taps in pair]}."
        )
    return pair[0], pair[1]


__all__ = ["daubechies_filters", "symlet_filters", "wavelet_filters"]
