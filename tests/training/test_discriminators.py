"""Discriminators: published sizes, shapes, gradients, original checkpoints; adversarial losses by their formulas."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.training.discriminators.spectrogram import MultiResolutionDiscriminator
from melreformer_hf.training.discriminators.waveform import MultiPeriodDiscriminator, MultiScaleDiscriminator
from melreformer_hf.training.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss

SMALL_SCALES = {"channels": (4, 8), "kernel_sizes": (5, 9), "strides": (1, 2), "groups": (1, 2)}


def small(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "period":
        return MultiPeriodDiscriminator(periods=(2, 3), channels=(1, 4, 8))
    if name == "scale":
        return MultiScaleDiscriminator(**SMALL_SCALES)
    return MultiResolutionDiscriminator(window_sizes=(64, 128), channels=4)


def test_published_parameter_counts():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in model.parameters())
            for model in (MultiPeriodDiscriminator(), MultiScaleDiscriminator())
        ]
    assert counts == [41_092_165, 19_740_418]


@pytest.mark.parametrize("name", ["period", "scale", "spectrogram"])
def test_outputs_and_gradients(name):
    model = small(name)
    waveform = torch.randn(2, 301, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits, maps = model(waveform)
    assert len(logits) == len(maps) == 2
    for value, layers in zip(logits, maps, strict=True):
        assert value.ndim == 2 and value.shape[0] == 2
        torch.testing.assert_close(layers[-1].flatten(1), value.flatten(1), rtol=0, atol=0)
    single, _ = model(waveform[:1])
    for alone, together in zip(single, logits, strict=True):
        torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)
    generator_loss(logits).backward()
    assert waveform.grad.isfinite().all() and waveform.grad.abs().sum() > 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["period", "scale", "spectrogram"])
def test_a_discriminator_learns_to_tell_tone_from_noise(name):
    model = small(name)
    generator = torch.Generator().manual_seed(1)
    real = torch.sin(0.3 * torch.arange(512)).repeat(2, 1)
    fake = torch.randn(2, 512, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = discriminator_loss(model(real)[0], model(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for judged_real, judged_fake in zip(model(real)[0], model(fake)[0], strict=True):
        assert judged_real.mean() > judged_fake.mean() + 0.5


def test_losses_by_hand():
    real, fake = (
        [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]])],
        [torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0]])],
    )
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 + 0.625 + 1.0 + 0.0)
    assert generator_loss(fake).item() == pytest.approx(0.125 + 1.0)
    assert feature_matching_loss([real], [fake]).item() == pytest.approx(0.75 + 2.0)
    tensor = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        feature_matching_loss([[tensor]], [[torch.zeros(1, 2)]]).backward()


def test_original_checkpoints():
    model = small("period")
    original = {
        key.replace("output_conv", "conv_post")
        if "output" in key
        else key.replace("convs", "blocks")[: -len(end)] + f"0.{end}": value
        for key, value in model.state_dict().items()
        for end in [key.rsplit(".", 1)[1]]
    }
    arguments = {"periods": [2, 3], "channels": [1, 4, 8], "seq_len": 8192}
    loaded = MultiPeriodDiscriminator.from_original(original, arguments)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0, msg=key)
    with pytest.raises(ValueError) as error:
        MultiPeriodDiscriminator.from_original(original, {**arguments, "chanels": [1]})
    assert_error(error, "chanels", "channels")
    with pytest.raises(ValueError) as error:
        MultiPeriodDiscriminator.from_original(original, {**arguments, "channels": [1, 4, 9]})
    assert_error(error, "discriminators.0.blocks.1.0.weight", "(8, 4, 5, 1)", "(9, 4, 5, 1)")
    scale = {
        key.replace("convs", "blocks").replace("output_conv", "conv_post"): value
        for key, value in small("scale").state_dict().items()
    }
    MultiScaleDiscriminator.from_original(scale, SMALL_SCALES)
    with pytest.raises(ValueError, match="one entry per layer"):
        MultiScaleDiscriminator(channels=(4, 8))


@pytest.mark.parametrize("name", ["period", "scale", "spectrogram"])
def test_wrong_shapes(name):
    with pytest.raises(ValueError, match="waveform must be"):
        small(name)(torch.zeros(2, 1, 300))


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match="one entry per discriminator"):
        discriminator_loss([torch.zeros(1, 1)], [])
    with pytest.raises(ValueError, match="at least one"):
        generator_loss([])
    with pytest.raises(ValueError, match="divisible by 4"):
        MultiResolutionDiscriminator(window_sizes=(66,))
