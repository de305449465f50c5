"""The balancer: shares whatever the scales, the loop's loss scaling, saving, errors; the adaptive weight; codec losses."""

from __future__ import annotations

import doctest

import pytest
import torch
from testing_utils import assert_error
from torch import nn

from melreformer_hf.training import losses
from melreformer_hf.training.losses import (
    LossBalancer,
    adaptive_weight,
    channel_average_loss,
    multi_window_mel_distance,
)
from melreformer_hf.training.losses import balancer as balancer_module


def two_losses(output, scale=1.0):
    return {"near": (output - 1).abs().sum(), "far": scale * (output + 1).abs().sum()}


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-4])
def test_opposite_losses_of_any_size_cancel(scale):
    output = torch.zeros(3, 2, requires_grad=True)
    LossBalancer({"near": 1.0, "far": 1.0})(two_losses(output, scale), output).backward()
    assert output.grad.abs().max() < 1e-6
    output.grad = None
    plain = LossBalancer({"near": 1.0, "far": 1.0}, balance_gradients=False)
    plain(two_losses(output, scale), output).backward()
    torch.testing.assert_close(output.grad, torch.full((3, 2), scale - 1))


def test_the_gradient_reaches_the_model_and_scales_with_the_loss():
    """Accumulation and mixed precision divide or multiply the loss: the gradient follows."""
    torch.manual_seed(0)
    layer, values = nn.Linear(3, 2), torch.randn(4, 3)
    gradients = []
    for factor in (1.0, 0.25):
        layer.zero_grad()
        output = layer(values)
        loss = LossBalancer({"near": 1.0, "far": 2.0})(two_losses(output), output)
        (factor * loss).backward()
        gradients.append(layer.weight.grad.clone())
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], 0.25 * gradients[0])


def test_averages_are_saved_and_keep_their_precision():
    weights = {"near": 1.0, "far": 3.0}
    first = LossBalancer(weights, ema_decay=0.9)
    for step in range(5):
        output = torch.full((2, 2), 0.1 * step, requires_grad=True)
        first(two_losses(output, 1 + step), output)
    second = LossBalancer(weights, ema_decay=0.9)
    second.load_state_dict(first.state_dict())
    second.to(torch.bfloat16)
    assert second.norm_sums.dtype == torch.float64
    torch.testing.assert_close(second.norm_sums, first.norm_sums, rtol=0, atol=0)
    output = torch.zeros(2, 2, requires_grad=True)
    torch.testing.assert_close(first(two_losses(output, 9), output), second(two_losses(output, 9), output))
    assert sum(second.shares.values()) == pytest.approx(1.0)


def test_averages_reach_a_device_without_double_precision():
    """Apple's refuses to take a float64 tensor at all, even to cast it there."""
    balancer = LossBalancer({"near": 1.0, "far": 1.0})
    balancer.norm_sums += 1 / 3

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.dtype != torch.float64
        return tensor

    balancer._apply(refuse)
    assert torch.equal(balancer.norm_sums, torch.full((2,), 1 / 3, dtype=torch.float64))


def test_a_loss_may_pause():
    balancer = LossBalancer({"near": 1.0, "far": 1.0}, ema_decay=0.5)
    output = torch.zeros(1, 4, requires_grad=True)
    balancer(two_losses(output), output)
    balancer({"near": two_losses(output)["near"]}, output).backward()
    torch.testing.assert_close(output.grad, torch.full((1, 4), -0.5))


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda: LossBalancer({}), ("weights", "at least one")),
        (lambda: LossBalancer({"a": 0.0}), ("positive", "0.0")),
        (lambda: LossBalancer({"a": 1.0}, ema_decay=1.0), ("ema_decay", "1.0")),
        (lambda: LossBalancer({"a": 1.0})({"b": torch.zeros(())}, torch.zeros(1, 1)), ("['a']", "['b']")),
        (
            lambda: LossBalancer({"a": 1.0})({"a": torch.ones(1, requires_grad=True).sum()}, grown()),
            ("'a'", "does not depend"),
        ),
        (lambda: channel_average_loss([], torch.zeros(1, 1, 4), []), ("one entry per stage",)),
        (lambda: channel_average_loss([torch.zeros(1, 2, 4)], torch.zeros(1, 4), [1.0]), ("(batch, 1, sample)",)),
        (lambda: channel_average_loss([torch.zeros(2, 4)], torch.zeros(1, 1, 4), [1.0]), ("stages[0]", "(2, 4)")),
        (lambda: multi_window_mel_distance(torch.zeros(1, 9), torch.zeros(1, 8), 100), ("(1, 9)", "(1, 8)")),
        (lambda: multi_window_mel_distance(torch.zeros(1, 9), torch.zeros(1, 9), 100, (30,)), ("multiples of 4",)),
    ],
)
def test_errors(call, fragments):
    with pytest.raises(ValueError) as error:
        call()
    assert_error(error, *fragments)


def test_borders_of_the_numbers():
    for accepted in ({"total_norm": 1e-9}, {"ema_decay": 0.0}, {"ema_decay": 0.9999}, {"epsilon": 0.0}):
        LossBalancer({"a": 1e-9}, **accepted)
    for refused in ({"total_norm": 0.0}, {"ema_decay": -0.01}, {"ema_decay": 1.0}, {"epsilon": -1e-9}):
        with pytest.raises(ValueError, match=f"{next(iter(refused))}.*{next(iter(refused.values()))}"):
            LossBalancer({"a": 1.0}, **refused)
    with pytest.raises(ValueError, match="positive"):
        LossBalancer({"a": 1.0, "b": -1.0})


def grown() -> torch.Tensor:
    return torch.ones(1, 1, requires_grad=True) * 2


def test_adaptive_weight():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = 3 * weight.sum(), -4 * weight.sum()
    assert adaptive_weight(reconstruction, adversarial, weight).item() == pytest.approx(0.8 * 0.75, rel=1e-3)
    assert adaptive_weight(adversarial, 0.01 * reconstruction, weight).item() == pytest.approx(0.8)
    assert not adaptive_weight(reconstruction, adversarial, weight).requires_grad


def test_channel_averages_look_at_the_mean_channel_alone():
    waveform = torch.arange(8.0).reshape(1, 1, 8)
    stage = torch.stack([torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 7.0])])[None]  # averages 0 and 4
    assert channel_average_loss([stage], waveform, [2.0]).item() == 0.0
    assert channel_average_loss([stage + 1], waveform, [2.0]).item() == pytest.approx(2.0)


def test_mel_distance_of_waveforms():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 4000, generator=generator)
    near = (target + 0.01 * torch.randn(2, 4000, generator=generator)).requires_grad_()
    far = target + torch.randn(2, 4000, generator=generator)
    assert multi_window_mel_distance(target, target, 16000).item() == 0.0
    loss = multi_window_mel_distance(near, target, 16000, windows=(64, 512))
    assert 0 < loss < multi_window_mel_distance(far, target, 16000, windows=(64, 512))
    loss.backward()
    assert near.grad.isfinite().all() and near.grad.abs().sum() > 0


def test_public_names_and_docstrings():
    for name in losses.__all__:
        assert getattr(losses, name).__name__ == name
    with pytest.raises(AttributeError, match="hingeloss"):
        _ = losses.hingeloss
    assert doctest.testmod(balancer_module).failed == 0


@pytest.mark.parametrize(("per_item", "micro_steps", "size"), [(True, 1, 2.0), (True, 2, 1.0), (False, 1, 8**0.5)])
def test_shares_and_running_means_of_numbers_worked_out_by_hand(per_item, micro_steps, size):
    """Gradients of 1/2 and 2 in each of 2 x 4 places: an item's norm is twice that, everything's sqrt(8) times."""
    balancer = LossBalancer({"near": 1.0, "far": 3.0}, total_norm=2.0, ema_decay=0.5, per_batch_item=per_item)
    output = torch.ones(2, 4, requires_grad=True)

    def gradient(near: float) -> float:
        output.grad = None
        balancer({"near": near * output.sum(), "far": 2 * output.sum()}, output, micro_steps).backward()
        return output.grad.unique().item()

    # Shares of 1/4 and 3/4 of the norm 2, whatever the gradients' sizes.
    assert gradient(0.5) == pytest.approx((2 * 1 / 4 + 2 * 3 / 4) / size)
    assert balancer.shares == pytest.approx({"near": 0.2, "far": 0.8})
    # The mean of near is (0.5 * 0.5 + 1.5) / (0.5 + 1) = 7/6 now, and its gradient 3/2; far's is as before.
    assert gradient(1.5) == pytest.approx((2 * 1 / 4 * 9 / 7 + 2 * 3 / 4) / size)
    assert balancer.shares["near"] == pytest.approx((7 / 6) / (7 / 6 + 2))
