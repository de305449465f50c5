"""The spatial/depth transformer equals RQ-Transformer (fixture 08, tensors `a.`, `b.` and soft codes)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.rq_transformer.modeling_rq_transformer import RQTransformerModel
from melreformer_hf.models.rq_transformer.sampling_rq_transformer import soft_codes
from melreformer_hf.models.rq_transformer.weights_rq_transformer import codebooks_from_original


@pytest.fixture(scope="module")
def golden():
    return fixture("08_rq_transformer")


def variants() -> list[str]:
    """The fixture's transformers, `a` and `b` in the committed set."""
    try:
        config = fixture("08_rq_transformer").config
    except pytest.skip.Exception:
        return ["a"]
    return [key for key, value in config.items() if isinstance(value, dict) and value.get("type") == "rq-transformer"]


def ours(codes):
    """(batch, height, width, depth, ...) of the original -> (batch, depth, position, ...)."""
    return codes.flatten(1, 2).transpose(1, 2)


def theirs(golden, key, values):
    """The inverse of `ours`, in the stored shape."""
    return values.transpose(1, 2).reshape(golden.io[key].shape)


def load(golden, variant):
    uses = any(golden.config[variant].get(name) for name in ("input_emb_vqvae", "head_emb_vqvae"))
    codebooks = codebooks_from_original(golden.weights("rq.")) if uses else None
    return RQTransformerModel.from_original(golden.weights(f"{variant}."), golden.config[variant], codebooks=codebooks)


def condition(golden, variant, model):
    ids = golden.io[f"{variant}.cond"]
    names = {"none": {}, "class": {"class_labels": ids.flatten()}, "sequence": {"condition_ids": ids}}
    return names[model.config.conditioning]


@pytest.mark.parametrize("variant", variants())
def test_logits_and_losses(golden, variant):
    model = load(golden, variant)
    codes, given = ours(golden.io[f"{variant}.tokens"]), condition(golden, variant, model)
    with torch.no_grad():
        hard = model(codes, labels=codes, **given)
        soft = model(codes, labels=ours(golden.io[f"{variant}.soft_target"]), **given)
    golden.assert_close(f"{variant}.logits", theirs(golden, f"{variant}.logits", hard.logits))
    golden.assert_close(f"{variant}.ce", hard.code_loss)
    golden.assert_close(f"{variant}.codebook_ce", hard.depth_losses)
    golden.assert_close(f"{variant}.soft_ce", soft.code_loss)
    if f"{variant}.cond_logits" in golden.io:
        golden.assert_close(f"{variant}.cond_logits", hard.condition_logits)
        golden.assert_close(f"{variant}.cond_ce", hard.condition_loss)


@pytest.mark.parametrize("variant", variants())
def test_greedy_sample(golden, variant):
    model, key = load(golden, variant), f"{variant}.greedy_sample"
    batch = len(golden.io[key])
    made = model.generate(do_sample=False, batch_size=batch, **condition(golden, variant, model))
    golden.assert_close(key, theirs(golden, key, made))


@pytest.mark.parametrize("variant", variants())
def test_round_trip(golden, variant):
    weights, made = golden.weights(f"{variant}."), load(golden, variant).to_original_state_dict()
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)


def test_soft_codes(golden):
    codebooks = codebooks_from_original(golden.weights("rq."))
    assert len(codebooks) == (1 if golden.config["rq"]["shared_codebook"] else golden.io["rq.codes"].shape[-1])
    latents = golden.io["rq.to_code_shape"].flatten(1, 2)
    depth = golden.io["rq.codes"].shape[-1]
    keys = [key for key in golden.io if key.startswith("rq.soft_codes_t")]
    assert keys
    for key in keys:
        temperature = float(key.removeprefix("rq.soft_codes_t"))
        codes, labels = soft_codes(latents, codebooks, depth, temperature)
        golden.assert_close(key, theirs(golden, key, labels))
        golden.assert_close("rq.codes", theirs(golden, "rq.codes", codes))
