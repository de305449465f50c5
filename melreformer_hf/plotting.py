"""Mels and notes as pictures: bare pixels on one color scale, and figures with axes in seconds, Hz and keys, drawn with
Pillow alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from melreformer_hf._files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from melreformer_hf.audio.mel import MelConfig

_INK, _PAPER, _MISSING = (32, 32, 32), (255, 255, 255), (216, 216, 216)
_FONT_SIZE, _TITLE_SIZE, _TICK = 15, 18, 5
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 46
_PLOT_HEIGHT, _BAR_WIDTH = 320, 16
_HERTZ = (0, 60, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)
# Keys of a piano, A0 to C8, and those that the axis names: every C.
_KEYS, _NAMED_KEYS = (21, 108), range(24, 109, 12)
_MARK, _MARKED = 7, (0, 140, 110)  # pixels and color of the bar above what is marked
_RAIL, _LINE = 6, (232, 232, 232)  # pixels of the pedal's row under the keys; lines between octaves
_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)

# Anchors of a perceptually increasing dark-to-bright scale (violet, red, orange, yellow), interpolated linearly.
_ANCHORS = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ],
    dtype=np.float64,
)


def colorize(values: torch.Tensor, low: float, high: float) -> np.ndarray:
    """(height, width) values to (height, width, 3) uint8; `low` and below is black, `high` and above bright."""
    array = values.detach().cpu().float().numpy()
    share = np.clip((array - low) / max(high - low, 1e-9), 0, 1) * (len(_ANCHORS) - 1)
    lower = np.minimum(share.astype(int), len(_ANCHORS) - 2)
    rest = (share - lower)[..., None]
    return (_ANCHORS[lower] * (1 - rest) + _ANCHORS[lower + 1] * rest).round().astype(np.uint8)


def mel_picture(
    mel: torch.Tensor, low: float | None = None, high: float | None = None, width: int | None = None
) -> np.ndarray:
    """Picture of one log-mel.

    Args:
        mel: (mel, frame).
        low: value drawn black; default the smallest.
        high: value drawn brightest; default the largest.
        width: columns of the picture; default one per frame.

    Returns:
        (mel, width, 3) uint8, lowest band in the bottom row.

    Raises:
        ValueError: `mel` is not two-dimensional.
    """
    if mel.ndim != 2:
        raise ValueError(f"mel must have shape (mel, frame), got {tuple(mel.shape)}.")
    if width is not None and width != mel.shape[1]:
        mode = "area" if width < mel.shape[1] else "nearest"
        mel = torch.nn.functional.interpolate(mel[None].float(), size=width, mode=mode)[0]
    low = mel.min().item() if low is None else low
    high = mel.max().item() if high is None else high
    return colorize(mel.flip(0), low, high)


def stack_mels(mels: Sequence[torch.Tensor], width: int = 1024, gap: int = 4) -> np.ndarray:
    """Mels above one another with a common color scale and width, (height, width, 3) uint8."""
    low = min(mel.min().item() for mel in mels)
    high = max(mel.max().item() for mel in mels)
    rows: list[np.ndarray] = []
    for mel in mels:
        if rows:
            rows.append(np.full((gap, width, 3), 255, dtype=np.uint8))
        rows.append(mel_picture(mel, low, high, width))
    return np.concatenate(rows)


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def band_of(frequency: float, config: MelConfig) -> float:
    """Number of the mel band whose center lies at a frequency in Hz; between two bands a fraction."""
    from transformers.audio_utils import hertz_to_mel

    low, high, mel = (hertz_to_mel(float(f), "slaney") for f in (config.fmin, config.max_frequency, frequency))
    return (mel - low) / (high - low) * (config.num_mel_bins + 1) - 1


def seconds_ticks(seconds: float, room: int = 8) -> list[float]:
    """Round times from 0 to `seconds`, at most `room` steps apart."""
    step = next((s for s in _SECONDS if seconds / s <= room), _SECONDS[-1])
    return [step * index for index in range(int(seconds / step + 1e-6) + 1)]


def _text(draw: ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int = _FONT_SIZE) -> None:
    draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor)


def _frequency_axis(draw: ImageDraw, config: MelConfig, height: int) -> None:
    last = height + 99.0
    for frequency in _HERTZ:
        band = band_of(frequency, config)
        y = _TOP + height * (1 - (band + 0.5) / config.num_mel_bins)
        if _TOP <= y <= _TOP + height and last - y > _FONT_SIZE:
            draw.line([(_LEFT - _TICK, y), (_LEFT, y)], fill=_INK)
            label = f"{frequency // 1000}k" if frequency >= 1000 else str(frequency)
            _text(draw, (_LEFT - _TICK - 3, y), label, "rm")
            last = y
    _text(draw, (4, _TOP - 8), "Hz", "ls")


def _key_axis(draw: ImageDraw, width: int, y_of: Callable[[float], float]) -> None:
    for key in _NAMED_KEYS:
        y = y_of(key - 0.5)
        draw.line([(_LEFT, y), (_LEFT + width, y)], fill=_LINE)
        draw.line([(_LEFT - _TICK, y), (_LEFT, y)], fill=_INK)
        _text(draw, (_LEFT - _TICK - 3, y), f"C{key // 12 - 1}", "rm")
    _text(draw, (4, _TOP - 8), "key", "ls")


def _time_axis(draw: ImageDraw, seconds: float, width: int, height: int) -> None:
    bottom = _TOP + height
    for time in seconds_ticks(seconds, room=max(width // 60, 2)):
        x = _LEFT + width * time / seconds
        draw.line([(x, bottom), (x, bottom + _TICK)], fill=_INK)
        _text(draw, (x, bottom + _TICK + 2), f"{time:g}", "mt")
    _text(draw, (_LEFT + width / 2, bottom + _BOTTOM - 6), "seconds", "ms")


def mel_figure(
    mel: torch.Tensor,
    config: MelConfig,
    seconds: float,
    title: str,
    low: float,
    high: float,
    width: int = 480,
    share: float = 1.0,
    begin: float = 0.0,
    spans: Sequence[tuple[float, float]] = (),
) -> Image:
    """A log-mel with axes.

    Args:
        mel: (mel, column), columns spread evenly over `share` of the time axis.
        config: the contract, for the frequency axis.
        seconds: length of the time axis.
        title: above the plot.
        low: value drawn black.
        high: value drawn brightest.
        width: pixels of the plot, without its margins.
        share: part of the time axis that `mel` fills; the rest stays gray. 1 is all of it.
        begin: where on the time axis `mel` begins, in seconds.
        spans: (begin, end) in seconds of what is marked by a bar above it, such as what was made anew.

    Returns:
        RGB image.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_LEFT + width + _RIGHT, _TOP + _PLOT_HEIGHT + _BOTTOM), _PAPER)
    draw = ImageDraw.Draw(image)
    box = (_LEFT, _TOP, _LEFT + width, _TOP + _PLOT_HEIGHT)
    draw.rectangle(box, fill=_MISSING)
    left = min(round(width * begin / seconds), width - 1)
    filled = min(max(round(width * share), 1), width - left)
    if mel.shape[1] > 0:
        plot = Image.fromarray(mel_picture(mel, low, high, min(filled, mel.shape[1])))
        image.paste(plot.resize((filled, _PLOT_HEIGHT), Image.Resampling.BOX), (_LEFT + left, _TOP))
    draw.rectangle(box, outline=_INK)
    for first, last in spans:
        ends = [_LEFT + width * min(max(time, 0.0), seconds) / seconds for time in (first, last)]
        draw.rectangle((ends[0], _TOP - _MARK, max(ends[1], ends[0] + 1), _TOP - 2), fill=_MARKED)
    _frequency_axis(draw, config, _PLOT_HEIGHT)
    _time_axis(draw, seconds, width, _PLOT_HEIGHT)
    _text(draw, (_LEFT + width / 2, _TOP - 10), title, "ms", _TITLE_SIZE)
    return image


def piano_roll_figure(
    notes: Sequence[tuple[float, float, int, int]],
    seconds: float,
    title: str,
    pedal: Sequence[tuple[float, float]] = (),
    width: int = 920,
) -> Image:
    """Notes as a roll: time to the right, keys upwards, the harder struck the warmer, the pedal as a row below.

    Args:
        notes: (onset in seconds, length in seconds, pitch, velocity) of each; pitches beyond a piano's keys are drawn at
            its last ones.
        seconds: length of the time axis; what lies beyond is cut off.
        title: above the plot.
        pedal: when the pedal is down, (begin, end) in seconds.
        width: pixels of the plot, without its margins.

    Returns:
        RGB image, as high as `mel_figure`.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_LEFT + width + _RIGHT, _TOP + _PLOT_HEIGHT + _BOTTOM), _PAPER)
    draw = ImageDraw.Draw(image)
    low, high = _KEYS
    height = (_PLOT_HEIGHT - _RAIL) / (high - low + 1)

    def y_of(key: float) -> float:
        return _TOP + (high + 0.5 - key) * height

    def x_of(time: float) -> float:
        return _LEFT + width * min(max(time, 0.0), seconds) / seconds

    _key_axis(draw, width, y_of)
    colors = colorize(torch.arange(128)[None], -64, 160)[0]  # neither black nor too bright for paper
    for onset, length, pitch, velocity in sorted(notes, key=lambda note: note[3]):
        if onset < seconds:
            key = min(max(pitch, low), high)
            # Two pixels at least: a short note in a long piece is seen, too.
            right = max(x_of(onset + length), x_of(onset) + 1)
            box = (x_of(onset), round(y_of(key + 0.5)), right, round(y_of(key - 0.5)) - 1)
            draw.rectangle(box, fill=tuple(colors[min(max(velocity, 0), 127)].tolist()))
    bottom = _TOP + _PLOT_HEIGHT
    for begin, end in pedal:
        if begin < seconds:
            draw.rectangle((x_of(begin), bottom - _RAIL + 1, x_of(end), bottom - 1), fill=_MISSING)
    draw.rectangle((_LEFT, _TOP, _LEFT + width, bottom), outline=_INK)
    _time_axis(draw, seconds, width, _PLOT_HEIGHT)
    _text(draw, (_LEFT + width / 2, _TOP - 10), title, "ms", _TITLE_SIZE)
    return image


def color_bar(config: MelConfig, low: float, high: float) -> Image:
    """The color scale of figures of the same height, with the contract's unit."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (92, _TOP + _PLOT_HEIGHT + _BOTTOM), _PAPER)
    draw = ImageDraw.Draw(image)
    values = torch.linspace(high, low, _PLOT_HEIGHT)[:, None].expand(-1, _BAR_WIDTH)
    image.paste(Image.fromarray(colorize(values, low, high)), (4, _TOP))
    draw.rectangle((4, _TOP, 4 + _BAR_WIDTH, _TOP + _PLOT_HEIGHT), outline=_INK)
    for share in np.linspace(0, 1, 5):
        y = _TOP + _PLOT_HEIGHT * (1 - share)
        draw.line([(4 + _BAR_WIDTH, y), (4 + _BAR_WIDTH + _TICK, y)], fill=_INK)
        _text(draw, (4 + _BAR_WIDTH + _TICK + 3, y), f"{low + (high - low) * share:.1f}", "lm")
    plain = config.log_multiplier == 1.0 and config.log_offset == 0.0
    _text(draw, (4, _TOP - 10), ("nats" if config.log_base == "e" else "decades") if plain else "value", "ls")
    return image


class MelSummary:
    """A mel that arrives in pieces, averaged to so few columns that its memory does not grow with its length.

    Args:
        num_frames: of the whole mel.
        width: most columns to keep.
    """

    def __init__(self, num_frames: int, width: int = 2048) -> None:
        self.num_frames, self.width = num_frames, min(num_frames, width)
        self.position = 0
        self._sums: torch.Tensor | None = None
        self._counts = torch.zeros(self.width)

    def add(self, piece: torch.Tensor) -> None:
        """Add (mel, frame), the frames after those that were added."""
        piece = piece.detach().cpu().float()
        if self._sums is None:
            self._sums = torch.zeros(piece.shape[0], self.width)
        frames = torch.arange(self.position, self.position + piece.shape[1])
        columns = frames * self.width // self.num_frames
        self._sums.index_add_(1, columns, piece)
        self._counts.index_add_(0, columns, torch.ones(len(columns)))
        self.position += piece.shape[1]

    def mel(self) -> torch.Tensor:
        """(mel, column) means of the columns that were reached."""
        if self._sums is None:
            return torch.zeros(0, 0)
        reached = int((self._counts > 0).sum())
        return self._sums[:, :reached] / self._counts[:reached]


def save_idea_and_mel(
    idea: torch.Tensor,
    mel: torch.Tensor,
    config: MelConfig,
    path: str | os.PathLike,
    title: str,
    num_frames: int | None = None,
) -> Path:
    """Write a PNG: an idea on the left, the mel it became on the right, one color scale, axes in seconds and Hz.

    Args:
        idea: (mel, column).
        mel: (mel, frame); shown whole, however long.
        config: the contract of both.
        path: the file, written complete or not at all.
        title: told about the mel, such as its seed.
        num_frames: that the mel had before it was averaged to fewer columns; default: as many as it has.
    """
    frames = mel.shape[1] if num_frames is None else num_frames
    seconds, bands = frames / config.frame_rate, config.num_mel_bins
    low, high = min(idea.min().item(), mel.min().item()), max(idea.max().item(), mel.max().item())
    parts = [
        mel_figure(idea, config, seconds, f"idea, {bands} bands x {idea.shape[1]} columns", low, high, width=460),
        mel_figure(mel, config, seconds, f"log-mel, {bands} bands x {frames} frames; {title}", low, high, width=920),
        color_bar(config, low, high),
    ]
    return _save(side_by_side(parts), path)


def save_roll_and_mel(
    notes: Sequence[tuple[float, float, int, int]],
    pedal: Sequence[tuple[float, float]],
    seconds: float,
    path: str | os.PathLike,
    title: str,
    mel: torch.Tensor | None = None,
    config: MelConfig | None = None,
) -> Path:
    """Write a PNG: a piano roll, below it the mel that it became on the same time axis.

    Args:
        notes: see `piano_roll_figure`.
        pedal: see `piano_roll_figure`.
        seconds: length of both.
        path: the file, written complete or not at all.
        title: told about the notes, such as their seed.
        mel: (mel, frame), shown whole; `None` draws the roll alone.
        config: the contract of `mel`.
    """
    from PIL import Image

    roll = piano_roll_figure(notes, seconds, f"{len(notes)} notes; {title}", pedal)
    if mel is None or config is None or not mel.numel():
        return _save(roll, path)
    low, high = mel.min().item(), mel.max().item()
    below = side_by_side(
        [
            mel_figure(mel, config, seconds, f"log-mel, {config.num_mel_bins} bands", low, high, width=920),
            color_bar(config, low, high),
        ]
    )
    picture = Image.new("RGB", (below.width, roll.height + below.height), _PAPER)
    picture.paste(roll, (0, 0))
    picture.paste(below, (0, roll.height))
    return _save(picture, path)


@dataclass(frozen=True)
class Panel:
    """A mel in a picture of several.

    Args:
        mel: (mel, column).
        title: above it.
        seconds: its length.
        begin: where it begins on the time axis that it shares with the others, in seconds.
        spans: see `mel_figure`.
    """

    mel: torch.Tensor
    title: str
    seconds: float
    begin: float = 0.0
    spans: Sequence[tuple[float, float]] = ()


def panels_picture(
    panels: Sequence[Panel], config: MelConfig, columns: int = 1, width: int = 920, seconds: float = 0.0
) -> Image:
    """Several mels, such as one before and after it was edited: one time axis, one color scale.

    Args:
        panels: from left to right, then from top to bottom; a mel without columns is still to come.
        config: the contract of all.
        columns: panels beside one another.
        width: pixels of each plot.
        seconds: least length of the time axis; it is as long as the panels at least.

    Returns:
        RGB image.
    """
    from PIL import Image

    low, high = config.floor_value, config.floor_value + 1.0
    if known := [panel.mel for panel in panels if panel.mel.numel()]:
        low, high = min(mel.min().item() for mel in known), max(mel.max().item() for mel in known)
    seconds = max(seconds, *(panel.begin + panel.seconds for panel in panels))
    figures = [
        mel_figure(
            panel.mel,
            config,
            seconds,
            panel.title,
            low,
            high,
            width,
            panel.seconds / seconds,
            panel.begin,
            panel.spans,
        )
        for panel in panels
    ]
    rows = [side_by_side(figures[first : first + columns]) for first in range(0, len(figures), columns)]
    rows[0] = side_by_side([rows[0], color_bar(config, low, high)])
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), _PAPER)
    for index, row in enumerate(rows):
        picture.paste(row, (0, index * row.height))
    return picture


def save_panels(
    panels: Sequence[Panel], config: MelConfig, path: str | os.PathLike, columns: int = 1, width: int = 920
) -> Path:
    """Write `panels_picture` as a PNG, complete or not at all."""
    return _save(panels_picture(panels, config, columns, width), path)


def side_by_side(parts: Sequence[Image]) -> Image:
    """Images of one height as one, from left to right."""
    from PIL import Image

    picture = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), _PAPER)
    left = 0
    for part in parts:
        picture.paste(part, (left, 0))
        left += part.width
    return picture


def _save(picture: Image, path: str | os.PathLike) -> Path:
    path = Path(path)
    with replacing(path) as partial:
        picture.save(partial, format="PNG")
    return path


__all__ = [
    "MelSummary",
    "Panel",
    "band_of",
    "color_bar",
    "colorize",
    "mel_figure",
    "mel_picture",
    "panels_picture",
    "piano_roll_figure",
    "save_idea_and_mel",
    "save_panels",
    "save_roll_and_mel",
    "seconds_ticks",
    "side_by_side",
    "stack_mels",
]
