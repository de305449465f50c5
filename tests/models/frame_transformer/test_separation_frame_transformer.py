"""Separation of recordings: stems add up, windows equal the whole, wrong recordings are refused."""

from __future__ import annotations

import math

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.audio.stft import Transform
from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
from melreformer_hf.models.frame_transformer.separation_frame_transformer import masked_stems, windows

TRANSFORM = Transform(128, 64, 128)


@pytest.fixture(scope="module")
def model():
    return build()


def build(**overrides):
    torch.manual_seed(0)
    return FrameTransformerModel(FrameTransformerConfig.preset("tiny", **overrides)).eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize(("frames", "chunk", "context"), [(10, 4, 3), (3, 8, 2), (12, 4, 0), (1, 1, 5)])
def test_windows_cover_every_frame_once(frames, chunk, context):
    kept = []
    for seen, inner in windows(frames, chunk, context):
        numbers = list(range(frames))[seen]
        kept += numbers[inner]
        assert numbers[0] == max(0, numbers[inner][0] - context)
        assert numbers[-1] == min(frames - 1, numbers[inner][-1] + context)
    assert kept == list(range(frames))


@pytest.mark.parametrize("samples", [1, 63, 64, 129, 1000])
def test_constant_masks_scale_the_mixture(samples):
    mixture = noise(2, 2, samples)
    for share in (0.0, 0.25, 1.0):
        stems = masked_stems(mixture, TRANSFORM, lambda seen, share=share: torch.full_like(seen, share), 4, 1)
        torch.testing.assert_close(stems.instrumental, share * mixture, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(stems.vocals + stems.instrumental, mixture, atol=1e-6, rtol=0)


def test_a_mask_of_frequencies_separates_tones():
    time = torch.arange(6400) / 6400
    low, high = torch.sin(2 * math.pi * 400 * time), torch.sin(2 * math.pi * 2000 * time)
    mixture = (low + high).expand(1, 2, -1)
    stems = masked_stems(
        mixture, TRANSFORM, lambda seen: (torch.arange(65) < 24)[:, None].expand_as(seen).float(), 20, 2
    )
    inner = slice(128, -128)
    torch.testing.assert_close(stems.instrumental[0, 0, inner], low[inner], atol=1e-3, rtol=0)
    torch.testing.assert_close(stems.vocals[0, 0, inner], high[inner], atol=1e-3, rtol=0)


def test_the_network_sees_magnitudes_up_to_one():
    seen = []
    masked_stems(noise(2, 2, 1000), TRANSFORM, lambda values: seen.append(values) or values, 100, 0)
    torch.testing.assert_close(seen[0].amax((1, 2, 3)), torch.ones(2))
    assert seen[0].shape == (2, 2, 65, 16)


def test_stems_add_up_to_the_mixture(model):
    mixture = noise(2, 2, 5000)
    vocals, instrumental = model.separate(mixture, 44100, chunk_frames=32, context_frames=8)
    assert vocals.shape == instrumental.shape == mixture.shape
    torch.testing.assert_close(vocals + instrumental, mixture, atol=1e-6, rtol=0)
    assert vocals.abs().max() > 1e-3 and instrumental.abs().max() > 1e-3
    alone = model.separate(mixture[1], chunk_frames=32, context_frames=8)
    torch.testing.assert_close(alone.vocals, vocals[1], atol=1e-5, rtol=0)


def test_windows_with_full_context_equal_the_whole(model):
    mixture = noise(2, 4000)
    whole = model.separate(mixture, chunk_frames=1000, context_frames=0)
    windowed = model.separate(mixture, chunk_frames=10, context_frames=1000)
    torch.testing.assert_close(windowed.vocals, whole.vocals, atol=1e-5, rtol=0)
    errors = [
        (model.separate(mixture, chunk_frames=16, context_frames=context).vocals - whole.vocals).abs().max()
        for context in (0, 16, 48)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_loudness_scales_the_stems(model):
    mixture = noise(2, 3000)
    quiet, loud = model.separate(mixture), model.separate(mixture * 64)
    torch.testing.assert_close(loud.vocals / 64, quiet.vocals, atol=1e-5, rtol=1e-4)
    silent = model.separate(torch.zeros(2, 3000))
    assert not silent.vocals.any() and not silent.instrumental.any()


def test_half_precision_networks_separate_in_full_precision(model):
    mixture = noise(2, 3000)
    expected = model.separate(mixture)
    half = build().to(torch.bfloat16)
    stems = half.separate(mixture)
    assert stems.vocals.dtype == torch.float32
    torch.testing.assert_close(stems.vocals + stems.instrumental, mixture, atol=1e-6, rtol=0)
    torch.testing.assert_close(stems.vocals, expected.vocals, atol=0.01, rtol=0)


def test_a_dropped_nyquist_bin_falls_to_the_vocals():
    """As in the original; by default it is separated like its neighbour."""
    tone = torch.tensor([0.5, -0.5]).repeat(2, 1000)
    keeping, dropping = build(), build(nyquist="drop")
    dropping.load_state_dict(keeping.state_dict())
    shares = [
        (model.separate(tone).instrumental.square().sum() / tone.square().sum()).item()
        for model in (keeping, dropping)
    ]
    # The Hann window spreads a tone at the last bin over two: 4 / 5 of the power of the Nyquist side is in that bin.
    assert shares[1] < 0.25 * shares[0]


def test_wrong_recordings_are_refused(model):
    with pytest.raises(ValueError) as error:
        model.separate(noise(1, 3000))
    assert_error(error, "waveform", "(2, samples)", "(1, 3000)", "expand")
    with pytest.raises(ValueError, match="44100, got 48000"):
        model.separate(noise(2, 3000), 48000)
    with pytest.raises(ValueError, match=r"\(2, 0\)"):
        model.separate(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="finite"):
        model.separate(torch.full((2, 3000), math.nan))
    with pytest.raises(ValueError, match="floating"):
        model.separate(torch.zeros(2, 3000, dtype=torch.int16))
    with pytest.raises(ValueError, match="chunk_frames"):
        model.separate(noise(2, 3000), chunk_frames=0)
    with pytest.raises(ValueError, match="eval"):
        build().train().separate(noise(2, 3000))
