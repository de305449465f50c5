"""The idea model while it trains: checkpointing, moving averages, memory format, presets, refused configs."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.training_utils import EMAModel
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler

BINS, COLUMNS = 16, 32
SMALL = {
    "mel": MelConfig.preset("hifigan", num_mel_bins=BINS, fmax=None).to_dict(),
    "num_columns": COLUMNS,
    "patch_size": (4, 4),
    "block_out_channels": (32, 32),
    "norm_num_groups": 8,
}


def make_model(**overrides) -> IdeaUNetModel:
    torch.manual_seed(0)
    return IdeaUNetModel(**{**SMALL, **overrides})


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sample = torch.randn(batch, 1, BINS, COLUMNS, generator=torch.Generator().manual_seed(0))
    return sample, torch.arange(batch) * 300 + 5, torch.arange(batch) + 10.0


def step(model: IdeaUNetModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(*inputs()).sample
    output.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients


def test_gradient_checkpointing_recomputes_and_changes_nothing():
    model, calls = make_model().train(), []
    model.unet.mid_block.resnets[1].register_forward_pre_hook(lambda *_: calls.append(1))
    output, gradients = step(model)
    assert len(calls) == 1
    model.enable_gradient_checkpointing()
    recomputed, again = step(model)
    assert len(calls) == 3, "the middle block must run once forward and once more for the gradients"
    torch.testing.assert_close(recomputed, output, rtol=0, atol=0)
    assert again.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    model.disable_gradient_checkpointing()
    step(model)
    assert len(calls) == 4


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")  # diffusers' own
def test_moving_average_follows_saves_and_loads(tmp_path):
    model = make_model()
    before = model.frequency_bias.detach().clone()
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=IdeaUNetModel, model_config=model.config)
    ema.step(model.parameters())
    torch.nn.init.ones_(model.frequency_bias)
    for _ in range(2):
        ema.step(model.parameters())
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    averaged = model.frequency_bias.detach().clone()
    assert before.mean() < averaged.mean() < 1
    ema.restore(model.parameters())
    assert (model.frequency_bias == 1).all()
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, IdeaUNetModel)
    assert loaded.optimization_step == 3
    for mine, theirs in zip(loaded.shadow_params, ema.shadow_params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    plain = IdeaUNetModel.from_pretrained(tmp_path)
    torch.testing.assert_close(plain.frequency_bias, averaged, rtol=0, atol=0)


@torch.no_grad()
def test_channels_last_and_autocast_agree_with_the_plain_model():
    model = make_model().eval()
    expected = model(*inputs()).sample
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(*inputs()).sample, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = model(*inputs()).sample.float()
    assert (coarse - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_presets_have_the_sizes_they_promise():
    sizes = {}
    for name in ("tiny", "base"):
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in IdeaUNetModel.preset(name).parameters()) / 1e6
    assert sizes["tiny"] < 10 and 20 < sizes["base"] < 80, sizes
    with pytest.raises(ValueError, match="name must be one of"):
        IdeaUNetModel.preset("huge")


def test_noise_schedule_begins_at_pure_noise():
    for name in ("ddim", "dpm"):
        scheduler = make_scheduler(name)
        for steps in (10, 20, 25):
            scheduler.set_timesteps(steps)
            assert len(scheduler.timesteps) == steps and scheduler.timesteps[0] == 999
        assert scheduler.alphas_cumprod[-1] < 1e-6
        assert type(scheduler).from_config(scheduler.config).config.prediction_type == "v_prediction"


def test_unknown_keys_in_a_config_file_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pach_size": [4, 4]}))
    with pytest.raises(ValueError) as error:
        IdeaUNetModel.from_pretrained(tmp_path)
    assert_error(error, "pach_size", "[4, 4]", "Did you mean 'patch_size'")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mel_std": float("nan")}, "must be finite"),
        ({"mel_std": 0.0}, "mel_std and log2_frames_std must be positive"),
        ({"log2_frames_min": 13.0, "log2_frames_max": 9.0}, "log2_frames_min must not exceed"),
        ({"attention_levels": 3}, "attention_levels must be between 0 and the 2 levels"),
        ({"attention_levels": -1}, "attention_levels"),
        ({"norm_num_groups": 0}, "norm_num_groups=0"),
        ({"patch_size": (0, 4)}, "patch_size must hold two positive numbers"),
        ({"patch_size": (4, 0)}, "patch_size must hold two positive numbers"),
        ({"patch_size": (4,)}, "patch_size must hold two positive numbers"),
        ({"block_out_channels": ()}, "must not be empty"),
        ({"log2_frames_std": 0.0}, "mel_std and log2_frames_std must be positive"),
        ({"noise_power": 0.99}, "noise_power"),
        ({"leap_timestep": 0}, "leap_timestep"),
        ({"leap_timestep": True}, "leap_timestep"),
        ({"layers_per_block": 0}, "layers_per_block"),
    ],
)
def test_impossible_arguments_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_model(**overrides)
