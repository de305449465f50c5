"""Encoder and decoder of the codec at the frame rate: a spectrum per frame, ConvNeXt blocks, an inverse transform.

A network that works on samples spends nearly all of its time at the sampling rate. This one leaves it at once: a frame's
spectrum is one vector, and all layers run 50 times a second. It follows Vocos (Siuzdak, arXiv 2306.00814), whose blocks and
whose head of magnitudes and phases it shares. Deviations: everything is causal; the head's frames overlap by a fraction of
a hop instead of three quarters of a window, because what lies in a later frame's window has to be guessed from the past;
phases are unnormalized (cosine, sine) pairs.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from melreformer_hf.audio.stft import full_precision
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.nn.conv import Runner, run_whole
from melreformer_hf.nn.convnext import ConvNeXtBlock

_PART_GAIN = 6.0  # of real and imaginary parts beside logarithms of magnitudes: music is far below full scale
_SMALLEST = 1e-4
_LARGEST_LOG = 8.0  # of a head's magnitudes: far above full scale
_USUAL_LOG = -4.0  # an untrained head is about as loud as music
_SMALLEST_SQUARE = 1e-10
_NORM_MOMENTUM = 0.01  # of the latents' mean and variance


class CausalFrames(nn.Module):
    """Windows of the waveform, one per hop, each ending with its hop: silence lies before the first sample.

    Args:
        length: samples of a window.
        hop_length: samples between windows.
    """

    def __init__(self, length: int, hop_length: int) -> None:
        super().__init__()
        self.length, self.hop_length, self.context = length, hop_length, length - hop_length

    def _cut(self, waveform: torch.Tensor) -> torch.Tensor:
        return waveform.unfold(-1, self.length, self.hop_length)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, channel, sample) -> (batch, channel, ceil(sample / hop_length), length)."""
        return self._cut(nn.functional.pad(waveform, (self.context, -waveform.shape[-1] % self.hop_length)))

    def step(self, waveform: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of a stream, as of `CausalConv1d.step`."""
        if memory is None:
            memory = waveform.new_zeros(*waveform.shape[:2], self.context)
        held = torch.cat([memory, waveform], dim=-1)
        consumed = (held.shape[-1] - self.context) // self.hop_length * self.hop_length
        memory = held[..., consumed:].clone()
        if not consumed:
            return waveform.new_zeros(*waveform.shape[:2], 0, self.length), memory
        return self._cut(held[..., : consumed + self.context]), memory


class CausalOverlapAdd(nn.Module):
    """Frames of a hop and an overlap to a waveform: what exceeds a frame's hop is added to the next one's beginning.

    Args:
        hop_length: samples that a frame brings.
        overlap: samples that it adds to the next hop, at most a hop.
    """

    def __init__(self, hop_length: int, overlap: int) -> None:
        super().__init__()
        self.hop_length, self.overlap = hop_length, overlap

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, channel, frame, hop_length + overlap) -> (batch, channel, frame * hop_length)."""
        return self.step(frames, None)[0]

    def step(self, frames: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk of a stream, as of `CausalConvTranspose1d.step`; the memory is (batch, channel, 1, overlap)."""
        bodies, tails = frames.split((self.hop_length, self.overlap), dim=-1)
        if memory is None:
            memory = frames.new_zeros(*frames.shape[:2], 1, self.overlap)
        tails = torch.cat([memory, tails], dim=2)
        earlier = nn.functional.pad(tails[:, :, :-1], (0, self.hop_length - self.overlap))
        return (bodies + earlier).flatten(2), tails[:, :, -1:].clone()


def analysis_window(length: int, fade: int, device: torch.device | None = None) -> torch.Tensor:
    """(length,) float32: rises as a sine's square, and falls so over its last `fade` samples; 0: a periodic Hann window."""
    if not fade:
        return torch.hann_window(length, device=device)
    rise, fall = ((torch.arange(size, device=device) + 0.5) / size for size in (length - fade, fade))
    return torch.cat([(0.5 * math.pi * rise).sin().square(), (0.5 * math.pi * fall).cos().square()])


def fading_window(hop_length: int, overlap: int, device: torch.device | None = None) -> torch.Tensor:
    """(hop_length + overlap,) float32: flat, with edges over `overlap` samples that add up to one with the next frame's."""
    place = (torch.arange(overlap, device=device) + 0.5) / max(overlap, 1)
    rise = (0.5 * math.pi * place).sin().square()
    return torch.cat([rise, torch.ones(hop_length - overlap, device=device), 1 - rise])


class FrameBlocks(GradientCheckpointingLayer):
    """Causal ConvNeXt blocks and a normalization."""

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        sizes = config.frame_size, config.frame_intermediate_size, config.kernel_size
        self.blocks = nn.ModuleList(ConvNeXtBlock(*sizes, causal=True) for _ in range(config.num_frame_layers))
        self.norm = nn.LayerNorm(config.frame_size)

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, frame_size, frame) -> (batch, frame, frame_size)."""
        for block in self.blocks:
            hidden = block(hidden, run)
        return self.norm(hidden.transpose(1, 2))


class SpectralEncoder(nn.Module):
    """Waveform to latents.

    Args:
        config: of the codec.
    """

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        self.frames = CausalFrames(config.n_fft, config.hop_length)
        # Real and imaginary parts, and perhaps the magnitude, of every bin and channel.
        self.magnitudes, self.power, self.fade = config.magnitude_features, config.spectral_power, config.analysis_fade
        features = config.audio_channels * (3 if self.magnitudes else 2) * (config.n_fft // 2 + 1)
        self.stem = nn.Linear(features, config.frame_size)
        self.stem_norm = nn.LayerNorm(config.frame_size)
        self.layers = FrameBlocks(config)
        self.head = nn.Linear(config.frame_size, config.hidden_size)
        self.latent_norm = None
        if config.latent_norm:
            self.latent_norm = nn.BatchNorm1d(config.hidden_size, affine=False, momentum=_NORM_MOMENTUM)

    def _features(self, waveform: torch.Tensor, run: Runner) -> torch.Tensor:
        """(batch, channel, sample) -> (batch, frame, feature)."""
        with full_precision(waveform):
            frames = run(self.frames, waveform.float())
            if not frames.shape[2]:  # a chunk without a whole hop; there are no transforms of nothing
                return frames.new_zeros(len(frames), 0, self.stem.in_features)
            # A full-scale sine has the magnitude of one.
            window = analysis_window(self.frames.length, self.fade, frames.device)
            spectrum = torch.view_as_real(torch.fft.rfft(frames * window) * (4 / self.frames.length))
            loudness = spectrum.square().sum(-1).clamp(min=_SMALLEST**2)
            spectrum = spectrum * loudness.pow((self.power - 1) / 2)[..., None]
            if self.magnitudes:
                # From -1.2 for silence to 1 for a full-scale sine.
                logarithm = 1 + 0.12 * loudness.log()[..., None]
                spectrum = torch.cat([_PART_GAIN * spectrum, logarithm], dim=-1)
        # (batch, channel, frame, bin, 2 or 3) -> (batch, frame, channel * bin * (2 or 3))
        return spectrum.transpose(1, 2).flatten(2)

    def forward(self, waveform: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        """(batch, audio_channels, sample) -> (batch, hidden_size, ceil(sample / hop_length))."""
        features = self._features(waveform, run).to(self.stem.weight.dtype)
        hidden = self.stem_norm(self.stem(features)).transpose(1, 2)
        latents = self.head(self.layers(hidden, run)).transpose(1, 2)
        if self.latent_norm is None or not latents.shape[2]:
            return latents
        with full_precision(latents):
            return self.latent_norm(latents.float()).to(self.head.weight.dtype)


class SpectralDecoder(nn.Module):
    """Latents to waveform.

    Args:
        config: of the codec.
    """

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__()
        self.channels, self.length = config.audio_channels, config.hop_length + config.synthesis_overlap
        self.normalized = config.normalized_phases
        self.stem = nn.Linear(config.hidden_size, config.frame_size)
        self.layers = FrameBlocks(config)
        # Magnitude, cosine and sine of every bin and channel.
        self.head = nn.Linear(config.frame_size, self.channels * 3 * (self.length // 2 + 1))
        self.overlap_add = CausalOverlapAdd(config.hop_length, config.synthesis_overlap)

    def _frames(self, head: torch.Tensor) -> torch.Tensor:
        """(batch, frame, channel * 3 * bin) -> (batch, channel, frame, sample)."""
        if not head.shape[1]:
            return head.new_zeros(len(head), self.channels, 0, self.length)
        with full_precision(head):
            parts = head.float().unflatten(-1, (self.channels, 3, -1)).transpose(1, 2)
            magnitude, cosine, sine = parts.unbind(3)
            magnitude = (magnitude + _USUAL_LOG).clamp(max=_LARGEST_LOG).exp()
            gain = magnitude
            if self.normalized:
                gain = gain * (cosine.square() + sine.square() + _SMALLEST_SQUARE).rsqrt()
            # Orthonormal: white noise of magnitude one has samples of variance one, whatever the length.
            frames = torch.fft.irfft(torch.complex(cosine * gain, sine * gain), n=self.length, norm="ortho")
            window = fading_window(self.overlap_add.hop_length, self.overlap_add.overlap, frames.device)
            return frames * window

    def forward(self, hidden: torch.Tensor, run: Runner = run_whole) -> list[torch.Tensor]:
        """All stages: (batch, hidden_size, frame) -> states (batch, frame_size, frame), and the waveform."""
        states = self.layers(self.stem(hidden.transpose(1, 2)).transpose(1, 2), run)
        # Under autocast the states are in half precision; samples are not.
        waveform = run(self.overlap_add, self._frames(self.head(states)))
        return [states.transpose(1, 2), waveform.to(self.head.weight.dtype)]


__all__ = [
    "CausalFrames",
    "CausalOverlapAdd",
    "SpectralDecoder",
    "SpectralEncoder",
    "analysis_window",
    "fading_window",
]
