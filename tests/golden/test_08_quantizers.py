"""The residual quantizer equals RQ-VAE's, with one shared codebook and with one per depth (fixture 08, `rq*.`)."""

from __future__ import annotations

import re

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.soundstream.weights_quantizers import (
    fold_grid,
    quantizer_from_original,
    quantizer_to_original,
    unfold_grid,
)
from melreformer_hf.nn.quantization import QuantizerOutput, VectorQuantizer

NAME = "08_rq_transformer"


@pytest.fixture(scope="module")
def golden():
    return fixture(NAME)


def variants() -> list[str]:
    """The fixture's quantizers, `rq` and `rq2` in the committed set."""
    try:
        config = fixture(NAME).config
    except pytest.skip.Exception:
        return ["rq"]
    return [key for key, value in config.items() if isinstance(value, dict) and "code_shape" in value]


def load(golden, variant, **changes):
    arguments = golden.config[variant] | changes
    return quantizer_from_original("rq_vae", golden.weights(f"{variant}."), arguments)


def fold(golden, variant, latents):
    """(batch, height, width, channel) -> (batch, dim, position)."""
    return fold_grid(latents, golden.config[variant]["code_shape"][:2])


def unfold(golden, variant, vectors):
    config = golden.config[variant]
    return unfold_grid(vectors, config["code_shape"][:2], config["latent_shape"])


def codes_as_stored(golden, variant, codes):
    """(batch, depth, position) -> (batch, row, column, depth)."""
    return codes.transpose(1, 2).unflatten(1, golden.config[variant]["code_shape"][:2])


def test_there_are_quantizers(golden):
    assert variants()


@pytest.mark.parametrize("variant", variants())
def test_codes_and_codewords(golden, variant):
    quantizer, latents = load(golden, variant), golden.io[f"{variant}.in"]
    rows, columns, _ = golden.config[variant]["code_shape"]
    vectors = fold(golden, variant, latents)
    golden.assert_close(f"{variant}.to_code_shape", vectors.transpose(1, 2).unflatten(1, (rows, columns)))
    assert torch.equal(unfold(golden, variant, vectors), latents)
    codes = quantizer.encode(vectors)
    golden.assert_close(f"{variant}.codes", codes_as_stored(golden, variant, codes))
    golden.assert_close(f"{variant}.embed_code", unfold(golden, variant, quantizer.decode(codes)))
    levels = quantizer.decode_levels(codes)  # (batch, depth, dim, position)
    stored = levels.permute(0, 3, 1, 2).unflatten(1, (rows, columns))
    golden.assert_close(f"{variant}.embed_with_depth", stored)
    partials = levels.cumsum(1).transpose(2, 3).unflatten(2, (rows, columns)).unbind(1)
    golden.assert_stored({f"{variant}.partial{depth}": partial for depth, partial in enumerate(partials)})


@pytest.mark.parametrize("variant", variants())
def test_partial_sums_of_codes(golden, variant):
    quantizer = load(golden, variant)
    codes = quantizer.encode(fold(golden, variant, golden.io[f"{variant}.in"]))
    for key in (key for key in golden.io if re.fullmatch(rf"{variant}\.partial_add\d+", key)):
        depth = int(key.rsplit("partial_add", 1)[1])
        golden.assert_close(key, unfold(golden, variant, quantizer.decode(codes[:, : depth + 1])))


@pytest.mark.parametrize("variant", variants())
def test_loss_and_gradients(golden, variant):
    quantizer = load(golden, variant)
    hidden = fold(golden, variant, golden.io[f"{variant}.in"]).requires_grad_()
    output = quantizer(hidden)
    golden.assert_close(f"{variant}.zq", unfold(golden, variant, output.quantized))
    golden.assert_close(f"{variant}.commitment", output.loss)
    grad_output = fold(golden, variant, golden.io[f"{variant}.grad_zq"])
    (straight,) = torch.autograd.grad(output.quantized, hidden, grad_output, retain_graph=True)
    torch.testing.assert_close(straight, grad_output, rtol=0, atol=0)
    (commitment,) = torch.autograd.grad(output.loss, hidden)
    # The fixture's scalar is sum(zq grad_zq) plus the commitment times a factor that it does not state.
    difference = fold(golden, variant, golden.io[f"{variant}.grad_x"]) - grad_output
    factor = (difference * commitment).sum() / commitment.square().sum()
    assert factor > 0.1
    golden.assert_close(f"{variant}.grad_x", unfold(golden, variant, grad_output + factor * commitment))


def assert_state(golden, quantizer, prefix):
    made, compared = quantizer_to_original("rq_vae", quantizer), 0
    for name, value in made.items():
        _, level, tensor = name.split(".")
        key = f"{prefix}.codebook{level}.{tensor}"
        if key in golden.io:
            golden.assert_close(key, value)
            compared += 1
    assert compared


def train(quantizer, hidden) -> QuantizerOutput:
    """A training step as the original makes it: every level's codebook learns before the next level is searched.

    That makes a difference where all levels share one codebook; so the levels are trained one by one.
    """
    residual, outputs = hidden, []
    for level in range(quantizer.num_quantizers):
        codebook = quantizer.codebook(level)
        one = VectorQuantizer(codebook.dim, codebook.size, commitment_weight=quantizer.commitment_weight).train()
        one.codebooks[0] = codebook
        outputs.append(one(residual))
        residual = residual - outputs[-1].quantized
        one.accumulate(outputs[-1])
        assert one.update_codebooks()
    return QuantizerOutput(
        quantized=sum(output.quantized for output in outputs),
        audio_codes=torch.cat([output.audio_codes for output in outputs], dim=1),
        loss=torch.stack([output.loss for output in outputs]).mean(),
    )


def train_at_once(quantizer, hidden) -> QuantizerOutput:
    """The package's step: all levels first, then their codebooks."""
    output = quantizer(hidden)
    quantizer.accumulate(output)
    assert quantizer.update_codebooks()
    return output


@pytest.mark.parametrize("variant", variants())
def test_training_steps(golden, variant):
    quantizer = load(golden, variant).train()
    inputs = golden.io[f"{variant}.train_in"]
    assert len(inputs)
    step_of = train if quantizer.shared_codebook else train_at_once
    for step, latents in enumerate(inputs):
        output = step_of(quantizer, fold(golden, variant, latents))
        golden.assert_close(f"{variant}.train{step}.codes", codes_as_stored(golden, variant, output.audio_codes))
        golden.assert_close(f"{variant}.train{step}.zq", unfold(golden, variant, output.quantized))
        golden.assert_close(f"{variant}.train{step}.loss", output.loss)
        assert_state(golden, quantizer, f"{variant}.train{step}")


@pytest.mark.parametrize("variant", variants())
def test_restart(golden, variant, monkeypatch):
    # While the original ran, its random order was 0, 1, 2, ... and its noise 0.5; every third code was little used.
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, 0.5, dtype=options.get("dtype")))
    quantizer = load(golden, variant, restart_unused_codes=True).train()
    for codebook in quantizer.codebooks:
        codebook.cluster_size[::3] = 0.4
    step_of = train if quantizer.shared_codebook else train_at_once
    output = step_of(quantizer, fold(golden, variant, golden.io[f"{variant}.train_in"][0]))
    golden.assert_close(f"{variant}.restart.codes", codes_as_stored(golden, variant, output.audio_codes))
    assert_state(golden, quantizer, f"{variant}.restart")


@pytest.mark.parametrize("variant", variants())
def test_round_trip(golden, variant):
    weights, made = golden.weights(f"{variant}."), quantizer_to_original("rq_vae", load(golden, variant))
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)
