"""The demo through its own client: every endpoint, with a tiny pipeline, offline; and the files that a Space needs."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
import torch
import yaml
from audio_files import RATE, tone
from midi_pipeline_for_tests import tiny_midi_parts, tiny_midi_pipeline
from pipeline_utils_for_tests import tiny_pipeline

from melreformer_hf import MelReformerPipeline
from melreformer_hf.processing.midi.notes import read_notes

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces" / "melreformer"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client(app, connected):
    return connected(app.build_demo(tiny_midi_pipeline(), tiny_pipeline()))


@pytest.fixture
def players(app):
    from melreformer_space.players import Players

    kept = []  # their files go with them

    def make(ideas: MelReformerPipeline | None = None, live: bool = False) -> Players:
        kept.append(Players(None, ideas or tiny_pipeline(), live))
        return kept[-1]

    return make


EDITS = {"/vary", "/blend", "/inpaint", "/extend", "/loop"}
FROM_IDEA = ("idea", 1.0, 0.98, 4)


def test_generate_from_an_idea_gives_the_asked_length_pictures_and_seed(client):
    _, audio, midi, roll, idea, mel, status, seed = client.predict(2, 7, False, *FROM_IDEA, api_name="/generate")
    data, rate = soundfile.read(audio)
    assert rate == RATE and abs(data.size / rate - 2) < 0.02 and np.abs(data).max() > 0
    assert Path(idea).suffix == Path(mel).suffix == ".png" and midi is roll is None
    assert "2.0 s of music" in status and seed == 7
    again = client.predict(2, 7, False, *FROM_IDEA, api_name="/generate")[1]
    np.testing.assert_array_equal(soundfile.read(again)[0], data)
    seeds = {client.predict(1, 7, True, *FROM_IDEA, api_name="/generate")[-1] for _ in range(2)}
    assert len(seeds) == 2 and 7 not in seeds


def test_an_idea_is_of_notes_where_there_is_a_composer_or_of_noise(players):
    parts = tiny_midi_parts()
    pipe = tiny_pipeline(performer=parts["performer"], composer=parts["composer"])
    steps = list(players(pipe).generate(2, 1, False, *FROM_IDEA, "notes"))
    assert steps[0][6].startswith("Writing the notes") and steps[1][6].startswith("Expanding")
    made, _ = soundfile.read(steps[-1][1])
    expected = pipe(2.0, idea_from="notes", generator=torch.Generator().manual_seed(1))
    gained = pipe.live_gain(expected.ideas) * expected.audios[0, 0]
    assert np.abs(made - gained.clamp(-1, 1).numpy()).max() < 1e-3
    with pytest.raises(gr.Error, match="must be noise, got 'notes'"):
        list(players().generate(2, 1, False, *FROM_IDEA, "notes"))
    assert players(pipe).ideas.sources == ["notes", "noise"] and players().ideas.sources == ["noise"]
    assert players().ideas.steps == 20
    pipe.idea.register_to_config(sampling_steps=6)
    assert players(pipe).ideas.steps == 6


def test_what_a_visitor_sees_of_an_idea_grows_step_by_step(players):
    pipe = tiny_pipeline()
    steps = list(players(pipe, live=True).generate(3, 1, False, *FROM_IDEA))
    assert all(len(step) == 8 and step[-1] == 1 for step in steps)
    assert steps[0][6].startswith("Drawing") and steps[1][6].startswith("Expanding")
    live = np.concatenate([step[0][1] for step in steps if isinstance(step[0], tuple)])
    whole, rate = soundfile.read(steps[-1][1], dtype="int16")
    np.testing.assert_array_equal(live, whole)
    expected = pipe(3.0, num_inference_steps=4, generator=torch.Generator().manual_seed(1))
    gained = pipe.live_gain(expected.ideas[:1]) * expected.audios[0, 0]
    assert rate == RATE and np.abs(whole / 32767 - gained.clamp(-1, 1).numpy()).max() < 1e-3
    shapes = {step[index].shape for step in steps for index in (4, 5) if isinstance(step[index], np.ndarray)}
    assert len(shapes) == 1  # the page does not jump
    grey = [(step[5] == 216).all(-1).mean() for step in steps if isinstance(step[5], np.ndarray)]
    assert grey[0] > 0.5 and grey[-1] < 0.01 and grey == sorted(grey, reverse=True)
    late = list(players(pipe).generate(3, 1, False, *FROM_IDEA))
    assert [isinstance(step[0], tuple) for step in late] == [False] * len(late)
    assert late[-1][0]["autoplay"] is False
    np.testing.assert_array_equal(soundfile.read(late[-1][0]["value"], dtype="int16")[0], whole)


def test_the_idea_is_drawn_so_coarse_that_the_expansion_is_seen(players):
    from melreformer_space.ideas import IDEA_BLOCKS

    player = players().ideas
    idea = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) * 2 - 6
    steps = list(player.play(idea[None, :, :32], torch.tensor([256]), 1.0, 0.0, "", lambda: False))
    coarse, fine = player.idea_picture(idea, 20.0, 0.0), player.picture(idea, "", 20.0, 0.0)
    assert coarse.shape == fine.shape == steps[-1].idea.shape

    def changes(picture: np.ndarray) -> int:
        row = picture[picture.shape[0] // 2, 70:530].astype(int)
        return int((np.abs(np.diff(row, axis=0)).sum(-1) > 0).sum())

    assert changes(coarse) <= IDEA_BLOCKS + 1 and changes(fine) > 2 * IDEA_BLOCKS


def test_stop_leaves_what_was_made(players):
    player = players(live=True)
    player.stops.start(None, "generate")
    for step in player.generate(60, 1, False, *FROM_IDEA):
        if "of 60" in str(step[6]):
            player.stops.stop(None, "generate")
    sound, file, *_, mel, status, _ = step
    # The player waits at the beginning of what was made: not at the place of before, and without going on by itself.
    assert (sound["value"], sound["autoplay"], sound["playback_position"]) == (file, False, 0)
    assert "Stopped after" in status and "of 60.0 s" in status
    assert 0.5 < soundfile.info(file).duration < 50
    assert (mel == 216).all(-1).mean() > 0.1  # the rest stays grey
    player.stops.start(None, "generate")
    player.stops.stop(None, "generate")
    waiting = list(player.generate(60, 1, False, *FROM_IDEA))
    assert len(waiting) == 1 and waiting[0][6] == "Stopped."  # Stop was pressed while it waited in the queue
    player.stops.start(None, "expand")
    player.stops.start(None, "generate")
    assert player.stops.pressed(None, "expand")  # the other tab falls silent
    assert "Drawing" in next(player.generate(60, 1, False, *FROM_IDEA))[6]
    player.stops.forget(None)
    assert not player.stops.pressed(None, "expand")


def test_a_stop_before_a_piece_does_not_end_it(players):
    player = players(live=True)
    player.stops.stop(None, "generate", "expand")
    assert "2.0 s of music" in list(player.generate(2, 1, False, *FROM_IDEA))[-1][6]


def test_generate_pressed_right_after_stop_does_not_undo_it(players):
    player = players(live=True)
    assert player.stops.start(None, "generate")
    for step in player.generate(60, 1, False, *FROM_IDEA):
        if "of 60" in str(step[6]):
            player.stops.stop(None, "generate")
            # Gradio drops the press itself: a piece is being made.
            assert not player.stops.start(None, "generate")
    assert "Stopped after" in step[6]
    assert player.stops.start(None, "generate")
    assert "2.0 s of music" in list(player.generate(2, 1, False, *FROM_IDEA))[-1][6]


def test_outputs_have_names_and_files_are_cleaned(client, app):
    from melreformer_space.ideas import IDEA, MEL

    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    names = [output["label"] for output in endpoints["/generate"]["returns"]]
    files = ["The piece as a WAV file", "The notes as a MIDI file"]
    assert names[1:] == [*files, "The notes", IDEA, MEL, "status", "Seed"] and "piece" in names[0]
    notes, edits = (
        ("/continue", "/fill", "/accompany", "/perform"),
        ("/vary", "/blend", "/inpaint", "/extend", "/loop"),
    )
    assert set(endpoints) == {"/generate", "/expand", *notes, *edits}
    assert [output["label"] for output in endpoints["/fill"]["returns"]][1:] == [*files, "The notes", "status", "Seed"]
    demo = app.build_demo(tiny_midi_pipeline(), tiny_pipeline())
    assert demo.delete_cache == (app.CACHE_SECONDS, app.CACHE_SECONDS)
    assert (
        sum(block.get_block_name() == "audio" for block in demo.blocks.values()) == 8
    )  # a player per tab, the others upload


def test_a_checkpoint_without_notes_or_without_ideas_has_a_demo(app):
    def endpoints(demo) -> set[str]:
        return set(demo.get_api_info()["named_endpoints"])

    assert endpoints(app.build_demo(None, tiny_pipeline())) == {"/generate", "/expand", *EDITS}
    alone = app.build_demo(tiny_midi_pipeline(), None)
    assert endpoints(alone) == {"/generate", "/continue", "/fill", "/accompany", "/perform"}
    with pytest.raises(ValueError, match="got neither"):
        app.build_demo(None, None)


def test_files_go_when_gradio_forgets_them(app):
    import os

    from melreformer_space.sound import CACHE_SECONDS, Files

    files = Files()
    old = files.place("piece.wav")
    old.write_bytes(b"x")
    os.utime(old.parent, times=(1, 1 + CACHE_SECONDS))
    new = files.place("piece.wav")
    assert new.parent.is_dir() and not old.exists()


def test_expanded_recordings_keep_their_level(players, tmp_path):
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    soundfile.write(tmp_path / "still.wav", np.zeros(2 * RATE, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "soft.wav", 0.02 * tone(2.0), RATE)
    for name, low, high in (("still", 0.0, 1e-4), ("soft", 0.001, 0.1)):
        *_, last = players(pipe).expand(str(tmp_path / f"{name}.wav"), 1.0)
        assert low <= np.abs(soundfile.read(last[1])[0]).max() <= high


def test_expand_keeps_or_stretches_the_length(client, tmp_path):
    from gradio_client import handle_file

    soundfile.write(tmp_path / "a.wav", tone(1.5), RATE)
    for stretch in (1.0, 2.0):
        audio = client.predict(handle_file(str(tmp_path / "a.wav")), stretch, api_name="/expand")[1]
        assert abs(soundfile.info(audio).duration - 1.5 * stretch) < 0.02


def test_visitors_are_told_what_was_wrong(client, players, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError
    from melreformer_space.limits import read_recording

    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "long.flac", np.zeros(121 * RATE, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "one.wav", np.zeros(1, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "minute.flac", tone(60), RATE)
    for name, stretch, message in (
        ("text.wav", 1, "text.wav could not be decoded"),
        ("long.flac", 1, "long.flac lasts 121 s"),
        ("one.wav", 1, "at least"),
        ("minute.flac", 4, "240"),
    ):
        with pytest.raises(AppError, match=message) as error:
            client.predict(handle_file(str(tmp_path / name)), stretch, api_name="/expand")
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(AppError, match="Upload or record"):
        client.predict(None, 1, api_name="/expand")
    for values, words in (
        ((100000, 7, False, *FROM_IDEA), "from 1 to 120, got 100000"),
        (("abc", 7, False, *FROM_IDEA), "length in seconds must be a number from 1 to 120, got 'abc'"),
        ((2, "abc", False, *FROM_IDEA), "seed must be a whole number from 0 to .*got 'abc'"),
        ((2, 7, "maybe", *FROM_IDEA), "true or false, got 'maybe'"),
        ((2, 7, False, "thin air"), "source must be notes or idea, got 'thin air'"),
        ((2, 7, False, ["notes"]), r"source must be notes or idea, got \['notes'\]"),
        ((2, 7, False, "notes", 9), "temperature must be a number from 0.5 to 1.5, got 9"),
        ((2, 7, False, "notes", 1, "all"), "share of likely notes must be a number from 0.5 to 1, got 'all'"),
        ((2, 7, False, "idea", 1.0, 0.98, 2.5), "steps must be a whole number from 4 to 50, got 2.5"),
        ((2, 7, False, "idea", 1.0, 0.98, None), "steps must be a whole number from 4 to 50, got None"),
    ):
        with pytest.raises(AppError, match=words):
            client.predict(*values, api_name="/generate")
    for value in ("abc", None, True, 2.5, float("nan")):
        with pytest.raises(Exception, match="The seed must be a whole number from 0 to"):
            next(players().generate(2, value, False, *FROM_IDEA))
    (tmp_path / "big.wav").write_bytes(bytes(21_000_000))
    with pytest.raises(Exception, match="21.0 MB; at most 20 MB"):
        read_recording(str(tmp_path / "big.wav"), RATE)


def test_space_files_are_what_the_hub_expects():
    _, front, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if re.match(r"[\w.-]+==", line)
    )
    assert card["sdk"] == "gradio" and card["sdk_version"] == pinned["gradio"]
    assert isinstance(card["python_version"], str) and (SPACE / card["app_file"]).is_file()
    assert card["license"] == "apache-2.0" and len(card["short_description"]) <= 60
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colors
    assert (SPACE / "requirements.txt").read_text().split() == ["melreformer_hf[demo]"]
    assert (SPACE / "packages.txt").read_text().split() == ["ffmpeg"]
    assert "melreformer demo" in text
    example = soundfile.info(SPACE / "prelude.ogg")
    assert "melody.mid" in text and len(read_notes(SPACE / "melody.mid")) == 30
    assert example.duration > 10 and "prelude.ogg" in text and "prelude.ogg" in (ROOT / "pyproject.toml").read_text()


def test_every_file_of_the_space_is_installed():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    installed = {path for patterns in listed.values() for pattern in patterns for path in ROOT.glob(pattern)}
    there = {path for path in SPACE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert there == installed
    for folder, patterns in listed.items():
        assert all(f"share/melreformer_hf/{pattern}".startswith(f"{folder}/") for pattern in patterns)


def test_soft_models_are_made_loud_enough(players):
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    for step in players(pipe).generate(3, 1, False, *FROM_IDEA):
        file = step[1]
    assert 0.1 < np.abs(soundfile.read(file)[0]).max() < 0.99
