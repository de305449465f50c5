"""Self-organizing codebooks equal Kohonen-VAE's, step by step (fixture 11)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture, number_in_words

from melreformer_hf.models.soundstream.weights_quantizers import quantizer_from_original, quantizer_to_original
from melreformer_hf.nn.quantization import VectorQuantizer
from melreformer_hf.nn.quantization.som import grid_coordinates, grid_distances

NAME = "11_ksom"


@pytest.fixture(scope="module")
def golden():
    return fixture(NAME)


def cases(without_neighbors: bool = False) -> list[str]:
    """The fixture's maps, or those of them that have no neighborhood."""
    try:
        known = fixture(NAME).config["cases"]
    except pytest.skip.Exception:
        return ["empty"]
    return [name for name, case in known.items() if not without_neighbors or case["blur"][0] == "Empty"]


def load(golden, case):
    arguments = dict(golden.config["cases"][case])
    if arguments["cls"] == "GDSOM":
        cost = number_in_words(golden.config["remarks"], r"kohonen_cost ([\d.]+) here", 1.0)
        arguments.setdefault("kohonen_cost", cost)
    return quantizer_from_original("kohonen_vae", golden.weights(f"{case}."), arguments)


def steps(golden, case) -> range:
    return range(sum(key.startswith(f"{case}.x") for key in golden.io))


@pytest.mark.parametrize("case", cases())
def test_grid_and_neighborhood(golden, case):
    codebook = load(golden, case).codebook(0)
    golden.assert_close(f"{case}.grid_coords", grid_coordinates(codebook.grid_shape))
    golden.assert_close(f"{case}.grid_distances", grid_distances(codebook.grid_shape))
    keys = [key for key in golden.io if key.startswith(f"{case}.blur_step")]
    assert keys
    for key in keys:
        step = int(key.removeprefix(f"{case}.blur_step"))
        made = codebook.neighborhood.influence(grid_distances(codebook.grid_shape), step)
        # The fixture stores what the original has before it sets the diagonal to one.
        torch.testing.assert_close(made.diagonal(), torch.ones(codebook.size))
        golden.assert_close(key, made.diagonal_scatter(golden.io[key].diagonal()))


@pytest.mark.parametrize("case", cases())
def test_training_steps(golden, case):
    quantizer = load(golden, case).train()
    gradient, codebook = quantizer.options.update == "gradient", quantizer.codebook(0)
    assert len(steps(golden, case))
    factor = number_in_words(golden.config["remarks"], r"backward of x: ([\d.]+)\*loss")
    rate = number_in_words(golden.config["remarks"], r"w <- w - ([\d.]+)\*grad") if gradient else 0.0
    for step in steps(golden, case):
        hidden = golden.io[f"{case}.x{step}"].transpose(1, 2).clone().requires_grad_()
        output = quantizer(hidden)
        golden.assert_close(f"{case}.idx{step}", output.audio_codes[:, 0])
        golden.assert_close(f"{case}.q{step}", output.quantized.transpose(1, 2))
        golden.assert_close(f"{case}.loss{step}", output.loss)
        golden.assert_close(f"{case}.perplexity{step}", output.perplexity[0])
        # The scalar of the fixture's gradients: so many losses + sum(q grad_q).
        pulled = (output.quantized.transpose(1, 2) * golden.io[f"{case}.grad_q{step}"]).sum()
        (factor * output.loss + pulled).backward()
        quantizer.accumulate(output)
        assert quantizer.update_codebooks()
        golden.assert_close(f"{case}.grad_x{step}", hidden.grad.transpose(1, 2))
        if gradient:
            golden.assert_close(f"{case}.grad_w{step}", codebook.codewords.grad)
            with torch.no_grad():
                codebook.codewords -= rate * codebook.codewords.grad
            codebook.codewords.grad = None
        else:
            golden.assert_close(f"{case}.ema_w_after{step}", codebook.vector_sum)
            golden.assert_close(f"{case}.ema_cluster_size_after{step}", codebook.cluster_size)
            golden.assert_close(f"{case}.counter_after{step}", codebook.step)
        golden.assert_close(f"{case}.w_after{step}", codebook.codewords)


@pytest.mark.parametrize("case", cases(without_neighbors=True))
def test_without_neighbors_it_is_plain_vector_quantization(golden, case):
    arguments = golden.config["cases"][case]
    plain = VectorQuantizer(
        arguments["embedding_dim"],
        arguments["num_embeddings"],
        decay=arguments["decay"],
        smoothing="running",
        commitment_weight=arguments.get("commitment_cost", 0.25),
        kmeans_iterations=0,
        restart_threshold=0.0,
    ).train()
    state = load(golden, case).state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if not key.endswith("step")})
    for step in steps(golden, case):
        output = plain(golden.io[f"{case}.x{step}"].transpose(1, 2))
        golden.assert_close(f"{case}.loss{step}", output.loss)
        plain.accumulate(output)
        assert plain.update_codebooks()
        golden.assert_close(f"{case}.w_after{step}", plain.codebook(0).codewords)


@pytest.mark.parametrize("case", cases())
def test_round_trip(golden, case):
    weights, made = golden.weights(f"{case}."), quantizer_to_original("kohonen_vae", load(golden, case))
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)
