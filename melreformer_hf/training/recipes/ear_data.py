"""What the ear learns from: targets of notes, and recordings as rooms, microphones and levels change them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.training.config import option

_DECAY = 3 * math.log(10)  # amplitudes fall by 60 dB within the reverberation time
_LOWEST_HZ = 50.0  # below it a tilted spectrum stays flat: nothing of a piano is there, but rumble is


@dataclasses.dataclass(frozen=True, kw_only=True)
class HearingOptions:
    """How recordings are changed while the ear is trained; 0 switches each of them off.

    Raises:
        ValueError: a field breaks its rule.
    """

    level_range_db: float = option(10.0, "recordings are made louder or softer by up to this many dB")
    tilt_db: float = option(2.0, "and brighter or darker by up to this many dB per octave")
    room_share: float = option(0.4, "share of the recordings that stand in a room")
    room_seconds: float = option(0.8, "longest reverberation time (for 60 dB); the shortest is an eighth of it")
    room_level_db: float = option(
        0.0, "loudest reverberation relative to the direct sound; the softest is 20 dB below"
    )
    noise_share: float = option(0.5, "share of the recordings that get noise")
    noise_db: float = option(-20.0, "loudest noise relative to the recording; the softest is 40 dB below")

    def __post_init__(self) -> None:
        for name in ("level_range_db", "tilt_db", "room_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        for name in ("room_share", "noise_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"options.{name} must be in [0, 1], got {getattr(self, name)}.")


def separated_notes(notes: SoundingNotes) -> SoundingNotes:
    """Each note ends at the latest when its key is struck again: an ear hears one note per key."""
    order = np.lexsort((notes.onset, notes.pitch))
    ordered = notes.where(order)
    same_key = ordered.pitch[1:] == ordered.pitch[:-1]
    following = np.append(np.where(same_key, ordered.onset[1:], np.inf), np.inf)[: len(ordered)]
    return dataclasses.replace(ordered, release=np.minimum(ordered.release, following))


def note_targets(notes: SoundingNotes, num_steps: int, config: NoteEarConfig) -> torch.Tensor:
    """What the ear should say of notes.

    Args:
        notes: numpy columns; times in seconds from the first step's beginning, also before it and after the last.
        num_steps: steps.
        config: keys, clock and width of the triangles.

    Returns:
        (step, key, 4): triangles around onsets, 1 while a note sounds, triangles around ends, and velocities / 127 where
        the onset's triangle is.
    """
    targets = np.zeros((num_steps, config.num_keys, 4), dtype=np.float32)
    span, width = num_steps * config.step_in_s, config.label_reach
    steps = np.arange(num_steps)
    heard = separated_notes(notes)
    keys = heard.pitch - config.lowest_pitch
    inside = (keys >= 0) & (keys < config.num_keys) & (heard.onset < span + 1) & (heard.release > -1)
    for index in np.flatnonzero(inside):
        # A step's number is the place of its middle.
        onset, release = (time[index] / config.step_in_s - 0.5 for time in (heard.onset, heard.release))
        column = targets[:, keys[index]]
        for place, field in ((onset, 0), (release, 2)):
            if not math.isfinite(place):
                continue
            near = slice(max(0, math.ceil(place - width)), max(0, math.floor(place + width) + 1))
            triangle = 1 - np.abs(steps[near] - place) / width
            if field == 0:
                column[near, 3] = np.where(triangle > column[near, 0], heard.velocity[index] / 127, column[near, 3])
            column[near, field] = np.maximum(column[near, field], triangle)
        end = num_steps if math.isinf(release) else max(0, math.floor(release) + 1)
        column[max(0, math.ceil(onset)) : end, 1] = 1
    return torch.from_numpy(targets)


def changed_sound(
    waveform: torch.Tensor, sampling_rate: int, options: HearingOptions, generator: torch.Generator
) -> torch.Tensor:
    """A recording in another room, by another microphone, at another level: (sample,) -> (sample,).

    The room is an echo of noise that decays exponentially behind the direct sound, which does not move.
    """
    in_room, seconds, echo, tilt, noisy, noise, color, level = torch.rand(
        8, generator=generator, dtype=torch.float64
    ).tolist()
    if in_room >= options.room_share:
        seconds = 0.0
    reverberation = seconds and options.room_seconds * 8 ** (seconds - 1)
    slope = (2 * tilt - 1) * options.tilt_db
    waveform = _filtered(waveform, sampling_rate, reverberation, options.room_level_db - 20 * echo, slope, generator)
    if noisy < options.noise_share:
        hiss = torch.randn(len(waveform), generator=generator)
        # From white to 6 dB per octave darker.
        hiss = _filtered(hiss, sampling_rate, 0.0, 0.0, -6 * color, generator)
        loudness = waveform.square().mean().sqrt() / hiss.square().mean().sqrt().clamp(min=1e-9)
        waveform = waveform + hiss * loudness * 10 ** ((options.noise_db - 40 * noise) / 20)
    return waveform * 10 ** ((2 * level - 1) * options.level_range_db / 20)


def _filtered(
    waveform: torch.Tensor,
    sampling_rate: int,
    reverberation: float,
    echo_db: float,
    slope_db: float,
    generator: torch.Generator,
) -> torch.Tensor:
    tail = round(reverberation * sampling_rate)
    if not tail and not slope_db:
        return waveform
    size = 1 << (len(waveform) + tail - 1).bit_length()
    if 3 * size // 4 >= len(waveform) + tail:
        size = 3 * size // 4
    spectrum = torch.fft.rfft(waveform, size)
    if tail:
        decay = torch.arange(1, tail + 1) * (-_DECAY / tail)
        echo = torch.randn(tail, generator=generator) * decay.exp()
        response = torch.cat([torch.ones(1), echo * (10 ** (echo_db / 20) / echo.norm())])
        spectrum = spectrum * torch.fft.rfft(response, size)
    if slope_db:
        frequencies = torch.fft.rfftfreq(size, 1 / sampling_rate).clamp(min=_LOWEST_HZ)
        octaves = torch.log2(frequencies / 1000)
        spectrum = spectrum * torch.pow(10.0, octaves * (slope_db / 20))
    return torch.fft.irfft(spectrum, size)[: len(waveform)]


__all__ = ["HearingOptions", "changed_sound", "note_targets", "separated_notes"]
