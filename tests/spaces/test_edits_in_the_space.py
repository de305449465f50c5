"""The tab Edit through its own client: every endpoint keeps what it shall keep, and refuses in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE
from PIL import Image
from pipeline_utils_for_tests import tiny_adversarial_idea, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
HOP = 256
SEEDED = (7, False, 4)  # seed, whether it is a new one, steps
FEW = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def client(app, connected):
    return connected(app.build_demo(None, tiny_pipeline()))


@pytest.fixture
def players(app):
    from melreformer_space.players import Players

    kept = []  # their files go with them

    def make(live: bool = False, **parts) -> Players:
        kept.append(Players(None, tiny_pipeline(**parts), live))
        return kept[-1]

    return make


@pytest.fixture(scope="module")
def song(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "song.wav"
    time = np.arange(3 * RATE) / RATE
    sound = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time))
    soundfile.write(path, sound.astype(np.float32), RATE, subtype="FLOAT")
    return path


def waveform_of(path: Path) -> tuple[torch.Tensor, int]:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0]), RATE


def test_every_endpoint_plays_what_its_method_gives(client, song):
    from gradio_client import handle_file

    pipe, source, file = tiny_pipeline(), waveform_of(song), handle_file(str(song))
    calls = [
        ("/vary", (0.4,), lambda **seed: pipe.vary(source, 0.4, **FEW, **seed)),
        ("/blend", (file, 0.3, 0.2), lambda **seed: pipe.blend(source, source, 0.3, 0.2, **FEW, **seed)),
        ("/inpaint", (1, 2, 1), lambda **seed: pipe.inpaint(source, 1, 2, **FEW, **seed)),
        ("/extend", (0.5, 1, 0.8), lambda **seed: pipe.extend(source, 0.5, 1, **FEW, **seed)),
        ("/loop", (1, 0.8), lambda **seed: pipe.loop(source, 1, **FEW, **seed)),
    ]
    for name, values, call in calls:
        _, wav, picture, status, seed = client.predict(file, *values, *SEEDED, api_name=name)
        data, rate = soundfile.read(wav)
        expected = call(generator=torch.Generator().manual_seed(7)).audios[0, 0].clamp(-1, 1).numpy()
        assert rate == RATE and data.shape == expected.shape and seed == 7, name
        np.testing.assert_allclose(data, expected, rtol=0, atol=1e-3)
        with Image.open(picture) as image:
            assert image.width > 600 and image.height >= 800
        assert "song.wav" in status and "seed 7" in status
    kept = waveform_of(song)[0].numpy()
    inpainted = soundfile.read(client.predict(file, 1, 2, 1, *SEEDED, api_name="/inpaint")[1])[0]
    np.testing.assert_allclose(inpainted[: 80 * HOP], kept[: 80 * HOP], rtol=0, atol=1e-4)
    seeds = {client.predict(file, 0.5, 7, True, 4, api_name="/vary")[-1] for _ in range(2)}
    assert len(seeds) == 2


def test_what_a_visitor_sees_grows_on_one_time_axis(players, song):
    steps = list(players(live=True).inpaint(str(song), 1, 2, 1, *SEEDED))
    assert all(len(step) == 5 and step[-1] == 7 for step in steps)
    assert steps[0][3].startswith("Drawing") and "s are made" in steps[1][3]
    live = np.concatenate([step[0][1] for step in steps if isinstance(step[0], tuple)])
    np.testing.assert_array_equal(live, soundfile.read(steps[-1][1], dtype="int16")[0])
    pictures = [step[2] for step in steps if isinstance(step[2], np.ndarray)]
    assert len({picture.shape for picture in pictures}) == 1  # the page does not jump
    grey = [(picture == 216).all(-1).mean() for picture in pictures]
    assert grey[0] > 0.2 and grey[-1] < 0.01
    marked = [(picture == (0, 140, 110)).all(-1).sum() for picture in pictures]
    assert marked[0] > 500


def test_stop_leaves_what_was_made(players, song):
    player = players(live=True)
    player.stops.start(None, "extend")
    for step in player.extend(str(song), 0, 30, 0.8, *SEEDED):
        if "of 33" in str(step[3]):
            player.stops.stop(None, "extend")
    assert "Stopped after" in step[3] and 0 < soundfile.info(step[1]).duration < 32
    player.stops.start(None, "vary")
    player.stops.stop(None, "vary")
    waiting = list(player.vary(str(song), 0.5, *SEEDED))
    assert len(waiting) == 1 and waiting[0][3] == "Stopped."


def test_sliders_are_as_long_as_the_upload(players, song, tmp_path):
    edits = players().edits
    assert edits.length_of(str(song)) == 2.9 and edits.length_of(None) == 120
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(Exception, match="text.wav could not be decoded"):
        edits.length_of(str(tmp_path / "text.wav"))


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("vary", (2, *SEEDED), "The strength must be a number from 0 to 1, got 2"),
        ("vary", ("all", *SEEDED), "The strength must be a number from 0 to 1, got 'all'"),
        ("vary", (float("nan"), *SEEDED), "The strength .* got nan"),
        ("vary", (0.5, 7, False, 3), "steps must be a whole number from 4 to 50, got 3"),
        ("vary", (0.5, -1, False, 4), "The seed must be a whole number"),
        ("blend", (None, 0.5, 0.5, *SEEDED), "Upload or record something first"),
        ("inpaint", (2, 1, 1, *SEEDED), "end_in_s must lie after start_in_s"),
        ("inpaint", (1, 100, 1, *SEEDED), "end_in_s must be .* within the piece"),
        ("inpaint", (-1, 1, 1, *SEEDED), "The span's beginning must be a number from 0 to 120, got -1"),
        ("inpaint", (1, None, 1, *SEEDED), "The span's end must be a number from 0 to 120, got None"),
        ("inpaint", (0, 3, 1, *SEEDED), "must leave something"),
        ("extend", (0, 0, 0.8, *SEEDED), "Choose how many seconds to add"),
        ("extend", (61, 0, 0.8, *SEEDED), "add before must be a number from 0 to 60, got 61"),
        ("extend", (60, 60, 0.8, *SEEDED), "length of the result in seconds must be a number from 1 to 120"),
        ("loop", (0.1, 0.8, *SEEDED), "The seam in seconds must be a number from 0.5 to 10"),
        ("loop", (5, 0.8, *SEEDED), "seam_in_s must be less than"),
    ],
)
def test_visitors_are_told_what_was_wrong(players, song, task, values, message):
    with pytest.raises(Exception, match=message):
        list(getattr(players(), task)(str(song), *values))


def test_uploads_have_limits_and_models_without_steps_say_so(players, song, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(121 * RATE, dtype=np.float32), RATE)
    soundfile.write(tmp_path / "one.wav", np.zeros(1, dtype=np.float32), RATE)
    for name, message in (("long.flac", "long.flac lasts 121 s"), ("one.wav", "at least")):
        for task, values in (("vary", (0.5,)), ("inpaint", (0, 0.5, 1)), ("loop", (1, 0.8))):
            with pytest.raises(Exception, match=message):
                list(getattr(players(), task)(str(tmp_path / name), *values, *SEEDED))
    with pytest.raises(Exception, match="Upload or record"):
        list(players().vary(None, 0.5, *SEEDED))
    adversarial = players(idea=tiny_adversarial_idea(), scheduler=None)
    with pytest.raises(Exception, match="draws ideas in one step"):
        list(adversarial.inpaint(str(song), 1, 2, 1, *SEEDED))
