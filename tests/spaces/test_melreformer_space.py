"""The demo through its own client: every endpoint, with a tiny pipeline, offline; and the files that a Space needs."""

from __future__ import annotations

import gc
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from audio_files import RATE, tone
from pipeline_utils_for_tests import tiny_pipeline

from melreformer_hf import MelReformerPipeline
from melreformer_hf.cli.demo import load_app

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces" / "melreformer"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def app():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Gradio's modules
        return load_app()


@pytest.fixture(scope="module")
def client(app):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Gradio's servers
        from gradio_client import Client

        demo = app.build_demo(tiny_pipeline())
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.launch_settings())
        yield Client(url, verbose=False)
        demo.close()
        gc.collect()  # event loops and sockets that Gradio's server leaves open would fail whatever test comes later


def test_generate_gives_the_asked_length_pictures_and_seed(client):
    _, audio, idea, mel, status, seed = client.predict(2, 7, False, 4, api_name="/generate")
    data, rate = soundfile.read(audio)
    assert rate == RATE and abs(data.size / rate - 2) < 0.02 and np.abs(data).max() > 0
    assert Path(idea).suffix == Path(mel).suffix == ".png"
    assert "2.0 s of music" in status and seed == 7
    again = client.predict(2, 7, False, 4, api_name="/generate")[1]
    np.testing.assert_array_equal(soundfile.read(again)[0], data)
    seeds = {client.predict(1, 7, True, 4, api_name="/generate")[-1] for _ in range(2)}
    assert len(seeds) == 2 and 7 not in seeds


def test_what_a_visitor_sees_grows_step_by_step(app):
    pipe = tiny_pipeline()
    steps = list(app.Player(pipe, live=True).generate(3, 1, False, 4))
    assert all(len(step) == 6 and step[-1] == 1 for step in steps)
    assert steps[0][4].startswith("Drawing") and steps[1][4].startswith("Expanding")
    live = np.concatenate([step[0][1] for step in steps if isinstance(step[0], tuple)])
    whole, rate = soundfile.read(steps[-1][1], dtype="int16")
    np.testing.assert_array_equal(live, whole)
    expected = pipe(3.0, num_inference_steps=4, generator=torch.Generator().manual_seed(1))
    gained = pipe.live_gain(expected.ideas[:1]) * expected.audios[0, 0]
    assert rate == RATE and np.abs(whole / 32767 - gained.clamp(-1, 1).numpy()).max() < 1e-3
    shapes = {step[index].shape for step in steps for index in (2, 3) if isinstance(step[index], np.ndarray)}
    assert len(shapes) == 1  # the page does not jump
    grey = [(step[3] == 216).all(-1).mean() for step in steps if isinstance(step[3], np.ndarray)]
    assert grey[0] > 0.5 and grey[-1] < 0.01 and grey == sorted(grey, reverse=True)
    late = list(app.Player(pipe, live=False).generate(3, 1, False, 4))
    assert [isinstance(step[0], tuple) for step in late] == [False] * (len(late) - 1) + [True]
    np.testing.assert_array_equal(late[-1][0][1], whole)


def test_the_idea_is_drawn_so_coarse_that_the_expansion_is_seen(app):
    player = app.Player(tiny_pipeline(), live=False)
    idea = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) * 2 - 6
    steps = [step for step in player.play(idea[None, :, :32], torch.tensor([256]), 1.0, 0.0, "", lambda: False)]
    coarse, fine = player.idea_picture(idea, 20.0, 0.0), player.picture(idea, "", 20.0, 0.0)
    assert coarse.shape == fine.shape == steps[-1][2].shape

    def changes(picture: np.ndarray) -> int:
        row = picture[picture.shape[0] // 2, 70:530].astype(int)
        return int((np.abs(np.diff(row, axis=0)).sum(-1) > 0).sum())

    assert changes(coarse) <= app.IDEA_BLOCKS + 1 and changes(fine) > 2 * app.IDEA_BLOCKS


def test_stop_leaves_what_was_made(app):
    player = app.Player(tiny_pipeline(), live=True)
    for step in player.generate(60, 1, False, 4):
        if "of 60" in str(step[4]):
            player.stops.stop(None, "generate")
    sound, file, _, mel, status, _ = step
    assert sound is None  # the player is emptied
    assert "Stopped after" in status and "of 60.0 s" in status
    assert 0.5 < soundfile.info(file).duration < 50
    assert (mel == 216).all(-1).mean() > 0.1  # the rest stays grey
    waiting = list(player.generate(60, 1, False, 4))
    assert len(waiting) == 1 and waiting[0][4] == "Stopped."  # Stop was pressed while it waited in the queue
    player.stops.start(None, "generate", app.TABS)
    assert "Drawing" in next(player.generate(60, 1, False, 4))[4]
    assert player.stops.pressed(None, "expand")  # the other tab falls silent
    player.stops.forget(None, app.TABS)
    assert not player.stops.pressed(None, "expand")


def test_generate_pressed_right_after_stop_does_not_undo_it(app):
    player = app.Player(tiny_pipeline(), live=True)
    player.stops.start(None, "generate", app.TABS)
    for step in player.generate(60, 1, False, 4):
        if "of 60" in str(step[4]):
            player.stops.stop(None, "generate")
            player.stops.start(None, "generate", app.TABS)  # Gradio drops the press itself: a piece is being made
    assert "Stopped after" in step[4]
    player.stops.start(None, "generate", app.TABS)
    assert "2.0 s of music" in list(player.generate(2, 1, False, 4))[-1][4]


def test_outputs_have_names_and_files_are_cleaned(client, app):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    names = [output["label"] for output in endpoints["/generate"]["returns"]]
    assert names[1:] == ["The piece as a WAV file", app.IDEA, app.MEL, "status", "Seed"] and "piece" in names[0]
    assert set(endpoints) == {"/generate", "/expand"}
    demo = app.build_demo(tiny_pipeline())
    assert demo.delete_cache == (app.CACHE_SECONDS, app.CACHE_SECONDS)
    assert sum(block.get_block_name() == "audio" for block in demo.blocks.values()) == 3  # two players and the upload


def test_expanded_recordings_keep_their_level(app, tmp_path):
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    soundfile.write(tmp_path / "still.wav", np.zeros(2 * RATE, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "soft.wav", 0.02 * tone(2.0), RATE)
    for name, low, high in (("still", 0.0, 1e-4), ("soft", 0.001, 0.1)):
        *_, last = app.Player(pipe, live=False).expand(str(tmp_path / f"{name}.wav"), 1.0)
        assert low <= np.abs(soundfile.read(last[1])[0]).max() <= high


def test_expand_keeps_or_stretches_the_length(client, tmp_path):
    from gradio_client import handle_file

    soundfile.write(tmp_path / "a.wav", tone(1.5), RATE)
    for stretch in (1.0, 2.0):
        audio = client.predict(handle_file(str(tmp_path / "a.wav")), stretch, api_name="/expand")[1]
        assert abs(soundfile.info(audio).duration - 1.5 * stretch) < 0.02


def test_visitors_are_told_what_was_wrong(client, app, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

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
        ((100000, 7, False, 4), "from 1 to 120, got 100000"),
        (("abc", 7, False, 4), "length in seconds must be a number from 1 to 120, got 'abc'"),
        ((2, "abc", False, 4), "seed must be a whole number from 0 to .*got 'abc'"),
        ((2, 7, "maybe", 4), "true or false, got 'maybe'"),
        ((2, 7, False, 2.5), "steps must be a whole number from 4 to 50, got 2.5"),
        ((2, 7, False, None), "steps must be a whole number from 4 to 50, got None"),
    ):
        with pytest.raises(AppError, match=words):
            client.predict(*values, api_name="/generate")
    for value in ("abc", None, True, 2.5, float("nan")):
        with pytest.raises(Exception, match="The seed must be a whole number from 0 to"):
            next(app.Player(tiny_pipeline(), live=False).generate(2, value, False, 4))
    (tmp_path / "big.wav").write_bytes(bytes(21_000_000))
    with pytest.raises(Exception, match="21.0 MB; at most 20 MB"):
        app.read_recording(str(tmp_path / "big.wav"), RATE)


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
    assert example.duration > 10 and "prelude.ogg" in text and "prelude.ogg" in (ROOT / "pyproject.toml").read_text()


def test_soft_models_are_made_loud_enough(app):
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    for step in app.Player(pipe, live=False).generate(3, 1, False, 4):
        file = step[1]
    assert 0.1 < np.abs(soundfile.read(file)[0]).max() < 0.99
