"""The demo through its own client: every endpoint, with a tiny pipeline, offline; and the files that a Space needs."""

from __future__ import annotations

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
    whole = steps[-1][1][1]
    np.testing.assert_array_equal(live, whole)
    expected = pipe(num_inference_steps=4, audio_length_in_s=3.0, generator=torch.Generator().manual_seed(1))
    gained = app.Player(pipe, live=True).gain(expected.ideas[:1]) * expected.audios[0]
    assert np.abs(whole / 32767 - gained.clamp(-1, 1).numpy()).max() < 1e-3
    shapes = {step[index].shape for step in steps for index in (2, 3) if isinstance(step[index], np.ndarray)}
    assert len(shapes) == 1  # the page does not jump
    grey = [(step[3] == 216).all(-1).mean() for step in steps if isinstance(step[3], np.ndarray)]
    assert grey[0] > 0.5 and grey[-1] < 0.01 and grey == sorted(grey, reverse=True)
    silent = list(app.Player(pipe, live=False).generate(3, 1, False, 4))
    assert not any(isinstance(step[0], tuple) for step in silent)


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
    with pytest.raises(AppError):
        client.predict(100000, 7, False, 4, api_name="/generate")
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
        whole = step[1]
    assert 0.1 < np.abs(whole[1] / 32767).max() < 0.99
