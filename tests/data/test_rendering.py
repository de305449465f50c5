"""MIDI to audio: with a synthesizer that is missing, one made for the test, the real one, and the sampled piano."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from melreformer_hf.audio.sampler import BUNDLED_PIANO, SampledInstrument
from melreformer_hf.cli.main import app
from melreformer_hf.data import rendering
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.metadata import find_row, read_metadata
from melreformer_hf.data.rendering import (
    choose_synth,
    render_file,
    render_folder,
    render_sampled,
    require_fluidsynth,
)
from melreformer_hf.processing.midi.notes import DRUMS, MidiNote, notes_to_midi, write_midi

FLUID_R3 = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
# Takes FluidSynth's arguments; a file's content says what to play: a pitch, nothing, or a failure.
SYNTHESIZER = """#!{python}
import math, struct, sys, wave
words = sys.argv[1:]
option = dict(zip(words, words[1:]))
text = open(words[-1]).read()
if b"truncated" in open(words[-2], "rb").read():
    sys.stderr.write('fluidsynth: error: Failed to load SoundFont "piano.sf2"')  # and goes on with another one
assert words[-2].endswith(".sf2") and words[0] == "-ni" and option["-o"] == "synth.default-soundfont=none"
if text == "broken":
    sys.exit("fluidsynth: error: not a MIDI file")
rate, gain = int(option["-r"]), float(option["-g"])
pitch = float(text or 0)
with wave.open(option["-F"], "wb") as file:
    file.setparams((2, 2, rate, 0, "NONE", ""))
    for i in range(rate):
        value = int(32767 * gain * math.sin(2 * math.pi * pitch * i / rate))
        file.writeframesraw(struct.pack("<hh", value, value))
"""


@pytest.fixture
def synthesizer(tmp_path, monkeypatch):
    """A program called fluidsynth on the PATH, and a sound font."""
    program = tmp_path / "bin" / "fluidsynth"
    program.parent.mkdir()
    program.write_text(SYNTHESIZER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "piano.sf2").write_bytes(b"RIFF\x08\0\0\0sfbkname")
    return tmp_path / "piano.sf2"


@pytest.fixture
def midi_dir(tmp_path):
    folder = tmp_path / "midi"
    (folder / "bach").mkdir(parents=True)
    for name, text in {"bach/one.mid": "440", "bach/two.midi": "220", "rest.mid": "", "bad.MID": "broken"}.items():
        (folder / name).write_text(text)
    rows = ["path,split,licence,attribution,source_repo,label", "midi/bach/one.mid,test,CC0-1.0,Bach,a/b,fugue"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    return folder


def test_a_missing_synthesizer_says_how_to_get_it(monkeypatch, tmp_path, midi_dir):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install fluidsynth"):
        render_folder(midi_dir, tmp_path / "out", tmp_path / "piano.sf2", synth="fluidsynth")
    assert not (tmp_path / "out").exists()


def test_a_missing_sound_font_says_how_to_get_it(synthesizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.sf2.*fluid-soundfont-gm"):
        require_fluidsynth(tmp_path / "nowhere.sf2")


def test_a_sound_font_that_does_not_load_is_an_error(synthesizer, midi_dir, tmp_path):
    """FluidSynth says so, plays the machine's default instead, and ends with 0."""
    synthesizer.write_bytes(synthesizer.read_bytes() + b"truncated")
    report = render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False)
    assert report.rendered == [] and len(report.failed) == 4
    assert all("could not load the sound font" in reason for name, reason in report.failed if "bach" in name)
    assert not list((tmp_path / "wav").rglob("*.wav"))
    synthesizer.write_bytes(b"ID3")
    with pytest.raises(ValueError, match="SF2 or SF3 file, got .*piano.sf2, which is none"):
        render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False)


def test_stereo_is_rendered_on_demand(synthesizer, midi_dir, tmp_path):
    render_folder(midi_dir, tmp_path / "wav", synthesizer, channels=2, sampling_rate=8000, progress=False)
    assert soundfile.info(tmp_path / "wav/bach/one.wav").channels == 2


def test_a_folder_is_rendered_with_its_metadata_and_failures_are_listed(synthesizer, midi_dir, tmp_path):
    output = tmp_path / "wav"
    report = render_folder(
        midi_dir, output, synthesizer, metadata=tmp_path / "manifest.csv", sampling_rate=16000, progress=False
    )
    assert sorted(report.rendered) == ["bach/one.wav", "bach/two.wav"] and report.kept == []
    failed = {Path(name).name: reason for name, reason in report.failed}
    assert "not a MIDI file" in failed["bad.MID"] and "silence" in failed["rest.mid"]
    data, rate = soundfile.read(output / "bach/one.wav")
    assert rate == 16000 and data.ndim == 1 and abs(np.abs(np.fft.rfft(data)).argmax() - 440) <= 1
    assert 0.45 < np.abs(data).max() < 0.55  # the gain leaves head room
    assert not [path for path in output.rglob("*") if "partial" in path.name]
    with open(output / "metadata.csv", newline="") as file:
        rows = {row["file_name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"bach/one.wav", "bach/two.wav"}
    assert rows["bach/one.wav"] == {
        "file_name": "bach/one.wav",
        "recording": "bach/one",
        "split": "test",
        "license": "CC0-1.0",
        "attribution": "Bach",
        "source": "a/b",
        "label": "fugue",
    }
    assert rows["bach/two.wav"]["split"] == ""


@pytest.mark.parametrize(("given", "shown"), [({}, True), ({"progress": True}, True), ({"progress": False}, False)])
def test_a_bar_is_shown_unless_told_otherwise(synthesizer, midi_dir, tmp_path, capsys, given, shown):
    render_folder(midi_dir, tmp_path / "wav", synthesizer, **given)
    assert ("rendering: 100%" in capsys.readouterr().err) == shown


def test_a_second_call_renders_what_is_missing(synthesizer, midi_dir, tmp_path):
    output = tmp_path / "wav"
    render_folder(midi_dir, output, synthesizer, progress=False)
    before = (output / "bach/one.wav").stat().st_mtime_ns
    (output / "bach/two.wav").unlink()
    report = render_folder(midi_dir, output, synthesizer, progress=False)
    assert report.rendered == ["bach/two.wav"] and report.kept == ["bach/one.wav"]
    assert (output / "bach/one.wav").stat().st_mtime_ns == before


def test_renderings_become_a_dataset_by_commands(synthesizer, midi_dir, tmp_path):
    words = ["data", "render", str(midi_dir), "--soundfont", str(synthesizer), "--output", str(tmp_path / "wav")]
    words += ["--metadata", str(tmp_path / "manifest.csv"), "--workers", "1"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and "rendered 2, kept 0, failed 2" in result.output and "bad.MID" in result.output
    config = BuildConfig(test_fraction=0.0, validation_fraction=0.0, workers=1, license="CC-BY-4.0")
    report = build_dataset(tmp_path / "wav", tmp_path / "data", config, progress=False)
    assert report["licenses"] == {"CC-BY-4.0": 1, "CC0-1.0": 1}
    assert BuiltRecordings(tmp_path / "data", "test").recordings[0].metadata["label"] == "fugue"
    for split, name in (("train", "bach/two"), ("test", "bach/one")):
        assert [item.name for item in BuiltRecordings(tmp_path / "data", split).recordings] == [name]


def acting(program: Path, line: str) -> None:
    """Let the synthesizer of these tests do something more before it plays."""
    program.write_text(program.read_text().replace("words = sys.argv[1:]", f"words = sys.argv[1:]\n{line}", 1))


def test_what_a_synthesizer_starts_and_leaves_behind_is_not_waited_for(synthesizer, midi_dir, tmp_path):
    """A sound server that it wakes keeps its standard output and error open; pipes to them never end."""
    program = tmp_path / "bin" / "fluidsynth"
    acting(program, "import subprocess; subprocess.Popen(['sleep', '20'])")
    started = time.monotonic()
    report = render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False)
    assert len(report.rendered) == 2 and time.monotonic() - started < 15


def test_a_synthesizer_that_says_much_is_read(synthesizer, midi_dir, tmp_path):
    """More than a pipe holds."""
    acting(tmp_path / "bin" / "fluidsynth", "sys.stdout.write('x' * 300000); sys.stderr.write('y' * 300000)")
    assert len(render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False).rendered) == 2


def test_a_synthesizer_that_stands_still_is_ended(synthesizer, midi_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "_PATIENCE_SECONDS", 1.0)
    acting(tmp_path / "bin" / "fluidsynth", "import time; words[-1].endswith('one.mid') and time.sleep(60)")
    started = time.monotonic()
    report = render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False)
    failed = {Path(name).name: reason for name, reason in report.failed}
    assert "stood still for 1 s" in failed["one.mid"] and report.rendered == ["bach/two.wav"]
    assert time.monotonic() - started < 20


def test_a_score_without_end_does_not_fill_the_disk(synthesizer, midi_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "_LONGEST_SECONDS", 3600)
    endless = "import time; file = open(words[words.index('-F') + 1], 'wb'); file.truncate(10**9); time.sleep(60)"
    acting(tmp_path / "bin" / "fluidsynth", endless)
    report = render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False)
    assert len(report.failed) == 4 and all("longer than 1 hours" in reason for _, reason in report.failed)
    assert not list((tmp_path / "wav").rglob("*.wav")) and not list((tmp_path / "wav").rglob(".*"))


def test_an_interruption_ends_the_synthesizers(synthesizer, midi_dir, tmp_path):
    """Ctrl-C waits neither for the files at hand nor for those that have not begun."""
    for index in range(20):
        (midi_dir / f"more{index}.mid").write_text("440")
    acting(tmp_path / "bin" / "fluidsynth", "import time; time.sleep(60)")
    timer = threading.Timer(2.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        render_folder(midi_dir, tmp_path / "wav", synthesizer, progress=False)
    timer.join()
    assert time.monotonic() - started < 20 and not list((tmp_path / "wav").rglob("*.wav"))


def test_bad_folders_and_metadata_are_refused(synthesizer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold .mid or .midi"):
        render_folder(tmp_path / "empty", tmp_path / "out", synthesizer)
    (tmp_path / "table.csv").write_text("title,year\nfugue,1722")
    with pytest.raises(ValueError, match="file_name or path.*title"):
        read_metadata(tmp_path / "table.csv")
    (tmp_path / "midi").mkdir()
    (tmp_path / "midi" / "fugue.mid").write_text("440")
    (tmp_path / "table.csv").write_text("file_name,split\nother.mid,test")
    with pytest.raises(ValueError, match="names none of the files.*other.mid"):
        render_folder(tmp_path / "midi", tmp_path / "out", synthesizer, metadata=tmp_path / "table.csv")


def test_rows_are_found_by_path_inside_the_folder_or_by_the_end_of_the_path(tmp_path):
    file = tmp_path / "set" / "a" / "x.mid"
    assert find_row({"a/x.mid": {"split": "one"}}, file, tmp_path / "set") == {"split": "one"}
    assert find_row({"set/a/x.mid": {"split": "two"}}, file, tmp_path / "set") == {"split": "two"}
    assert find_row({"b/x.mid": {"split": "three"}}, file, tmp_path / "set") == {}


def write_bar(path: Path, note: int) -> None:
    """One bar of one note, one second long at the default tempo of 120."""
    events = bytes([0x00, 0xC0, 0x00, 0x00, 0x90, note, 100, 0x83, 0x60, 0x80, note, 0, 0x83, 0x60, 0xFF, 0x2F, 0x00])
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1, 0x00, 0xF0])
    path.write_bytes(header + b"MTrk" + len(events).to_bytes(4, "big") + events)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not FLUID_R3.is_file(), reason="needs FluidSynth and FluidR3"
)
@pytest.mark.parametrize(("note", "frequency"), [(69, 440.0), (57, 220.0)])
def test_the_real_synthesizer_plays_the_note(tmp_path, note, frequency):
    write_bar(tmp_path / "note.mid", note)
    render_file(tmp_path / "note.mid", tmp_path / "note.wav", FLUID_R3, 22050, 0.5)
    data, rate = soundfile.read(tmp_path / "note.wav")
    assert rate == 22050 and data.ndim == 1 and data.size > rate
    spectrum = np.abs(np.fft.rfft(data[:rate] * np.hanning(rate)))
    peak = spectrum[int(frequency * 0.8) : int(frequency * 1.2)].argmax() + int(frequency * 0.8)
    assert abs(peak - frequency) < 4 and spectrum[peak] > 0.3 * spectrum.max()
    (tmp_path / "cut.sf2").write_bytes(FLUID_R3.read_bytes()[:3000])
    with pytest.raises(ValueError, match="could not load the sound font"):
        render_file(tmp_path / "note.mid", tmp_path / "other.wav", tmp_path / "cut.sf2", 22050, 0.5)
    (tmp_path / "bad.mid").write_bytes(b"no music")
    with pytest.raises(ValueError, match="bad.mid"):
        render_file(tmp_path / "bad.mid", tmp_path / "bad.wav", FLUID_R3, 22050, 0.5)
    assert not (tmp_path / "bad.wav").exists() and not list(tmp_path.glob(".*"))


@pytest.fixture
def scores(tmp_path):
    """A folder with a third, the same with drums, drums alone, nothing, and what is no MIDI."""
    folder = tmp_path / "scores"
    (folder / "set").mkdir(parents=True)
    third = [MidiNote(50, 100, 69, 0, 100), MidiNote(50, 100, 73, 0, 100)]
    drum = MidiNote(0, 10, 40, DRUMS, 100)
    for name, content in {"set/third": third, "both": [*third, drum], "drums": [drum], "empty": []}.items():
        write_midi(notes_to_midi(content), folder / f"{name}.mid")
    (folder / "text.mid").write_text("no music")
    return folder


def test_the_sampled_piano_needs_neither_program_nor_font(scores, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [
        "data",
        "render",
        str(scores),
        "--output",
        str(tmp_path / "wav"),
        "--channels",
        "2",
        "--sampling-rate",
        "16000",
    ]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and "rendered 2, kept 0, failed 3" in result.output
    said = {Path(line.split(": ")[1]).name: line for line in result.output.splitlines() if "  failed: " in line}
    assert (
        "no notes." in said["empty.mid"] and "but drums" in said["drums.mid"] and "not a readable" in said["text.mid"]
    )
    data, rate = soundfile.read(tmp_path / "wav/set/third.wav")
    assert rate == 16000 and data.shape[1] == 2 and not data[:7990].any()
    spectrum = np.abs(np.fft.rfft(data[8000:24000].mean(1) * np.hanning(16000)))
    assert {int(440 + spectrum[440 - 9 : 440 + 9].argmax() - 9), int(554 + spectrum[545:563].argmax() - 9)} <= {
        *range(438, 443),
        *range(552, 557),
    }
    np.testing.assert_array_equal(soundfile.read(tmp_path / "wav/both.wav")[0], data)
    assert not [path for path in (tmp_path / "wav").rglob("*") if "partial" in path.name]
    report = render_folder(scores, tmp_path / "wav", synth="sampled", progress=False)
    assert len(report.kept) == 2 and not report.rendered


def test_the_pedal_holds_notes_and_the_gain_scales(scores, tmp_path):
    import mido

    folder = tmp_path / "pedal"
    folder.mkdir()
    for name, up in (("short", 20), ("long", 200)):
        track = mido.MidiTrack([mido.Message("control_change", control=64, value=127, time=0)])
        track += [mido.Message("note_on", note=60, velocity=90), mido.Message("note_off", note=60, time=10)]
        track += [mido.Message("control_change", control=64, value=0, time=up - 10)]
        track += [
            mido.Message("note_on", note=90, velocity=1, time=250 - up),
            mido.Message("note_off", note=90, time=5),
        ]
        mido.MidiFile(type=0, ticks_per_beat=50, tracks=[track]).save(folder / f"{name}.mid")
    render_folder(folder, tmp_path / "a", synth="sampled", progress=False)
    render_folder(folder, tmp_path / "b", synth="sampled", gain=0.25, progress=False)
    short, long = (soundfile.read(tmp_path / f"a/{name}.wav")[0] for name in ("short", "long"))
    second = slice(int(1.5 * 22050), int(1.9 * 22050))
    assert np.abs(long[second]).max() > 0.003 > 20 * np.abs(short[second]).max()
    np.testing.assert_allclose(soundfile.read(tmp_path / "b/long.wav")[0], long / 2, atol=1e-4)


def test_what_the_sampled_piano_does_not_render(scores, tmp_path, monkeypatch):
    midi, output, stopped = scores / "set/third.mid", tmp_path / "a.wav", threading.Event()
    with pytest.raises(ValueError, match="renders to silence: has .*piano.sf2 the instruments .0.?"):
        render_sampled(midi, output, SampledInstrument(gain=1e-9))
    stopped.set()
    with pytest.raises(ValueError, match="stopped"):
        render_sampled(midi, output, SampledInstrument(), stopping=stopped)
    end = 1.5 + SampledInstrument().longest_tail
    for seconds, refused in ((end + 0.01, False), (end - 0.01, True)):
        monkeypatch.setattr(rendering, "_LONGEST_SECONDS", seconds)
        with pytest.raises(ValueError, match="lasts longer") if refused else contextlib.nullcontext():
            render_sampled(midi, output, SampledInstrument())
        assert output.is_file() != refused
        output.unlink(missing_ok=True)
    assert not list(tmp_path.glob("*.wav")) and not list(tmp_path.glob(".*"))


def test_which_synthesizer_plays(synthesizer, monkeypatch, tmp_path):
    assert choose_synth("auto", synthesizer) == "fluidsynth" and choose_synth("auto", None) == "sampled"
    assert choose_synth("sampled", synthesizer) == "sampled"
    with pytest.raises(ValueError, match="'fluidsynth' needs a soundfont"):
        choose_synth("fluidsynth", None)
    with pytest.raises(ValueError, match="synth must be one of .*got 'organ'"):
        choose_synth("organ", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_synth("auto", synthesizer) == "sampled"


def test_a_font_that_the_sampled_piano_cannot_load_is_an_error(synthesizer, scores, tmp_path):
    with pytest.raises(ValueError, match="piano.sf2 is damaged"):
        render_folder(scores, tmp_path / "wav", synthesizer, synth="sampled", progress=False)
    assert not (tmp_path / "wav").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="needs FluidSynth")
@pytest.mark.parametrize("key", [30, 48, 60])
def test_the_sampled_piano_plays_as_fluidsynth_does(tmp_path, key):
    write_midi(notes_to_midi([MidiNote(10, 100, key, 0, 90)]), tmp_path / "note.mid")
    words = ["fluidsynth", "-ni", "-q", "-g", "0.5", "-r", "22050", "-R", "0", "-C", "0", "-T", "wav"]
    words += ["-o", "synth.default-soundfont=none", "-F", str(tmp_path / "other.wav"), str(BUNDLED_PIANO)]
    subprocess.run([*words, str(tmp_path / "note.mid")], check=True, capture_output=True)
    render_sampled(tmp_path / "note.mid", tmp_path / "own.wav", SampledInstrument(), channels=2)
    own, other = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("own", "other"))
    # FluidSynth places events on blocks of 64 samples, and tunes to whole cents.
    lag = 2205 - 2205 // 64 * 64
    a, b = own[2400:12000], other[2400 - lag : 12000 - lag]
    assert np.square(a - b).mean() < 1e-3 * np.square(b).mean()
    for begin in (0.2, 0.6, 1.0, 1.15, 1.3):
        part = slice(int(begin * 22050), int((begin + 0.08) * 22050))
        levels = [20 * np.log10(np.abs(data[part]).max()) for data in (own, other)]
        assert abs(levels[0] - levels[1]) < 0.7, begin
