"""Short-time Fourier transforms: the only ones of the package.

Frame `t` of an aligned transform covers the samples `t * hop - (n_fft - hop) / 2 .. t * hop + (n_fft + hop) / 2`, so that
`T` frames belong to exactly `T * hop` samples. The functions work on the *extended* signal, which begins and ends
with the padding and has `(T - 1) * hop + n_fft` samples: no frame then needs padding, and the inverse transform of any
`T` frames is a signal whose transform has `T` frames again.

Spectra are frame-major, (batch, frame, bin): the layout that linear layers write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from melreformer_hf.audio.mel import MelConfig

_SMALLEST_ENVELOPE = 1e-3
# Samples of windowed frames per block on CPUs: what this many need of memory stays in a core's cache.
_BLOCK_SAMPLES = 2**19
_MIN_BLOCK_FRAMES = 8
_KEPT_TABLES = 64


def cached_table(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Decorator: a constant tensor is built once for each arguments (type and device among them) and then shared.

    It is built outside of inference mode, so that training may use what inference asked for first; and what a tracer
    puts in its place (a fake or functional tensor) is never kept.
    """
    tables: dict[tuple, torch.Tensor] = {}

    @functools.wraps(build)
    def cached(*arguments: object) -> torch.Tensor:
        found = tables.get(arguments)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = build(*arguments)
            if type(found) is torch.Tensor:
                while len(tables) >= _KEPT_TABLES:
                    tables.pop(next(iter(tables)))  # the oldest
                tables[arguments] = found
        return found

    cached.cache_clear = tables.clear
    return cached


def full_precision(like: torch.Tensor) -> contextlib.AbstractContextManager:
    """No autocast on the device of a tensor: transforms lose the phase in half precision."""
    # The meta device, on which shapes are worked out, has no autocast to switch off.
    return contextlib.nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Geometry of a short-time Fourier transform with a periodic Hann window.

    Args:
        n_fft: length of the Fourier transform in samples.
        hop_length: samples between two frames.
        win_length: length of the window in samples, centered in the frame.
    """

    n_fft: int
    hop_length: int
    win_length: int

    @classmethod
    def of(cls, config: MelConfig) -> Transform:
        """The transform below a mel contract."""
        return cls(config.n_fft, config.hop_length, config.win_length)

    @property
    def num_bins(self) -> int:
        """Frequencies from zero to half the sampling rate."""
        return self.n_fft // 2 + 1

    @property
    def overlap_reach(self) -> int:
        """Frames to each side whose windows share samples with a frame's."""
        return (self.win_length - 1) // self.hop_length

    @property
    def output_reach(self) -> tuple[int, int]:
        """Frames (before, after) that write into the `hop_length` samples that belong to a frame."""
        padding = (self.n_fft - self.hop_length) // 2
        start = (self.n_fft - self.win_length) // 2
        before = -(-(start + self.win_length - padding - self.hop_length) // self.hop_length)
        return max(0, before), max(0, -(-(padding - start) // self.hop_length))

    def window(self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> torch.Tensor:
        """The window, zero outside `win_length`, shape (n_fft,); shared, not to be changed."""
        return _window(self, dtype, torch.device("cpu" if device is None else device))


@cached_table
def _window(transform: Transform, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    left = (transform.n_fft - transform.win_length) // 2
    right = transform.n_fft - transform.win_length - left
    window = torch.hann_window(transform.win_length, dtype=dtype, device="cpu")
    return torch.nn.functional.pad(window, (left, right)).to(device)


def overlap_add(frames: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Sum of overlapping frames: (batch, frame, n) -> (batch, (frame - 1) * hop_length + n)."""
    batch, count, length = frames.shape
    if length % hop_length:
        total = (count - 1) * hop_length + length
        folded = torch.nn.functional.fold(frames.transpose(1, 2), (1, total), (1, length), stride=(1, hop_length))
        return folded.reshape(batch, total)
    # A frame is `parts` whole hops: part p of frame t belongs to hop t + p. A few long sums beat many short ones.
    parts = length // hop_length
    pieces = frames.reshape(batch, count, parts, hop_length)
    signal = frames.new_zeros(batch, count + parts - 1, hop_length)
    for part in range(parts):
        signal[:, part : part + count] += pieces[:, :, part]
    return signal.reshape(batch, -1)


def _inverse_envelope(transform: Transform, count: int, window: torch.Tensor) -> torch.Tensor:
    """One over the sum of squared windows under the extended signal of `count` frames."""
    reach = (transform.n_fft - 1) // transform.hop_length
    # Between its two ends the envelope repeats every hop, so that a few frames tell all of it.
    shown = min(count, 2 * reach + 2)
    envelope = overlap_add(window.square().expand(1, shown, -1), transform.hop_length)[0].clamp(min=_SMALLEST_ENVELOPE)
    if count > shown:
        cut = (reach + 1) * transform.hop_length
        period = envelope[cut - transform.hop_length : cut]
        envelope = torch.cat([envelope[:cut], period.repeat(count - shown), envelope[cut:]])
    return envelope.reciprocal()


def map_frames(
    signal: torch.Tensor,
    transform: Transform,
    function: Callable[[torch.Tensor], torch.Tensor] | None = None,
    window: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a function makes of the spectrum of every frame, without padding.

    On CPUs a few frames at a time go through the Fourier transform and the function, so that what lies between never
    leaves the cache: about twice as fast as whole spectrograms, and without their memory.

    Args:
        signal: (batch, sample), an extended one.
        transform: geometry.
        function: (batch, some frames, bin) complex -> (batch, some frames, value); `None` keeps the spectrum.
        window: (n_fft,) where the caller holds the transform's window itself.

    Returns:
        (batch, frame, value).
    """
    window = transform.window(signal.dtype, signal.device) if window is None else window
    frames = signal.unfold(-1, transform.n_fft, transform.hop_length)  # a view: (batch, frame, n_fft)
    count = frames.shape[1]
    blocks = [frames]
    if signal.device.type == "cpu" and not torch.compiler.is_compiling():
        size = max(_MIN_BLOCK_FRAMES, _BLOCK_SAMPLES // (transform.n_fft * max(1, len(signal))))
        blocks = frames.split(size, dim=1) if count > size else blocks
    spectra = (torch.fft.rfft(block * window) for block in blocks)
    pieces = list(spectra if function is None else map(function, spectra))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def power(spectrum: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """Squared magnitudes of a complex tensor plus a constant, of the same shape."""
    # Two fused products: one pass less over memory for every operator saved. A sum over an axis of two, or the absolute
    # value with its careful root, take several times as long.
    real, imaginary = spectrum.real, spectrum.imag
    start = real.new_full((), epsilon)
    return torch.addcmul(torch.addcmul(start, real, real), imaginary, imaginary)


def extended_stft(signal: torch.Tensor, transform: Transform, window: torch.Tensor | None = None) -> torch.Tensor:
    """Complex spectrum (batch, frame, bin) of an extended signal (batch, sample), without padding."""
    return map_frames(signal, transform, window=window)


def extended_istft(spectrum: torch.Tensor, transform: Transform, window: torch.Tensor | None = None) -> torch.Tensor:
    """Least-squares inverse of `extended_stft`: (batch, frame, bin) complex -> (batch, (frame - 1) * hop + n_fft).

    Source: Griffin, Lim, Signal estimation from modified short-time Fourier transform (1984), equation 6.
    """
    frames = torch.fft.irfft(spectrum, n=transform.n_fft)
    window = transform.window(frames.dtype, frames.device) if window is None else window
    signal = overlap_add(frames * window, transform.hop_length)
    return signal * _inverse_envelope(transform, spectrum.shape[1], window)


def trim(signal: torch.Tensor, transform: Transform) -> torch.Tensor:
    """The `frames * hop` samples of an extended signal that belong to its frames."""
    extra = transform.n_fft - transform.hop_length
    return signal[..., extra // 2 : signal.shape[-1] - (extra - extra // 2)]


def extend(waveform: torch.Tensor, transform: Transform, centered: bool = False) -> torch.Tensor:
    """Pad a waveform (batch, sample) by reflection to the extended signal of its frames.

    Args:
        waveform: (batch, sample).
        transform: geometry.
        centered: pad by `n_fft // 2` on both sides (1 + sample // hop frames, the first at sample 0) in place of
            `(n_fft - hop) / 2` (sample // hop frames).

    Raises:
        ValueError: the waveform is too short to be mirrored.
    """
    extra = transform.n_fft - transform.hop_length
    padding = (transform.n_fft // 2,) * 2 if centered else (extra // 2, extra - extra // 2)
    if waveform.shape[-1] <= max(padding):
        raise ValueError(
            f"waveform must have more than {max(padding)} samples for n_fft={transform.n_fft}, got "
            f"{waveform.shape[-1]}. Pad it with zeros first."
        )
    return reflect(waveform, padding)


def reflect(waveform: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Pad a waveform (batch, sample) by its mirror image, so many samples before and after."""
    return torch.nn.functional.pad(waveform.unsqueeze(1), padding, mode="reflect").squeeze(1)


def stft(waveform: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Aligned spectrum of a waveform, padded by reflection: (batch, sample) -> (batch, sample // hop, bin)."""
    return extended_stft(extend(waveform, transform), transform)


def istft(spectrum: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Inverse of `stft`: (batch, frame, bin) complex -> (batch, frame * hop)."""
    return trim(extended_istft(spectrum, transform), transform)


__all__ = [
    "Transform",
    "cached_table",
    "extend",
    "extended_istft",
    "extended_stft",
    "full_precision",
    "istft",
    "map_frames",
    "overlap_add",
    "power",
    "reflect",
    "stft",
    "trim",
]
