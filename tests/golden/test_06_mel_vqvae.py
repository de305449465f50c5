"""The mel VQ-VAE equals MelSpec_VQVAE (fixture 06, tensors `vq.` and `recipe_vq.`)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture, recipe_tensor, tap

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.models.mel_vqvae.vqgan_mel_vqvae import AttentionBlock2d
from melreformer_hf.training.discriminators.patch import PatchDiscriminator
from melreformer_hf.training.losses.hinge import hinge_discriminator_loss


@pytest.fixture(scope="module")
def golden():
    return fixture("06_melspec_gpt_vqvae")


@pytest.fixture(scope="module")
def model(golden):
    return build(golden, golden.config["vq_args"], golden.weights("vq."), golden.io["vq.x"].shape[2])


def build(golden, arguments, weights, bins):
    mel = MelConfig.preset("specvqgan", num_mel_bins=bins).to_dict()
    return MelVqvaeModel.from_original(weights, arguments, mel=mel)


def to_mel(pictures):
    return (pictures.squeeze(1) + 1) / 2


def places(model, key: str) -> list[torch.nn.Module]:
    """The modules of whose outputs the fixture may store one under a key; none for what is no module's."""
    ends = {"vq.enc.conv_in": model.encoder.conv_in, "vq.enc.out": model.encoder, "vq.z": model.quant_conv}
    if key in ends:
        return [ends[key]]
    match = re.fullmatch(r"vq\.enc\.(down|downsample)(\d+)", key)
    if match is None:
        return []
    level = model.encoder.levels[int(match[2])]
    # Of a level's blocks the fixture does not say which one it shows.
    return list(level.blocks) if match[1] == "down" else [level.resample]


def test_encoder_quantizer_and_decoder(golden, model):
    mel = to_mel(golden.io["vq.x"])
    taps = {(key, number): module for key in golden.io for number, module in enumerate(places(model, key))}
    outputs = []
    seen = tap(model, taps, lambda: outputs.extend([model.encode(mel), model(mel)]))
    codes, output = outputs
    shown = {key: [values for (name, _), values in seen.items() if name == key] for key, _ in taps}
    assert {key for key in golden.io if key.startswith("vq.enc.")} <= shown.keys()
    for key, candidates in shown.items():
        nearest = min(candidates, key=lambda values, key=key: (values - golden.io[key]).abs().max())
        golden.assert_close(key, nearest)
    golden.assert_close("vq.codes", output.codes)
    golden.assert_close("vq.codes", codes)
    golden.assert_close("vq.loss", output.quantization_loss)
    golden.assert_close("vq.perplexity", output.perplexity)
    golden.assert_close("vq.recon", 2 * output.output_features.unsqueeze(1) - 1)


def test_quantizer_and_its_gradients(golden, model):
    shape = golden.io["vq.z"].shape
    codes = golden.io["vq.codes"].flatten(1).unsqueeze(1)
    golden.assert_close("vq.codebook_entry", model.quantizer.decode(codes).unflatten(2, shape[2:]))
    codebook = model.quantizer.codebook(0).codewords
    latents = golden.io["vq.z"].clone().requires_grad_()
    quantized = model.quantizer(latents.flatten(2))
    zq = quantized.quantized.unflatten(2, shape[2:])
    golden.assert_close("vq.zq", zq)
    (alone,) = torch.autograd.grad(quantized.loss, latents, retain_graph=True)
    golden.assert_close("vq.grad_z_lossonly", alone)
    total = (zq * golden.io["vq.grad_q"]).sum() + quantized.loss
    gradient, of_codebook = torch.autograd.grad(total, [latents, codebook])
    golden.assert_close("vq.grad_z", gradient)
    golden.assert_close("vq.grad_codebook", of_codebook)


def test_middle_attention(golden, model):
    block = model.encoder.middle.attention
    assert isinstance(block, AttentionBlock2d)
    with torch.no_grad():
        golden.assert_close("vq.mid_attn", block(golden.io["vq.attn_in"]))


def test_discriminator(golden):
    arguments = {key: value for key, value in golden.config["vq_args"].items() if key.startswith("disc_")}
    weights = golden.weights("vq.")
    network = PatchDiscriminator.from_original(weights, arguments).eval()
    with torch.no_grad():
        logits, maps = network(golden.io["vq.disc.in"])
    golden.assert_close("vq.disc.logits", maps[0][-1])
    # The stored loss has half the logits minus 0.3 in place of the fake's; the original halves the hinge.
    golden.assert_close("vq.hinge_d", 0.5 * hinge_discriminator_loss(logits, [0.5 * logits[0] - 0.3]))
    for key, value in network.to_original_state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0, msg=key)


def test_recipe_weights(golden):
    """The original's own group count, with weights by the fixtures' recipe."""
    recipe, pictures = golden.config["recipe_vq"], golden.io["recipe_vq.in"]
    mel = MelConfig.preset("specvqgan", num_mel_bins=pictures.shape[2]).to_dict()
    wide = MelVqvaeModel.from_original_arguments(recipe["args"], mel=mel)
    shapes = {key: tuple(value.shape) for key, value in wide.to_original_state_dict().items()}
    weights = {key: recipe_tensor(key, shape, recipe["seed"], recipe["bound_mul"]) for key, shape in shapes.items()}
    model = build(golden, recipe["args"], weights, pictures.shape[2])
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pictures))
        golden.assert_close("recipe_vq.z", latents)
        golden.assert_close("recipe_vq.decode_of_z", model.decoder(model.post_quant_conv(golden.io["recipe_vq.z"])))


def test_token_order(golden, model):
    """Grids are read column by column."""
    length = golden.io["perm.forward"].numel()
    batch = golden.io["perm.get_x"].shape[0]
    order = golden.io["perm.forward"]
    rows = int(golden.io["perm.backward"][1])
    grid = torch.arange(batch * length).reshape(batch, rows, -1)
    golden.assert_close("perm.get_x", model.codes_to_tokens(grid))
    golden.assert_close("perm.forward", model.codes_to_tokens(grid[:1])[0])
    assert torch.equal(order[golden.io["perm.backward"]], torch.arange(length))


def test_round_trip(golden, model):
    weights = {key: value for key, value in golden.weights("vq.").items() if not key.startswith("discriminator.")}
    ours = model.to_original_state_dict()
    assert ours.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0, msg=key)
