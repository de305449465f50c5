"""What a performer is made of: the sounds of single notes, the room, and a correction of their sum."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import conv1d, embedding_bag
from transformers import initialization as init

from melreformer_hf.audio.mel import mel_filter_bank
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.nn.convnext import ConvNeXtBlock

_VELOCITIES = 128
_USUAL_VELOCITY = 80.0
# Where training begins: dampers that take 180 dB per second, strings that lose 3 dB per second in the end.
_RELEASE_RATE, _LATE_RATE = 20.0, 0.35
_PARTIALS = 24


class NoteSounds(nn.Module):
    """Energy of all notes that sound in a frame: the sum of learned spectra of single notes.

    A note is its key's spectrum at its age, times the loudness of its velocity, faded since its damper fell. The table
    holds logarithms of magnitudes; sums and interpolations are of energies, since notes that have nothing to do with each
    other add so. The sum over notes is a weighted bag of table rows: two per note, at the moments next to its age.

    Args:
        config: sizes.
    """

    def __init__(self, config: NotePerformerConfig) -> None:
        super().__init__()
        self.config = config
        mel = config.mel_config
        self.num_mel_bins = mel.num_mel_bins
        # Frames see a note's end as blurred as their window is long.
        self.softness = mel.win_length / mel.sampling_rate / 2
        self.first_step = math.asinh(config.first_age_in_s / config.age_scale_in_s)
        self.last_step = math.asinh(config.last_age_in_s / config.age_scale_in_s)
        self.level = nn.Parameter(torch.empty(config.num_keys * config.num_ages, self.num_mel_bins))
        self.loudness = nn.Parameter(torch.empty(config.num_velocities))
        self.damping = nn.Parameter(torch.empty(config.num_keys))
        self.damping_by_velocity = nn.Parameter(torch.empty(config.num_velocities))
        self.fading = nn.Parameter(torch.empty(config.num_keys))

    @torch.no_grad()
    def init_weights(self) -> None:
        """A plain struck string on every key; loudness as the square of the velocity."""
        config = self.config
        ages = self.ages().clamp(min=0.0)
        init.copy_(self.level, struck_string_levels(config, ages).flatten(0, 1))
        velocities = torch.linspace(0, _VELOCITIES, config.num_velocities).clamp(min=4.0)
        init.copy_(self.loudness, 2 * (velocities / _USUAL_VELOCITY).log())
        init.constant_(self.damping, math.log(_RELEASE_RATE))
        init.zeros_(self.damping_by_velocity)
        init.constant_(self.fading, math.log(_LATE_RATE))

    def ages(self) -> torch.Tensor:
        """The moments of the table, (age,) float32 seconds since the onset."""
        steps = torch.linspace(self.first_step, self.last_step, self.config.num_ages)
        return self.config.age_scale_in_s * steps.sinh()

    def energies(self) -> torch.Tensor:
        """The table as energies, (key * age, mel) float32."""
        return (2 * self.level.float()).exp()

    def forward(
        self,
        onset: torch.Tensor,
        release: torch.Tensor,
        pitch: torch.Tensor,
        velocity: torch.Tensor,
        times: torch.Tensor,
        spectra: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Energies of frames.

        Args:
            onset: (batch, note) seconds.
            release: (batch, note) seconds, `inf` where it is not known.
            pitch: (batch, note) MIDI pitch.
            velocity: (batch, note) 1..127, and 0 for what is no note.
            times: (frame,) the middles of the frames in seconds.
            spectra: (key * age, mel) what `energies` gave; `None` computes it.

        Returns:
            (batch, mel, frame) float32.
        """
        config = self.config
        key, place = self._keys(pitch), velocity.float() * ((config.num_velocities - 1) / _VELOCITIES)
        rate = (self.damping.float()[key] + interpolated(self.damping_by_velocity.float(), place)).exp()
        age = times[:, None] - onset.float()[:, None]  # (batch, frame, note)
        since = times[:, None] - release.float()[:, None]
        heard = (velocity > 0)[:, None] & (age >= config.first_age_in_s) & (since <= config.release_tail_in_s)
        late = self.fading.float().exp()[key][:, None] * (age - config.last_age_in_s).clamp(min=0.0)
        level = interpolated(self.loudness.float(), place)[:, None] - rate[:, None] * self._softened(since) - late
        # One half of the exponent's range: energies are squares.
        level = level.clamp(-40.0, 40.0).masked_fill(~heard, -math.inf)
        key = key[:, None].expand_as(age)
        if age.shape[-1] > config.num_voices:
            level, chosen = level.topk(config.num_voices, dim=-1)
            age, key = age.gather(-1, chosen), key.gather(-1, chosen)
        return self._sum(key, age, (2 * level).exp(), self.energies() if spectra is None else spectra)

    def _sum(self, key: torch.Tensor, age: torch.Tensor, weight: torch.Tensor, spectra: torch.Tensor) -> torch.Tensor:
        """(batch, frame, note) each -> (batch, mel, frame)."""
        ages = self.config.num_ages
        step = (age / self.config.age_scale_in_s).asinh()
        place = (step - self.first_step) * ((ages - 1) / (self.last_step - self.first_step))
        place = place.clamp(0, ages - 1)
        low = place.detach().long().clamp(max=ages - 2)
        share = place - low
        rows = torch.cat([key * ages + low, key * ages + low + 1], dim=-1)  # (batch, frame, 2 * note)
        weights = torch.cat([weight * (1 - share), weight * share], dim=-1)
        summed = embedding_bag(rows.flatten(0, 1), spectra, per_sample_weights=weights.flatten(0, 1), mode="sum")
        return summed.view(*age.shape[:2], self.num_mel_bins).transpose(1, 2)

    def _keys(self, pitch: torch.Tensor) -> torch.Tensor:
        """Number of the key, (batch, note): pitches beyond the keyboard move to its outermost octaves."""
        key = pitch - self.config.lowest_key
        last = self.config.num_keys - 1
        key = torch.where(key < 0, key.remainder(12), key)
        return torch.where(key > last, last - (last - key).remainder(12), key)

    def _softened(self, since: torch.Tensor) -> torch.Tensor:
        """Seconds that a note was damped in the mean of a window: 0 before the release, a parabola within the window."""
        inside = since.clamp(-self.softness, self.softness)
        return (inside + self.softness).square() / (4 * self.softness) + (since - self.softness).clamp(min=0.0)


def interpolated(knots: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Values between evenly spaced `knots` (knot,), at `place` in units of their distance; the shape of `place`."""
    low = place.detach().long().clamp(0, len(knots) - 2)
    share = (place - low).clamp(0.0, 1.0)
    return knots[low] * (1 - share) + knots[low + 1] * share


def struck_string_levels(config: NotePerformerConfig, ages: torch.Tensor) -> torch.Tensor:
    """Natural logarithms of the magnitudes of plain decaying tones, (key, age, mel) float32.

    Partial n is n times as high, 1/n times as strong, and fades faster the higher it is.
    """
    mel = config.mel_config
    bin_width = mel.sampling_rate / mel.n_fft
    keys = torch.arange(config.lowest_key, config.lowest_key + config.num_keys)
    number = torch.arange(1, _PARTIALS + 1)
    pitch = 440.0 * 2.0 ** ((keys[:, None] - 69) / 12) * number  # (key, partial) Hz
    bins = torch.arange(mel.n_fft // 2 + 1) * bin_width
    # A Gaussian is close to the main lobe of a Hann window, whose peak is a quarter of its length for a sine of 1.
    lobe = (-((bins - pitch[..., None]) / (1.2 * bin_width)).square()).exp() * mel.win_length / 4
    filters = mel_filter_bank(mel)
    spectra = (lobe * (0.05 / number)[:, None]) @ filters.T  # (key, partial, mel)
    decay = (-(0.4 + pitch[:, None] / 2000.0) * ages[:, None]).exp()  # (key, age, partial)
    energy = decay.square() @ spectra.square()
    return 0.5 * (energy + mel.log_floor**2 / 4).log()


class Room(nn.Module):
    """What a room adds: energies of past frames, fading, in each band by itself.

    Args:
        num_mel_bins: bands.
        num_frames: how far back it remembers.
    """

    def __init__(self, num_mel_bins: int, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.level = nn.Parameter(torch.empty(num_mel_bins, num_frames))  # logarithms of energies

    @torch.no_grad()
    def init_weights(self) -> None:
        """A small dry room."""
        frames = torch.arange(1, self.num_frames + 1)
        init.copy_(self.level, (-6.0 - 0.15 * frames).expand_as(self.level))

    def forward(self, energy: torch.Tensor) -> torch.Tensor:
        """(batch, mel, num_frames + frame) -> (batch, mel, frame): the first frames are past only."""
        # A convolution reads its kernel from the oldest frame on.
        kernel = self.level.float().exp().flip(-1)[:, None]
        echoes = conv1d(energy[..., :-1], kernel, groups=len(kernel))
        return energy[..., self.num_frames :] + echoes


class Correction(nn.Module):
    """What sums of energies do not know: interference between notes, and all that the instrument does besides.

    Args:
        config: sizes.
    """

    def __init__(self, config: NotePerformerConfig) -> None:
        super().__init__()
        bins, hidden, kernel = config.num_mel_bins, config.hidden_size, config.kernel_size
        self.stem = nn.Conv1d(bins, hidden, kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(
            [ConvNeXtBlock(hidden, config.intermediate_size, kernel) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, bins)
        self.reach = kernel // 2 + sum(block.reach for block in self.blocks)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        """Log-magnitudes (batch, mel, frame) -> what is added to them, without `reach` frames at either end."""
        hidden = self.stem((level + 6.0) / 4.0)  # from about -11.5..2 to about -1.4..2
        for block in self.blocks:
            hidden = block(hidden)
        hidden = hidden[..., self.reach : hidden.shape[-1] - self.reach]
        return self.head(self.norm(hidden.transpose(1, 2))).transpose(1, 2)


__all__ = ["Correction", "NoteSounds", "Room", "interpolated", "struck_string_levels"]
