"""The multi-scale STFT discriminator, its losses and the balancer equal EnCodec's and audiocraft's (fixture 15)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture, number_in_words

from melreformer_hf.training.discriminators.stft import MultiScaleStftDiscriminator
from melreformer_hf.training.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss
from melreformer_hf.training.losses.balancer import LossBalancer
from melreformer_hf.training.losses.hinge import (
    hinge_discriminator_loss,
    hinge_generator_loss,
)

# What the fixture calls the constructor's arguments.
ARGUMENTS = {"balance_grads": "balance_gradients"}


@pytest.fixture(scope="module")
def golden():
    return fixture("15_msstft_balancer")


@pytest.fixture(scope="module")
def model(golden):
    return MultiScaleStftDiscriminator.from_original(golden.weights("d."), golden.config["args"])


def test_discriminator(golden, model):
    with torch.no_grad():
        logits, maps = model(golden.io["d.in"])
        spectra = [one.spectrum(golden.io["d.in"]) for one in model.discriminators]
    pattern = re.compile(r"d\.(\d+)\.(logits|stft_abs_mean|stft_real|stft_imag|fmap(\d+)(?:\.(mean|absmean))?)")
    compared = set()
    for key in golden.io:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        index, what, layer, measure = match.groups()
        spectrum, layers = spectra[int(index)], maps[int(index)]
        if layer is None:
            values = {
                "logits": layers[-1],
                "stft_abs_mean": spectrum.abs().mean(),
                "stft_real": spectrum.real,
                "stft_imag": spectrum.imag,
            }[what]
        else:
            values = layers[int(layer)]
            values = {"mean": values.mean(), "absmean": values.abs().mean(), None: values}[measure]
            if measure is None:  # some are stored as a corner
                values = values[tuple(slice(size) for size in golden.io[key].shape)]
        golden.assert_close(key, values)
        compared.add(key)
    assert compared == {key for key in golden.io if re.match(r"d\.\d", key)}
    for index, value in enumerate(logits):
        assert torch.equal(value, maps[index][-1].flatten(1))


def test_adversarial_losses(golden, model):
    with torch.no_grad():
        real_logits, real_maps = model(golden.io["d.in"])
        fake_logits, fake_maps = model(golden.io["d.fake"])
    count = len(real_logits)
    hinge = hinge_discriminator_loss(real_logits, fake_logits)
    losses = {
        "adv.mse.generator": generator_loss(fake_logits) / count,
        "adv.mse.discriminator": discriminator_loss(real_logits, fake_logits) / count,
        "adv.hinge.generator": hinge_generator_loss(fake_logits),
        "adv.hinge.discriminator": hinge,
        "adv.hinge2.generator": hinge_generator_loss(fake_logits, bounded=True),
        "adv.hinge2.discriminator": hinge,
        "adv.feature_matching": feature_matching_loss(
            [layers[:-1] for layers in real_maps], [layers[:-1] for layers in fake_maps], reduction="mean"
        ),
    }
    assert golden.assert_stored(losses) == {key for key in golden.io if key.startswith("adv.")}


def test_round_trip(golden, model):
    weights, ours = golden.weights("d."), model.to_original_state_dict()
    assert ours.keys() == weights.keys()
    again = MultiScaleStftDiscriminator.from_original(ours, golden.config["args"])
    for (name, one), (_, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7, msg=name)


def losses_of(output, target, words):
    """The three losses that the fixture's config describes, with the factors that it gives them."""
    factor = number_in_words([words], r"msspec = ([\d.]+)\*mean")
    share = number_in_words([words], r"\+ ([\d.]+)\*sum\(y\^3\)")
    return {
        "l1": (output - target).abs().mean(),
        "msspec": factor * (output.square() - target).square().mean(),
        "adv": (1 - output).relu().mean() + share * output.pow(3).sum(),
    }


def balanced_steps(golden, arguments, absent=()):
    """(step, gradient, loss, balancer) of the stored sequence of outputs."""
    settings = golden.config["balancer"]
    balancer = LossBalancer(settings["weights"], **arguments)
    for step, values in enumerate(golden.io["bal.x"]):
        output = values.clone().requires_grad_()
        losses = losses_of(output, golden.io["bal.target"], settings["losses"])
        losses = {name: losses[name] for name in settings["weights"] if (name, step) not in absent}
        loss = balancer(losses, output)
        loss.backward()
        yield step, output.grad, loss, balancer


def test_balancer(golden):
    compared = set()
    for variant, arguments in golden.config["balancer"]["variants"].items():
        ours = {ARGUMENTS.get(name, name): value for name, value in arguments.items()}
        for step, gradient, loss, balancer in balanced_steps(golden, ours):
            pairs = {f"bal.{variant}.grad{step}": gradient, f"bal.{variant}.effective_loss{step}": loss}
            for name, share in balancer.shares.items():
                pairs[f"bal.{variant}.ratio_{name}.{step}"] = torch.tensor(share)
            for key, value in pairs.items():
                golden.assert_close(key, value)
            compared |= set(pairs)
    stored = {key for key in golden.io if key.startswith("bal.") and key not in ("bal.x", "bal.target")}
    assert compared == {key for key in stored if not key.startswith("bal.missing.")}


def test_balancer_with_a_loss_that_comes_later(golden):
    words = re.match(
        r"ema_decay ([\d.]+); (\w+) absent at steps (\d+(?:(?:, | and )\d+)*)", golden.config["balancer"]["missing"]
    )
    absent = {(words[2], int(step)) for step in re.findall(r"\d+", words[3])}
    steps = balanced_steps(golden, {"ema_decay": float(words[1])}, absent=absent)
    compared = 0
    for step, gradient, _, _ in steps:
        if f"bal.missing.grad{step}" in golden.io:
            golden.assert_close(f"bal.missing.grad{step}", gradient)
            compared += 1
    assert compared == len([key for key in golden.io if key.startswith("bal.missing.grad")])
