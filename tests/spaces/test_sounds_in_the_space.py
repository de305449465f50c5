"""The tab of sounds, through the API that the page uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from sounds_for_tests import tiny_sound_parts

from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
RATE = 22050


@pytest.fixture(scope="module")
def client(app, connected):
    return connected(app.build_demo(None, None, sounds=TokenGenerationPipeline(**tiny_sound_parts())))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("uploads") / "in.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE), RATE, subtype="PCM_16")
    return str(path)


def test_a_class_is_heard_and_seen(client):
    _, wav, picture, status, seed = client.predict("low", 1, 2.0, 1.0, 7, False, api_name="/sound")
    data, rate = soundfile.read(wav)
    assert rate == RATE and data.size == 86 * 256 and abs(20 * np.log10(np.abs(data).max()) + 1) < 0.1
    assert Path(picture).suffix == ".png" and "low, seed 7" in status and seed == 7
    again = client.predict("low", 1, 2.0, 1.0, 7, False, api_name="/sound")[1]
    np.testing.assert_array_equal(soundfile.read(again)[0], data)
    for changed in (("high", 1, 2.0, 1.0), ("any", 1, 2.0, 1.0), ("low", 1, 4.0, 1.0), ("low", 1, 2.0, 0.5)):
        other = client.predict(*changed, 7, False, api_name="/sound")[1]
        assert not np.array_equal(soundfile.read(other)[0], data), changed


def test_gaps_are_repaired_and_recordings_blended(client, recording):
    _, wav, _, status, _ = client.predict(handle_file(recording), 0.5, 0.55, "any", 1, False, api_name="/repair")
    before, after = (soundfile.read(file)[0] for file in (recording, wav))
    assert "0.5 to 0.55 s repaired" in status and len(after) == RATE // 256 * 256
    scale = after[:5000].std() / before[:5000].std()
    np.testing.assert_allclose(after[:9000], scale * before[:9000], atol=2e-3)
    assert np.abs(after[11200:12000] - scale * before[11200:12000]).max() > 1e-2
    ends = [
        client.predict(handle_file(recording), handle_file(wav), weight, 1, False, api_name="/between")[1]
        for weight in (0.0, 1.0)
    ]
    one, other = (soundfile.read(file)[0] for file in ends)
    assert len(one) == len(other) == 4 * 8 * 256


def test_what_cannot_be_is_refused_in_words(client, recording):
    for values, fragment in (
        (("cat", 1, 2.0, 1.0, 7, False), "must be one of high, low, any"),
        (("low", 99, 2.0, 1.0, 7, False), "from 1 to 30"),
        (("low", 1, 9.0, 1.0, 7, False), "The guidance"),
    ):
        with pytest.raises(AppError, match=fragment):
            client.predict(*values, api_name="/sound")
    with pytest.raises(AppError, match="end after"):
        client.predict(handle_file(recording), 0.5, 0.4, "any", 1, False, api_name="/repair")
    with pytest.raises(AppError, match="Upload or record"):
        client.predict(None, 0.5, 0.6, "any", 1, False, api_name="/repair")


def test_a_page_without_latents_blends_nothing(app):
    alone = app.build_demo(None, None, sounds=TokenGenerationPipeline(**tiny_sound_parts(vae=False)))
    assert set(alone.get_api_info()["named_endpoints"]) == {"/sound", "/repair"}
