"""What the recipes of idea models take, fit and weigh: whole pieces, quantiles, whitening; the adversarial game's phases."""

from __future__ import annotations

import pytest
import torch
from training_utils import COLUMNS, GAN, context, started

from melreformer_hf.data.batches import BatchStream
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.losses.diffusion import diffusion_loss
from melreformer_hf.training.losses.stylegan2 import r1_penalty
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.idea_diffusion import IdeaDiffusionRecipe
from melreformer_hf.training.recipes.idea_gan import IdeaGanRecipe
from melreformer_hf.training.reporting import read_metrics


def recipe(kind, words: list[str], dataset: str, *more):
    given = [*words, "--dataset", dataset, "--output_dir", "unused", "--max_steps", 1, "--batch_size", 4, *more]
    return kind(TrainingConfig.from_command_line(kind, [str(word) for word in given]))


def batch_of(built, size: int = 4) -> dict[str, torch.Tensor]:
    return BatchStream(built.stream(0, 1), built.prepare, size).batch(0).tensors


def test_whole_recordings_are_among_the_ideas_and_bound_the_prior(dataset):
    built = recipe(IdeaDiffusionRecipe, COLUMNS, dataset)
    frames = [built.stream(0, 1).item(index)["num_frames"] for index in range(24)]
    whole = {recording.num_samples // 256 for recording in built.recordings("train").recordings}
    long = [count for count in frames if count > 256]
    assert 4 < len(long) < 20 and set(long) <= whole
    assert started(built)["model"].config.log2_frames_max == 10.0
    short = recipe(IdeaDiffusionRecipe, COLUMNS, dataset, "--options.whole_share", 0)
    assert max(short.stream(0, 1).item(index)["num_frames"] for index in range(24)) <= 256
    assert started(short)["model"].config.log2_frames_max == 8.0


def test_durations_and_whitening_are_fitted_to_the_crops(dataset):
    built = recipe(IdeaDiffusionRecipe, COLUMNS, dataset, "--options.fit_crops", 40)
    model = started(built)["model"]
    ideas, lengths = built.ideas_of(built.stream(0, 1), 40)
    expected = lengths.quantile(torch.linspace(0, 1, 5)).tolist()
    assert list(model.config.log2_frames_quantiles) == pytest.approx(expected, abs=6e-5)
    sample = model.normalize_idea(ideas, lengths)
    assert sample.mean().abs() < 0.1 and 0.7 < sample.std() < 1.1
    torch.testing.assert_close(model.denormalize_idea(sample, lengths), ideas, rtol=1e-3, atol=1e-3)


def test_errors_are_weighed_by_the_gains(dataset):
    losses = []
    for power in (0.0, 1.0):
        built = recipe(IdeaDiffusionRecipe, COLUMNS, dataset, "--options.gain_power", power)
        batch, model = batch_of(built), started(built)["model"]
        losses.append(next(iter(built.phases(batch, context()))).loss.item())
    flat = {key: batch[key].flatten(0, 1) for key in ("noise", "timesteps", "log2_num_frames")}
    clean = model.normalize_idea(batch["idea"].repeat_interleave(2, 0), flat["log2_num_frames"])
    arguments = (model, clean, flat["log2_num_frames"], built.scheduler, flat["noise"], flat["timesteps"])
    place = model.place_of(flat["log2_num_frames"], len(clean))
    assert losses[0] == pytest.approx(diffusion_loss(*arguments).mean().item(), rel=1e-5)
    weighed = diffusion_loss(
        *arguments, weigh=lambda error: model.whitening.weigh_error(error[:, 0], place, 1.0)[:, None]
    )
    assert losses[1] == pytest.approx(weighed.mean().item(), rel=1e-5) and losses[0] != losses[1]


def test_streamed_datasets_keep_no_mels(dataset):
    built = recipe(IdeaDiffusionRecipe, [*COLUMNS, "--options.keep_mels", "true"], dataset)
    built.recordings = lambda split: type("Streamed", (), {"silence_weight": 1.0})()
    with pytest.raises(ValueError, match="options.keep_mels must be false"):
        built.stream(0, 1)


def test_the_game_has_two_phases_and_penalties_now_and_then(dataset):
    built = recipe(IdeaGanRecipe, GAN, dataset)
    batch, modules = batch_of(built), started(built)
    told = []
    for step in range(7):
        torch.manual_seed(step)
        first, second = built.phases(batch, context(step=step))
        assert (first.module, second.module) == ("discriminator", "model")
        told.append(("r1_penalty" in first.scalars, "path_length_penalty" in second.scalars))
    assert told == [(step % 2 == 0, step % 3 == 0) for step in range(7)]
    # A phase's gradients reach its own module only, and the duration head learns from the discriminator alone.
    for phase in built.phases(batch, context(step=1)):
        for module in modules.values():
            module.zero_grad()
        phase.loss.backward()
        trained = {name for name, module in modules.items() if any(p.grad is not None for p in module.parameters())}
        assert trained == {phase.module}
    assert modules["model"].duration.weight.grad.any()
    assert built.path_mean.value != 0 and set(built.stateful()) == {"path_mean"}


def test_the_game_is_played_in_half_precision_too(dataset, tmp_path):
    words = [*GAN, "--dataset", dataset, "--output_dir", str(tmp_path), "--max_steps", "4", "--batch_size", "4"]
    words += "--mixed_precision bf16 --log_every_steps 1 --progress_bar false --cpu true --num_workers 0".split()
    main(IdeaGanRecipe, words)
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert ["path_length_penalty" in line for line in lines] == [True, False, False, True]
    assert all(line["r1_penalty"] > 0 for line in lines[::2])


def test_r1_counts_pictures_and_durations_times_its_interval(dataset):
    built = recipe(IdeaGanRecipe, GAN, dataset, "--options.augmentation_share", 0, "--options.r1_weight", 3)
    batch, modules = batch_of(built), started(built)
    torch.manual_seed(0)
    phase = next(iter(built.phases(batch, context(step=0))))
    inputs = [modules["model"].normalize_idea(batch["idea"]), batch["log2_num_frames"]]
    inputs = [value.requires_grad_() for value in inputs]
    logits = modules["discriminator"](inputs[0], modules["model"].normalize_duration(inputs[1]))
    expected = r1_penalty(logits, inputs).item()
    assert phase.scalars["r1_penalty"].item() == pytest.approx(expected, rel=1e-4)
    gap = (phase.loss - phase.scalars["discriminator_loss"]).item()
    assert gap == pytest.approx(0.5 * 3 * 2 * expected, rel=1e-3)


def test_validation_judges_pictures_and_durations(dataset):
    built = recipe(IdeaGanRecipe, GAN, dataset)
    found = built.validate(started(built)["model"].eval())
    assert found.metrics["score"] == pytest.approx(found.metrics["statistics_distance"] + found.metrics["duration_ks"])
    assert set(found.pictures) == {"sampled", "held_out"} and found.counts["sampled ideas"] == 2
    mute = recipe(IdeaGanRecipe, GAN, dataset, "--model.predict_duration", "false")
    started(mute)
    assert "duration_ks" not in mute.validate(mute.modules["model"].eval()).metrics
    assert len(list(mute.phases(batch_of(mute), context()))) == 2
