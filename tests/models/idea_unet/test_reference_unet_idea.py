"""The idea model's own parts equal their formulas; its graph compiles and is exported."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from plain_layers import linear, shake, silu
from testing_utils import Wrapped

from melreformer_hf.models.idea_unet.unet_idea import DurationEmbedding, IdeaUNetModel, set_spaced_timesteps

BINS, COLUMNS = 16, 32


def make_model(**overrides) -> IdeaUNetModel:
    torch.manual_seed(0)
    values = {
        "mel": {"num_mel_bins": BINS},
        "num_columns": COLUMNS,
        "patch_size": (2, 4),
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "log2_frames_mean": 9.0,
        "log2_frames_std": 2.0,
        **overrides,
    }
    return IdeaUNetModel(**values).eval()


@torch.no_grad()
def test_duration_embedding():
    """Value, sines and cosines of octaves from pi / 8 on, then a perceptron; a vector of its own where unknown."""
    module = shake(DurationEmbedding(6, num_frequencies=3))
    duration = torch.tensor([0.7, -1.2, math.nan, math.inf])
    actual = module(duration)
    for row, value in enumerate((0.7, -1.2)):
        angles = [value * math.pi / 8 * octave for octave in (1, 2, 4)]
        told = torch.tensor([value, *(math.sin(a) for a in angles), *(math.cos(a) for a in angles)])
        torch.testing.assert_close(actual[row], linear(module.down, silu(linear(module.up, told))))
    for row in (2, 3):
        torch.testing.assert_close(actual[row], module.unknown)


@torch.no_grad()
def test_forward_is_patches_bias_duration_and_unet():
    model = make_model()
    torch.nn.init.normal_(model.frequency_bias)
    sample, step, log2 = torch.randn(2, 1, BINS, COLUMNS), torch.tensor([3, 900]), torch.tensor([11.0, 8.5])
    # Channel h * 4 + w of a patch is its band h and column w.
    patches = torch.stack([sample[:, 0, h::2, w::4] for h in range(2) for w in range(4)], dim=1)
    told = model.duration((log2 - 9.0) / 2.0)
    made = model.unet(patches + model.frequency_bias, step, class_labels=told).sample
    expected = torch.zeros_like(sample)
    for h in range(2):
        for w in range(4):
            expected[:, 0, h::2, w::4] = made[:, h * 4 + w]
    torch.testing.assert_close(model(sample, step, log2).sample, expected, rtol=0, atol=1e-6)
    idea = torch.randn(1, BINS, COLUMNS)
    torch.testing.assert_close(model.normalize_idea(idea)[:, 0], (idea + 5.5) / 3.0)


@pytest.mark.parametrize(
    ("attention_levels", "down", "up"),
    [(0, "..", ".."), (1, ".A", "A."), (2, "AA", "AA")],
)
def test_the_deepest_levels_attend(attention_levels, down, up):
    config = make_model(attention_levels=attention_levels).unet.config
    assert "".join("A" if "Attn" in name else "." for name in config.down_block_types) == down
    assert "".join("A" if "Attn" in name else "." for name in config.up_block_types) == up


@pytest.mark.parametrize(
    ("total", "steps", "power", "expected"),
    [
        (1000, 4, 1.5, [999, 874, 645, 349]),  # 1000 (1 - (i / 4) ** 1.5) - 1, rounded
        (10, 6, 2.0, [9, 8, 7, 6, 5, 2]),  # 9 9 8 7 5 2, and no step twice
        (10, 10, 3.0, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),  # room is left for every step that follows
        (10, 1, 3.0, [9]),
        (1000, 4, 1.0, [999, 749, 499, 249]),  # the scheduler's own trailing steps
    ],
)
def test_spaced_timesteps_by_hand(total, steps, power, expected):
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=total, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2"
    )
    set_spaced_timesteps(scheduler, steps, power)
    assert scheduler.timesteps.tolist() == expected


@torch.no_grad()
def test_durations_of_the_prior_by_hand():
    model = make_model(log2_frames_min=8.5, log2_frames_max=10.0)
    drawn = torch.randn(50, generator=torch.Generator().manual_seed(4)) * 2.0 + 9.0
    actual = model.sample_log2_num_frames(50, torch.Generator().manual_seed(4))
    torch.testing.assert_close(actual, drawn.clamp(8.5, 10.0))
    assert {actual.min().item(), actual.max().item()} == {8.5, 10.0}


@torch.no_grad()
def test_forward_compiles_into_one_graph_and_is_exported():
    model = make_model()
    arguments = (torch.randn(2, 1, BINS, COLUMNS), torch.tensor([3, 900]), torch.tensor([11.0, 8.5]))
    expected = model(*arguments).sample
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments).sample, expected, rtol=1e-4, atol=1e-5)
    program = torch.export.export(Wrapped(model, lambda *given: model(*given, return_dict=False)[0]), arguments)
    torch.testing.assert_close(program.module()(*arguments), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_loaded_whole_and_stays_close(dtype, tmp_path):
    model = make_model()
    arguments = (torch.randn(2, 1, BINS, COLUMNS), torch.tensor([3, 900]), torch.tensor([11.0, 8.5]))
    expected = model(*arguments).sample
    model.save_pretrained(tmp_path)
    half = IdeaUNetModel.from_pretrained(tmp_path, torch_dtype=dtype).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    actual = half(arguments[0].to(dtype), *arguments[1:]).sample.float()
    assert (actual - expected).abs().mean() < 0.1 * expected.abs().max()
