"""The idea model: contract, normalisation, durations, schedulers."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from documented_shapes import check_documented_shapes
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_unet import unet_idea
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler, set_spaced_timesteps

BINS, COLUMNS = 16, 32


def make_model(**overrides) -> IdeaUNetModel:
    torch.manual_seed(0)
    values = {
        "mel": MelConfig.preset("hifigan", num_mel_bins=BINS, fmax=None).to_dict(),
        "num_columns": COLUMNS,
        "patch_size": (4, 4),
        "block_out_channels": (32, 32),
        "norm_num_groups": 8,
    }
    return IdeaUNetModel(**{**values, **overrides}).eval()


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = [torch.randn(1, BINS, COLUMNS, generator=torch.Generator().manual_seed(row)) for row in range(batch)]
    return torch.stack(rows), torch.arange(batch) * 300 + 5, torch.arange(batch) + 10.0


@torch.no_grad()
def test_save_load_determinism_and_rows(tmp_path):
    model = make_model()
    expected = model(*inputs(3)).sample
    assert expected.shape == (3, 1, BINS, COLUMNS)
    assert torch.equal(model(*inputs(3), return_dict=False)[0], expected)
    named = dict(zip(("sample", "timestep", "log2_num_frames"), inputs(3), strict=True))
    check_documented_shapes(model(**named), {**named, "timestep": 1}, model)
    model.save_pretrained(tmp_path)
    loaded = IdeaUNetModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*inputs(3)).sample, expected, rtol=1e-5, atol=1e-5)
    for row in range(3):
        alone = model(*(value[row : row + 1] for value in inputs(3))).sample
        torch.testing.assert_close(alone, expected[row : row + 1], rtol=1e-4, atol=1e-5)
    half = copy.deepcopy(model).to(torch.bfloat16)
    sample, step, duration = inputs(3)
    coarse = half(sample.to(torch.bfloat16), step, duration).sample.float()
    assert (coarse - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_gradients_reach_every_parameter():
    model = make_model().train()
    sample, step, duration = inputs(3)
    duration[0] = float("nan")
    model(sample, step, duration).sample.square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Softmax does not see a bias that all keys share.
    assert [name for name in missing if not name.endswith("to_k.bias")] == []


@torch.no_grad()
def test_duration_matters_and_may_be_unknown():
    model = make_model()
    torch.nn.init.normal_(model.duration.unknown)
    sample, step, duration = inputs(1)
    known, longer, unknown = (model(sample, step, value).sample for value in (duration, duration + 2, None))
    assert not torch.allclose(known, longer) and not torch.allclose(known, unknown)
    torch.testing.assert_close(model(sample, step, duration * float("nan")).sample, unknown)


def test_normalisation_is_inverted_and_patches_too():
    model = make_model(mel_mean=-4.0, mel_std=2.0)
    idea = torch.randn(2, BINS, COLUMNS) * 3 - 6
    torch.testing.assert_close(model.denormalize_idea(model.normalize_idea(idea)), idea)
    sample = torch.randn(2, 1, BINS, COLUMNS)
    assert torch.equal(model._from_patches(model._to_patches(sample)), sample)


def test_durations_come_from_the_prior():
    model = make_model(log2_frames_mean=11.0, log2_frames_std=0.5, log2_frames_min=10.0, log2_frames_max=12.0)
    drawn = model.sample_log2_num_frames(2000, torch.Generator().manual_seed(0))
    assert 10.9 < drawn.mean() < 11.1 and drawn.min() >= 10.0 and drawn.max() <= 12.0
    assert torch.equal(drawn, model.sample_log2_num_frames(2000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["dpm", "ddim"])
def test_schedulers_recover_a_known_idea_with_a_perfect_network(name):
    """With the true velocity at every step, both samplers end at the clean idea."""
    clean = torch.randn(1, 1, BINS, COLUMNS, generator=torch.Generator().manual_seed(1))
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(20)
    latents = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    for timestep in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[timestep]
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-2)


def _spread_of_sampled_means(noise_power: float, steps: int = 20) -> float:
    """Standard deviation of the means of images whose mean has 1 and whose pixels have 0.5, by the best denoiser."""
    count, size, own = 512, 32 * 32, 0.25
    scheduler = make_scheduler("dpm", "sample")
    set_spaced_timesteps(scheduler, steps, noise_power)
    latents = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[timestep]
        gains = [alpha.sqrt() * spread / (alpha * spread + 1 - alpha) for spread in (size + own, own)]
        mean = latents.mean(1, keepdim=True)
        latents = scheduler.step(gains[0] * mean + gains[1] * (latents - mean), timestep, latents).prev_sample
    return latents.mean(1).std().item()


def test_steps_near_pure_noise_keep_what_ideas_have_in_common_apart():
    even, spaced, fine = (
        _spread_of_sampled_means(1.0),
        _spread_of_sampled_means(1.5),
        _spread_of_sampled_means(1.5, 200),
    )
    assert abs(fine - 1.0) < 0.1  # many steps find the true spread
    assert even < 0.6 and abs(spaced - 1.0) < abs(even - 1.0) / 2, (even, spaced)


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 20, 1000])
def test_spaced_timesteps_go_down_from_pure_noise(power, steps):
    scheduler = make_scheduler("dpm")
    set_spaced_timesteps(scheduler, steps, power)
    chosen = scheduler.timesteps
    assert len(chosen) == steps and chosen[0] == 999 and (chosen.diff() < 0).all() and chosen[-1] >= 0
    even = make_scheduler("ddim")
    set_spaced_timesteps(even, steps, power)  # takes no list: stays even
    assert len(even.timesteps) == steps


def test_refusals():
    model = make_model()
    with pytest.raises(ValueError, match="noise_power must be a number of at least 1, got 0.5"):
        make_model(noise_power=0.5)
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, 1, BINS, COLUMNS + 4), 5)
    assert_error(error, "sample", str(COLUMNS), str(COLUMNS + 4))
    with pytest.raises(ValueError, match="log2_num_frames"):
        model(torch.zeros(2, 1, BINS, COLUMNS), 5, torch.zeros(3))
    with pytest.raises(ValueError, match="num_columns must be a multiple of 8"):
        make_model(num_columns=36)
    with pytest.raises(ValueError, match="num_mel_bins must be a multiple of 32"):
        make_model(patch_size=(16, 4))
    with pytest.raises(ValueError, match="norm_num_groups"):
        make_model(block_out_channels=(30, 32))
    with pytest.raises(ValueError, match="scheduler"):
        make_scheduler("euler")
    with pytest.raises(TypeError, match="patch_sise"):
        make_model(patch_sise=3)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_deepest_levels_attend(levels):
    model = make_model(attention_levels=levels)
    down = [hasattr(block, "attentions") for block in model.unet.down_blocks]
    up = [hasattr(block, "attentions") for block in model.unet.up_blocks]
    assert down == up[::-1] == [False] * (2 - levels) + [True] * levels


def test_docstring_example():
    results = doctest.testmod(unet_idea)
    assert results.attempted and not results.failed
