"""The band-split separator: its contract, that streams equal the whole, how far it looks ahead, what it refuses."""

from __future__ import annotations

import doctest

import pytest
import torch
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.models.band_split_separator import modeling_band_split_separator
from melreformer_hf.models.band_split_separator.blocks_band_split_separator import FrameConv, bounded_mask
from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel
from melreformer_hf.models.band_split_separator.streaming_band_split_separator import (
    frames_to_samples,
    num_frames,
    whole_spectrum,
)
from melreformer_hf.nn.conv import StreamStep


def build(**overrides) -> BandSplitSeparatorModel:
    torch.manual_seed(0)
    return BandSplitSeparatorModel(BandSplitSeparatorConfig.preset("test", **overrides)).eval()


def noise(batch: int, samples: int, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return 0.3 * torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(seed))


class TestOfflineContract(ModelContractMixin):
    model_class = BandSplitSeparatorModel
    main_output = "vocals"
    causal = False
    takes_other_types = True

    def config(self):
        return BandSplitSeparatorConfig.preset("test", causal=self.causal, num_audio_channels=2)

    def inputs(self, batch):
        return {"input_values": noise(3, 150, channels=2)[:batch]}


class TestCausalContract(TestOfflineContract):
    causal = True

    @torch.no_grad()
    def steps(self, model):
        spectrum = whole_spectrum(noise(1, 100, channels=2), model.config.transform)
        first = StreamStep(None)
        model._masked(spectrum, first)

        def step(frames, *memory):
            run = StreamStep(memory)
            return (*model._mask(frames, run), *run.new_memory)

        return {"mask": (step, (spectrum, *first.new_memory))}


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(modeling_band_split_separator).failed == 0


def test_the_defaults_have_the_size_that_is_told():
    model = BandSplitSeparatorModel(BandSplitSeparatorConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 1e6 < count < 5e6 and round(count / 1e6, 1) == 2.6


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 64, 333])
def test_spectra_lead_back_to_the_samples(samples):
    transform = BandSplitSeparatorConfig.preset("test").transform
    waveform = noise(2, samples, channels=3)
    spectrum = whole_spectrum(waveform, transform)
    assert spectrum.shape == (2, 3, num_frames(samples, transform), 33)
    made, begun = frames_to_samples(spectrum, transform)
    torch.testing.assert_close(made[..., 48 : 48 + samples], waveform, rtol=0, atol=1e-6)
    assert begun.shape[-1] == 48


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stream_equals_the_whole(causal, channels):
    model, mixture = build(causal=causal, num_audio_channels=channels), noise(2, 1000, channels)
    with torch.no_grad():
        whole = model(mixture)
    for sizes in ([1000], [1, 7, 500, 0, 492], [100] * 10):
        for block in (None, 1, 5, 1000):
            stems = list(model.stream(mixture.split(sizes, dim=-1), block))
            vocals = torch.cat([piece.vocals for piece in stems], dim=-1)
            instrumental = torch.cat([piece.instrumental for piece in stems], dim=-1)
            torch.testing.assert_close(vocals, whole.vocals, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(vocals + instrumental, mixture, rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_what_comes_later_than_the_look_ahead_changes_nothing(causal):
    model = build(causal=causal)
    mixture, place = noise(1, 1200), 500
    with torch.no_grad():
        before = model(mixture).vocals
        changed = mixture.clone()
        changed[..., place:] = noise(1, 700, seed=2)
        after = model(changed).vocals
    settled = place - model.config.look_ahead
    assert settled > 50
    torch.testing.assert_close(after[..., :settled], before[..., :settled], rtol=0, atol=1e-7)
    # And not much earlier: at the far end of an offline model's reach changes are too small to be seen.
    reached = settled + (1 if causal else 4) * model.config.hop_length + 1
    assert not torch.allclose(after[..., settled:reached], before[..., settled:reached], rtol=0, atol=1e-7)


def test_the_causal_variant_looks_ahead_less_than_50_ms():
    config = BandSplitSeparatorConfig.preset("causal_tiny")
    assert config.look_ahead == 1023 and config.look_ahead / config.sampling_rate < 0.05
    assert config.reach[1] == 0 and BandSplitSeparatorConfig().reach[1] > 0


def test_a_causal_stream_gives_samples_as_soon_as_they_are_settled():
    model, mixture, came, given = build(causal=True), noise(1, 640), 0, 0

    def chunks():
        nonlocal came
        for piece in mixture.split(16, dim=-1):
            assert came - given <= model.config.look_ahead
            came += 16
            yield piece

    for stems in model.stream(chunks()):
        given += stems.vocals.shape[-1]
    assert given == 640


@pytest.mark.parametrize("causal", [True, False])
def test_separate_does_not_depend_on_its_blocks(causal):
    model, mixture = build(causal=causal), noise(1, 900)[0]
    expected = model.separate(mixture, 22050)
    for block in (1, 3, 40):
        for one, other in zip(model.separate(mixture, block_frames=block), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    batched = model.separate(mixture[None])
    assert batched.vocals.shape == (1, 1, 900) and batched.vocals[0].equal(expected.vocals)


def test_silence_stays_silence():
    model = build()
    vocals, instrumental = model.separate(torch.zeros(1, 500))
    assert not vocals.any() and not instrumental.any()


def test_masks_stay_within_the_unit_circle_and_keep_the_direction():
    parts = 5 * torch.randn(2, 3, 2, 1, 4, generator=torch.Generator().manual_seed(0))
    real, imaginary = bounded_mask(parts)
    assert real.shape == (2, 1, 3, 4) and (real.square() + imaginary.square()).max() <= 1 + 1e-6
    given = torch.complex(parts[:, :, 0], parts[:, :, 1]).transpose(1, 2)
    torch.testing.assert_close(torch.complex(real, imaginary).angle(), given.angle(), rtol=1e-4, atol=1e-4)


def test_a_fresh_model_halves_the_mixture():
    with torch.no_grad():
        output = build()(noise(1, 400))
    assert (output.mask[..., 0] - 0.5).abs().max() < 0.1 and output.mask[..., 1].abs().max() < 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_frame_convolutions_are_convolutions(causal):
    torch.manual_seed(0)
    layer = FrameConv(3, 4, kernel_size=3, dilation=2, causal=causal)
    hidden = torch.randn(2, 9, 5, 3)
    weight = layer.weight.view(4, 3, 3).transpose(1, 2)  # (out, tap, in) -> (out, in, tap)
    rows = hidden.permute(0, 2, 3, 1).flatten(0, 1)  # (batch * band, in, frame)
    padded = torch.nn.functional.pad(rows, (4, 0) if causal else (2, 2))
    expected = torch.nn.functional.conv1d(padded, weight, layer.bias, dilation=2)
    expected = expected.unflatten(0, (2, 5)).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(hidden), expected, rtol=1e-5, atol=1e-5)


def test_bands_cover_all_bins_and_grow():
    for config in (BandSplitSeparatorConfig(), BandSplitSeparatorConfig.preset("test", num_bands=33)):
        edges = config.band_edges
        assert edges[0] == 0 and edges[-1] == config.num_bins and len(edges) == config.num_bands + 1
        widths = [stop - start for start, stop in zip(edges[:-1], edges[1:], strict=True)]
        assert min(widths) >= 1
    edges = BandSplitSeparatorConfig().band_edges
    assert edges[1] < 12 and edges[-1] - edges[-2] > 80


def test_borders_of_the_configuration():
    for name in ("num_bands", "hidden_size", "num_hidden_layers", "dilation_cycle", "intermediate_size"):
        with pytest.raises(Exception, match=f"{name} must be positive"):
            BandSplitSeparatorConfig.preset("test", **{name: 0})
    for wrong, words in [
        ({"n_fft": 60}, "n_fft must be a multiple of hop_length"),
        ({"n_fft": 16}, "n_fft must be a multiple of hop_length"),
        ({"n_fft": 45, "hop_length": 15}, "n_fft must be even"),
        ({"num_bands": 34}, "num_bands must not exceed"),
        ({"kernel_size": 2}, "kernel_size must be odd"),
        ({"compression": 0.0}, "compression must be in"),
        ({"compression": 1.1}, "compression must be in"),
    ]:
        with pytest.raises(Exception, match=words):
            BandSplitSeparatorConfig.preset("test", **wrong)
    BandSplitSeparatorConfig.preset("test", kernel_size=2, causal=True)


def test_wrong_input_is_refused():
    model = build(num_audio_channels=2)
    for shape in ((1, 1, 50), (2, 50), (1, 2, 0)):
        with pytest.raises(ValueError) as error:
            model(torch.zeros(shape))
        assert_error(error, "input_values", "(batch, 2, samples)", str(shape))
    with pytest.raises(ValueError, match="sampling_rate must be 22050, got 44100"):
        model.separate(torch.zeros(2, 50), 44100)
    with pytest.raises(ValueError, match=r"waveform.expand\(2, -1\)"):
        model.separate(torch.zeros(1, 50))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            model.separate(torch.full((2, 50), value))
    with pytest.raises(ValueError, match="block_frames must be at least 1, got 0"):
        model.separate(torch.zeros(2, 50), block_frames=0)
    with pytest.raises(ValueError, match="every chunk must be"):
        list(model.stream([torch.zeros(2, 50)]))
    assert list(model.stream([])) == [] and list(model.stream([torch.zeros(1, 2, 0)])) == []
