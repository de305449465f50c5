"""Checkpoints that do not fit an original quantizer are refused by name."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.models.soundstream.weights_quantizers import (
    fold_grid,
    quantizer_from_original,
    quantizer_to_original,
    unfold_grid,
)

RQ_VAE = {"latent_shape": [2, 3, 4], "code_shape": [2, 3, 2], "n_embed": 5, "shared_codebook": True}
KOHONEN = {"cls": "HardSOM", "num_embeddings": 6, "embedding_dim": 4, "blur": ["Hard", 0.1]}
ENCODEC = {"dimension": 4, "n_q": 2, "bins": 5}


def rq_vae() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    weight[-1] = 0
    return {
        f"codebooks.{level}.{name}": value.clone()
        for level in range(2)
        for name, value in (("weight", weight), ("embed_ema", weight[:-1]), ("cluster_size_ema", torch.ones(5)))
    }


def kohonen() -> dict[str, torch.Tensor]:
    return {
        "_w": torch.rand(6, 4),
        "_ema_w": torch.rand(6, 4),
        "_ema_cluster_size": torch.ones(6),
        "counter": torch.tensor(3.0),
    }


def encodec() -> dict[str, torch.Tensor]:
    return {
        f"vq.layers.{level}._codebook.{name}": value
        for level in range(2)
        for name, value in (
            ("embed", torch.rand(5, 4)),
            ("embed_avg", torch.rand(5, 4)),
            ("cluster_size", torch.ones(5)),
            ("inited", torch.ones(1)),
        )
    }


ORIGINS = {"rq_vae": (rq_vae, RQ_VAE), "kohonen_vae": (kohonen, KOHONEN), "encodec": (encodec, ENCODEC)}


@pytest.mark.parametrize("origin", ORIGINS)
def test_files_and_round_trips(origin, tmp_path):
    make, arguments = ORIGINS[origin]
    weights = make()
    torch.save(weights, tmp_path / "original.pt")
    made = quantizer_to_original(origin, quantizer_from_original(origin, tmp_path / "original.pt", arguments))
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("origin", ORIGINS)
def test_wrong_tensors_are_refused(origin):
    make, arguments = ORIGINS[origin]
    first = next(iter(make()))
    broken = [
        ({key: value for key, value in make().items() if key != first}, "missing"),
        (make() | {"extra.weight": torch.ones(1)}, "'extra.weight'"),
        (make() | {first: "code"}, first),
    ]
    if origin == "rq_vae":
        narrow = {key: value[..., :3] if value.ndim == 2 else value for key, value in make().items()}
        broken += [(narrow, "shape (5, 3)"), (make() | {"codebooks.2.weight": make()[first]}, "codebooks.2")]
    else:
        broken += [(make() | {first: torch.zeros(3, 3)}, "shape (3, 3)")]
    for weights, fragment in broken:
        with pytest.raises(ValueError) as error:
            quantizer_from_original(origin, weights, arguments)
        assert_error(error, fragment)


def test_padding_and_sharing_are_checked():
    weights = rq_vae()
    weights["codebooks.1.weight"][2, 1] += 1
    with pytest.raises(ValueError) as error:
        quantizer_from_original("rq_vae", weights, RQ_VAE)
    assert_error(error, "shared_codebook", "codebooks.1")
    quantizer = quantizer_from_original("rq_vae", weights, RQ_VAE | {"shared_codebook": False})
    assert len(quantizer.codebooks) == 2
    weights["codebooks.0.weight"][-1] = 1
    with pytest.raises(ValueError) as error:
        quantizer_from_original("rq_vae", weights, RQ_VAE | {"shared_codebook": False})
    assert_error(error, "codebooks.0.weight", "padding")


@pytest.mark.parametrize(
    ("origin", "changes", "fragments"),
    [
        ("encodec", {"n_qq": 3}, ("n_qq", "3")),
        ("rq_vae", {"commitment_loss": "plain"}, ("commitment_loss", "cumsum", "plain")),
        ("kohonen_vae", {"cls": "SoftSOM"}, ("cls", "HardSOM", "SoftSOM")),
        ("kohonen_vae", {"blur": ["Hard"]}, ("blur", "['Hard']")),
        ("kohonen_vae", {"grid_shape": [4, 2]}, ("grid_shape", "6", "(4, 2)")),
    ],
)
def test_wrong_arguments_are_refused(origin, changes, fragments):
    make, arguments = ORIGINS[origin]
    with pytest.raises(ValueError) as error:
        quantizer_from_original(origin, make(), arguments | changes)
    assert_error(error, *fragments)


def test_unknown_origins_are_refused():
    with pytest.raises(ValueError) as error:
        quantizer_from_original("elsewhere", {}, {})
    assert_error(error, "origin", "encodec", "'elsewhere'")


def test_grids_fold_and_unfold():
    latents = torch.arange(2 * 4 * 6 * 5.0).reshape(2, 4, 6, 5)
    vectors = fold_grid(latents, (2, 3))
    assert vectors.shape == (2, 20, 6)
    assert torch.equal(vectors[0, :, 4], latents[0, 2:4, 2:4].flatten())
    assert torch.equal(unfold_grid(vectors, (2, 3), (4, 6, 5)), latents)
    with pytest.raises(ValueError) as error:
        fold_grid(latents, (3, 3))
    assert_error(error, "latents", "multiple of 3", "(2, 4, 6, 5)")
