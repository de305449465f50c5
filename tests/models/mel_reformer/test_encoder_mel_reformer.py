"""The encoder's curves: drawn alike in stretches and pieces, shared by all bands, of a cost that ignores length."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.encoder_mel_reformer import ColumnCurves, IdeaEncoder, stretch_of
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.mel_reformer.timing_mel_reformer import interpolate_idea

BINS, COLUMNS, BASES = 12, 16, 4


def make_curves() -> tuple[ColumnCurves, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return ColumnCurves(BASES, (4.0, 64.0)), torch.randn(1, BINS, COLUMNS), torch.randn(1, COLUMNS, BINS * BASES)


@pytest.mark.parametrize("num_frames", [7, 16, 100, 5000])
def test_stretches_are_drawn_like_pieces(num_frames):
    curves, idea, coefficients = make_curves()
    frames, third = torch.tensor([num_frames]), num_frames // 3
    whole = curves(idea, coefficients, torch.tensor([0]), num_frames, frames)
    assert whole.shape == (1, BINS, num_frames)
    part = curves(idea, coefficients, torch.tensor([third]), third, frames)
    torch.testing.assert_close(part, whole[..., third : 2 * third], rtol=1e-5, atol=1e-5)


def test_coefficients_of_a_column_change_only_its_frames_and_band():
    curves, idea, coefficients = make_curves()
    frames, start = torch.tensor([160]), torch.tensor([0])
    changed = coefficients.clone()
    changed[:, 8, 5 * BASES : 6 * BASES] += 1
    difference = curves(idea, changed, start, 160, frames) - curves(idea, coefficients, start, 160, frames)
    rows, columns = difference[0].abs().amax(1).nonzero().flatten(), difference[0].abs().amax(0).nonzero().flatten()
    assert rows.tolist() == [5]
    assert columns.tolist() == list(range(80, 90))


def test_without_coefficients_the_idea_is_interpolated():
    curves, idea, coefficients = make_curves()
    frames, start = torch.tensor([90]), torch.tensor([-4])
    drawn = curves(idea, torch.zeros_like(coefficients), start, 100, frames)
    torch.testing.assert_close(drawn, interpolate_idea(idea, start, 100, frames))


@pytest.mark.parametrize("bins", [12, 13])
def test_any_number_of_bands_and_levels(bins):
    from melreformer_hf.audio.mel import MelConfig

    mel = MelConfig.preset("hifigan", num_mel_bins=bins, fmax=None).to_dict()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_bases": BASES}
    config = MelReformerConfig(mel=mel, band_channels=(4, 6, 8), idea_columns=COLUMNS, **sizes)
    encoder = IdeaEncoder(config)
    torch.nn.init.normal_(encoder.place)
    states, coefficients = encoder(torch.randn(2, bins, COLUMNS), torch.tensor([50, 900]))
    assert states.shape == (2, COLUMNS, 16) and coefficients.shape == (2, COLUMNS, bins * BASES)


def test_stretch_is_measured_in_octaves():
    frames = torch.tensor([2048, 16384, 256, 1, 10**7])
    expected = torch.tensor([0.0, 1.0, -1.0, -1.0, 1.0])
    torch.testing.assert_close(stretch_of(frames, 256, (1.0, 64.0)), expected)


def test_base_preset_has_the_originals_size():
    with torch.device("meta"):
        model = MelReformerModel(MelReformerConfig.preset("base"))
    assert model.config.fold_size == 32
    assert abs(sum(p.numel() for p in model.parameters()) / 77_310_464 - 1) < 0.01


@pytest.mark.parametrize("num_frames", [1, 7, 5000])
def test_lengths_beyond_the_trained_ones_are_drawn_like_the_nearest(num_frames):
    config = MelReformerConfig(
        idea_columns=COLUMNS, hidden_size=16, num_attention_heads=2, band_channels=(4, 6), frames_per_column=(2, 8)
    )
    torch.manual_seed(0)
    encoder, idea = IdeaEncoder(config).eval(), torch.randn(1, 128, COLUMNS)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.1)  # the length counts for nothing at the start
        drawn = [encoder(idea, torch.tensor([frames]))[1] for frames in (num_frames, 2 * COLUMNS, 8 * COLUMNS)]
    assert torch.equal(drawn[0], drawn[2 if num_frames > 8 * COLUMNS else 1])
    assert not torch.allclose(drawn[1], drawn[2])


def test_limits_of_the_length_are_checked():
    for limits in ((0.0, 4.0), (8.0, 4.0), (4.0,), (4.0, float("inf"))):
        with pytest.raises(StrictDataclassClassValidationError, match="frames_per_column must be two positive"):
            MelReformerConfig(frames_per_column=limits)
