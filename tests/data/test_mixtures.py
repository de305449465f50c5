"""Mixtures of two streams: gains in dB, swapped channels, mutes; the same items whoever asks."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
from borders import check_borders
from foreign_datasets import recordings, write_parquet

from melreformer_hf.data.batches import BatchStream
from melreformer_hf.data.mixtures import MixtureSettings, MixtureStream, equalized, leveled
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.data.streams import ItemStream


class Constant(ItemStream):
    """Stereo items whose channels hold known numbers."""

    def __init__(self, value: float, label: str, rank: int = 0, world_size: int = 1, channels: int = 2) -> None:
        super().__init__(0, rank, world_size)
        self.value, self.label, self.channels = value, label, channels

    def item(self, index: int) -> dict:
        sides = torch.tensor([[self.value], [2 * self.value]])[: self.channels]
        waveform = sides.expand(-1, 8 + index % 3).clone()
        return {"waveform": waveform, "recording": f"{self.label}{index}", "num_samples": 8, "index": index}


def mixed(settings: MixtureSettings, count: int = 400) -> list[dict]:
    stream = MixtureStream(Constant(1.0, "voice"), Constant(10.0, "band"), settings, seed=5)
    return list(itertools.islice(stream, count))


def test_gains_are_decibels_and_the_mixture_is_the_sum():
    items = mixed(MixtureSettings(gains_db=(-12.0, 6.0), swap_channels=0.0, mute=0.0))
    for item in items:
        torch.testing.assert_close(item["waveform"], item["sources"].sum(0))
        expected = 10 ** (item["gains_db"] / 20) * torch.tensor([1.0, 10.0])
        torch.testing.assert_close(item["sources"][:, 0, 0], expected)
        torch.testing.assert_close(item["sources"][:, 1], 2 * item["sources"][:, 0])
    gains = torch.stack([item["gains_db"] for item in items])
    assert gains.min() >= -12 and gains.max() <= 6
    assert (gains.mean(0) + 3).abs().max() < 1.0 and torch.corrcoef(gains.T)[0, 1].abs() < 0.2
    assert MixtureStream(Constant(1.0, "a"), Constant(1.0, "b")).seed == 0
    assert items[3]["first"]["recording"] == "voice3" and items[3]["second"]["recording"] == "band3"


def test_channels_are_swapped_and_sources_muted_as_often_as_asked():
    items = mixed(MixtureSettings(gains_db=(0.0, 0.0), swap_channels=0.25, mute=0.5))
    sources = torch.stack([item["sources"][..., 0] for item in items])  # (item, source, channel)
    muted = (sources == 0).all(-1)
    assert not muted.all(-1).any()  # never both
    assert (muted == torch.stack([item["gains_db"].isinf() for item in items])).all()
    # A half each, and where both are drawn one of them is spared: 0.5 - 0.5 * 0.25.
    assert (muted.float().mean(0) - 0.375).abs().max() < 0.08
    swapped = sources[..., 0] > sources[..., 1]
    for source in range(2):
        heard = ~muted[:, source]
        assert abs(swapped[heard, source].float().mean().item() - 0.25) < 0.09
    never = mixed(MixtureSettings(swap_channels=0.0, mute=0.0), 50)
    assert all((item["sources"][:, 1] > item["sources"][:, 0]).all() for item in never)


def test_lengths_are_those_of_the_shorter_and_wrong_settings_are_refused():
    item = MixtureStream(Constant(1.0, "a"), Constant(1.0, "b")).item(2)
    assert item["waveform"].shape == (2, 10) and item["num_samples"] == 10 and math.isfinite(item["gains_db"][0])
    with pytest.raises(ValueError, match="same channels, got shapes .*channels="):
        MixtureStream(Constant(1.0, "a"), Constant(1.0, "b", channels=1)).item(0)
    with pytest.raises(ValueError, match="one rank and world_size"):
        MixtureStream(Constant(1.0, "a", 0, 2), Constant(1.0, "b", 1, 2))
    shares = ("mute", "swap_channels")
    inside = dict.fromkeys(shares, (0.0, 1.0)) | {"gains_db": ((3.0, 3.0),), "num_samples": (1,)}
    inside |= {"speeds": ((0.5, 0.5), (0.5, 2.0)), "equalizer_db": (0.0,)}
    outside = dict.fromkeys(shares, (-0.01, 1.01)) | {"gains_db": ((3.0, 2.9),), "num_samples": (0,)}
    outside |= {"speeds": ((0.0, 1.0), (1.1, 1.0)), "equalizer_db": (-0.1,)}
    check_borders(MixtureSettings, inside, outside)


def prepare(item: dict, generator: torch.Generator) -> dict:
    return {"waveform": item["waveform"][:2048], "index": item["index"]}


@pytest.mark.parametrize("world_size", [1, 2])
def test_mixtures_of_streamed_recordings_resume_to_the_item(tmp_path, world_size):
    folder = str(write_parquet(tmp_path, recordings(9)))

    def make(rank: int) -> MixtureStream:
        opened = open_recordings(folder, "train")
        crops = [opened.crops(2048, 2048, seed=seed, rank=rank, world_size=world_size) for seed in (1, 2)]
        return MixtureStream(*crops, seed=3)

    alone = [make(0).item(index) for index in range(40 if world_size == 1 else 4)]
    for rank in range(world_size):
        stream = make(rank)
        batches = iter(BatchStream(stream, prepare, 2))
        for _ in range(5):
            stream.advance(2, next(batches).anchor)
        state = json.loads(json.dumps(stream.state_dict()))
        assert state["anchor"]["first"]["epoch"] >= 0 and state["anchor"]["second"]
        resumed = make(rank)
        resumed.load_state_dict(state)
        after, again = next(batches), next(iter(BatchStream(copy.copy(resumed), prepare, 2)))
        assert torch.equal(after.tensors["waveform"], again.tensors["waveform"])
        assert again.tensors["index"].tolist() == [10 * world_size + rank, 11 * world_size + rank]
        if world_size == 1:
            assert torch.equal(after.tensors["waveform"][0], alone[10]["waveform"])


class Tones(ItemStream):
    """One second of a tone at 1000 samples per second."""

    def __init__(self, frequency: float) -> None:
        super().__init__(0)
        self.frequency = frequency

    def item(self, index: int) -> dict:
        time = torch.arange(1000) / 1000
        return {"waveform": torch.sin(2 * torch.pi * self.frequency * time), "num_samples": 1000, "index": index}


def test_levels_come_before_gains_and_silence_stays():
    settings = MixtureSettings(gains_db=(6.0, 6.0), mute=0.0, level_db=-26.0)
    item = MixtureStream(Tones(50.0), Tones(90.0), settings).item(0)
    levels = 20 * item["sources"].square().mean(-1).sqrt().log10()
    torch.testing.assert_close(levels, torch.full((2,), -20.0), rtol=0, atol=1e-3)
    quiet = torch.full((8,), 5e-5)
    assert leveled(quiet, -20.0).equal(quiet)


def test_speed_raises_the_pitch_and_the_length_is_kept():
    settings = MixtureSettings(gains_db=(0.0, 0.0), mute=0.0, speeds=(1.25, 1.25), num_samples=700)
    sources = MixtureStream(Tones(40.0), Tones(80.0), settings).item(0)["sources"]
    assert sources.shape == (2, 700)
    window = torch.hann_window(700)
    peaks = torch.fft.rfft(sources * window).abs().argmax(-1) * 1000 / 700
    assert (peaks - torch.tensor([50.0, 100.0])).abs().max() < 1.0
    drawn = MixtureSettings(mute=0.0, speeds=(0.5, 2.0))
    stream = MixtureStream(Tones(40.0), Tones(40.0), drawn, seed=1)
    lengths = [stream.item(index)["num_samples"] for index in range(200)]
    assert min(lengths) < 520 and max(lengths) > 1200  # of the faster source of each pair
    assert MixtureStream(Tones(40.0), Tones(40.0), MixtureSettings(num_samples=5000)).item(0)["num_samples"] == 1000


def test_filters_boost_and_cut_where_they_say():
    noise = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    made = equalized(noise, [0.0, 0.0, 0.0, 0.0, 0.0, 12.0])
    ratio = 20 * (torch.fft.rfft(made).abs() / torch.fft.rfft(noise).abs()).log10()
    # The last knot is half the sampling rate, the one before it 8 / 5 octaves lower.
    assert ratio[-1] == pytest.approx(12.0, abs=0.05) and ratio[: int(2048 * 2**-1.7)].abs().max() < 0.05
    assert ratio[round(2048 * 2**-0.8)] == pytest.approx(6.0, abs=0.1)
    assert equalized(noise, [0.0] * 6).allclose(noise, atol=1e-6)
    settings = MixtureSettings(gains_db=(0.0, 0.0), mute=0.0, equalizer_db=6.0)
    stream = MixtureStream(Tones(40.0), Tones(40.0), settings)
    gains = [20 * math.log10(source.std() / 0.5**0.5) for i in range(100) for source in stream.item(i)["sources"]]
    assert max(map(abs, gains)) <= 6.05 and max(gains) > 3 and min(gains) < -3


def test_what_is_not_asked_for_draws_nothing():
    """Older settings give older mixtures: the new draws come last."""
    plain = MixtureStream(Tones(40.0), Tones(80.0), MixtureSettings(), seed=3).item(5)
    filtered = MixtureStream(Tones(40.0), Tones(80.0), MixtureSettings(equalizer_db=3.0), seed=3).item(5)
    assert plain["gains_db"].equal(filtered["gains_db"]) and not plain["sources"].equal(filtered["sources"])
