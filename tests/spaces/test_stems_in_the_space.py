"""The tab that separates, through the demo's own client."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from gradio_client import handle_file
from pipeline_utils_for_tests import tiny_pipeline

from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel
from melreformer_hf.pipelines.pipeline_separation import SeparationPipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def separation() -> SeparationPipeline:
    torch.manual_seed(0)
    return SeparationPipeline(BandSplitSeparatorModel(BandSplitSeparatorConfig.preset("test")).eval())


@pytest.fixture(scope="module")
def client(app, connected):
    return connected(app.build_demo(None, tiny_pipeline(), separation=separation()))


@pytest.fixture
def players(app):
    from melreformer_space.players import Players

    return Players(None, tiny_pipeline(), False, separation())


def recording(folder, seconds: float = 0.5, channels: int = 2, rate: int = 16000) -> tuple[str, np.ndarray]:
    samples = 0.2 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(folder / "a.wav", samples, rate, subtype="FLOAT")
    return str(folder / "a.wav"), samples


def test_both_stems_come_back_and_add_up(client, tmp_path):
    file, samples = recording(tmp_path)
    vocals, instrumental, picture, status = client.predict(handle_file(file), api_name="/separate")
    made = [soundfile.read(path) for path in (vocals, instrumental)]
    assert [rate for _, rate in made] == [16000, 16000]
    assert np.abs(made[0][0] + made[1][0] - samples).max() < 1e-3  # the player's files have 16 bits
    assert picture and "**0.5 s separated" in status


def test_stop_keeps_nothing(players, tmp_path):
    steps = list(players.stems.separate(recording(tmp_path)[0], lambda: True))
    assert steps[0].status == "Listening" and steps[-1].status == "**Stopped**; nothing was kept."
    assert len(steps) == 2


def test_what_is_too_long_or_no_recording_is_refused(players, tmp_path):
    def told(file: str | None) -> str:
        with pytest.raises(Exception) as caught:
            list(players.stems.separate(file, lambda: False))
        return str(caught.value)

    assert "Upload or record something first" in told(None)
    assert "a.wav lasts 121 s; at most 120 s" in told(recording(tmp_path, 121, 1, 1000)[0])
    assert "a.wav must have 1 or 2 channels, got 3" in told(recording(tmp_path, 0.1, 3)[0])
    (tmp_path / "b.wav").write_text("no")
    assert "b.wav could not be decoded" in told(str(tmp_path / "b.wav"))
    assert "b.wav" in told(str(tmp_path / "b.wav")) and str(tmp_path) not in told(str(tmp_path / "b.wav"))


def test_without_a_separator_there_is_no_tab(app):
    demo = app.build_demo(None, tiny_pipeline())
    assert "separate" not in {function.api_name for function in demo.fns.values()}
