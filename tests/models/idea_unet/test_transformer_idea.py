"""The idea model as a transformer of columns over whitened ideas, with a prior of durations by quantiles."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler
from melreformer_hf.nn.ideas import IdeaEdit

BINS, COLUMNS = 16, 32
SMALL = {
    "mel": MelConfig.preset("hifigan", num_mel_bins=BINS, fmax=None).to_dict(),
    "num_columns": COLUMNS,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "whitening_knots": 3,
    "log2_frames_min": 7.0,
    "log2_frames_max": 11.0,
}


def make_model(**overrides) -> IdeaUNetModel:
    torch.manual_seed(0)
    model = IdeaUNetModel.preset("columns_tiny", **{**SMALL, **overrides}).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1 if "modulation" in name else 0.2)
    return model


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sample = torch.randn(batch, 1, BINS, COLUMNS, generator=torch.Generator().manual_seed(0))
    return sample, torch.arange(batch) * 300 + 5, torch.arange(batch) + 8.0


@torch.no_grad()
def test_rows_shapes_and_saving(tmp_path):
    model = make_model(log2_frames_quantiles=(7.0, 8.0, 11.0))
    model.whitening.fit(torch.randn(50, BINS, COLUMNS) * 2 - 4, torch.rand(50))
    expected = model(*inputs(3)).sample
    assert expected.shape == (3, 1, BINS, COLUMNS)
    for row in range(3):
        alone = model(*(value[row : row + 1] for value in inputs(3))).sample
        torch.testing.assert_close(alone, expected[row : row + 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(inputs(3)[0], 605, inputs(3)[2]).sample[2], expected[2], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = IdeaUNetModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*inputs(3)).sample, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(loaded.whitening.gain, model.whitening.gain)
    drawn = [
        part.sample(2, torch.Generator().manual_seed(1), scheduler=make_scheduler(), num_inference_steps=2)
        for part in (model, loaded)
    ]
    torch.testing.assert_close(drawn[0].ideas, drawn[1].ideas, rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn[0].num_frames, drawn[1].num_frames)


@torch.no_grad()
def test_time_duration_and_all_columns_matter():
    model = make_model()
    sample, step, duration = inputs(1)
    plain = model(sample, step, duration).sample
    assert not torch.allclose(model(sample, step + 500, duration).sample, plain, atol=1e-3)
    assert not torch.allclose(model(sample, step, duration + 1).sample, plain, atol=1e-3)
    torch.nn.init.normal_(model.duration.unknown)
    assert not torch.allclose(model(sample, step, None).sample, plain, atol=1e-3)
    sample[..., -1] += 3.0
    changed = (model(sample, step, duration).sample - plain).abs().amax((0, 1, 2))
    assert (changed > 1e-5).all(), "the last column must reach all others"


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    model = make_model().train()
    found = []
    for saving in (False, True):
        if saving:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        sample, step, duration = inputs(3)
        duration[0] = float("nan")
        model(sample, step, duration).sample.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    missing = {name for name, _ in model.named_parameters()} - set(found[0])
    assert not missing
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_a_new_network_draws_textures_of_the_fitted_statistics():
    model = IdeaUNetModel.preset("columns_tiny", **SMALL).eval()  # writes zeros: predicts no velocity
    ideas = 2.0 * torch.randn(400, 1, 1) + 0.3 * torch.randn(400, BINS, COLUMNS) - 4.0
    model.whitening.fit(ideas, torch.rand(400))
    for steps in (1, 4, 20):
        drawn = model.sample(
            200, torch.Generator().manual_seed(0), 512, scheduler=make_scheduler(), num_inference_steps=steps
        )
        assert drawn.ideas.mean() == pytest.approx(-4.0, abs=0.4)
        if steps > 1:
            assert drawn.ideas.mean((1, 2)).std() == pytest.approx(2.0, rel=0.25), steps


@torch.no_grad()
def test_durations_follow_the_quantiles():
    model = make_model(log2_frames_quantiles=(7.0, 8.0, 8.0, 11.0))
    drawn = model.sample_log2_num_frames(30000, torch.Generator().manual_seed(0))
    shares = [((drawn >= low) & (drawn <= high)).float().mean().item() for low, high in ((7, 7.5), (8, 8), (9, 10))]
    assert shares == pytest.approx([1 / 6, 1 / 3, 1 / 9], abs=0.01)
    assert drawn.min() >= 7 and drawn.max() <= 11
    assert torch.equal(drawn, model.sample_log2_num_frames(30000, torch.Generator().manual_seed(0)))


@torch.no_grad()
def test_given_ideas_are_changed_in_their_own_duration():
    model = make_model()
    model.whitening.fit(torch.randn(90, BINS, COLUMNS) - 4, torch.rand(90))
    given = torch.randn(2, BINS, COLUMNS) - 4
    kept = torch.arange(COLUMNS) < 10
    arguments = {"scheduler": make_scheduler(), "num_inference_steps": 4, "num_frames": 300}
    same = model.sample(2, torch.Generator().manual_seed(0), edit=IdeaEdit(given, 0.0), **arguments).ideas
    torch.testing.assert_close(same, given, rtol=1e-4, atol=1e-4)
    part = model.sample(
        2, torch.Generator().manual_seed(0), edit=IdeaEdit(given, 1.0, ~kept.expand(2, -1)), **arguments
    )
    assert torch.equal(part.ideas[..., kept], given[..., kept]) and not torch.equal(part.ideas, given)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"backbone": "mlp"}, "backbone must be one of .*'mlp'"),
        ({"columns_per_token": 5}, "columns_per_token must divide num_columns=32, got 5"),
        ({"hidden_size": 30}, "hidden_size must be a multiple of twice num_attention_heads=2, got 30"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"whitening_knots": 1}, "whitening_knots must be 0 or at least 2, got 1"),
        ({"log2_frames_min": 11.0}, "log2_frames_min must be below log2_frames_max"),
        ({"log2_frames_quantiles": (8.0, 7.0)}, "log2_frames_quantiles must hold at least 2 finite numbers that rise"),
        ({"log2_frames_quantiles": (8.0,)}, "log2_frames_quantiles must hold at least 2"),
    ],
)
def test_refusals(wrong, told):
    with pytest.raises(ValueError, match=told):
        make_model(**wrong)
