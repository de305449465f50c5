"""Short-time Fourier transforms whose frames line up with the mel contract, and the Griffin-Lim baseline.

Frame `t` of an aligned transform covers the samples `t * hop - (n_fft - hop) / 2 .. t * hop + (n_fft + hop) / 2`, so that
`T` frames belong to exactly `T * hop` samples. The functions work on the *extended* signal, which begins and ends
with the padding and has `(T - 1) * hop + n_fft` samples: no frame then needs padding, and the inverse transform of any
`T` frames is a signal whose transform has `T` frames again.

Spectra are frame-major, (batch, frame, bin): the layout that linear layers write.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

from melreformer_hf.audio.mel import MelConfig, mel_filter_bank, undo_log

_SMALLEST_ENVELOPE = 1e-3


@dataclasses.dataclass(frozen=True)
class Transform:
    """Geometry of a short-time Fourier transform with a periodic Hann window.

    Args:
        n_fft: length of the Fourier transform in samples.
        hop_length: samples between two frames.
        win_length: length of the window in samples, centred in the frame.
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
        """The window, zero outside `win_length`, shape (n_fft,)."""
        return _window(self).to(dtype=dtype, device=device)


def _lasting() -> torch.inference_mode:
    """Makes what is cached usable in training also when inference asked for it first."""
    return torch.inference_mode(False)


@functools.lru_cache(maxsize=32)
def _window(transform: Transform) -> torch.Tensor:
    left = (transform.n_fft - transform.win_length) // 2
    right = transform.n_fft - transform.win_length - left
    with _lasting():
        return torch.nn.functional.pad(torch.hann_window(transform.win_length, device="cpu"), (left, right))


def overlap_add(frames: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Sum of overlapping frames: (batch, frame, n) -> (batch, (frame - 1) * hop_length + n)."""
    batch, count, length = frames.shape
    if length % hop_length:
        total = (count - 1) * hop_length + length
        folded = torch.nn.functional.fold(frames.transpose(1, 2), (1, total), (1, length), stride=(1, hop_length))
        return folded.reshape(batch, total)
    parts = length // hop_length
    pieces = frames.reshape(batch, count, parts, hop_length)
    signal = frames.new_zeros(batch, count + parts - 1, hop_length)
    for part in range(parts):
        signal[:, part : part + count] += pieces[:, :, part]
    return signal.reshape(batch, -1)


def _inverse_envelope(transform: Transform, count: int, like: torch.Tensor) -> torch.Tensor:
    """One over the sum of squared windows under the extended signal of `count` frames."""
    reach = (transform.n_fft - 1) // transform.hop_length
    shown = min(count, 2 * reach + 2)
    square = transform.window(like.dtype, like.device).square()
    envelope = overlap_add(square.expand(1, shown, -1), transform.hop_length)[0].clamp(min=_SMALLEST_ENVELOPE)
    if count > shown:
        cut = (reach + 1) * transform.hop_length
        period = envelope[cut - transform.hop_length : cut]
        envelope = torch.cat([envelope[:cut], period.repeat(count - shown), envelope[cut:]])
    return envelope.reciprocal()


def extended_stft(signal: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Complex spectrum (batch, frame, bin) of an extended signal (batch, sample), without padding."""
    frames = signal.unfold(-1, transform.n_fft, transform.hop_length)
    return torch.fft.rfft(frames * transform.window(signal.dtype, signal.device))


def extended_istft(spectrum: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Least-squares inverse of `extended_stft`: (batch, frame, bin) complex -> (batch, (frame - 1) * hop + n_fft)."""
    frames = torch.fft.irfft(spectrum, n=transform.n_fft)
    frames = frames * transform.window(frames.dtype, frames.device)
    signal = overlap_add(frames, transform.hop_length)
    return signal * _inverse_envelope(transform, spectrum.shape[1], signal)


def trim(signal: torch.Tensor, transform: Transform) -> torch.Tensor:
    """The `frames * hop` samples of an extended signal that belong to its frames."""
    extra = transform.n_fft - transform.hop_length
    return signal[..., extra // 2 : signal.shape[-1] - (extra - extra // 2)]


def stft(waveform: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Aligned spectrum of a waveform, padded by reflection: (batch, sample) -> (batch, sample // hop, bin)."""
    extra = transform.n_fft - transform.hop_length
    padding = (extra // 2, extra - extra // 2)
    if waveform.shape[-1] <= max(padding):
        raise ValueError(
            f"waveform must have more than {max(padding)} samples for n_fft={transform.n_fft}, got "
            f"{waveform.shape[-1]}. Pad it with zeros first."
        )
    padded = torch.nn.functional.pad(waveform.unsqueeze(1), padding, mode="reflect").squeeze(1)
    return extended_stft(padded, transform)


def istft(spectrum: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Inverse of `stft`: (batch, frame, bin) complex -> (batch, frame * hop)."""
    return trim(extended_istft(spectrum, transform), transform)


@functools.lru_cache(maxsize=16)
def _pseudo_inverse(config: MelConfig) -> torch.Tensor:
    with _lasting():
        return torch.linalg.pinv(mel_filter_bank(config, torch.float64).clone()).float()


def mel_pseudo_inverse(
    config: MelConfig, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """Pseudo-inverse of the mel filter bank, (n_fft // 2 + 1, num_mel_bins)."""
    return _pseudo_inverse(config).to(dtype=dtype, device=device)


def magnitude_from_log_mel(log_mel: torch.Tensor, config: MelConfig, minimum: float = 0.0) -> torch.Tensor:
    """Least-squares magnitudes below a log-mel: (batch, mel, frame) -> (batch, frame, bin), at least `minimum`."""
    mel = undo_log(log_mel.float(), config).transpose(1, 2)
    values = mel @ mel_pseudo_inverse(config, mel.dtype, mel.device).T
    return values.clamp(min=minimum**config.power) ** (1 / config.power)


def griffin_lim(
    log_mel: torch.Tensor,
    config: MelConfig,
    num_iterations: int = 64,
    momentum: float = 0.99,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Waveform of a log-mel by fast Griffin-Lim: the baseline that a vocoder has to beat.

    Source: Perraudin, Balazs, Sondergaard, A fast Griffin-Lim algorithm (2013); magnitudes by pseudo-inverse.

    Args:
        log_mel: (batch, mel, frame) under `config`.
        config: the mel contract, hop-aligned (`center=False`).
        num_iterations: consistency projections.
        momentum: acceleration, 0 is the classic algorithm.
        generator: source of the initial phases.

    Returns:
        (batch, frame * hop_length) float32.
    """
    if num_iterations < 0 or not 0 <= momentum < 1:
        raise ValueError(
            f"griffin_lim needs num_iterations >= 0 and 0 <= momentum < 1, got {num_iterations} and {momentum}."
        )
    transform = Transform.of(config)
    magnitude = magnitude_from_log_mel(log_mel, config)
    phase = torch.rand(magnitude.shape, generator=generator, device=getattr(generator, "device", magnitude.device))
    spectrum = torch.polar(magnitude, phase.to(magnitude.device) * (2 * math.pi))
    previous = None
    for _ in range(num_iterations):
        rebuilt = extended_stft(extended_istft(spectrum, transform), transform)
        target = rebuilt if previous is None else rebuilt - (momentum / (1 + momentum)) * previous
        previous = rebuilt
        spectrum = target * (magnitude / target.abs().clamp(min=1e-16))
    return istft(spectrum, transform)


__all__ = [
    "Transform",
    "extended_istft",
    "extended_stft",
    "griffin_lim",
    "istft",
    "magnitude_from_log_mel",
    "mel_pseudo_inverse",
    "overlap_add",
    "stft",
    "trim",
]
