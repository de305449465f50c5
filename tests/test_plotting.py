"""Axes of figures lie where the mel contract says; what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from melreformer_hf.audio.mel import MelConfig, mel_filter_bank
from melreformer_hf.plotting import (
    _LEFT,
    _PLOT_HEIGHT,
    _TOP,
    Panel,
    band_of,
    mel_figure,
    piano_roll_figure,
    save_idea_and_mel,
    save_panels,
    save_roll_and_mel,
    seconds_ticks,
)


def test_bands_lie_at_the_peaks_of_the_filter_bank():
    config = MelConfig.preset("hifigan", num_mel_bins=40, n_fft=4096, win_length=4096, hop_length=256)
    bank = mel_filter_bank(config)
    for band in (3, 11, 25, 39):
        peak = bank[band].argmax().item() * config.sampling_rate / config.n_fft
        assert abs(band_of(peak, config) - band) < 0.15


def test_ticks_are_round_and_few():
    assert seconds_ticks(20) == [0, 5, 10, 15, 20]
    for seconds in (0.3, 1.0, 7.3, 61.0, 600.0, 21600.0):
        ticks = seconds_ticks(seconds)
        assert ticks[0] == 0 and ticks[-1] <= seconds + 1e-6 and 2 <= len(ticks) <= 9


def test_loud_band_is_bright_at_its_height_and_the_rest_of_the_axis_is_grey():
    config = MelConfig(num_mel_bins=64)
    mel = torch.full((64, 50), -11.0)
    mel[16] = 2.0
    figure = np.asarray(mel_figure(mel, config, 2.0, "one tone", -11.0, 2.0, width=200, share=0.5))
    column = figure[_TOP + 1 : _TOP + _PLOT_HEIGHT - 1, _LEFT + 50].astype(int).sum(-1)
    expected = _PLOT_HEIGHT * (1 - 16.5 / 64)
    assert abs(column.argmax() - expected) < _PLOT_HEIGHT / 64 + 1
    assert (figure[_TOP + 10, _LEFT + 150] == 216).all() and (figure[_TOP + 10, _LEFT + 50] < 20).all()


def test_idea_and_mel_are_written_whole(tmp_path):
    config = MelConfig(num_mel_bins=16)
    for frames in (1, 30, 5000):
        path = save_idea_and_mel(
            torch.randn(16, 8), torch.randn(16, frames), config, tmp_path / f"{frames}.png", "seed 1"
        )
        with Image.open(path) as picture:
            assert picture.size[0] > 1400 and picture.size[1] == _PLOT_HEIGHT + 80
    assert not list(tmp_path.glob(".*"))


def test_notes_lie_at_their_time_and_key_and_the_pedal_below_them():
    notes = [(0.5, 0.5, 60, 100), (1.0, 0.5, 61, 20), (3.0, 1.0, 60, 100), (0.0, 0.001, 200, 64)]
    roll = np.asarray(piano_roll_figure(notes, 2.0, "two", [(1.0, 1.5)], width=200)).astype(int)
    plot = roll[_TOP + 1 : _TOP + _PLOT_HEIGHT, _LEFT + 1 : _LEFT + 200]
    ink = (plot.sum(-1) < 600) & (plot.max(-1) - plot.min(-1) > 20)
    inside = {row: np.flatnonzero(ink[row]) for row in range(len(plot) - 7) if ink[row].any()}
    rows = np.array(sorted(inside))
    key = (_PLOT_HEIGHT - 6) / 88
    for pitch, columns in ((60, (50, 99)), (61, (100, 149)), (108, (0, 0))):
        middle = min(rows, key=lambda row: abs(row - (108 - pitch + 0.5) * key))
        assert abs(middle - (108 - pitch + 0.5) * key) < 1.5
        found = inside[middle]
        assert abs(found[0] - columns[0]) <= 1 and abs(found[-1] - columns[1]) <= 1, pitch
    assert len(rows) <= 3 * (key + 1)
    warm, soft = (plot[round((108 - pitch + 0.3) * key), 75 + shift] for pitch, shift in ((60, 0), (61, 50)))
    assert warm.sum() > soft.sum()
    pedal = np.flatnonzero((plot[-3] == 216).all(-1))
    assert abs(pedal[0] - 100) <= 1 and abs(pedal[-1] - 149) <= 1 and len(pedal) > 45


def test_roll_and_mel_share_their_time_axis(tmp_path):
    config = MelConfig(num_mel_bins=16)
    notes = [(0.2 * index, 0.2, 40 + index, 80) for index in range(20)]
    alone = save_roll_and_mel(notes, [], 4.0, tmp_path / "alone.png", "seed 1")
    both = save_roll_and_mel(notes, [(0, 1)], 4.0, tmp_path / "both.png", "seed 1", torch.randn(16, 300), config)
    with Image.open(alone) as roll, Image.open(both) as picture:
        assert roll.size == (_LEFT + 920 + 14, _PLOT_HEIGHT + 80) and picture.size[1] == 2 * roll.size[1]
        assert picture.size[0] > roll.size[0]
    assert save_roll_and_mel([], [], 1.0, tmp_path / "empty.png", "nothing").is_file()
    assert not list(tmp_path.glob(".*"))


def test_panels_share_a_time_axis_and_mark_what_was_made(tmp_path):
    config = MelConfig()
    quiet, loud = torch.full((128, 100), -10.0), torch.full((128, 200), 0.0)
    panels = [Panel(quiet, "before", 1.0, begin=0.5), Panel(loud, "after", 2.0, spans=[(0.0, 0.5), (1.5, 9.0)])]
    path = save_panels(panels, config, tmp_path / "both.png", width=400)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[0] == 2 * (picture.shape[0] // 2)
    before, after = np.split(picture, 2)
    row = before[200, 62 : 62 + 400]
    grey = (row == 216).all(-1)
    assert grey[2:99].all() and not grey[101:299].any() and grey[301:399].all()
    assert not (after[200, 64 : 62 + 398] == 216).all(-1).any()
    bar = (after[29, 62 : 62 + 401] == (0, 140, 110)).all(-1)
    assert bar[:100].all() and not bar[102:299].any() and bar[301:400].all()
    assert not (before[29] == (0, 140, 110)).all(-1).any()
    side = np.asarray(Image.open(save_panels(panels, config, tmp_path / "side.png", columns=2, width=400)))
    assert side.shape[0] == picture.shape[0] // 2 and side.shape[1] > picture.shape[1] + 300
