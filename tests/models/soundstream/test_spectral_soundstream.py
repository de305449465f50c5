"""The frame-rate coder: its windows, its overlaps, what its features are, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from testing_utils import assert_error
from torch.utils.flop_counter import FlopCounterMode

from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.models.soundstream.spectral_soundstream import (
    CausalFrames,
    CausalOverlapAdd,
    SpectralDecoder,
    SpectralEncoder,
    analysis_window,
    fading_window,
)
from melreformer_hf.nn.conv import run_whole


def small(**changes) -> SoundStreamConfig:
    return SoundStreamConfig.preset("small", **changes)


@pytest.mark.parametrize("hop, overlap", [(441, 99), (8, 8), (5, 0), (6, 1)])
def test_windows_of_neighbors_add_up_to_one(hop, overlap):
    window = fading_window(hop, overlap)
    assert window.shape == (hop + overlap,)
    added = CausalOverlapAdd(hop, overlap)(window.expand(1, 1, 5, -1))
    torch.testing.assert_close(added[..., hop:], torch.ones(1, 1, 4 * hop))
    assert (window[overlap:hop] == 1).all() and (window >= 0).all()
    torch.testing.assert_close(window, window.flip(0))
    if overlap > 1:
        assert (window[:overlap].diff() > 0).all()


def test_overlaps_are_added_to_the_next_hop():
    frames = torch.arange(1.0, 19.0).reshape(1, 1, 3, 6)
    made = CausalOverlapAdd(4, 2)(frames)
    expected = torch.zeros(14)
    for index, frame in enumerate(frames[0, 0]):
        expected[4 * index : 4 * index + 6] += frame
    assert torch.equal(made[0, 0], expected[:12])


def test_windows_end_with_their_hops():
    waveform = torch.arange(1.0, 11.0).expand(2, 3, 10)
    cut = CausalFrames(6, 4)(waveform)
    assert cut.shape == (2, 3, 3, 6)
    assert cut[1, 2].tolist() == [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [7, 8, 9, 10, 0, 0]]


def test_features_are_compressed_spectra_of_full_scale_one():
    encoder = SpectralEncoder(small())
    time = torch.arange(22050) / 22050
    for gain in (1.0, 0.25):
        sine = gain * (2 * math.pi * 1000.0 * time + 0.4).cos()
        features = encoder._features(sine[None, None], run_whole)
        assert features.shape == (1, 50, 1766)
        spectrum = torch.view_as_complex(features[0, 20].reshape(883, 2).contiguous())
        # 1000 Hz is bin 80 of 1764 samples at 22,050 Hz.
        assert spectrum.abs().argmax() == 80
        assert spectrum[80].abs().item() == pytest.approx(gain**0.3, rel=0.01)
        assert spectrum[79].abs().item() == pytest.approx((gain / 2) ** 0.3, rel=0.01)  # Hann
    assert not encoder._features(torch.zeros(1, 1, 882), run_whole).any()


@pytest.mark.parametrize("fade", [1, 99, 1763])
def test_windows_fall_over_their_last_samples_only(fade):
    window = analysis_window(1764, fade)
    assert window.shape == (1764,) and window.argmax() in (1763 - fade, 1764 - fade)
    assert (window.diff()[: 1763 - fade] > 0).all() and (window.diff()[1764 - fade :] < 0).all()
    assert 0 <= window.min() and window.max() <= 1
    torch.testing.assert_close(analysis_window(1764, 0), torch.hann_window(1764))


def test_features_with_magnitudes_and_another_power():
    time = torch.arange(22050) / 22050
    sine = (2 * math.pi * 1000.0 * time).cos()[None, None]
    changes = {"magnitude_features": True, "spectral_power": 1.0, "analysis_fade": 99}
    features = SpectralEncoder(small(**changes))._features(sine, run_whole)[0, 20].reshape(883, 3)
    plain = SpectralEncoder(small(spectral_power=1.0, analysis_fade=99))._features(sine, run_whole)[0, 20]
    torch.testing.assert_close(features[:, :2], 6 * plain.reshape(883, 2))
    magnitude = plain.reshape(883, 2).norm(dim=1).clamp(min=1e-4)
    torch.testing.assert_close(features[:, 2], 1 + 0.24 * magnitude.log(), rtol=1e-4, atol=1e-4)
    assert magnitude.argmax() == 80 and magnitude[80] == pytest.approx(1.0, rel=0.05)


def test_pairs_whose_lengths_count():
    heads = torch.randn(1, 2, 3 * 271, generator=torch.Generator().manual_seed(0))
    longer = heads.unflatten(-1, (3, 271)) * torch.tensor([1.0, 2.0, 2.0])[:, None]
    for normalized, factor in ((True, 1.0), (False, 2.0)):
        decoder = SpectralDecoder(small(normalized_phases=normalized))
        once, twice = decoder._frames(heads), decoder._frames(longer.flatten(2))
        torch.testing.assert_close(twice, factor * once, rtol=1e-4, atol=1e-5)


def test_normalized_latents_are_those_of_the_batch_and_then_of_the_training():
    torch.manual_seed(0)
    encoder = SpectralEncoder(small(latent_norm=True, num_frame_layers=1, frame_size=32, frame_intermediate_size=48))
    waveform = 0.1 * torch.randn(4, 1, 441 * 30) + 0.05
    latents = encoder.train()(waveform)
    torch.testing.assert_close(latents.mean((0, 2)), torch.zeros(128), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.var((0, 2), correction=0), torch.ones(128), rtol=1e-2, atol=1e-2)
    for _ in range(600):
        encoder.latent_norm(latents)  # the running statistics, of which a batch changes a hundredth
    for _ in range(600):
        encoder(waveform)
    whole, part = encoder.eval()(waveform), encoder(waveform[:1])
    torch.testing.assert_close(whole[:1], part, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, latents, rtol=1e-2, atol=3e-2)


@torch.no_grad()
def test_streams_equal_the_whole_with_all_of_it():
    torch.manual_seed(0)
    options = {"latent_norm": True, "magnitude_features": True, "analysis_fade": 9, "spectral_power": 0.7}
    sizes = {"num_frame_layers": 1, "frame_size": 32, "frame_intermediate_size": 48, "normalized_phases": False}
    model = SoundStreamModel(small(**options, **sizes)).eval()
    waveform = 0.1 * torch.randn(1, 1, 441 * 9 + 100)
    codes = model.encode(waveform).audio_codes
    streamed = torch.cat(list(model.stream_encode(waveform.split([100, 441, 1300, 2228], dim=-1))), dim=-1)
    assert torch.equal(streamed, codes)
    made = torch.cat(list(model.stream_decode(codes.split([1, 4, 5], dim=-1))), dim=-1)
    torch.testing.assert_close(made, model.decode(codes).audio_values, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_does_not_train_has_gradients_of_zero():
    torch.manual_seed(0)
    model = SoundStreamModel(small(num_frame_layers=1, frame_size=32, frame_intermediate_size=48)).train()
    waveform = 0.1 * torch.randn(1, 1, 4410)
    for trains in (True, False):
        model.zero_grad()
        model(waveform, train_encoder=trains).audio_values.square().sum().backward()
        assert bool(model.encoder.stem.weight.grad.any()) == trains
        assert model.decoder.stem.weight.grad.any()


def test_the_head_makes_partials_of_its_magnitudes_and_angles():
    decoder = SpectralDecoder(small())
    bins = 540 // 2 + 1
    head = torch.zeros(1, 3, 3, bins)
    head[:, :, 0] = -60.0
    head[:, :, 1] = 1.0
    head[:, :, 0, 20], head[:, :, 1, 20], head[:, :, 2, 20] = 4.0 + math.log(2.0), 3.0, -3.0
    frames = decoder._frames(head.flatten(2))
    time = torch.arange(540) / 540
    expected = 2 * 2 / math.sqrt(540) * (2 * math.pi * 20 * time - math.pi / 4).cos() * fading_window(441, 99)
    torch.testing.assert_close(frames[0, 0], expected.expand(3, -1), rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("channels", (1, 2))
def test_what_it_costs(channels):
    torch.manual_seed(0)
    config = small(
        sampling_rate=24000, strides=(2, 4, 6, 10), n_fft=1920, synthesis_overlap=108, audio_channels=channels
    )
    model = SoundStreamModel(config).eval()
    waveform = torch.randn(1, channels, 24000) * 0.1
    with FlopCounterMode(display=False) as counter:
        codes = model.encode(waveform).audio_codes
    sending = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.decode(codes)
    receiving = counter.get_total_flops()
    # One second at 24 kHz; transforms, which the counter leaves out, are 50 of 2,000 points: 2.5 * n log2 n each.
    transforms = 50 * channels * 2.5 * 1920 * math.log2(1920)
    assert 1e8 < receiving + transforms < 300e6 and receiving + sending + 2 * transforms < 700e6


def test_sizes():
    with torch.device("meta"):
        count = sum(p.numel() for p in SoundStreamModel(small()).parameters())
    assert 5e6 < count < 6.5e6
    for preset in ("small", "base"):
        config = SoundStreamConfig.preset(preset)
        assert config.frame_rate == 50 and config.bandwidth(1) == 0.5 and config.bandwidth() == 6.0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"analysis_fade": 1764}, "analysis_fade must be from 0 to below n_fft=1764"),
        ({"spectral_power": 0.0}, "spectral_power in (0, 1], got 0 and 0.0"),
        ({"architecture": "convolution", "latent_norm": True}, "belong to the spectral architecture"),
        ({"architecture": "convolution", "magnitude_features": True}, "belong to the spectral architecture"),
        ({"n_fft": 440}, "n_fft must be at least the hop of 441 samples"),
        ({"synthesis_overlap": 442}, "synthesis_overlap between 0 and it, got 1764 and 442"),
        ({"synthesis_overlap": -1}, "synthesis_overlap between 0"),
        ({"frame_size": 0}, "frame_size must be positive, got 0"),
        ({"num_frame_layers": 0}, "num_frame_layers must be positive"),
        ({"frame_intermediate_size": 0}, "frame_intermediate_size must be positive"),
        ({"kernel_size": 6}, "kernel_size must be odd"),
        ({"multires_depth": 2}, "belong to the convolution architecture"),
        ({"wavelet_blocks": (1,)}, "belong to the convolution architecture"),
        ({"padding": "original"}, "belong to the convolution architecture"),
    ],
)
def test_fields_that_do_not_fit_are_named(changes, message):
    with pytest.raises(StrictDataclassError) as exception:
        small(**changes)
    assert_error(exception, message)
