"""Codebooks learn when they are told to: once per step, over micro batches, never from what is not finite."""

from __future__ import annotations

import pytest
import torch
from quantization_utils import (
    KINDS,
    LEVELS,
    assert_same_state,
    batch,
    build,
    generator,
    learn,
    state_of,
    trained,
)
from testing_utils import assert_error


@pytest.mark.parametrize("kind", KINDS)
def test_forward_changes_nothing(kind):
    quantizer = trained(kind).train()
    before = state_of(quantizer)
    quantizer(batch(seed=9).requires_grad_()).loss.backward()
    quantizer(batch(seed=9))
    assert_same_state(before, state_of(quantizer))
    assert not quantizer.update_codebooks(), "nothing was accumulated"
    assert_same_state(before, state_of(quantizer))


@pytest.mark.parametrize("kind", ["ema", "gradient", "sizes"])
def test_micro_batches_learn_as_one_batch(kind):
    whole, parts = (trained(kind, restart_threshold=0.0).train() for _ in range(2))
    learn(whole, batch(6, seed=9))
    learn(parts, *batch(6, seed=9).split(2))
    assert_same_state(state_of(whole), state_of(parts), rtol=1e-5, atol=1e-6)
    twice = trained(kind, restart_threshold=0.0).train()
    for part in batch(6, seed=9).split(2):
        learn(twice, part)
    assert not torch.allclose(twice.codebook(0).cluster_size, whole.codebook(0).cluster_size, rtol=1e-3)


def test_checkpointed_activations_learn_once():
    from torch.utils.checkpoint import checkpoint

    plain, checkpointed = (trained().train() for _ in range(2))
    gradients = []
    for quantizer, run in (
        (plain, lambda q, x: q(x)),
        (checkpointed, lambda q, x: checkpoint(q, x, use_reentrant=False)),
    ):
        hidden = batch(seed=9).requires_grad_()
        output = run(quantizer, hidden)
        (output.loss + output.quantized.square().mean()).backward()
        quantizer.accumulate(output)
        assert quantizer.update_codebooks(generator())
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert_same_state(state_of(plain), state_of(checkpointed))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_a_broken_sample_is_refused_and_leaves_no_trace(kind, bad):
    quantizer, untouched = trained(kind).train(), trained(kind).train()
    before, broken = state_of(quantizer), batch(seed=9)
    broken[1, 3, 7] = bad
    for hidden in (batch(seed=8), broken):  # one broken micro batch spoils the step, as it spoils the gradients
        quantizer.accumulate(quantizer(hidden))
    assert not quantizer.update_codebooks(generator())
    assert_same_state(before, state_of(quantizer))
    assert learn(quantizer, batch(seed=10)).loss.isfinite()
    learn(untouched, batch(seed=10))
    assert_same_state(state_of(untouched), state_of(quantizer))
    fresh = build(kind).train()
    with pytest.raises(ValueError, match="hidden must be finite"):
        fresh.initialize_codebooks(broken)
    fresh.accumulate(fresh(broken))
    assert not fresh.update_codebooks() and not fresh.codebook(0).initted


def test_discarded_steps_and_outputs_of_evaluation():
    quantizer = trained().train()
    before = state_of(quantizer)
    quantizer.accumulate(quantizer(batch(seed=9)))
    quantizer.discard_accumulated()
    assert not quantizer.update_codebooks()
    assert_same_state(before, state_of(quantizer))
    output = quantizer.eval()(batch())
    assert output.codebook_inputs is None
    with pytest.raises(ValueError) as error:
        quantizer.accumulate(output)
    assert_error(error, "codebook_inputs", "evaluation mode", "train()")


def test_levels_that_no_call_used_stay():
    quantizer = trained().train()
    before = state_of(quantizer)
    quantizer.accumulate(quantizer(batch(seed=9), num_quantizers=2))
    assert quantizer.update_codebooks(generator())
    for level in range(LEVELS):
        name = f"codebooks.{level}.cluster_size"
        assert torch.equal(before[name], quantizer.state_dict()[name]) == (level >= 2)
