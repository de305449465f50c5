"""Properties of self-organizing codebooks and of their topology measures."""

from __future__ import annotations

import pytest
import torch
from testing_utils import assert_error

from melreformer_hf.nn.quantization import Neighborhood, ResidualVectorQuantizer, SomQuantizer, VectorQuantizer
from melreformer_hf.nn.quantization.som import grid_distances, grid_shape_of, rank_correlation, topology


def plane(rows: int = 4, frames: int = 64, seed: int = 0) -> torch.Tensor:
    """(batch, 3, frame) points of a square plane in space."""
    places = torch.rand(rows, 2, frames, generator=torch.Generator().manual_seed(seed))
    return torch.stack([places[:, 0], places[:, 1], places[:, 0] - 0.5 * places[:, 1]], dim=1)


def learn(quantizer, hidden: torch.Tensor):
    output = quantizer(hidden)
    quantizer.accumulate(output)
    assert quantizer.update_codebooks()
    return output


def trained(steps: int = 150, seed: int = 0, **arguments) -> SomQuantizer:
    torch.manual_seed(seed)
    quantizer = SomQuantizer(3, 64, decay=0.9, **arguments).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02) if list(quantizer.parameters()) else None
    for step in range(steps):
        output = quantizer(plane(seed=step))
        if optimizer is not None:
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        quantizer.accumulate(output)
        assert quantizer.update_codebooks()
    return quantizer.eval()


@pytest.mark.parametrize("kernel", ["hard", "gaussian"])
def test_radius_zero_is_plain_vector_quantization_to_the_bit(kernel):
    torch.manual_seed(0)
    som = SomQuantizer(3, 64, neighborhood=Neighborhood(kernel=kernel, radius=0.0)).train()
    plain = VectorQuantizer(3, 64, commitment_weight=0.25, kmeans_iterations=0, restart_threshold=0.0).train()
    plain.load_state_dict({key: value for key, value in som.state_dict().items() if not key.endswith("step")})
    for step in range(5):
        hidden = plane(seed=step).requires_grad_()
        outputs = [learn(quantizer, hidden) for quantizer in (som, plain)]
        assert torch.equal(outputs[0].audio_codes, outputs[1].audio_codes)
        assert torch.equal(outputs[0].loss, outputs[1].loss)
        assert torch.equal(outputs[0].quantized, outputs[1].quantized)
    for key, value in plain.state_dict().items():
        assert torch.equal(som.state_dict()[key], value), key


def test_neighbors_move_with_the_chosen_codeword():
    torch.manual_seed(0)
    som = SomQuantizer(3, 12, neighborhood=Neighborhood(grid_shape=(4, 3))).train()
    codebook = som.codebook(0)
    before = codebook.codewords.clone()
    hidden = torch.full((1, 3, 5), 2.0)
    (code,) = learn(som, hidden).audio_codes.unique().tolist()
    moved = (codebook.codewords - before).abs().amax(1) > 1e-4
    near = grid_distances((4, 3))[code] < 1.5
    assert torch.equal(moved, near) and 4 <= near.sum() <= 9
    assert ((codebook.codewords - 2.0).norm(dim=1) < (before - 2.0).norm(dim=1))[near].all()


def test_the_pull_on_neighbors_is_the_mean_of_weighted_squares():
    torch.manual_seed(0)
    around = Neighborhood(kernel="gaussian", radius=2.0, weight=0.7)
    som = SomQuantizer(3, 12, update="gradient", neighborhood=around, commitment_weight=0.0, codebook_weight=0.0)
    codebook = som.train().codebook(0)
    torch.nn.init.normal_(codebook.codewords, mean=30.0)
    influence, before = codebook.influence().double(), codebook.codewords.detach().double()
    output = som(30.0 + plane())
    codes = output.audio_codes.flatten()
    moving = before.clone().requires_grad_()
    apart = (moving[None] - before[:, None]).square().sum(-1)
    expected = 0.7 * (influence * apart)[codes].sum(1).mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=1e-6)
    output.loss.backward()
    expected.backward()
    torch.testing.assert_close(codebook.codewords.grad.double(), moving.grad, rtol=1e-4, atol=1e-5)


def test_the_neighborhood_fades_and_its_center_stays():
    distances = grid_distances((5, 4))
    for kernel in ("hard", "gaussian"):
        around = Neighborhood(kernel=kernel, radius=1.5, shrink=0.5)
        early, late, last = (around.influence(distances, torch.tensor(step)) for step in (0, 10, 10**6))
        assert (early.diagonal() == 1).all() and (late.diagonal() == 1).all()
        assert (late <= early).all() and late.sum() < early.sum()
        torch.testing.assert_close(last, torch.eye(20), atol=1e-5, rtol=0)
        torch.testing.assert_close(early, early.T)


def test_the_step_is_counted_in_training_and_saved():
    som = trained(steps=7)
    som.train()(plane())
    assert som.codebook(0).step == 7
    again = SomQuantizer(3, 64, decay=0.9)
    again.load_state_dict(som.state_dict())
    assert again.codebook(0).step == 7
    torch.testing.assert_close(again.codebook(0).influence(), som.codebook(0).influence(), rtol=0, atol=0)
    outputs = [learn(quantizer.train(), plane(seed=9)) for quantizer in (som, again)]
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=0, atol=0)
    for key, value in som.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_training_orders_the_map(update):
    held_out = plane(seed=999)
    around = Neighborhood(radius=2.5, shrink=0.02)
    ordered = trained(update=update, neighborhood=around).topology(held_out)
    plain = trained(update=update, neighborhood=Neighborhood(radius=0.0)).topology(held_out)
    assert ordered.neighborhood_correlation > 0.7 > 0.3 > plain.neighborhood_correlation
    assert ordered.topographic_error < 0.5 < plain.topographic_error
    assert ordered.neighbor_distance_ratio < 0.5 < plain.neighbor_distance_ratio
    assert ordered.jitter_ratio < 0.35 < plain.jitter_ratio
    assert ordered.quantization_error < 1.5 * plain.quantization_error + 0.05


def test_measures_of_known_maps():
    places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij"), dim=-1)
    codewords = places.transpose(0, 1).reshape(-1, 2)  # first axis fastest
    distances = grid_distances((4, 3))
    vectors = codewords + torch.tensor([0.1, 0.0])
    perfect = topology(vectors, codewords, distances)
    torch.testing.assert_close(perfect.quantization_error, torch.tensor(0.1))
    torch.testing.assert_close(perfect.neighborhood_correlation, torch.tensor(1.0))
    assert perfect.topographic_error == 0
    shuffled = codewords[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    mixed = topology(vectors, shuffled, distances)
    torch.testing.assert_close(mixed.quantization_error, torch.tensor(0.1))
    assert mixed.topographic_error > 0.3 and mixed.neighborhood_correlation < 0.5
    assert mixed.jitter_ratio > perfect.jitter_ratio
    with pytest.raises(ValueError) as error:
        topology(vectors[:0], codewords, distances)
    assert_error(error, "two codewords", "0 and 12")


def test_rank_correlation_with_ties():
    first, second = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([10.0, 10.0, 30.0, 40.0])
    # Ranks 1, 2.5, 2.5, 4 and 1.5, 1.5, 3, 4: covariance 3.75, squares 4.5 and 4.5.
    torch.testing.assert_close(rank_correlation(first, second), torch.tensor(3.75 / 4.5))
    assert rank_correlation(first, torch.ones(4)) == 0


def test_maps_at_every_level():
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(3, 16, 3, neighborhood=Neighborhood(), decay=0.9).train()
    quantizer.initialize_codebooks(plane(seed=10))
    for step in range(10):
        learn(quantizer, plane(seed=step))
    assert [int(codebook.step) for codebook in quantizer.codebooks] == [10, 10, 10]
    output = quantizer.eval()(plane())
    assert torch.equal(quantizer.decode(output.audio_codes), output.quantized)
    assert (output.quantized - plane()).square().mean() < 0.02


def test_grids():
    assert [grid_shape_of(size, 2) for size in (512, 1024, 12, 7)] == [(32, 16), (32, 32), (4, 3), (7, 1)]
    assert grid_shape_of(9, 1) == (9,)
    cases = [
        (lambda: SomQuantizer(3, 12, neighborhood=Neighborhood(grid_shape=(5, 2))), ("grid_shape", "12", "(5, 2)")),
        (lambda: Neighborhood(kernel="round"), ("kernel", "hard", "'round'")),
        (lambda: Neighborhood(radius=-1.0), ("radius", "0 or more", "-1.0")),
        (lambda: SomQuantizer(3, 12, neighborhood=Neighborhood(num_axes=3)), ("num_axes", "1 or 2", "3")),
    ]
    for call, fragments in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert_error(error, *fragments)
