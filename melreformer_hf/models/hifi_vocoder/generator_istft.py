"""The fast generator: ConvNeXt blocks at the frame rate and an inverse STFT (Vocos, arXiv 2306.00814).

Deviations from Vocos: magnitudes are predicted as a change of those that the mel itself implies (pseudo-inverse of the
filter bank); the phase is an unnormalized (cosine, sine) pair, relative to reference oscillators that know the frame
number (so that steady tones between the multiples of the frame rate can be learned); optional unrolled Griffin-Lim
projections make the spectrum consistent inside the network, so that the losses see what is heard; optional corrections
scale the magnitudes until the mel that they imply is the one that was given.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from melreformer_hf.audio.griffin_lim import accelerated, magnitude_from_log_mel, mel_pseudo_inverse
from melreformer_hf.audio.mel import MelConfig, mel_filter_bank, undo_log
from melreformer_hf.audio.stft import Transform, extended_istft, extended_stft, full_precision, power, trim
from melreformer_hf.nn.convnext import ConvNeXtBlock
from melreformer_hf.nn.streaming import Backlog, Frames, Stage, run_stages

_SMALLEST_MAGNITUDE = 1e-5
_SMALLEST_SQUARE = 1e-10
_LARGEST_DELTA = 20.0  # nats
_BANDS = 4


def mel_affine(config: MelConfig) -> tuple[float, float]:
    """(scale, shift) that carry the contract's range, silence to a full-scale sine, to -1..1."""
    # A full-scale sine at the center of a bin has the magnitude sum(window) / 2.
    window = Transform.of(config).window(torch.float64, "cpu")
    peak = (window.sum().item() / 2) ** config.power * mel_filter_bank(config, device="cpu").max().item()
    peak = max(peak, math.e * config.log_floor)
    top = (math.log(peak) if config.log_base == "e" else math.log10(peak)) * config.log_multiplier + config.log_offset
    if config.clip_max is not None:
        top = min(top, config.clip_max)
    scale = 2 / (top - config.floor_value)
    return scale, -1 - scale * config.floor_value


def oscillator_turns(
    transform: Transform, count: int, num_frames: int, first_frame: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosine, sine) of `count` oscillators per bin, spread evenly over the bin; each (frame, count, bin).

    They depend on the absolute frame number, so that a steady mel can become a steady tone: without them the phase of
    a constant input is constant, and the tone is forced onto a multiple of the frame rate. The angles are exact
    integers, at any frame number; they repeat after `count * n_fft / gcd(count * n_fft, hop)` frames.
    """
    cycle = count * transform.n_fft
    period = min(num_frames, cycle // math.gcd(cycle, transform.hop_length))
    frames = torch.arange(first_frame, first_frame + period, device=device).reshape(-1, 1, 1)
    offsets = torch.arange(count, device=device).reshape(1, -1, 1) - count // 2
    steps = torch.arange(transform.num_bins, device=device) * count + offsets
    angles = ((frames * transform.hop_length % cycle) * steps % cycle) * (2 * math.pi / cycle)
    repeats = -(-num_frames // period)
    cosine, sine = angles.cos().repeat(repeats, 1, 1), angles.sin().repeat(repeats, 1, 1)
    return cosine[:num_frames], sine[:num_frames]


def band_slices(matrix: torch.Tensor, count: int) -> list[tuple[slice, slice]]:
    """Parts of a product with a matrix (input, output) that is zero far from its diagonal.

    Returns:
        (inputs, outputs) of `count` parts at most, which have all of the outputs in order; a part's other inputs are zero.
    """
    parts, total = [], matrix.shape[1]
    for index in range(count):
        outputs = slice(index * total // count, (index + 1) * total // count)
        used = matrix[:, outputs].any(1).nonzero()
        inputs = slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 1)
        if outputs.stop > outputs.start:
            parts.append((inputs, outputs))
    return parts


class SpectralTables(nn.Module):
    """Constants of the inverse transform, in float32 whatever the model's precision, and in no checkpoint.

    Args:
        config: the mel contract.
    """

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.empty(config.n_fft), persistent=False)
        self.register_buffer("inverse", torch.empty(config.n_fft // 2 + 1, config.num_mel_bins), persistent=False)
        self.register_buffer("bank", torch.empty(config.n_fft // 2 + 1, config.num_mel_bins), persistent=False)
        self.register_buffer("shares", torch.empty(config.num_mel_bins, config.n_fft // 2 + 1), persistent=False)
        values = self.values("cpu")
        for name, value in values.items():
            self._buffers[name] = value.to(self._buffers[name].device)
        # Bands and their bins lie along the diagonal: most of a whole product would multiply zeros.
        self._parts = {name: band_slices(values[name], _BANDS) for name in ("bank", "shares")}

    def values(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        """The window (n_fft,), the filter bank's pseudo-inverse (bin, mel), the filter bank itself (bin, mel), and how
        much a bin listens to each band (mel, bin): sums of 1, or of 0 where no band reaches.
        """
        window = Transform.of(self.config).window(torch.float32, device)
        bank = mel_filter_bank(self.config, device=device)
        shares = bank / bank.sum(0).clamp(min=torch.finfo(bank.dtype).tiny)
        inverse = mel_pseudo_inverse(self.config, torch.float32, device)
        return {"window": window, "inverse": inverse, "bank": bank.T, "shares": shares}

    def product(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """`values @ table` of the table `bank` (from bins to bands) or `shares` (back), (..., input) -> (..., output)."""
        table = self.get_buffer(name)
        parts = [values[..., inputs] @ table[inputs, outputs] for inputs, outputs in self._parts[name]]
        return torch.cat(parts, dim=-1)

    def _apply(self, fn, *arguments, **kwargs):
        # `.to(torch.bfloat16)` moves and rounds; the rounding is undone, because transforms lose the phase by it.
        super()._apply(fn, *arguments, **kwargs)
        if not self.window.is_meta:
            self._buffers.update(self.values(self.window.device))
        return self


class IstftGenerator(nn.Module):
    """Log-mel to waveform at one network step per frame.

    Args:
        mel_config: hop-aligned contract of the input.
        hidden_size: channels.
        intermediate_size: width of the blocks' perceptrons.
        num_hidden_layers: number of blocks.
        kernel_size: odd kernel of stem and blocks.
        refine_steps: consistency projections after the head.
        num_oscillators: reference oscillators per bin that carry the predicted phase; 0 for none.
        mel_corrections: how often the predicted magnitudes are scaled towards the mel.
        refine_momentum: acceleration of the projections.
        refine_feedback: share of what the mel of a projection lacks that the next magnitudes are raised by.
    """

    def __init__(
        self,
        mel_config: MelConfig,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        kernel_size: int,
        refine_steps: int,
        num_oscillators: int,
        mel_corrections: int = 0,
        refine_momentum: float = 0.0,
        refine_feedback: float = 0.0,
    ) -> None:
        super().__init__()
        self.mel_corrections = mel_corrections
        self.refine_momentum, self.refine_feedback = refine_momentum, refine_feedback
        self.num_oscillators = num_oscillators
        self.mel_config = mel_config
        self.transform = Transform.of(mel_config)
        self.tables = SpectralTables(mel_config)
        self.refine_steps = refine_steps
        self.gradient_checkpointing = False
        self.scale, self.shift = mel_affine(mel_config)
        self.loudest = float(mel_config.win_length)
        self.stem = nn.Conv1d(mel_config.num_mel_bins, hidden_size, kernel_size, padding=kernel_size // 2)
        self.stem_norm = nn.LayerNorm(hidden_size)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(hidden_size, intermediate_size, kernel_size) for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, (1 + 2 * max(1, num_oscillators)) * self.transform.num_bins)

    @property
    def receptive_field_frames(self) -> tuple[int, int]:
        """Frames (before, after) that the samples of a frame depend on."""
        befores, afters = zip(*(stage.reach for stage in self.stages()), strict=True)
        return sum(befores), sum(afters)

    def stages(self) -> list[Stage]:
        """From (log-mel,), (batch, frame, mel), to (samples, magnitude): (batch, frame, hop) and (batch, frame, bin)."""
        reach = self.stem.kernel_size[0] // 2
        blocks = [Stage(partial(self._block, block), (block.reach, block.reach)) for block in self.blocks]
        overlap = self.transform.overlap_reach
        projections = [Stage(self._project, (overlap, overlap))] * self.refine_steps
        return [
            Stage(self._stem, (reach, reach)),
            *blocks,
            Stage(self._spectrum),
            *projections,
            Stage(self._sound, self.transform.output_reach),
        ]

    def _stem(self, frames: Frames, first_frame: int) -> Frames:
        (log_mel,) = frames
        given = log_mel.to(self.head.weight.dtype) * self.scale + self.shift
        return self.stem_norm(self.stem(given.transpose(1, 2)).transpose(1, 2)), log_mel

    def _block(self, block: ConvNeXtBlock, frames: Frames, first_frame: int) -> Frames:
        hidden, log_mel = frames
        hidden = hidden.transpose(1, 2)  # (batch, channel, frame)
        if self.gradient_checkpointing and self.training:
            hidden = self._gradient_checkpointing_func(block.__call__, hidden)
        else:
            hidden = block(hidden)
        return hidden.transpose(1, 2), log_mel

    def _phase(self, coefficients: torch.Tensor, first_frame: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosine, sine), not normalized, of shape (batch, frame, bin)."""
        count, bins = max(1, self.num_oscillators), self.transform.num_bins
        # (batch, frame, 2 * oscillator * bin) -> two of (batch, frame, oscillator, bin)
        cosine, sine = coefficients.unflatten(-1, (2, count, bins)).unbind(2)
        if self.num_oscillators == 0:
            return cosine[:, :, 0], sine[:, :, 0]
        real, imaginary = oscillator_turns(self.transform, count, cosine.shape[1], first_frame, cosine.device)
        # Complex product of what the network says and where the oscillators are, summed over the oscillators.
        return (cosine * real - sine * imaginary).sum(2), (cosine * imaginary + sine * real).sum(2)

    def _lacking(self, square: torch.Tensor, wanted: torch.Tensor, share: float) -> torch.Tensor:
        """Factors for magnitudes by which their mel comes nearer to the one wanted, less 1.

        Args:
            square: (batch, frame, bin) squares of magnitudes.
            wanted: (batch, frame, mel) the mel, not below its floor.
            share: of the way in logarithms, 0..1.

        Returns:
            (batch, frame, bin); 0 where no band reaches.
        """
        config = self.mel_config
        mel = self.tables.product(square if config.power == 2 else square ** (config.power / 2), "bank")
        ratio = (wanted / mel.clamp(min=config.log_floor)) ** (share / config.power)
        return self.tables.product(ratio - 1, "shares")

    def _magnitude(self, log_mel: torch.Tensor, delta: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        # (batch, mel, frame), (batch, frame, bin), (batch, frame, mel) -> (batch, frame, bin)
        prior = magnitude_from_log_mel(log_mel, self.mel_config, _SMALLEST_MAGNITUDE, self.tables.inverse)
        magnitude = prior * delta.clamp(max=_LARGEST_DELTA).exp()
        for _ in range(self.mel_corrections):
            magnitude = torch.addcmul(magnitude, magnitude, self._lacking(magnitude.square(), wanted, 1.0))
        return magnitude.clamp(max=self.loudest)

    def _spectrum(self, frames: Frames, first_frame: int) -> Frames:
        """What the head says of magnitude and phase: spectrum, projection before, magnitude, and the mel that is wanted."""
        hidden, log_mel = frames
        head, log_mel = self.head(self.norm(hidden)), log_mel.float().transpose(1, 2)
        with full_precision(head):
            head, bins = head.float(), self.transform.num_bins
            cosine, sine = self._phase(head[..., bins:], first_frame)
            wanted = undo_log(log_mel, self.mel_config).transpose(1, 2).clamp(min=self.mel_config.log_floor)
            magnitude = self._magnitude(log_mel, head[..., :bins], wanted)
            # Division by the pair's length leaves its angle; the small square keeps a zero pair's gradient finite.
            gain = magnitude * (cosine.square() + sine.square() + _SMALLEST_SQUARE).rsqrt()
            spectrum = torch.complex(cosine * gain, sine * gain)
        return spectrum, spectrum.new_zeros(()).expand_as(spectrum), magnitude, wanted

    def _project(self, frames: Frames, first_frame: int) -> Frames:
        """One step of Griffin-Lim: the nearest spectrum that a signal has, with the magnitudes put back."""
        spectrum, previous, magnitude, wanted = frames
        window = self.tables.window
        with full_precision(spectrum):
            rebuilt = extended_stft(extended_istft(spectrum, self.transform, window), self.transform, window)
            target = accelerated(rebuilt, previous, self.refine_momentum)
            gain = magnitude * power(target, _SMALLEST_SQUARE).rsqrt()
            if self.refine_feedback:
                # Where windows disagree sound is lost; the mel tells how much.
                lacking = self._lacking(power(rebuilt, _SMALLEST_SQUARE), wanted, self.refine_feedback)
                gain = torch.addcmul(gain, gain, lacking)
        return target * gain, rebuilt, magnitude, wanted

    def _sound(self, frames: Frames, first_frame: int) -> Frames:
        spectrum, _, magnitude, _ = frames
        with full_precision(spectrum):
            waveform = trim(extended_istft(spectrum, self.transform, self.tables.window), self.transform)
        return waveform.unflatten(1, (-1, self.transform.hop_length)), magnitude

    def forward(
        self, input_features: torch.Tensor, first_frame: int = 0, output_magnitude: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(batch, mel, frame) -> (batch, frame * hop); `first_frame` is where in the whole signal the input begins.

        With `output_magnitude` also (batch, frame, bin) float32, the magnitudes before any projection.
        """
        frames: Frames = (input_features.transpose(1, 2),)
        for stage in self.stages():
            frames = stage.work(frames, first_frame)
        waveform = frames[0].flatten(1).to(input_features.dtype)
        return (waveform, frames[1]) if output_magnitude else waveform

    def advance(
        self, input_features: torch.Tensor, backlogs: tuple[Backlog, ...] | None, last: bool
    ) -> tuple[torch.Tensor, tuple[Backlog, ...]]:
        """The next piece of a stream: (batch, mel, frame), none too at the end, to (batch, sample), of what is settled."""
        stages = self.stages()
        backlogs = tuple(Backlog() for _ in stages) if backlogs is None else backlogs
        frames = (input_features.transpose(1, 2),) if input_features.shape[-1] else None
        made, backlogs = run_stages(stages, backlogs, frames, last)
        if made is None:
            return input_features.new_zeros(len(input_features), 0), backlogs
        return made[0].flatten(1).to(input_features.dtype), backlogs


__all__ = ["IstftGenerator", "SpectralTables", "band_slices", "mel_affine", "oscillator_turns"]
