"""The spread that few steps take from ideas is measured and given back."""

from __future__ import annotations

import math

import pytest
import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_unet.calibration_idea import MarginalCorrection, SpreadCorrection
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, IdeaUNetOutput, make_scheduler
from melreformer_hf.models.idea_unet.whitening_idea import cosine_basis
from melreformer_hf.nn.ideas import IdeaEdit

BINS, COLUMNS = 8, 32
MEL = MelConfig.preset("hifigan", num_mel_bins=BINS, fmax=None).to_dict()


class Timid(IdeaUNetModel):
    """Believes in ideas that vary by three quarters of what they do."""

    def forward(self, sample, timestep, log2_num_frames=None, return_dict=True):
        # The whitened velocity of the best guess is zero; this one pulls towards the mean.
        return IdeaUNetOutput(0.25 * sample * math.sin(int(timestep) / 1000 * math.pi / 2))


def timid_model() -> Timid:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "num_columns": COLUMNS, "mel": MEL}
    model = Timid(backbone="transformer", whitening_knots=2, log2_frames_min=6.0, log2_frames_max=9.0, **sizes).eval()
    ideas = 1.5 * torch.randn(300, 1, 1) + 0.3 * torch.randn(300, BINS, COLUMNS) - 4.0
    model.whitening.fit(ideas, torch.rand(300))
    return model


def spreads(model: IdeaUNetModel, steps: int) -> tuple[float, float]:
    ideas = model.sample(
        300, torch.Generator().manual_seed(5), 200, scheduler=make_scheduler(), num_inference_steps=steps
    ).ideas
    return ideas.mean((1, 2)).std().item(), ideas.diff(dim=-1).std().item()


def test_few_steps_get_their_spread_back():
    model = timid_model()
    true = (1.5, 0.3 * math.sqrt(2))
    for lost in spreads(model, 2):
        assert lost < 0.93 * true[0]
    whole = model.calibrated(make_scheduler(), (2, 4, 8), ideas_per_duration=96)
    assert type(whole) is Timid and whole.config.calibrated_steps == (2, 4, 8) and model.correction is None
    for steps in (2, 4, 8):
        for found, wanted in zip(spreads(whole, steps), true, strict=True):
            assert found == pytest.approx(wanted, rel=0.12), steps


def test_corrections_are_saved_and_loaded(tmp_path):
    whole = timid_model().calibrated(make_scheduler(), (2, 4), ideas_per_duration=8)
    whole.save_pretrained(tmp_path)
    loaded = Timid.from_pretrained(tmp_path)
    assert torch.equal(loaded.correction.spread, whole.correction.spread) and loaded.correction.spread.std() > 0
    again = loaded.calibrated(make_scheduler(), (2, 4), ideas_per_duration=8)  # measured without the old correction
    torch.testing.assert_close(again.correction.spread, whole.correction.spread, rtol=1e-3, atol=1e-3)


def test_what_is_changed_by_less_than_all_is_not_corrected():
    plain, given = timid_model(), torch.randn(1, BINS, COLUMNS) - 4
    whole = plain.calibrated(make_scheduler(), (2,), ideas_per_duration=8)
    arguments = {"scheduler": make_scheduler(), "num_inference_steps": 2, "num_frames": 200}
    for strength, same in ((0.5, True), (1.0, False)):
        drawn = [
            model.sample(1, torch.Generator().manual_seed(0), edit=IdeaEdit(given, strength), **arguments).ideas
            for model in (plain, whole)
        ]
        assert torch.allclose(*drawn) == same


def test_factors_lie_between_those_of_the_nearest_numbers_of_steps():
    correction = SpreadCorrection((2, 8), 2, BINS, COLUMNS)
    correction.spread[0], correction.spread[1] = 3.0, 1.0
    correction.shift[:, 1] = 0.5
    sample, cosine = torch.randn(1, BINS, COLUMNS), cosine_basis(COLUMNS)
    for steps, factor in ((1, 3.0), (2, 3.0), (4, 2.0), (8, 1.0), (50, 1.0)):
        first = correction(sample, steps, torch.tensor([[1.0, 0.0]]), cosine)
        torch.testing.assert_close(first, factor * sample, rtol=1e-4, atol=1e-5)
        moved = correction(sample, steps, torch.tensor([[0.0, 1.0]]), cosine)
        torch.testing.assert_close(
            first - moved, torch.full_like(sample, factor * 0.5 * COLUMNS**-0.5), rtol=1e-3, atol=1e-5
        )


def test_values_of_every_band_become_those_of_music():
    generator = torch.Generator().manual_seed(0)
    music = -3.0 - torch.rand(400, BINS, COLUMNS, generator=generator) * torch.arange(1, BINS + 1)[:, None]
    drawn = torch.randn(400, BINS, COLUMNS, generator=generator) - 4
    correction = MarginalCorrection(2, BINS)
    weights = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(correction(drawn, weights), drawn, rtol=0, atol=0.02)  # before anything is measured
    correction.drawn[1], correction.real[:] = correction.table(drawn), correction.table(music)
    mapped = correction(drawn, weights)
    for band in range(BINS):
        found, wanted = (part[:, band].flatten().quantile(torch.linspace(0, 1, 9)) for part in (mapped, music))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * (band + 1))
    order = drawn[0, 3].argsort()
    assert (mapped[0, 3][order].diff() >= 0).all()


def test_a_calibrated_model_draws_the_values_that_it_was_shown(tmp_path):
    model, generator = timid_model(), torch.Generator().manual_seed(1)
    ideas = -4.0 - torch.rand(48, BINS, COLUMNS, generator=generator)
    frames = torch.randint(64, 512, (48,), generator=generator)
    whole = model.calibrated(make_scheduler(), (2, 4), ideas_per_duration=8, ideas=ideas, num_frames=frames)
    for steps in (2, 4):
        found = whole.sample(16, generator, 200, scheduler=make_scheduler(), num_inference_steps=steps).ideas
        assert -5.01 <= found.min() and found.max() <= -3.99 and found.std() > 0.2
    whole.save_pretrained(tmp_path)
    assert torch.equal(Timid.from_pretrained(tmp_path).marginals.drawn, whole.marginals.drawn)
    with pytest.raises(ValueError, match="ideas and num_frames must be given together"):
        model.calibrated(make_scheduler(), (2,), ideas=ideas)


@pytest.mark.parametrize("steps", [(), (4, 4), (8, 4), (0, 4)])
def test_refusals(steps):
    with pytest.raises(ValueError, match="calibrated_steps must hold positive numbers that rise"):
        timid_model().calibrated(make_scheduler(), steps)
    with pytest.raises(ValueError, match="with whitening_knots"):
        IdeaUNetModel(calibrated_steps=(4,))


def drawn(model: IdeaUNetModel, **arguments) -> torch.Tensor:
    return model.sample(1, torch.Generator().manual_seed(0), 200, scheduler=make_scheduler(), **arguments).ideas


def test_the_number_of_steps_is_the_models_own_for_drawing_and_a_whole_denoising_for_changing(tmp_path):
    usual, quick = timid_model(), timid_model()
    quick.register_to_config(sampling_steps=3)
    quick.save_pretrained(tmp_path)
    quick = Timid.from_pretrained(tmp_path)
    for model, steps in ((usual, 20), (quick, 3)):
        assert torch.equal(drawn(model), drawn(model, num_inference_steps=steps))
        assert not torch.equal(drawn(model), drawn(model, num_inference_steps=steps + 1))
    edit = IdeaEdit(torch.randn(1, BINS, COLUMNS) - 4, 0.5)
    assert torch.equal(drawn(quick, edit=edit), drawn(quick, edit=edit, num_inference_steps=20))
    with pytest.raises(ValueError, match="sampling_steps must be at least 1, got 0"):
        IdeaUNetModel(sampling_steps=0)
