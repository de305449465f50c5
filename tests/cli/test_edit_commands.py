"""`melreformer edit`: files hold what the pipeline's methods give, with pictures; mistakes are told before the work."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE
from midi_pipeline_for_tests import piece, tiny_midi_parts
from PIL import Image
from pipeline_utils_for_tests import tiny_pipeline
from typer.testing import CliRunner

from melreformer_hf._errors import one_line
from melreformer_hf.audio.io import read_audio
from melreformer_hf.cli.main import app
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.processing.midi.notes import write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi

HOP = 256
STEPS = ("--steps", "3", "--seed", "5")
FEW = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline(performer=tiny_midi_parts()["performer"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(checkpoint):
    pipe = MelReformerPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "song.wav"
    time = np.arange(2 * RATE) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time)), RATE)
    return path


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(checkpoint: str, *words: object) -> str:
    result = CliRunner().invoke(app, ["edit", *map(str, words), "--checkpoint", checkpoint], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def check_file(path, output, text: str = "") -> None:
    """It holds the music of a pipeline's output, at its own level, and there is a picture."""
    audio = output.audios[0, 0] / output.audios.abs().max().clamp(min=1)
    data, rate = soundfile.read(path)
    assert rate == RATE and data.shape == audio.shape
    np.testing.assert_allclose(data, audio, rtol=0, atol=1e-4)
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.width > 900 and picture.height >= 800  # before and after
    assert str(path) in text and "seed 5" in text


def test_every_verb_writes_what_its_method_gives(checkpoint, pipe, song, tmp_path):
    source = read_audio(song, RATE)
    made = {
        ("vary", song, "--strength", 0.4, *STEPS): pipe.vary(source, 0.4, **FEW, generator=seeded()),
        ("vary", song, "--strength", 0.7, "--seconds", 1.3, *STEPS): pipe.vary(
            source, 0.7, 1.3, **FEW, generator=seeded()
        ),
        ("blend", song, song, "--weight", 0.3, "--strength", 0.2, *STEPS): pipe.blend(
            source, source, 0.3, 0.2, **FEW, generator=seeded()
        ),
        ("inpaint", song, "--start", 0.5, "--end", 1.0, "--context", 1, *STEPS): pipe.inpaint(
            source, 0.5, 1.0, 1.0, 1.0, **FEW, generator=seeded()
        ),
        ("extend", song, "--left", 0.3, "--right", 0.6, *STEPS): pipe.extend(
            source, 0.3, 0.6, **FEW, generator=seeded()
        ),
        ("loop", song, "--seam", 0.5, "--strength", 0.6, *STEPS): pipe.loop(
            source, 0.5, 0.6, **FEW, generator=seeded()
        ),
        ("stretch", song, "--factor", 1.5, "--seed", 5): pipe.stretch(source, 1.5 * (2 * RATE // HOP) * HOP / RATE),
        ("stretch", song, "--seconds", 1.3, "--seed", 5): pipe.stretch(source, 1.3),
    }
    for number, (words, output) in enumerate(made.items()):
        path = tmp_path / f"{number}.wav"
        check_file(path, output, run(checkpoint, *words, "--output", path))
    kept, _ = soundfile.read(tmp_path / "3.wav")
    np.testing.assert_allclose(kept[: 30 * HOP], source[0][: 30 * HOP], rtol=0, atol=1e-4)


def test_seeds_suffixes_and_levels(checkpoint, pipe, song, tmp_path):
    text = run(checkpoint, "vary", song, "--num", 2, *STEPS, "--output", tmp_path / "new" / "v.flac")
    assert "seed 5" in text and "seed 6" in text
    second = pipe.vary(read_audio(song, RATE), 0.5, **FEW, generator=seeded(6)).audios[0, 0]
    data = soundfile.read(tmp_path / "new" / "v-1.flac")[0]
    np.testing.assert_allclose(data, second / second.abs().max().clamp(min=1), rtol=0, atol=1e-4)
    assert (tmp_path / "new" / "v-0.png").is_file()
    run(checkpoint, "loop", song, "--seam", 0.5, *STEPS, "--peak", -6, "--output", tmp_path / "l.ogg")
    assert abs(20 * np.log10(np.abs(soundfile.read(tmp_path / "l.ogg")[0]).max()) + 6) < 0.5


def test_a_sweep_has_a_picture_of_all(checkpoint, pipe, song, tmp_path):
    text = run(checkpoint, "sweep", "--num", 3, "--seconds", 1, *STEPS, "--output", tmp_path / "s.wav")
    assert "all of them are in" in text
    alone = pipe(1.0, **FEW, generator=seeded(7)).audios[0, 0]
    data = soundfile.read(tmp_path / "s-2.wav")[0]
    np.testing.assert_allclose(data, alone / alone.abs().max() * 10 ** (-1 / 20), rtol=0, atol=1e-4)
    with Image.open(tmp_path / "s.png") as all_of_them, Image.open(tmp_path / "s-0.png") as one:
        assert all_of_them.height == 2 * one.height
    run(checkpoint, "sweep", song, "--num", 2, "--strength", 0.3, *STEPS, "--output", tmp_path / "v.wav")
    varied = pipe.vary(read_audio(song, RATE), 0.3, **FEW, generator=seeded(6)).audios[0, 0]
    data = soundfile.read(tmp_path / "v-1.wav")[0]
    np.testing.assert_allclose(data, varied / varied.abs().max().clamp(min=1), rtol=0, atol=1e-4)


def test_notes_are_sketches(checkpoint, pipe, tmp_path):
    """Of `edit`, of `generate --midi` and of `expand`: played by the performer, unless the sampled piano is asked for."""
    score = piece()
    write_midi(piece_to_midi(*score), tmp_path / "sketch.mid")
    run(checkpoint, "vary", tmp_path / "sketch.mid", "--strength", 0, "--seed", 5, "--output", tmp_path / "v.wav")
    expected = {
        "performer": pipe.render_idea(*pipe.idea_of_midi(score)).audios[0, 0],
        "sampled": pipe.render_idea(*pipe.idea_of_midi(score, synth="sampled")).audios[0, 0],
    }
    data = soundfile.read(tmp_path / "v.wav")[0]
    whole = expected["performer"]
    np.testing.assert_allclose(data, whole / whole.abs().max().clamp(min=1), rtol=0, atol=1e-4)
    runner = CliRunner()
    words = ["generate", "--midi", str(tmp_path / "sketch.mid"), "--checkpoint", checkpoint, "--keep-level"]
    result = runner.invoke(app, [*words, "--output", str(tmp_path / "g.wav")], catch_exceptions=False)
    assert result.exit_code == 0 and "sketch.mid" in result.output
    np.testing.assert_array_equal(soundfile.read(tmp_path / "g.wav")[0], data)
    for synth, audio in expected.items():
        words = ["expand", str(tmp_path / "sketch.mid"), "--checkpoint", checkpoint, "--synth", synth]
        runner.invoke(app, [*words, "--output", str(tmp_path / "e.wav")], catch_exceptions=False)
        made = soundfile.read(tmp_path / "e.wav")[0]
        np.testing.assert_allclose(made, audio / audio.abs().max().clamp(min=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("edit", "vary", "none.wav"), ["No file at none.wav"]),
        (("edit", "vary", "SONG", "--strength", "2"), ["--strength"]),
        (("edit", "vary", "SONG", "--strength", "nan"), ["--strength"]),
        (("edit", "vary", "SONG", "--seconds", "0.5"), ["--seconds must be a number from 1", "0.5"]),
        (("edit", "vary", "SONG", "--output", "v.txt"), [".wav", "v.txt"]),
        (("edit", "blend", "SONG", "none.wav"), ["No file at none.wav"]),
        (("edit", "inpaint", "SONG", "--start", "1.5", "--end", "1"), ["--end must lie after --start", "1.5 and 1"]),
        (("edit", "inpaint", "SONG", "--start", "1", "--end", "9"), ["end_in_s", "within the piece", "9"]),
        (("edit", "inpaint", "SONG", "--start", "1", "--end", "nan"), ["--end"]),
        (("edit", "inpaint", "SONG", "--start", "1", "--end", "1.5", "--context", "-1"), ["context_in_s", "-1"]),
        (("edit", "extend", "SONG"), ["--left or --right", "nothing to add"]),
        (("edit", "extend", "SONG", "--right", "-1"), ["--right"]),
        (("edit", "loop", "SONG", "--output", "l.mp3"), ["MP3", ".flac"]),
        (("edit", "loop", "SONG", "--seam", "3"), ["seam_in_s must be less than", "3"]),
        (("edit", "stretch", "SONG"), ["--seconds or --factor"]),
        (("edit", "stretch", "SONG", "--seconds", "2", "--factor", "2"), ["one of them"]),
        (("edit", "stretch", "SONG", "--factor", "nan"), ["--factor", "nan"]),
        (("edit", "stretch", "SONG", "--factor", "0.1"), ["--seconds must be a number from 1", "0.19"]),
        (("edit", "sweep", "--strength", "0.5"), ["--strength is for variations", "0.5"]),
        (("edit", "sweep", "--num", "1"), ["--num"]),
        (("edit", "sweep", "--output", "-"), ["--num must be 1 with --output -"]),
        (("generate", "--midi", "none.mid"), ["No MIDI file at none.mid"]),
        (("generate", "--midi", "SONG", "--steps", "3"), ["--steps", "edit vary"]),
        (("expand", "SONG", "--synth", "sampled"), ["--synth is for MIDI files"]),
    ],
)
def test_mistakes_are_one_line(checkpoint, song, tmp_path, monkeypatch, words, fragments):
    monkeypatch.chdir(tmp_path)
    words = [str(song) if word == "SONG" else word for word in words]
    result = CliRunner().invoke(app, [*words, "--checkpoint", checkpoint])
    told = result.output + (one_line(result.exception) if result.exception else "")
    assert result.exit_code != 0
    assert not [fragment for fragment in fragments if fragment not in told], told
    assert not list(tmp_path.iterdir())


def test_a_sketch_of_notes_is_no_prompt_for_the_composer():
    result = CliRunner().invoke(app, ["generate", "--from", "notes", "--midi", __file__])
    assert "--midi is a sketch for --from idea" in one_line(result.exception)


def test_help_teaches():
    text = CliRunner().invoke(app, ["edit", "--help"]).output
    assert all(verb in text for verb in ("vary", "blend", "inpaint", "extend", "loop", "stretch", "sweep"))
    for verb in ("vary", "blend", "inpaint", "extend", "loop", "stretch", "sweep"):
        shown = CliRunner().invoke(app, ["edit", verb, "--help"]).output
        assert f"melreformer edit {verb}" in shown and "--output" in shown and "Example:" in shown
