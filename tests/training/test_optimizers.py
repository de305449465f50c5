"""Muon orthogonalizes hidden matrices, treats the rest as AdamW does, and learns."""

from __future__ import annotations

import pytest
import torch
from borders import check_borders
from torch import nn

from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.optimizers import (
    Muon,
    OptimizerSettings,
    build_optimizer,
    orthogonalize,
    set_learning_rate,
)


def settings(learning_rate: float, **overrides) -> OptimizerSettings:
    config = TrainingConfig(dataset="music", output_dir="run", max_steps=1, **overrides)
    return OptimizerSettings(learning_rate=learning_rate).completed(config)


@pytest.mark.parametrize("shape", [(32, 32), (48, 20), (20, 48), (300, 400)])
def test_singular_values_go_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.max() < 1.3 and values.min() > (0.3 if shape[0] != shape[1] else 0.0)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    similarity = nn.functional.cosine_similarity(orthogonalize(matrix).flatten(), (left @ right).flatten(), dim=0)
    assert similarity > 0.97


def test_groups_hold_every_parameter_once():
    network = nn.Sequential(nn.Conv1d(1, 32, 5), nn.Conv1d(32, 32, 3), nn.Embedding(64, 32), nn.Linear(32, 2))
    optimizer = build_optimizer(network, settings(1e-3, optimizer="muon"))
    assert isinstance(optimizer, Muon)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(network.parameters()))
    orthogonal = [p for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]]
    assert [id(p) for p in orthogonal] == [id(network[1].weight)]


def test_other_parameters_follow_adamw_exactly():
    common = {"weight_decay": 0.1, "adam_betas": (0.8, 0.95)}
    results = []
    for name in ("muon", "adamw"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))  # too small for matrices
        optimizer = build_optimizer(network, settings(1e-2, optimizer=name, **common))
        for step in range(5):
            set_learning_rate(optimizer, 1 / (step + 1))
            optimizer.zero_grad()
            network(torch.randn(16, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
        results.append([p.detach().clone() for p in network.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_update_has_the_promised_size_and_state_survives():
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=False)
    optimizer = build_optimizer(layer, settings(1e-2, optimizer="muon", weight_decay=0.0))
    before = layer.weight.detach().clone()
    layer(torch.randn(32, 64)).square().mean().backward()
    optimizer.step()
    size = (layer.weight - before).square().mean().sqrt().item()
    assert 0.6 * 0.2 * 1e-2 < size < 1.3 * 0.2 * 1e-2  # AdamW's typical root mean square is 0.2 of the rate

    restored = build_optimizer(layer, settings(1e-2, optimizer="muon"))
    restored.load_state_dict(optimizer.state_dict())
    for ours, theirs in zip(optimizer.state.values(), restored.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key])


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="optimizer must be one of .*sgd"):
        settings(1e-3, optimizer="sgd")
    with pytest.raises(ValueError, match="kind must be one of .*sgd"):
        OptimizerSettings(kind="sgd")


def test_settings_of_a_module_win_over_those_of_the_training():
    mine = OptimizerSettings(kind="muon", betas=(0.5, 0.6), max_grad_norm=7.0)
    config = TrainingConfig(dataset="d", output_dir="o", max_steps=1, learning_rate=0.25, weight_decay=0.5)
    given = mine.completed(config)
    assert (given.kind, given.betas, given.max_grad_norm) == ("muon", (0.5, 0.6), 7.0)
    assert (given.learning_rate, given.weight_decay, given.epsilon) == (0.25, 0.5, config.adam_epsilon)
    for wrong in ({"learning_rate": 0.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"max_grad_norm": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OptimizerSettings(**wrong)


def test_muons_steps_by_hand():
    """Two steps of a hidden matrix: Nesterov momentum, five Newton-Schulz steps, 0.2 sqrt(longer side), decay."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 24, bias=False)
    weight, momentum = layer.weight.detach().clone(), torch.zeros(24, 16)
    optimizer = build_optimizer(layer, settings(0.01, optimizer="muon", weight_decay=0.5))
    for seed in range(2):
        gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(seed))
        layer.weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = (0.05 * gradient + 0.95 * momentum).T
        update = update / update.norm()
        for _ in range(5):
            gram = update @ update.T
            update = 3.4445 * update - 4.7750 * gram @ update + 2.0315 * gram @ gram @ update
        weight = weight * (1 - 0.01 * 0.5) - 0.01 * 0.2 * 24**0.5 * update.T
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-4, atol=1e-5)


def test_only_layers_that_mix_at_least_16_inputs_into_16_outputs_are_orthogonalized():
    network = nn.ModuleList([nn.Linear(16, 16), nn.Linear(15, 64), nn.Linear(64, 15), nn.Conv1d(8, 16, 2)])
    optimizer = build_optimizer(network, settings(1e-3, optimizer="muon"))
    (chosen,) = (group["params"] for group in optimizer.param_groups if group["orthogonal"])
    assert [id(p) for p in chosen] == [id(network[0].weight), id(network[3].weight)]


def test_bounds_of_settings():
    positive = ("learning_rate", "epsilon", "max_grad_norm")
    inside = dict.fromkeys(positive, (1e-12,)) | {"betas": ((0.0, 0.999),), "weight_decay": (0.0,)}
    outside = dict.fromkeys(positive, (0.0,)) | {"betas": ((0.9,), (-0.1, 0.9), (0.9, 1.0)), "weight_decay": (-1e-9,)}
    check_borders(OptimizerSettings, inside, outside)
