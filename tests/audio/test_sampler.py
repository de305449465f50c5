"""The sampled piano: pitch, loudness, envelopes and filter are what the sound font says; chunks are the whole."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from soundfont_files import (
    ATTACK,
    ATTENUATION,
    DECAY,
    DELAY,
    FILTER,
    HOLD,
    KEYS,
    MODES,
    PAN,
    RATE,
    RELEASE,
    ROOT,
    SAMPLE,
    SCALE,
    SUSTAIN,
    VELOCITIES,
    span,
    timecents,
    wave,
    write_font,
)

from melreformer_hf.audio import sampler, soundfont
from melreformer_hf.audio.sampler import BUNDLED_PIANO, SampledInstrument
from melreformer_hf.audio.soundfont import SoundFont

TONE = 500.0
FULL = 0.5**0.5 * 0.5 * 0.5**0.5  # FluidSynth's scale, the sample's height, the middle of the stage


def notes(*rows: tuple[float, float, int, int]) -> SimpleNamespace:
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return SimpleNamespace(onset=columns[0], release=columns[1], pitch=columns[2], velocity=columns[3])


@pytest.fixture
def font(tmp_path):
    """Builds a font of one long sine and plays notes with it, at a gain of 1."""

    def build(zone: dict | None = None, rate: int = RATE, **arguments) -> SampledInstrument:
        arguments = {"samples": [wave(TONE, 3.0)], "instrument": [{}, {**(zone or {}), SAMPLE: 0}]} | arguments
        return SampledInstrument(write_font(tmp_path / "font.sf2", **arguments), rate, gain=1.0)

    return build


def height(audio: torch.Tensor, begin: float, end: float, rate: int = RATE) -> float:
    """Amplitude of a sine between two times."""
    return audio[0, int(begin * rate) : int(end * rate)].double().square().mean().mul(2).sqrt().item()


def pitch_of(audio: torch.Tensor, rate: int = RATE) -> float:
    spectrum = torch.fft.rfft(audio[0] * torch.hann_window(audio.shape[1])).abs()
    return spectrum.argmax().item() * rate / audio.shape[1]


@pytest.mark.parametrize(("key", "factor"), [(60, 1.0), (72, 2.0), (53, 2 ** (-7 / 12))])
@pytest.mark.parametrize("rate", [RATE, 22050])
def test_keys_and_rates_change_the_pitch(font, key, factor, rate):
    audio = font(rate=rate).render(notes((0, math.inf, key, 127)), 0, rate)
    assert abs(pitch_of(audio, rate) - TONE * factor) < 1
    assert height(audio, 0.1, 0.9, rate) == pytest.approx(FULL, rel=0.01)


def test_a_note_begins_at_its_sample_and_loudness_goes_with_the_square_of_velocity(font):
    piano = font()
    audio = piano.render(notes((0.25, math.inf, 60, 127)), 0, RATE)
    assert not audio[0, :4000].any() and audio[0, 4001].abs() > 0.01
    for velocity in (1, 40, 64, 100):
        soft = piano.render(notes((0.25, math.inf, 60, velocity)), 0, RATE)
        torch.testing.assert_close(soft, audio * (velocity / 127) ** 2, rtol=1e-4, atol=1e-7)


def test_release_falls_straight_in_decibel_and_ends(font):
    audio = font({RELEASE: timecents(0.5)}).render(notes((0, 0.5, 60, 127)), 0, 2 * RATE)
    assert height(audio, 0.4, 0.5) == pytest.approx(FULL, rel=0.01)
    for later in (0.1, 0.2, 0.3):
        fallen = 20 * math.log10(height(audio, 0.5 + later - 0.01, 0.5 + later + 0.01) / FULL)
        assert fallen == pytest.approx(-96 * later / 0.5, abs=0.3)
    assert not audio[0, RATE + 2 :].any()


def test_decay_and_sustain(font):
    audio = font({DECAY: timecents(1.0), SUSTAIN: 200}).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert 20 * math.log10(height(audio, 0.09, 0.11) / FULL) == pytest.approx(-9.6, abs=0.3)
    assert 20 * math.log10(height(audio, 0.5, 1.0) / FULL) == pytest.approx(-20, abs=0.1)
    gone = font({DECAY: timecents(0.5), SUSTAIN: 1000}).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert gone[0, RATE // 2 - 200 :].abs().max() < 1e-4 and not gone[0, RATE // 2 + 2 :].any()


def test_delay_attack_and_hold_come_before_the_decay(font):
    zone = {DELAY: timecents(0.1), ATTACK: timecents(0.2), HOLD: timecents(0.3), DECAY: timecents(1.0), SUSTAIN: 1000}
    audio = font(zone).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert not audio[0, : int(0.1 * RATE)].any()
    # Straight in amplitude while it rises, then level, then straight in decibel.
    for time, expected in ((0.15, 0.25), (0.2, 0.5), (0.25, 0.75), (0.4, 1.0), (0.55, 1.0)):
        assert height(audio, time - 0.01, time + 0.01) == pytest.approx(expected * FULL, rel=0.03)
    for time in (0.7, 0.8):
        fallen = 20 * math.log10(height(audio, time - 0.01, time + 0.01) / FULL)
        assert fallen == pytest.approx(-96 * (time - 0.6), abs=0.3)


def test_a_short_recording_ends_and_long_ones_are_read_to_their_last_point(font):
    ended = font(samples=[np.full(400, 8000, dtype=np.int16)]).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert ended[0, :398].abs().min() > 0.05 and not ended[0, 400:].any()


def test_tones_that_are_kept_are_bounded(font, monkeypatch):
    monkeypatch.setattr(sampler, "_KEPT_SAMPLES", 5 * RATE)
    piano = font()
    for key in range(60, 72):
        piano.render(notes((0, math.inf, key, 127)), 0, RATE)
        assert sum(len(tone) for tone, _ in piano._tones.values()) <= 5 * RATE
    assert len(piano._tones) == 2  # of two seconds each, the latest


def test_what_sounds_between_two_points_is_on_the_cubic_through_four():
    region = SoundFont(BUNDLED_PIANO).regions(0, 60, 90)[0]._replace(loop=None)
    places = np.arange(12.0)
    cubic = 0.01 * places**2 - 0.2 * places + 1  # Catmull-Rom is exact for parabolas
    made = sampler._interpolate(cubic.astype(np.float32), np.array([3.25, 5.5, 7.75]), region)
    np.testing.assert_allclose(made, [0.01 * x * x - 0.2 * x + 1 for x in (3.25, 5.5, 7.75)], atol=1e-6)


def test_loops_go_on_without_a_step(font):
    period = RATE // int(TONE)
    piano = font({MODES: 1}, samples=[wave(TONE, 0.5)], loop=(4 * period, 20 * period))
    audio = piano.render(notes((0, math.inf, 67, 127)), 0, 3 * RATE)
    assert height(audio, 2.5, 3.0) == pytest.approx(FULL, rel=0.01)
    # A sine's second difference is bounded; a step at the seam would stand out.
    frequency = 2 * math.pi * TONE * 2 ** (7 / 12) / RATE
    assert audio[0].diff(n=2).abs().max() < 1.1 * FULL * frequency**2
    once = font({MODES: 0}, samples=[wave(TONE, 0.5)], loop=(4 * period, 20 * period))
    assert not once.render(notes((0, math.inf, 60, 127)), RATE, 2 * RATE).any()


def test_the_filter_halves_the_power_at_its_corner(font):
    corner = timecents(TONE / 8.176)
    filtered = font({FILTER: corner}).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert height(filtered, 0.2, 0.9) == pytest.approx(FULL * 0.5**0.5, rel=0.01)
    above = font({FILTER: timecents(TONE / 4 / 8.176)}).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert 20 * math.log10(height(above, 0.2, 0.9) / FULL) == pytest.approx(-24, abs=0.5)


def test_velocity_opens_the_filter_where_a_modulator_says_so(font):
    # Velocity, linear, negative: 4,800 cents below the zone's corner at velocity 0.
    piano = font(
        {}, modulators=[(0x0102, FILTER, -4800, 0, 0)], instrument=[{FILTER: timecents(TONE * 2 / 8.176)}, {SAMPLE: 0}]
    )
    heights = {
        v: height(piano.render(notes((0, math.inf, 60, v)), 0, RATE), 0.2, 0.9) / (v / 127) ** 2 for v in (32, 127)
    }
    assert heights[127] == pytest.approx(FULL * (1 / (1 + 0.5**4)) ** 0.5, rel=0.02)
    expected = 2 * 2 ** (-4 * (1 - 32 / 127))
    assert heights[32] == pytest.approx(FULL * (1 / (1 + expected**-4)) ** 0.5, rel=0.05)


def test_zones_split_keys_and_velocities_and_pan(font):
    samples = [wave(TONE, 1.0), wave(3 * TONE, 1.0)]
    zones = [{}, {KEYS: span(0, 60), SAMPLE: 0}, {KEYS: span(61, 127), VELOCITIES: span(1, 64), ROOT: 61, SAMPLE: 1}]
    piano = font(samples=samples, instrument=zones)
    found = [pitch_of(piano.render(notes((0, math.inf, key, 60)), 0, RATE)) for key in (60, 61)]
    assert abs(found[0] - TONE) < 1 and abs(found[1] - 3 * TONE) < 1
    assert not piano.render(notes((0, math.inf, 61, 65)), 0, RATE).any()
    left = font({PAN: -500}).render(notes((0, math.inf, 60, 127)), 0, RATE, channels=2)
    assert not left[1].abs().gt(1e-6).any() and height(left[:1], 0.1, 0.9) == pytest.approx(0.5**0.5 * 0.5, rel=0.01)
    mono = font({PAN: -500}).render(notes((0, math.inf, 60, 127)), 0, RATE)
    torch.testing.assert_close(mono[0], left.mean(0), atol=1e-6, rtol=0)


def test_presets_add_and_instruments_replace(font):
    piano = font({ATTENUATION: 100, SCALE: 50}, preset={ATTENUATION: 50, PAN: 100})
    (region,) = piano.font.regions(0, 72, 127)
    assert region.gain == pytest.approx(10 ** (-0.4 * 150 / 200)) and region.pan == pytest.approx(0.2)
    assert region.step == pytest.approx(RATE * 2**0.5)  # 50 cents a key, 12 keys


def test_a_corner_in_cents_is_counted_from_8_176_hertz(font):
    for cents in (4500, 6900, 9300):
        (region,) = font({FILTER: cents}).font.regions(0, 60, 127)
        assert region.filter_hz == pytest.approx(8.176 * 2 ** (cents / 1200), rel=1e-4)


def test_unknown_programs_are_played_by_the_first(font):
    piano = font(number=(0, 12))
    sine = notes((0, math.inf, 60, 127))
    assert piano.render(sine, 0, 1000, program=12).any()
    assert torch.equal(piano.render(sine, 0, 1000, program=40), piano.render(sine, 0, 1000, program=12))


def test_compressed_samples_are_decoded(font):
    audio = font(compressed=True).render(notes((0, math.inf, 60, 127)), 0, RATE)
    assert abs(pitch_of(audio) - TONE) < 1 and height(audio, 0.1, 0.9) == pytest.approx(FULL, rel=0.05)


def test_spans_and_streams_are_the_whole(font, monkeypatch):
    monkeypatch.setattr(sampler, "_KEPT_SAMPLES", 3 * RATE)  # tones are thrown away and made again on the way
    piano = font({RELEASE: timecents(0.3), FILTER: 9000})
    rng = np.random.default_rng(0)
    onsets = np.sort(rng.uniform(0, 4, 40))
    rows = zip(
        onsets, onsets + rng.uniform(0.01, 1.5, 40), rng.integers(50, 75, 40), rng.integers(1, 128, 40), strict=True
    )
    piece = notes(*rows)
    whole = piano.render(piece, 0, 5 * RATE, channels=2)
    for span_ in (977, 30000, 10**6):
        streamed = torch.cat(list(piano.stream(piece, 5 * RATE, span_, channels=2)), dim=-1)
        torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-6)
    # What is released later than a span ends does not matter to it.
    open_ended = notes(
        *(
            (row[0], row[1] if row[1] < 2 else math.inf, *row[2:])
            for row in zip(piece.onset, piece.release, piece.pitch, piece.velocity, strict=True)
        )
    )
    torch.testing.assert_close(piano.render(open_ended, 0, 2 * RATE, 2), whole[:, : 2 * RATE], rtol=0, atol=1e-6)
    assert piano.longest_tail == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Of a share of 0, 0.25, 0.5 and 1: straight, by decibel from either end, and all or nothing from the middle on.
        (0, [0, 0.25, 0.5, 1]),
        (1, [0, -400 / 960 * math.log10(0.75), -400 / 960 * math.log10(0.5), 1]),
        (2, [0, 1 + 400 / 960 * math.log10(0.25), 1 + 400 / 960 * math.log10(0.5), 1]),
        (3, [0, 0, 1, 1]),
    ],
)
def test_curves_of_modulators(kind, expected):
    velocities = (0, 31.75, 63.5, 127)
    made = [soundfont._curve(kind << 10, velocity) for velocity in velocities]
    assert made == pytest.approx(expected)
    assert [soundfont._curve(kind << 10 | 0x200, velocity) for velocity in velocities] == pytest.approx(
        [2 * value - 1 for value in expected]
    )
    turned = [soundfont._curve(kind << 10 | 0x100, 127 - velocity) for velocity in velocities]
    assert turned == pytest.approx(expected)


def test_times_below_a_millisecond_are_nothing_and_the_longest_is_a_hundred_seconds():
    assert soundfont._seconds(-12000) == 0 and soundfont._seconds(-1200) == 0.5 and soundfont._seconds(0) == 1
    assert soundfont._seconds(-11900) == pytest.approx(2 ** (-11900 / 1200)) and soundfont._seconds(
        9000
    ) == soundfont._seconds(8000)
    assert soundfont._seconds(8000) == pytest.approx(101.6, abs=0.1)


def test_what_cannot_be_played_is_refused(font, tmp_path):
    piano = font()
    for row, match in (((0, 1, 128, 60), "pitch must be 0..127, got 128"), ((0, 1, 60, 0), "velocity must be 1..127")):
        with pytest.raises(ValueError, match=match):
            piano.render(notes(row), 0, 100)
    with pytest.raises(ValueError, match="channels must be 1 or 2, got 3"):
        piano.render(notes(), 0, 100, channels=3)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        SampledInstrument(sampling_rate=0)
    with pytest.raises(FileNotFoundError, match="No sound font at .*nowhere.sf2"):
        SampledInstrument(tmp_path / "nowhere.sf2")
    (tmp_path / "song.sf2").write_bytes(b"ID3" + bytes(100))
    with pytest.raises(ValueError, match="SF2 or SF3 file, got .*song.sf2, which is none"):
        SampledInstrument(tmp_path / "song.sf2")


def test_damaged_fonts_are_refused_wherever_they_were_cut(font, tmp_path):
    whole = font(samples=[wave(TONE, 0.02)]).font.path.read_bytes()
    for size in range(12, len(whole) - 1, 29):
        (tmp_path / "cut.sf2").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.sf2 is damaged"):
            SoundFont(tmp_path / "cut.sf2")
    with pytest.raises(ValueError, match="damaged"):
        font(instrument=[{}, {SAMPLE: 7}])


def test_the_bundled_piano_plays_in_tune_at_every_key():
    piano = SampledInstrument()
    assert piano.font.path == BUNDLED_PIANO and list(piano.font.presets) == [(0, 0)]
    for key in (33, 45, 57, 69, 81):
        audio = piano.render(notes((0, 2, key, 90)), 0, 2 * 22050)
        frequency = 440 * 2 ** ((key - 69) / 12)
        spectrum = torch.fft.rfft(audio[0] * torch.hann_window(audio.shape[1])).abs()
        near = slice(int(2 * frequency * 0.94), int(2 * frequency * 1.06) + 1)
        assert abs(spectrum[near].argmax().item() + near.start - 2 * frequency) < 3 + 0.01 * frequency
    for key in range(21, 109):
        assert piano.render(notes((0, 1, key, 64)), 0, 2205).abs().max() > 1e-3, key
