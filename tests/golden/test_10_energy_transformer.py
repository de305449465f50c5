"""The energy transformer equals its torch port and its JAX original (fixture 10)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.soundstream.energy_soundstream import EnergyTransformer

PORT = {
    "query": "mha.Wq",
    "key": "mha.Wk",
    "attention_beta": "mha.beta",
    "memories": "hopfield.W",
    "memory_beta": "hopfield.beta",
    "gain": "norm.weight",
    "bias": "norm.bias",
    "positions": "pos_embedding",
}
JAX = {"query": "attn.Wq", "key": "attn.Wk", "memories": "hn.Xi", "gain": "lnorm.gamma", "bias": "lnorm.delta"}
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


def fill(model: EnergyTransformer, weights: dict, names: dict) -> EnergyTransformer:
    """Put an original's tensors in; every one of them must find its place."""
    places = {
        "query": model.attention.query,
        "key": model.attention.key,
        "attention_beta": model.attention.beta,
        "memories": model.memory.memories,
        "memory_beta": model.memory.beta,
        "gain": getattr(model.norm, "gain", getattr(model.norm, "weight", None)),
        "bias": model.norm.bias,
        "positions": model.position_table,
    }
    assert set(weights) <= set(names.values())
    with torch.no_grad():
        for place, name in names.items():
            if name in weights:
                places[place].copy_(weights[name].reshape(places[place].shape))
    return model


def port(golden, variant: str) -> EnergyTransformer:
    arguments = golden.config["torch_args"][int(variant[1:])]
    positions = arguments.get("context", 0) if arguments.get("use_positional_embedding", True) else 0
    model = EnergyTransformer(
        arguments["dim"],
        arguments["hidden_dim"],
        arguments["n_heads"],
        num_steps=arguments.get("n_iters_default", 12),
        step_size=0.1 if arguments.get("alpha") is None else arguments["alpha"],
        memory=arguments.get("hopfield_type", "relu"),
        norm="layer",
        positions="table" if positions else "none",
        num_positions=positions,
        learned_temperature=True,
        monotone=False,
    )
    return fill(model, golden.weights(f"{variant}."), PORT)


def jax_model(golden) -> EnergyTransformer:
    arguments = golden.config["jax_args"]
    model = EnergyTransformer(
        arguments["D"],
        int(arguments["scale_mems"] * arguments["D"]),
        arguments["n_heads"],
        head_dim=arguments["Y"],
        num_steps=golden.config["jax_steps"],
        step_size=golden.config["jax_alpha"],
        positions="none",
        monotone=False,
    )
    return fill(model, golden.weights("jax."), JAX)


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
            golden.assert_close(f"{variant}.x_after_step{step}", hidden)
            # The port reports the energy of states that are not normalised.
            assert_energy(golden, f"{variant}.energy_after_step{step}", model.energy(hidden).sum())


@pytest.mark.parametrize("variant", variants())
def test_training_gradients_of_the_port(golden, variant):
    model, key = port(golden, variant), f"{variant}.train.".__add__
    inputs = golden.io[f"{variant}.x"].clone().requires_grad_()
    name = next(name for name in golden.io if name.startswith(key("out")))
    output = model(inputs, num_steps=int(name.removeprefix(key("out")))).hidden
    golden.assert_close(name, output)
    (output * golden.io[key("grad_out")]).sum().backward()
    golden.assert_close(key("grad_x"), inputs.grad)
    golden.assert_close(key("grad_Wq"), model.attention.query.grad)
    golden.assert_close(key("grad_W"), model.memory.memories.grad)
    golden.assert_close(key("grad_norm_weight"), model.norm.weight.grad)


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
