"""Class GPT and GPT-VAE equal MelSpec_GPT_VQVAE (fixture 06, tensors `gpt.` and `vae.`)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture
from transformers import TopKLogitsWarper

from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel


@pytest.fixture(scope="module")
def golden():
    return fixture("06_melspec_gpt_vqvae")


@pytest.fixture(scope="module")
def class_gpt(golden):
    return ClassGptModel.from_original(golden.weights("gpt."), golden.config["gpt_args"])


def assert_round_trip(ours, original):
    assert ours.keys() == original.keys()
    for key, value in original.items():
        torch.testing.assert_close(ours[key].to(value.dtype), value, rtol=0, atol=0, msg=key)


def test_class_gpt_logits_and_loss(golden, class_gpt):
    tokens, classes = golden.io["gpt.tokens"], golden.io["gpt.class"]
    with torch.no_grad():
        output = class_gpt(tokens[:, :-1], class_labels=classes.flatten(), labels=tokens, output_attentions=True)
    golden.assert_close("gpt.logits", output.logits)
    golden.assert_close("gpt.loss", output.loss)
    golden.assert_stored({"gpt.full_logits": output.logits, "gpt.last_att": output.attentions[-1]})


def test_class_gpt_generation(golden, class_gpt):
    tokens, classes = golden.io["gpt.tokens"], golden.io["gpt.class"].flatten()
    for use_cache in (True, False):
        made = class_gpt.generate(class_labels=classes, max_new_tokens=tokens.shape[1], use_cache=use_cache)
        golden.assert_close("gpt.greedy", made)
        half = tokens[:, : tokens.shape[1] // 2]
        made = class_gpt.generate(half, class_labels=classes, max_length=tokens.shape[1], use_cache=use_cache)
        golden.assert_close("gpt.greedy_half", made)


def test_class_gpt_top_k(golden, class_gpt):
    """The tokens that top-k sampling may draw, and their logits."""
    keys = [key for key in golden.io if key.startswith("gpt.topk")]
    if not keys:
        pytest.skip("the golden set in use has no gpt.topk")
    for key in keys:
        k = int(key.removeprefix("gpt.topk"))
        scores = golden.io["gpt.logits"][:, -1]
        golden.assert_close(key, TopKLogitsWarper(k)(None, scores).clamp(min=-1e30))


def test_class_gpt_round_trip(golden, class_gpt):
    assert_round_trip(class_gpt.to_original_state_dict(), golden.weights("gpt."))


@pytest.fixture(scope="module")
def gpt_vae(golden):
    return GptVaeModel.from_original(golden.weights("vae."), golden.config["vae_args"])


def test_gpt_vae_posterior_and_loss(golden, gpt_vae):
    tokens, noise = golden.io["vae.tokens"], golden.io["vae.eps"].squeeze(1)
    key = next(key for key in golden.io if key.startswith("vae.loss_kl"))
    weight = float(key.removeprefix("vae.loss_kl"))
    with torch.no_grad():
        posterior = gpt_vae.encode(tokens, output_attentions=True)
        output = gpt_vae(tokens, labels=tokens, noise=noise, kl_weight=weight)
        density = gpt_vae.log_posterior(golden.io["vae.z_test"], posterior)
    golden.assert_close("vae.mu", posterior.mean)
    golden.assert_close("vae.logvar", posterior.log_variance)
    if "vae.enc_att" in golden.io:
        golden.assert_close("vae.enc_att", posterior.attentions[-1])
    golden.assert_close("vae.z", output.latents.unsqueeze(1))
    golden.assert_close("vae.logits", output.logits[:, :-1])
    golden.assert_close("vae.rec", output.reconstruction_loss)
    golden.assert_close("vae.kl", output.kl)
    golden.assert_close(key, output.reconstruction_loss + weight * output.kl)
    torch.testing.assert_close(output.loss, golden.io[key].mean())
    golden.assert_close("vae.log_q", density)


def test_gpt_vae_generation(golden, gpt_vae):
    length = golden.io["vae.greedy"].shape[1]
    for use_cache in (True, False):
        made = gpt_vae.generate(latents=golden.io["vae.z"].squeeze(1), max_new_tokens=length, use_cache=use_cache)
        golden.assert_close("vae.greedy", made)


def test_gpt_vae_round_trip(golden, gpt_vae):
    assert_round_trip(gpt_vae.to_original_state_dict(), golden.weights("vae."))
