"""StyleGAN2's generator, discriminator and losses equal the original (fixture 16)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2 import IdeaStyleGan2Model
from melreformer_hf.nn.equalized import scaled_leaky_relu
from melreformer_hf.training.discriminators.stylegan2 import StyleGan2Discriminator
from melreformer_hf.training.losses.stylegan2 import (
    logistic_discriminator_loss,
    nonsaturating_generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)


@pytest.fixture(scope="module")
def golden():
    return fixture("16_stylegan2")


def arguments(golden) -> dict:
    """The constructor's, with the fixture's own table of widths."""
    return {**golden.config["args"], "channels": golden.config["channels"]}


def generator(golden) -> IdeaStyleGan2Model:
    return IdeaStyleGan2Model.from_original(golden.weights("g."), arguments(golden))


def discriminator(golden) -> StyleGan2Discriminator:
    return StyleGan2Discriminator.from_original(golden.weights("d."), arguments(golden))


def noises(golden) -> list[torch.Tensor]:
    count = sum(re.fullmatch(r"g\.noise\d+", key) is not None for key in golden.io)
    return [golden.io[f"g.noise{index}"] for index in range(count)]


def numbers_in(golden, beginning: str) -> dict[str, float]:
    """The keys that begin so, and the numbers that they end with."""
    return {key: float(key.removeprefix(beginning)) for key in golden.io if key.startswith(beginning)}


def test_generator_and_its_parts(golden):
    model, made = generator(golden), {}
    blocks = model.synthesis.blocks
    hooks = {"g.conv1_out": blocks[0].conv, "g.rgb1": blocks[0].to_picture, "g.convs0_up_out": blocks[1].up}
    hooks |= {"g.convs0_modconv_only": blocks[1].up.conv, "g.w": model.mapping}
    for key, module in hooks.items():
        module.register_forward_hook(lambda module, args, output, key=key: made.update({key: output}))
    model.mapping.layers[0].register_forward_pre_hook(lambda module, args: made.update({"g.pixelnorm": args[0]}))
    with torch.no_grad():
        output = model(golden.io["g.z"], noise=noises(golden))
    golden.assert_close("g.image", output.sample)
    golden.assert_close("g.latents", output.styles)
    golden.assert_stored(made)
    assert output.log2_num_frames is None


def test_stored_noise_mixing_and_truncation(golden):
    model, latents, noise = generator(golden), golden.io["g.z"], noises(golden)
    with torch.no_grad():
        golden.assert_close("g.image_buffer_noise", model(latents, noise="constant").sample)
        for key, index in numbers_in(golden, "g.image_mixing_inject").items():
            mixed = model(latents, mixing_latents=golden.io["g.z2"], mixing_index=int(index), noise=noise)
            golden.assert_close(key, mixed.sample)
        model.style_mean.copy_(golden.io["g.truncation_latent"].flatten())
        for key, psi in numbers_in(golden, "g.image_trunc").items():
            golden.assert_close(key, model(latents, truncation_psi=psi, noise=noise).sample)
        golden.assert_close("g.truncation_latent", model.mapping(latents).mean(0, keepdim=True))


def test_discriminator(golden):
    model, made = discriminator(golden), {}
    handles = [
        model.input_conv.register_forward_hook(
            lambda module, args, output: made.update({"d.convs0": scaled_leaky_relu(output)})
        ),
        model.blocks[0].register_forward_hook(lambda module, args, output: made.update({"d.convs1_down": output})),
    ]
    with torch.no_grad():
        golden.assert_close("d.logits", model(golden.io["d.x"]))
        assert made.keys() == {"d.convs0", "d.convs1_down"}
        golden.assert_stored(made)
        for handle in handles:
            handle.remove()
        golden.assert_close("d.logits_fake", model(golden.io["g.image"]))
        for key, rows in numbers_in(golden, "d.logits_batch").items():
            golden.assert_close(key, model(golden.io["d.x"][: int(rows)]))


def test_losses(golden):
    real, fake = golden.io["d.logits"], golden.io["d.logits_fake"]
    golden.assert_close("loss.d_logistic", logistic_discriminator_loss(real, fake))
    golden.assert_close("loss.g_nonsat", nonsaturating_generator_loss(fake))
    pictures = golden.io["d.x"].clone().requires_grad_()
    golden.assert_close("loss.r1", r1_penalty(discriminator(golden)(pictures), pictures))


def test_path_lengths(golden):
    output = generator(golden)(golden.io["g.z"], noise=noises(golden))
    lengths = path_lengths(output.sample, output.styles, golden.io["pl.noise"])
    golden.assert_close("pl.lengths", lengths)
    (before,) = {
        match[1] for remark in golden.config["remarks"] for match in re.finditer(r"m=([\d.]+) before", remark)
    }
    penalty, mean = path_length_penalty(lengths, float(before))
    golden.assert_close("pl.penalty", penalty)
    golden.assert_close("pl.mean", mean)


@pytest.mark.parametrize(("prefix", "load"), [("g.", generator), ("d.", discriminator)])
def test_round_trip(golden, prefix, load):
    weights, made = golden.weights(prefix), load(golden).to_original_state_dict()
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)
