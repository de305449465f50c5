"""The GPT-VAE's contract and properties."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from generation_utils import (
    cached_token_step,
    check_static_cache,
    check_static_steps,
    check_use_cache_of_the_configuration,
)
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.models.gpt_vae import modeling_gpt_vae
from melreformer_hf.models.gpt_vae.configuration_gpt_vae import GptVaeConfig
from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel, counted_divergence, gaussian_kl


class TestGptVaeContract(ModelContractMixin):
    model_class = GptVaeModel
    main_output = "logits"

    def config(self):
        return GptVaeConfig.preset("tiny", num_tokens=12)

    def inputs(self, batch):
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(64, (3, 12), generator=generator)[:batch]
        return {"input_ids": tokens, "labels": tokens}

    def steps(self, model):
        return {"token": cached_token_step(model, {"latents": torch.eye(32)[:2] * 3})}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GptVaeModel(GptVaeConfig.preset("tiny", num_tokens=20, initializer_range=0.2)).eval()


def test_published_size():
    with torch.device("meta"):
        model = GptVaeModel(GptVaeConfig.preset("vas"))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {"encoder": 304_811_008, "decoder": 302_845_952}
    assert model.num_parameters() == 607_656_960


def test_cached_steps_equal_the_whole(model):
    tokens, latents = torch.randint(64, (2, 20)), torch.randn(2, 32)
    with torch.no_grad():
        whole = model(tokens, latents=latents).logits
        step = model(tokens[:, :3], latents=latents, use_cache=True)
        parts, cache = [step.logits], step.past_key_values
        for begin, end in ((3, 4), (4, 20)):
            parts.append(model(tokens[:, begin:end], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "top_k": 5}], ids=["greedy", "top_k"])
def test_generation_with_and_without_cache(model, mode):
    made = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        made.append(model.generate(latents=torch.eye(32)[:2] * 3, use_cache=use_cache, **mode))
    assert torch.equal(*made)
    assert made[0].shape == (2, model.config.num_tokens)


@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "top_k": 5}], ids=["greedy", "top_k"])
@pytest.mark.parametrize("begun", [False, True], ids=["from nothing", "continued"])
def test_a_static_cache_makes_the_same_tokens(model, mode, begun):
    check_static_cache(model, {"latents": torch.eye(32)[:2] * 3}, mode, begun)


def test_the_configuration_can_leave_the_cache_out():
    latents = torch.zeros(1, GptVaeConfig.preset("tiny").hidden_size)
    check_use_cache_of_the_configuration(GptVaeModel, GptVaeConfig, {"latents": latents})


def test_a_static_step_compiles_into_one_graph(model):
    check_static_steps(model, {"latents": torch.eye(32)[:2] * 3})


def test_the_encoder_sees_both_ways(model):
    tokens = torch.randint(64, (1, 20))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 64
    assert not torch.allclose(model.encode(tokens).mean, model.encode(changed).mean)


def test_free_bits_count_what_exceeds_the_target():
    kl = torch.tensor([[1.0, 3.0], [0.5, 0.25]])
    expected = {"none": [4.0, 0.75], "sample": [4.0, 0.0], "dimension": [3.0, 0.0], "batch": [4.0, 0.75]}
    for mode, values in expected.items():
        torch.testing.assert_close(counted_divergence(kl, mode, 2.25), torch.tensor(values), msg=mode)
    assert counted_divergence(kl, "batch", 2.5).sum() == 0
    with pytest.raises(ValueError, match="beam"):
        counted_divergence(kl, "beam", 1.0)


def test_free_bits_have_the_gradient_of_the_maximum():
    mean = torch.randn(6, 8, requires_grad=True)
    per_dimension = gaussian_kl(mean, torch.zeros(6, 8))
    target = 4.0
    (ours,) = torch.autograd.grad(counted_divergence(per_dimension, "sample", target).sum(), mean, retain_graph=True)
    (theirs,) = torch.autograd.grad(per_dimension.sum(-1).clamp(min=target).sum(), mean)
    torch.testing.assert_close(ours, theirs)


def test_divergence_equals_torch_distributions():
    mean, log_variance = torch.randn(4, 8), torch.randn(4, 8)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


def test_mutual_information_and_active_units(model):
    far = modeling_gpt_vae.GptVaePosterior(mean=100 * torch.eye(32)[:8], log_variance=torch.zeros(8, 32))
    assert model.mutual_information(far).item() == pytest.approx(torch.tensor(8.0).log().item(), rel=1e-5)
    same = modeling_gpt_vae.GptVaePosterior(mean=torch.zeros(16, 32), log_variance=torch.zeros(16, 32))
    assert model.mutual_information(same).item() == pytest.approx(0.0, abs=1e-5)
    assert model.active_units(far.mean).item() == 8


def test_stages_of_training():
    torch.manual_seed(0)
    model = GptVaeModel(GptVaeConfig.preset("tiny", num_tokens=8, fixed_variance=0.25))
    tokens = torch.randint(64, (2, 8))
    output = model(tokens, labels=tokens, kl_weight=0.0)
    torch.testing.assert_close(output.loss, output.reconstruction_loss.mean())
    torch.testing.assert_close(output.posterior_log_variance.exp(), torch.full((2, 32), 0.25))
    encoder, decoder = model.encoder.head.weight.clone(), model.decoder.head.weight.clone()
    model.reset_decoder()
    assert torch.equal(model.encoder.head.weight, encoder)
    assert not torch.equal(model.decoder.head.weight, decoder)


def test_generation_returns_attention_weights(model):
    made = model.generate(
        latents=torch.eye(32)[:2], max_new_tokens=3, return_dict_in_generate=True, output_attentions=True
    )
    assert [len(step) for step in made.attentions] == [2, 2, 2]
    for position, step in enumerate(made.attentions):
        assert step[-1].shape == (2, 4, 1, position + 1)
        torch.testing.assert_close(step[-1].sum(-1), torch.ones(2, 4, 1))


def test_wrong_requests_are_refused(model):
    with pytest.raises(ValueError, match="output_hidden_states"):
        model.generate(latents=torch.eye(32)[:2], output_hidden_states=True)
    with pytest.raises(ValueError, match="latents"):
        model.generate()
    with pytest.raises(ValueError) as error:
        model()
    assert_error(error, "input_ids", "latents")
    with pytest.raises(ValueError, match="steps"):
        model.interpolate(torch.zeros(1, 32), torch.ones(1, 32), steps=1)
    with pytest.raises(Exception, match="free_bits"):
        GptVaeConfig(free_bits="some")


def test_broken_original_checkpoints_are_refused(model):
    weights = model.to_original_state_dict()
    arguments = {"vocab_size": 64, "block_size": 20, "n_layer": 2, "n_head": 4, "n_embd": 32, "fb": 2, "target_kl": 8}
    assert GptVaeModel.from_original(weights, arguments).config.free_bits == "dimension"
    with pytest.raises(ValueError, match="decoder.loss.weight"):
        GptVaeModel.from_original({**weights, "decoder.loss.weight": torch.zeros(64)}, arguments)
    with pytest.raises(ValueError, match="encoder.transformer.blocks.0.attn.mask"):
        broken = {**weights, "encoder.transformer.blocks.0.attn.mask": torch.ones(20, 20).tril()[None, None]}
        GptVaeModel.from_original(broken, arguments)
    with pytest.raises(ValueError, match="missing key 'decoder.transformer.head.weight'"):
        missing = {key: value for key, value in weights.items() if key != "decoder.transformer.head.weight"}
        GptVaeModel.from_original(missing, arguments)


def test_docstrings_run():
    results = doctest.testmod(modeling_gpt_vae)
    assert results.attempted > 3
    assert results.failed == 0


def test_borders_of_the_configuration():
    inside, outside = from_one("num_tokens", "num_hidden_layers", "num_attention_heads")
    dropouts = ("embedding_dropout", "attention_dropout", "residual_dropout")
    inside |= dict.fromkeys(dropouts, (0.0, 0.99)) | {"vocab_size": (2,)}
    inside["hidden_size"] = ({"hidden_size": 1, "num_attention_heads": 1},)
    outside |= dict.fromkeys(dropouts, (-0.01, 1.0)) | {"vocab_size": (1,)}
    outside |= {"hidden_size": (0,), "num_attention_heads": (0, 3)}
    inside |= {"target_kl": (0.0,), "fixed_variance": (0.0,)}
    outside |= {"target_kl": (-0.01,), "fixed_variance": (-0.01,)}
    check_borders(partial(GptVaeConfig.preset, "tiny"), inside, outside)


@torch.no_grad()
def test_the_decoder_may_be_given_less_than_the_encoder():
    torch.manual_seed(0)
    model = GptVaeModel(GptVaeConfig.preset("tiny", initializer_range=0.2)).eval()
    tokens, others = torch.randint(64, (2, 6)), torch.randint(64, (2, 6))
    output = model(tokens, decoder_input_ids=others, labels=tokens)
    latents = model.encode(tokens).mean
    torch.testing.assert_close(output.latents, latents)
    torch.testing.assert_close(output.logits, model(others, latents=latents).logits)
    nats = torch.nn.functional.cross_entropy(output.logits[:, :6].transpose(1, 2), tokens, reduction="none").sum(1)
    torch.testing.assert_close(output.reconstruction_loss, nats)
