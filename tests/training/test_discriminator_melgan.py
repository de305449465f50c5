"""MelGAN's discriminator: shapes, gradients, learning, original checkpoints, errors."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.nn.conv import apply_weight_norm
from melreformer_hf.training.discriminators.melgan import MelGanDiscriminator
from melreformer_hf.training.losses.adversarial import discriminator_loss, generator_loss

ARGUMENTS = {"num_D": 2, "ndf": 4, "n_layers": 2, "downsampling_factor": 2, "max_channels": 8}


def small() -> MelGanDiscriminator:
    torch.manual_seed(0)
    return MelGanDiscriminator.from_original_arguments(ARGUMENTS)


def test_outputs_and_gradients():
    model = small()
    waveform = torch.randn(2, 301, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits, maps = model(waveform)
    assert [value.shape[1] for value in logits] == [76, 38] and [len(layers) for layers in maps] == [5, 5]
    alone, _ = model(waveform[:1])
    for single, together in zip(alone, logits, strict=True):
        torch.testing.assert_close(single, together[:1], rtol=1e-4, atol=1e-5)
    generator_loss(logits).backward()
    assert waveform.grad.isfinite().all() and waveform.grad.abs().sum() > 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_each_resolution_hears_means_of_four_samples_of_the_one_before():
    """Two samples apart; at the ends the mean is of those that there are."""
    model, heard = MelGanDiscriminator.from_original_arguments({**ARGUMENTS, "num_D": 3}), []
    for discriminator in model.discriminators:
        discriminator.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    waveform = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    model(waveform)
    assert torch.equal(heard[0], waveform) and [part.shape[-1] for part in heard] == [40, 20, 10]
    for fine, coarse in zip(heard, heard[1:], strict=False):
        for place in range(coarse.shape[-1]):
            seen = fine[:, max(0, 2 * place - 1) : 2 * place + 3]
            torch.testing.assert_close(coarse[:, place], seen.mean(-1), rtol=1e-5, atol=1e-6)


def test_learns_to_tell_tone_from_noise():
    model = small()
    apply_weight_norm(model)
    real = torch.sin(0.3 * torch.arange(512)).repeat(2, 1)
    fake = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = discriminator_loss(model(real)[0], model(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for judged_real, judged_fake in zip(model(real)[0], model(fake)[0], strict=True):
        assert judged_real.mean() > judged_fake.mean() + 0.5


def test_original_checkpoints():
    model, waveform = small(), torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    weights = model.to_original_state_dict()
    loaded = MelGanDiscriminator.from_original(weights, ARGUMENTS)
    torch.testing.assert_close(loaded(waveform)[0], model(waveform)[0])
    with pytest.raises(ValueError, match="no argument 'num_d'"):
        MelGanDiscriminator.from_original(weights, {"num_d": 2})
    with pytest.raises(ValueError, match="unexpected key 'surprise'"):
        MelGanDiscriminator.from_original({**weights, "surprise": torch.zeros(1)}, ARGUMENTS)
    del weights["model.disc_1.model.layer_4.bias"]
    with pytest.raises(ValueError, match="missing key 'model.disc_1.model.layer_4.bias'"):
        MelGanDiscriminator.from_original(weights, ARGUMENTS)


def test_errors():
    for wrong in (torch.zeros(2, 1, 300), torch.zeros(2, 15)):
        with pytest.raises(ValueError) as error:
            small()(wrong)
        assert_error(error, "waveform must be", "16 samples", str(tuple(wrong.shape)))
    assert [len(maps) for maps in small()(torch.zeros(2, 16))[1]] == [5, 5]  # the shortest that can be mirrored
    for base, widest in ((3, 1024), (8, 30), (9, 1024)):
        with pytest.raises(ValueError) as error:
            MelGanDiscriminator(base_channels=base, max_channels=widest)
        assert_error(error, f"base_channels={base}", f"max_channels={widest}", "multiples of 4")
    assert MelGanDiscriminator(1, 6, 1, max_channels=24).discriminators[0].convs[1].groups == 1
    for name in ("num_layers", "base_channels", "stride", "max_channels"):
        with pytest.raises(ValueError, match=f"{name}.*must be positive"):
            MelGanDiscriminator(**{name: 0})
    with pytest.raises(ValueError, match="num_scales"):
        MelGanDiscriminator(num_scales=0)
