"""The energy transformer: closed-form gradient, falling energy, any length."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.models.soundstream import energy_soundstream as energy
from melreformer_hf.models.soundstream.energy_soundstream import EnergyNorm, EnergyTransformer

VARIANTS = {
    "relu, rotary": {},
    "softmax, none": {"memory": "softmax", "positions": "none", "learned_temperature": True},
    "layer norm, table": {"norm": "layer", "positions": "table", "num_positions": 6, "learned_temperature": True},
}


def build(name: str, **changes: object) -> EnergyTransformer:
    torch.manual_seed(0)
    model = EnergyTransformer(16, 24, num_heads=2, num_steps=8, **{**VARIANTS[name], **changes}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    return model


def inputs(steps: int, batch: int = 3) -> torch.Tensor:
    return 2 * torch.randn(batch, steps, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


MASK = torch.tensor([[True] * 9, [True] * 5 + [False] * 4, [True] + [False] * 8])


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
@pytest.mark.parametrize("name", VARIANTS)
def test_closed_form_gradient_is_that_of_autograd(name, mask):
    model, normed = build(name), inputs(9).requires_grad_()
    (expected,) = torch.autograd.grad(model.energy(normed, mask).sum(), normed)
    torch.testing.assert_close(model.gradient(normed, mask), expected, rtol=1e-9, atol=1e-9)


def test_blocks_of_queries_change_nothing(monkeypatch):
    model, normed = build("relu, rotary"), inputs(9)
    whole = model.energy(normed, MASK), model.gradient(normed, MASK)
    monkeypatch.setattr(energy, "_QUERIES_PER_BLOCK", 4)
    torch.testing.assert_close(
        (model.energy(normed, MASK), model.gradient(normed, MASK)), whole, rtol=1e-12, atol=1e-12
    )


def test_training_gradients_are_those_of_double_backward():
    model = build("softmax, none", monotone=False)
    hidden = inputs(5)
    model(hidden, num_steps=3).hidden.square().sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for _ in range(3):
        normed = model.norm(hidden) if hidden.requires_grad else model.norm(hidden.requires_grad_())
        (gradient,) = torch.autograd.grad(model.energy(normed).sum(), normed, create_graph=True)
        hidden = hidden - model.step_size * gradient
    hidden.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name):
    model = build(name)
    model(inputs(6)).hidden.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name


@pytest.mark.parametrize("seed", range(4))
def test_energy_falls_on_small_steps_with_one_gain(seed):
    torch.manual_seed(seed)
    model = EnergyTransformer(12, 20, num_heads=3, num_steps=40, step_size=0.02, monotone=False).double()
    torch.nn.init.uniform_(model.norm.gain, 0.5, 2.0)
    torch.nn.init.normal_(model.norm.bias)
    energies = model(2 * torch.randn(4, 7, 12, dtype=torch.float64), output_energies=True).energies
    assert energies.shape == (41, 4)
    assert (energies.diff(dim=0) <= 0).all() and (energies[-1] < energies[0] - 1e-3).all()


@pytest.mark.parametrize("step_size", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_monotone_descent_never_rises_at_any_step_size(name, step_size):
    model = build(name, step_size=step_size).float()
    energies = model(inputs(9).float(), output_energies=True, mask=MASK).energies
    assert energies.isfinite().all() and (energies.diff(dim=0) <= 0).all()


def test_monotone_descent_holds_where_negative_gains_turn_it_around():
    energies = {}
    for monotone in (False, True):
        model = build("layer norm, table", monotone=monotone)
        with torch.no_grad():
            model.norm.weight *= -1
        energies[monotone] = model(inputs(9), output_energies=True).energies
    assert (energies[False].diff(dim=0) > 0).any()
    assert (energies[True].diff(dim=0) <= 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_any_length(name):
    model = build(name)
    for steps in (1, 2, 7, 50):
        assert model(inputs(steps)).hidden.shape == (3, steps, 16)


@pytest.mark.parametrize("name", ["relu, rotary", "softmax, none"])
def test_padding_is_neither_moved_nor_seen(name):
    model, hidden = build(name), inputs(9)
    changed = torch.where(MASK[..., None], hidden, 7.0 - hidden)
    output = model(changed, mask=MASK).hidden
    torch.testing.assert_close(output[~MASK], changed[~MASK], rtol=0, atol=0)
    for row, length in enumerate(MASK.sum(dim=1)):
        alone = model(hidden[row : row + 1, :length]).hidden[0]
        torch.testing.assert_close(output[row, :length], alone, rtol=1e-9, atol=1e-9)


def test_rotary_positions_are_relative_and_matter():
    model, hidden = build("relu, rotary"), inputs(6)
    flipped = model(hidden.flip(1)).hidden.flip(1)
    assert (model(hidden).hidden - flipped).abs().max() > 1e-3
    plain = build("relu, rotary", positions="none")
    torch.testing.assert_close(plain(hidden.flip(1)).hidden.flip(1), plain(hidden).hidden, rtol=1e-9, atol=1e-9)


def test_inference_records_nothing_and_training_keeps_no_graph_of_energies():
    model = build("relu, rotary")
    with torch.inference_mode():
        assert model(inputs(5)).hidden.grad_fn is None
    output = model(inputs(5), output_energies=True)
    assert output.hidden.grad_fn is not None and output.energies.grad_fn is None


def test_norm_is_the_gradient_of_its_convex_lagrangian():
    torch.manual_seed(0)
    norm, hidden = EnergyNorm(7).double(), torch.randn(7, dtype=torch.float64, requires_grad=True)
    torch.nn.init.constant_(norm.gain, 1.7)
    torch.nn.init.normal_(norm.bias)
    (gradient,) = torch.autograd.grad(norm.lagrangian(hidden), hidden)
    torch.testing.assert_close(gradient, norm(hidden))
    hessian = torch.autograd.functional.hessian(norm.lagrangian, hidden)
    torch.testing.assert_close(hessian, hessian.T)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-9


def test_wrong_arguments_are_refused():
    for arguments, part in (
        ({"norm": "batch"}, "'batch'"),
        ({"memory": "tanh"}, "'tanh'"),
        ({"positions": "table"}, "num_positions"),
        ({"num_steps": 0}, "num_steps"),
    ):
        with pytest.raises(ValueError) as error:
            EnergyTransformer(8, 8, num_heads=2, **arguments)
        assert_error(error, part)
    with pytest.raises(ValueError, match="-1"):
        build("relu, rotary")(inputs(3), num_steps=-1)
