"""The class GPT's contract and properties."""

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
from huggingface_hub.errors import StrictDataclassError
from testing_utils import ModelContractMixin, assert_error
from transformers import StaticCache

from melreformer_hf.models.class_gpt import modeling_class_gpt
from melreformer_hf.models.class_gpt.configuration_class_gpt import ClassGptConfig
from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel


class TestClassGptContract(ModelContractMixin):
    model_class = ClassGptModel
    main_output = "logits"

    def config(self):
        return ClassGptConfig.preset("tiny", num_tokens=12)

    def inputs(self, batch):
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(64, (3, 12), generator=generator)[:batch]
        return {"input_ids": tokens, "class_labels": torch.tensor([0, 3, 1])[:batch], "labels": tokens}

    def steps(self, model):
        return {"token": cached_token_step(model, {"class_labels": torch.tensor([0, 3])})}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ClassGptModel(ClassGptConfig.preset("tiny", num_tokens=20, initializer_range=0.2)).eval()


def test_published_size():
    with torch.device("meta"):
        model = ClassGptModel(ClassGptConfig.preset("vas"))
    assert model.num_parameters() == 302_854_144


def test_cached_steps_equal_the_whole(model):
    tokens, classes = torch.randint(64, (2, 20)), torch.tensor([1, 2])
    with torch.no_grad():
        whole = model(tokens, class_labels=classes).logits
        step = model(tokens[:, :3], class_labels=classes, use_cache=True)
        parts, cache = [step.logits], step.past_key_values
        for begin, end in ((3, 4), (4, 9), (9, 20)):
            parts.append(model(tokens[:, begin:end], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_the_future_does_not_change_the_past(model):
    tokens, classes = torch.randint(64, (1, 20)), torch.tensor([1])
    changed = tokens.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 64
    with torch.no_grad():
        before, after = (model(x, class_labels=classes).logits for x in (tokens, changed))
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=0)
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "top_k": 5}, {"num_beams": 3}], ids=["greedy", "k", "beam"])
def test_generation_with_and_without_cache(model, mode):
    made = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        made.append(model.generate(class_labels=torch.tensor([0, 2]), use_cache=use_cache, **mode))
    assert torch.equal(*made)
    assert made[0].shape == (2, model.config.num_tokens)


def test_the_configuration_can_leave_the_cache_out():
    check_use_cache_of_the_configuration(ClassGptModel, ClassGptConfig, {"class_labels": torch.tensor([0])})


@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "top_k": 5}, {"num_beams": 3}], ids=["greedy", "k", "beam"])
@pytest.mark.parametrize("begun", [False, True], ids=["from nothing", "continued"])
def test_a_static_cache_makes_the_same_tokens(model, mode, begun):
    check_static_cache(model, {"class_labels": torch.tensor([0, 2])}, mode, begun)


def test_a_static_step_compiles_into_one_graph(model):
    """Against the whole sequence: what the cache has not filled yet must be hidden, whoever asks."""
    check_static_steps(model, {"class_labels": torch.tensor([1, 2])})


def test_static_caches_that_cannot_work_are_refused_by_name(model):
    classes = torch.tensor([1])
    with pytest.raises(ValueError) as error:
        model.generate(class_labels=classes, cache_implementation="offloaded_static")
    assert_error(error, "cache_implementation", "offloaded_static")
    with pytest.raises(ValueError) as error:
        model.generate(class_labels=classes, cache_implementation="static", use_cache=False)
    assert_error(error, "use_cache=True")
    short = StaticCache(model.config, max_cache_len=5)
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, 5, dtype=torch.long), class_labels=classes, past_key_values=short)
    assert_error(error, "past_key_values", "6 positions", "max_cache_len=5")


def test_a_generator_makes_sampling_repeatable(model):
    state = torch.random.get_rng_state()
    made = [
        model.generate(
            class_labels=torch.tensor([0, 2]), do_sample=True, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (4, 4, 5)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_beginnings_are_kept_and_classes_matter(model):
    start = torch.randint(64, (2, 7))
    made = model.generate(start, class_labels=torch.tensor([0, 2]), max_length=15)
    assert torch.equal(made[:, :7], start)
    assert made.shape == (2, 15)
    same = model.generate(class_labels=torch.tensor([0, 1, 2, 3]))
    assert len({tuple(row.tolist()) for row in same}) > 1


def test_generation_returns_attention_weights(model):
    made = model.generate(
        class_labels=torch.tensor([0, 2]), max_new_tokens=3, return_dict_in_generate=True, output_attentions=True
    )
    assert [len(step) for step in made.attentions] == [2, 2, 2]
    for position, step in enumerate(made.attentions):
        assert step[-1].shape == (2, 4, 1, position + 1)
        torch.testing.assert_close(step[-1].sum(-1), torch.ones(2, 4, 1))


def test_wrong_requests_are_refused(model):
    with pytest.raises(ValueError, match="output_hidden_states"):
        model.generate(class_labels=torch.tensor([0, 2]), output_hidden_states=True)
    with pytest.raises(ValueError) as error:
        model.generate(class_labels=torch.tensor([0]), max_new_tokens=21)
    assert_error(error, "20", "21")
    with pytest.raises(ValueError, match="class_labels"):
        model.generate()
    with pytest.raises(ValueError, match="batch size"):
        model.generate(torch.zeros(2, 1, dtype=torch.long), class_labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="attention_mask"):
        beginning = torch.zeros(1, 2, dtype=torch.long)
        model.generate(beginning, class_labels=torch.tensor([0]), attention_mask=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="class_labels"):
        model(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="21"):
        model(torch.zeros(1, 21, dtype=torch.long), class_labels=torch.tensor([0]))

    weights = model.to_original_state_dict()
    arguments = {"vocab_size": 64, "block_size": 21, "n_layer": 2, "n_head": 4, "n_embd": 32, "class_size": 4}
    assert isinstance(ClassGptModel.from_original({"state_dict": weights}, arguments), ClassGptModel)
    with pytest.raises(ValueError, match="blocks.0.attn.mask"):
        broken = {**weights, "blocks.0.attn.mask": torch.ones(1, 1, 21, 21)}
        ClassGptModel.from_original(broken, arguments)
    with pytest.raises(ValueError, match="tok_emb.weight"):
        ClassGptModel.from_original(weights, {**arguments, "vocab_size": 65})
    with pytest.raises(ValueError, match="n_layers"):
        ClassGptModel.from_original(weights, {**arguments, "n_layers": 2})


def test_docstrings_run():
    results = doctest.testmod(modeling_class_gpt)
    assert results.attempted > 3
    assert results.failed == 0


def test_borders_of_the_configuration():
    inside, outside = from_one("num_tokens", "num_hidden_layers", "num_attention_heads", "num_classes")
    dropouts = ("embedding_dropout", "attention_dropout", "residual_dropout")
    inside |= dict.fromkeys(dropouts, (0.0, 0.99)) | {"vocab_size": (2,)}
    inside["hidden_size"] = ({"hidden_size": 1, "num_attention_heads": 1},)
    outside |= dict.fromkeys(dropouts, (-0.01, 1.0)) | {"vocab_size": (1,)}
    outside |= {"hidden_size": (0,), "num_attention_heads": (0, 3)}
    check_borders(partial(ClassGptConfig.preset, "tiny"), inside, outside)


@pytest.fixture(scope="module")
def orderless():
    torch.manual_seed(0)
    config = ClassGptConfig.preset(
        "tiny", num_tokens=10, initializer_range=0.2, null_class=True, any_order=True, class_names=list("abcd")
    )
    return ClassGptModel(config).eval()


@torch.no_grad()
def test_a_class_more_stands_for_any(orderless):
    assert orderless.class_embedding.num_embeddings == 5
    one, any_class = (orderless(torch.tensor([[1, 2]]), torch.tensor([label])).logits for label in (3, 4))
    assert not torch.allclose(one, any_class)
    assert orderless.config.class_label("c") == 2
    with pytest.raises(ValueError, match="one of \\['a', 'b', 'c', 'd'\\], got 'e'"):
        orderless.config.class_label("e")
    for label in (-1, 5):
        with pytest.raises(ValueError, match=f"0..4, got {label}"):
            orderless(torch.tensor([[1]]), torch.tensor([label]))


@torch.no_grad()
def test_tokens_in_any_order(orderless):
    tokens, classes = torch.randint(64, (2, 10)), torch.tensor([1, 2])
    usual = torch.arange(10).expand(2, -1)
    plain = orderless(tokens, classes).logits
    torch.testing.assert_close(orderless(tokens, classes, order=usual).logits, plain)
    order = torch.tensor([[0, 1, 5, 6, 7, 8, 9, 2, 3, 4], [3, 1, 9, 0, 2, 8, 7, 4, 6, 5]])
    moved = tokens.gather(1, order)
    whole = orderless(moved, classes, order=order).logits
    assert not torch.allclose(whole[:, 3:8], plain[:, 3:8])
    # What is predicted depends on the tokens before it in the order, and on no later one.
    changed = moved.clone()
    changed[:, 6] += 1
    again = orderless(changed % 64, classes, order=order).logits
    torch.testing.assert_close(again[:, :7], whole[:, :7])
    assert not torch.allclose(again[:, 7:], whole[:, 7:])
    # Two tokens that change places in the order, each with its own place, tell the same about all others.
    swapped, other = order[:1].clone(), moved[:1].clone()
    swapped[0, [0, 1]], other[0, [0, 1]] = order[0, [1, 0]], moved[0, [1, 0]]
    assert not torch.allclose(orderless(other, classes[:1], order=swapped).logits[:, 1], whole[:1, 1])
    step = orderless(moved[:, :4], classes, order=order, use_cache=True)
    rest = orderless(moved[:, 4:], order=order, past_key_values=step.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([step.logits, rest.logits], 1), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="any_order=False"):
        ClassGptModel(ClassGptConfig.preset("tiny")).eval()(tokens, classes, order=order)


def test_what_the_original_lacks_is_not_written_as_its_checkpoint(orderless):
    with pytest.raises(ValueError, match="null_class must be False for the original class GPT"):
        orderless.to_original_state_dict()
    some = ClassGptModel(ClassGptConfig.preset("tiny", any_order=True))
    with pytest.raises(ValueError, match="any_order must be False"):
        some.to_original_state_dict()


@pytest.mark.parametrize("names", [["a"], ["a", "a", "b", "c"], [1, 2, 3, 4]])
def test_names_are_as_many_as_classes(names):
    with pytest.raises(StrictDataclassError) as error:
        ClassGptConfig.preset("tiny", class_names=names)
    assert "class_names" in str(error.value)
