"""The diffusion loss: what minimises it, how it weighs, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from testing_utils import assert_error
from torch import nn

from melreformer_hf.models.idea_unet.unet_idea import IdeaUNetModel, make_scheduler
from melreformer_hf.training.losses.diffusion import diffusion_loss, signal_to_noise_ratio

STEPS = torch.tensor([0, 250, 700, 999])


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=generator), torch.randn(4, 1, 8, 8, generator=generator)


class Returns(nn.Module):
    """Answers with one tensor and keeps what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, noisy, timestep, log2_num_frames):
        self.asked = (noisy, timestep, log2_num_frames)
        return SimpleNamespace(sample=self.answer)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_a_perfect_network_has_no_loss_and_sees_noise_steps_and_durations(kind):
    clean, noise = pair()
    scheduler = make_scheduler("ddim", kind)
    network = Returns(clean if kind == "sample" else scheduler.get_velocity(clean, noise, STEPS))
    durations = torch.tensor([9.0, 10.0, float("nan"), 12.0])
    loss = diffusion_loss(network, clean, durations, scheduler, noise, STEPS)
    torch.testing.assert_close(loss, torch.zeros(4))
    noisy, steps, asked = network.asked
    alpha = scheduler.alphas_cumprod[STEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise)
    assert steps is STEPS and asked is durations


@pytest.mark.parametrize("max_snr", [None, 3.0])
def test_both_predictions_minimise_the_same_quantity(max_snr):
    """An error of the clean sample costs as much as the velocity error that it amounts to."""
    clean, noise = pair()
    guess = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    velocities, samples = make_scheduler("ddim", "v_prediction"), make_scheduler("ddim", "sample")
    steps = torch.tensor([100, 250, 500, 700])
    alpha = samples.alphas_cumprod[steps].view(-1, 1, 1, 1)
    noisy = samples.add_noise(clean, noise, steps)
    velocity = (alpha.sqrt() * noisy - guess) / (1 - alpha).sqrt()
    by_sample = diffusion_loss(Returns(guess), clean, None, samples, noise, steps, max_snr)
    by_velocity = diffusion_loss(Returns(velocity), clean, None, velocities, noise, steps, max_snr)
    torch.testing.assert_close(by_sample, by_velocity, rtol=1e-3, atol=1e-5)


def test_truncation_bounds_the_weight_and_spares_noisy_rows():
    clean, noise = pair()
    scheduler = make_scheduler("ddim", "sample")
    ratio = signal_to_noise_ratio(scheduler, STEPS)
    assert ratio[0] > 100 and ratio[-1] < 1e-6 and (ratio.diff() < 0).all()
    exact = diffusion_loss(Returns(clean + 1), clean, None, scheduler, noise, STEPS)
    torch.testing.assert_close(exact, ratio + 1)
    truncated = diffusion_loss(Returns(clean + 1), clean, None, scheduler, noise, STEPS, max_snr=5.0)
    torch.testing.assert_close(truncated, ratio.clamp(max=5) + 1)
    assert truncated[0] < exact[0] and torch.equal(truncated[2:], exact[2:])


def test_a_network_learns_one_idea_and_samplers_draw_it():
    """Trained on a single idea, both samplers find it from fresh noise in ten steps."""
    kind = "sample"
    torch.manual_seed(0)
    clean = torch.sin(torch.arange(16.0)[:, None] / 2 + torch.arange(32.0) / 3)[None, None]
    mel = {**IdeaUNetModel().mel_config.to_dict(), "num_mel_bins": 16}
    model = IdeaUNetModel(mel, 32, (4, 4), (32, 32), norm_num_groups=8)
    scheduler = make_scheduler("ddim", kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        steps = torch.randint(0, 1000, (8,))
        rows = clean.expand(8, -1, -1, -1)
        loss = diffusion_loss(model, rows, None, scheduler, torch.randn(rows.shape), steps, max_snr=20.0).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for name in ("ddim", "dpm"):
        sampler = make_scheduler(name, kind)
        sampler.set_timesteps(10)
        latents = torch.randn(clean.shape)
        with torch.no_grad():
            for timestep in sampler.timesteps:
                latents = sampler.step(model(latents, timestep).sample, timestep, latents, return_dict=False)[0]
        assert (latents - clean).square().mean() < 0.1 * clean.var(), name


def test_refusals():
    clean, noise = pair()
    network, scheduler = Returns(clean), make_scheduler("ddim")
    with pytest.raises(ValueError) as error:
        diffusion_loss(network, clean, None, make_scheduler("ddim", "epsilon"), noise, STEPS)
    assert_error(error, "prediction_type", "epsilon", "v_prediction")
    with pytest.raises(ValueError, match=r"noise must have the shape of clean.*\(3, 1, 8, 8\)"):
        diffusion_loss(network, clean, None, scheduler, noise[:3], STEPS)
    with pytest.raises(ValueError, match=r"timesteps must be integers of shape \(4,\)"):
        diffusion_loss(network, clean, None, scheduler, noise, STEPS.float())
    with pytest.raises(ValueError, match=r"timesteps must lie in \[0, 1000\), got 1 to 1000"):
        diffusion_loss(network, clean, None, scheduler, noise, STEPS + 1)
    with pytest.raises(ValueError, match="max_snr must be positive"):
        diffusion_loss(network, clean, None, scheduler, noise, STEPS, max_snr=0.0)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("max_snr", [None, 5.0, 0.25])
def test_weights_by_hand(kind, max_snr):
    """(min(SNR, max_snr) + 1) times the squared error of the clean sample, at hand-made noise levels."""
    clean, noise = pair()
    scheduler = make_scheduler("ddim", kind)
    ratios = [99.0, 4.0, 1.0, 0.01]
    scheduler.alphas_cumprod[:4] = torch.tensor([ratio / (ratio + 1) for ratio in ratios])
    steps = torch.arange(4)
    target = clean if kind == "sample" else scheduler.get_velocity(clean, noise, steps)
    loss = diffusion_loss(Returns(target + 0.5), clean, None, scheduler, noise, steps, max_snr)
    for row, ratio in enumerate(ratios):
        weight = (ratio if max_snr is None else min(ratio, max_snr)) + 1
        # An error e of the velocity is one of sqrt(1 / (SNR + 1)) e of the clean sample.
        expected = weight * 0.25 / (1.0 if kind == "sample" else ratio + 1)
        torch.testing.assert_close(loss[row].item(), expected, rtol=1e-4, atol=1e-6)
