"""MelGAN's generator and discriminator equal the original (fixture 04)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture, recipe_tensor
from torch.nn.functional import leaky_relu

from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel
from melreformer_hf.models.melgan_vocoder.weights_melgan_vocoder import configuration_from_original, key_table
from melreformer_hf.originals.weight_norm import fold_weight_norms
from melreformer_hf.training.discriminators.melgan import MelGanDiscriminator


@pytest.fixture(scope="module")
def golden():
    return fixture("04_melgan")


def generator(golden) -> MelGanVocoderModel:
    return MelGanVocoderModel.from_original(golden.weights("generator."), golden.config["generator_args"])


def discriminator_arguments(golden) -> dict:
    return {**golden.config["discriminator_args"], "max_channels": golden.config["discriminator_channel_cap"]}


def test_generator(golden):
    model, outputs = generator(golden), {}
    for original, ours in key_table(model.config):
        match = re.fullmatch(r"model\.(\d+)\.(shortcut\.)?", original)
        if match:
            module = model.get_submodule(ours.removesuffix(".").removesuffix(".shortcut"))
            module.register_forward_hook(lambda m, args, output, n=int(match[1]): outputs.__setitem__(n, output))
    with torch.no_grad():
        waveform = model(golden.io["g.in"]).waveform
    golden.assert_close("g.out", waveform.reshape(golden.io["g.out"].shape))
    stored = {int(key.removeprefix("g.model")): key for key in golden.io if key.startswith("g.model")}
    assert stored
    for number, key in stored.items():
        # The original counts its activations as layers too.
        value = outputs[number] if number in outputs else leaky_relu(outputs[number - 1], 0.2)
        golden.assert_close(key, value)


def assert_same_function(made: dict, weights: dict) -> None:
    """Weight norms have one free length per channel: what they fold to must be the same."""
    assert made.keys() == weights.keys()
    made, weights = fold_weight_norms(made, "made"), fold_weight_norms(weights, "stored")
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_round_trips(golden):
    assert_same_function(generator(golden).to_original_state_dict(), golden.weights("generator."))
    weights = golden.weights("discriminator.")
    model = MelGanDiscriminator.from_original(weights, discriminator_arguments(golden))
    assert_same_function(model.to_original_state_dict(), weights)


def compare_discriminator(golden, prefix: str, results: tuple) -> None:
    compared = set()
    for scale, (logits, maps) in enumerate(zip(*results, strict=True)):
        pairs = {f"{prefix}.{scale}.out": logits.reshape(golden.io[f"{prefix}.{scale}.out"].shape)}
        for layer, features in enumerate(maps):
            pairs[f"{prefix}.{scale}.layer{layer}.mean"] = features.mean()
            pairs[f"{prefix}.{scale}.layer{layer}.absmean"] = features.abs().mean()
            pairs[f"{prefix}.{scale}.layer{layer}"] = features
        for key in pairs.keys() & golden.io.keys():
            golden.assert_close(key, pairs[key])
            compared.add(key)
    stored = {key for key in golden.io if key.startswith(f"{prefix}.") and not key.endswith(".in")}
    assert compared == stored


def test_discriminator(golden):
    model = MelGanDiscriminator.from_original(golden.weights("discriminator."), discriminator_arguments(golden))
    with torch.no_grad():
        compare_discriminator(golden, "d", model(golden.io["d.in"].squeeze(1)))


def test_discriminator_of_full_width(golden):
    recipe = golden.config["full_recipe_discriminator"]
    with torch.device("meta"):
        shapes = MelGanDiscriminator.from_original_arguments(recipe["args"]).to_original_state_dict()
    weights = {
        name: recipe_tensor(name, tuple(value.shape), recipe["seed"], recipe["bound_mul"])
        for name, value in shapes.items()
    }
    model = MelGanDiscriminator.from_original(weights, recipe["args"])
    rows = golden.io["full_d.0.out"].shape[0]
    with torch.no_grad():
        compare_discriminator(golden, "full_d", model(golden.io["d.in"][:rows].squeeze(1)))


def test_published_parameter_count(golden):
    (key,) = [name for name in golden.config if name.startswith("full_param_count")]
    sizes = dict(zip(("input_size", "ngf", "n_residual_layers"), map(int, key.split("_")[-3:]), strict=True))
    with torch.device("meta"):
        model = MelGanVocoderModel(configuration_from_original(sizes, None))
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.config[key]
