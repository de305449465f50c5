"""The energy transformer equals its torch port and its JAX original (fixture 10)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.soundstream.energy_soundstream import EnergyTransformer
from melreformer_hf.models.soundstream.weights_energy import energy_from_original, energy_to_original

RELATIVE_ENERGY_TOLERANCE = 1e-5  # README of the fixtures


@pytest.fixture(scope="module")
def golden():
    return fixture("10_energy_transformer")


def variants() -> list[str]:
    """The fixture's runs of the torch port."""
    try:
        return [f"t{number}" for number in range(len(fixture("10_energy_transformer").config["torch_args"]))]
    except pytest.skip.Exception:
        return ["t0"]


def port(golden, variant: str) -> EnergyTransformer:
    arguments = dict(golden.config["torch_args"][int(variant[1:])])
    if arguments.get("alpha", 0.1) is None:  # the fixture says that it was left out
        del arguments["alpha"]
    return energy_from_original("port", golden.weights(f"{variant}."), arguments)


def jax_model(golden) -> EnergyTransformer:
    loop = {"depth": golden.config["jax_steps"], "alpha": golden.config["jax_alpha"]}
    return energy_from_original("jax", golden.weights("jax."), golden.config["jax_args"] | loop)


@pytest.mark.parametrize("variant", [*variants(), "jax"])
def test_round_trip(golden, variant):
    model = jax_model(golden) if variant == "jax" else port(golden, variant)
    weights, made = golden.weights(f"{variant}."), energy_to_original("jax" if variant == "jax" else "port", model)
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)


def assert_energy(golden, key: str, actual: torch.Tensor) -> None:
    scale = golden.io[key].abs().max().item()
    golden.assert_close(key, actual, at_least=RELATIVE_ENERGY_TOLERANCE * scale)


@pytest.mark.parametrize("variant", variants())
def test_energies_and_gradients_of_the_port(golden, variant):
    model, key = port(golden, variant), f"{variant}.".__add__
    normed = model.norm(model._with_positions(golden.io[key("x")]))
    golden.assert_close(key("g0"), normed)
    assert_energy(golden, key("mha_energy_g0"), model.attention.energy(normed).sum())
    assert_energy(golden, key("hopfield_energy_g0"), model.memory.energy(normed).sum())
    golden.assert_close(key("mha_grad_g0"), model.attention.gradient(normed))
    golden.assert_close(key("hopfield_grad_g0"), model.memory.gradient(normed))
    golden.assert_close(key("grad_g0"), model.gradient(normed))


@pytest.mark.parametrize("variant", variants())
def test_descent_of_the_port(golden, variant):
    model = port(golden, variant)
    inputs = golden.io[f"{variant}.x"]
    with torch.no_grad():
        golden.assert_close(f"{variant}.out", model(inputs).hidden)
        for step in range(model.num_steps):
            hidden = model(inputs, num_steps=step + 1).hidden
            if f"{variant}.x_after_step{step}" in golden.io:
                golden.assert_close(f"{variant}.x_after_step{step}", hidden)
            # The port reports the energy of states that are not normalized.
            if f"{variant}.energy_after_step{step}" in golden.io:
                assert_energy(golden, f"{variant}.energy_after_step{step}", model.energy(hidden).sum())


@pytest.mark.parametrize("variant", variants())
def test_training_gradients_of_the_port(golden, variant):
    model, key = port(golden, variant), f"{variant}.train.".__add__
    inputs = golden.io[f"{variant}.x"].clone().requires_grad_()
    name = next(name for name in golden.io if name.startswith(key("out")))
    output = model(inputs, num_steps=int(name.removeprefix(key("out")))).hidden
    golden.assert_close(name, output)
    (output * golden.io[key("grad_out")]).sum().backward()
    gradients = {"grad_x": inputs.grad, "grad_Wq": model.attention.query.grad, "grad_W": model.memory.memories.grad}
    gradients["grad_norm_weight"] = model.norm.weight.grad
    compared = golden.assert_stored({key(name): value for name, value in gradients.items()})
    assert compared == {name for name in golden.io if name.startswith(key("grad_"))} - {key("grad_out")}


def test_norm_and_first_step_of_the_original(golden):
    model, inputs = jax_model(golden), golden.io["jax.x"]
    golden.assert_close("jax.g0", model.norm(inputs))
    golden.assert_close("jax.ln_lagrangian_token0", model.norm.lagrangian(inputs)[0])
    golden.assert_close("jax.ln_energy_token0", model.norm.energy(inputs)[0])
    normed = golden.io["jax.g0"][None]
    assert_energy(golden, "jax.attn_energy0", model.attention.energy(normed)[0])
    assert_energy(golden, "jax.hn_energy0", model.memory.energy(normed)[0])
    golden.assert_close("jax.dEdg0", model.gradient(normed)[0])


def test_descent_of_the_original(golden):
    model, inputs = jax_model(golden), golden.io["jax.x"][None]
    for step in range(model.num_steps):
        golden.assert_close(f"jax.x_after_step{step}", model(inputs, num_steps=step + 1).hidden[0])
    energies = model(inputs, output_energies=True).energies[:, 0]
    assert_energy(golden, "jax.energies_before_each_step", energies[:-1])
    assert_energy(golden, "jax.energy_final", energies[-1])
