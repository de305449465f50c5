"""The demo through its own client: every endpoint, with a tiny pipeline, offline."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE, tone
from pipeline_utils_for_tests import tiny_pipeline

APP = Path(__file__).parents[2] / "spaces" / "melreformer" / "app.py"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Gradio and its servers
        spec = importlib.util.spec_from_file_location("space_app", APP)
        app = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(app)
        from gradio_client import Client

        demo = app.build_demo(tiny_pipeline())
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        yield Client(url, verbose=False)
        demo.close()


def test_generate_gives_the_asked_length_and_a_picture(client):
    audio, picture = client.predict(2, 4, 7, api_name="/generate")
    data, rate = soundfile.read(audio)
    assert rate == RATE and abs(data.size / rate - 2) < 0.02 and np.abs(data).max() > 0
    assert Path(picture).suffix in (".png", ".webp")
    again, _ = client.predict(2, 4, 7, api_name="/generate")
    np.testing.assert_array_equal(soundfile.read(again)[0], data)


def test_expand_keeps_the_length_and_refuses_text(client, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    soundfile.write(tmp_path / "a.wav", tone(1.5), RATE)
    audio, _ = client.predict(handle_file(str(tmp_path / "a.wav")), api_name="/expand")
    assert abs(soundfile.info(audio).duration - 1.5) < 0.02
    (tmp_path / "b.wav").write_text("no audio")
    with pytest.raises(AppError, match="could not be decoded"):
        client.predict(handle_file(str(tmp_path / "b.wav")), api_name="/expand")
    soundfile.write(tmp_path / "long.flac", np.zeros(121 * RATE, dtype=np.float32), RATE)
    with pytest.raises(AppError, match="121 s"):
        client.predict(handle_file(str(tmp_path / "long.flac")), api_name="/expand")
