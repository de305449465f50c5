"""The spatial/depth transformer's contract and properties."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from plain_layers import gelu, linear, shake
from testing_utils import ModelContractMixin, assert_error
from transformers import DynamicCache

from melreformer_hf.models.rq_transformer import modeling_rq_transformer
from melreformer_hf.models.rq_transformer.configuration_rq_transformer import RQTransformerConfig
from melreformer_hf.models.rq_transformer.modeling_rq_transformer import RQTransformerModel
from melreformer_hf.models.rq_transformer.sampling_rq_transformer import soft_codes
from melreformer_hf.models.rq_transformer.weights_rq_transformer import codebooks_from_original
from melreformer_hf.nn.sampling import choose, draw

TINY = {"num_positions": 6, "initializer_range": 0.2}
CODEBOOK = {"code_embedding": "codebook", "head_code_embedding": "codebook", "codebook_dim": 8}
VARIANTS = {
    "plain": {},
    "class, shared tables": {
        **{"conditioning": "class", "condition_vocab_size": 5, "shared_table": True, "shared_classifier": True},
        "cumulative_depth_context": True,
    },
    "sequence, per-depth tables": {
        **{"conditioning": "sequence", "condition_vocab_size": 7, "num_condition_positions": 4},
        "activation": "quick_gelu",
    },
    "mel, codebooks": {"conditioning": "mel", "num_condition_positions": 5, **CODEBOOK},
    "shared codebook, summed": {**CODEBOOK, "shared_codebook": True, "cumulative_depth_context": True},
    "table and codebook": {**CODEBOOK, "head_code_embedding": "table"},
}


def build(name):
    torch.manual_seed(0)
    return RQTransformerModel(RQTransformerConfig.preset("tiny", **TINY, **VARIANTS[name])).eval()


def condition(config, batch):
    generator = torch.Generator().manual_seed(2)
    return {
        "none": {},
        "class": {"class_labels": torch.tensor([0, 4, 2])[:batch]},
        "sequence": {"condition_ids": torch.randint(7, (3, 4), generator=generator)[:batch]},
        "mel": {"input_features": torch.randn(3, 128, 5, generator=generator)[:batch]},
    }[config.conditioning]


class Contract(ModelContractMixin):
    model_class = RQTransformerModel
    main_output = "logits"
    variant: str

    def config(self):
        return RQTransformerConfig.preset("tiny", **TINY, **VARIANTS[self.variant])

    def inputs(self, batch):
        codes = torch.randint(16, (3, 3, 6), generator=torch.Generator().manual_seed(1))[:batch]
        return {"audio_codes": codes, "labels": codes, **condition(self.config(), batch)}

    def steps(self, model):
        """One position of the body, and one depth of the head, each after one that is cached."""
        inputs, heads = torch.randn(2, 1, 32), model.config.num_attention_heads
        held = torch.randn(2 * model.config.num_hidden_layers, 2, heads, 1, 32 // heads).unbind(0)

        def filled(parts):
            cache = DynamicCache()
            for index in range(len(parts) // 2):
                cache.update(parts[2 * index], parts[2 * index + 1], index)
            return cache

        def body(inputs, *parts):
            return model.body(inputs, past_key_values=filled(parts))[0]

        def head(inputs, *parts):
            return model._head_step(inputs, 1, filled(parts))

        return {"body": (body, (inputs, *held)), "head": (head, (inputs[:, 0], *held[:2]))}


class TestSequenceContract(Contract):
    variant = "sequence, per-depth tables"


class TestMelContract(Contract):
    variant = "mel, codebooks"


class TestSharedCodebookContract(Contract):
    variant = "shared codebook, summed"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("imagenet_480m", 480_921_088),
        ("imagenet_821m", 820_899_328),
        ("imagenet_1400m", 1_387_529_728),
        ("imagenet_3800m", 3_822_488_064),
        ("lsun_612m", 612_061_184),
        ("ffhq_350m", 355_393_536),
        ("church_370m", 370_087_936),
    ],
)
def test_published_sizes(name, count):
    with torch.device("meta"):
        assert RQTransformerModel(RQTransformerConfig.preset(name)).num_parameters() == count


def uncached(model, given, batch, do_sample, generator):
    """Every code from a whole forward of everything before it."""
    config = model.config
    codes = torch.zeros(batch, config.num_quantizers, config.num_positions, dtype=torch.long)
    for position in range(config.num_positions):
        for depth in range(config.num_quantizers):
            logits = model(codes, **given).logits[:, depth, position]
            codes[:, depth, position] = choose(logits, do_sample, top_k=6, generator=generator)
    return codes


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_cached_equals_uncached(name, do_sample):
    model = build(name)
    given = condition(model.config, 2)
    with torch.no_grad():
        expected = uncached(model, given, 2, do_sample, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    made = model.generate(batch_size=2, do_sample=do_sample, top_k=6, generator=generator, **given)
    assert torch.equal(made, expected)


def test_cached_logits_equal_the_whole(monkeypatch):
    """Numbers, not only choices: logits of cached steps against one forward."""
    model = build("sequence, per-depth tables")
    given, seen = condition(model.config, 2), []
    step = model._head_step
    monkeypatch.setattr(model, "_head_step", lambda *args: seen.append(step(*args)) or seen[-1])
    made = model.generate(do_sample=False, **given)
    with torch.no_grad():
        whole = model(made, **given).logits
    cached = torch.stack(seen).unflatten(0, (6, 3)).permute(2, 1, 0, 3)
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)


def test_order_of_dependence():
    """A code changes later depths of its position and later positions, and nothing before."""
    model = build("plain")
    codes = torch.randint(16, (1, 3, 6))
    changed = codes.clone()
    changed[0, 1, 3] = (changed[0, 1, 3] + 1) % 16
    with torch.no_grad():
        differs = (model(codes).logits != model(changed).logits).any(-1)[0]
    expected = torch.zeros(3, 6, dtype=torch.bool)
    expected[2, 3] = True
    expected[:, 4:] = True
    assert torch.equal(differs, expected)


def test_beginnings_are_continued():
    model = build("class, shared tables")
    given = condition(model.config, 2)
    whole = model.generate(do_sample=False, **given)
    continued = model.generate(whole[:, :, :3], do_sample=False, **given)
    assert torch.equal(continued, whole)
    short = model.generate(num_positions=2, do_sample=False, **given)
    assert torch.equal(short, whole[:, :, :2])
    streamed = torch.stack(list(model.stream(do_sample=False, **given)), dim=2)
    assert torch.equal(streamed, whole)


def test_rows_with_their_own_generators_do_not_depend_on_the_batch():
    model = build("class, shared tables")
    labels = torch.tensor([0, 4, 2])
    together = model.generate(
        class_labels=labels, generator=[torch.Generator().manual_seed(seed) for seed in range(3)], top_k=[16, 8, None]
    )
    for row in range(3):
        alone = model.generate(
            class_labels=labels[row : row + 1], generator=[torch.Generator().manual_seed(row)], top_k=[16, 8, None]
        )
        assert torch.equal(alone[0], together[row])


def test_soft_codes_follow_the_drawn_path():
    generator = torch.Generator().manual_seed(0)
    books = torch.randn(3, 16, 8, generator=generator)
    latents = torch.randn(4, 6, 8, generator=generator)
    codes, labels = soft_codes(latents, books, 3, 0.5, stochastic=True, generator=generator)
    torch.testing.assert_close(labels.sum(-1), torch.ones(4, 3, 6))
    residual = latents.clone()
    for depth in range(3):
        expected = (-torch.cdist(residual.flatten(0, 1), books[depth]).square() / 0.5).softmax(-1)
        torch.testing.assert_close(labels[:, depth].flatten(0, 1), expected, rtol=1e-3, atol=1e-5)
        residual = residual - books[depth][codes[:, depth]]
    nearest, sharp = soft_codes(latents, books, 3, 1e-4)
    drawn, _ = soft_codes(latents, books, 3, 1e-4, stochastic=True, generator=generator)
    assert torch.equal(drawn, nearest)
    assert torch.equal(sharp.argmax(-1), nearest)


def test_soft_labels_train_and_one_hot_equals_hard():
    model = build("shared codebook, summed")
    codes, labels = model.soft_codes(torch.randn(2, 6, 8), generator=torch.Generator().manual_seed(1))
    soft = model(codes, labels=labels).loss
    soft.backward()
    assert model.classifier.linear.weight.grad.isfinite().all()
    one_hot = torch.nn.functional.one_hot(codes, 16).float()
    torch.testing.assert_close(model(codes, labels=one_hot).loss, model(codes, labels=codes).loss)


def test_ignored_labels_do_not_count():
    model = build("plain")
    codes = torch.randint(16, (1, 3, 6))
    labels = codes.clone()
    labels[:, :, 4:] = -100
    torch.testing.assert_close(model(codes, labels=labels).loss, model(codes[:, :, :4], labels=codes[:, :, :4]).loss)


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.0, 0.2, 0.5, 0.3, 0.0])
    drawn = draw(probabilities.expand(20000, -1), torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(frequency, probabilities, atol=0.02, rtol=0)
    assert frequency[0] == frequency[4] == 0
    logits = probabilities.log().expand(500, -1)
    assert set(choose(logits, True, top_k=2).tolist()) == {2, 3}
    assert set(choose(logits, True, top_p=0.4).tolist()) == {2}
    assert set(choose(logits, False).tolist()) == {2}


def test_codebooks_are_set_and_saved(tmp_path):
    model = build("shared codebook, summed")
    model.set_codebooks(torch.full((1, 16, 8), 3.0))
    model.save_pretrained(tmp_path)
    assert torch.equal(RQTransformerModel.from_pretrained(tmp_path).codebooks, torch.full((1, 16, 8), 3.0))
    with pytest.raises(ValueError, match=r"\(1, 16, 8\)"):
        model.set_codebooks(torch.zeros(2, 16, 8))
    with pytest.raises(ValueError, match="codebook"):
        build("plain").set_codebooks(torch.zeros(3, 16, 8))


def test_wrong_requests_are_refused():
    model = build("class, shared tables")
    codes = torch.zeros(1, 3, 6, dtype=torch.long)
    with pytest.raises(ValueError) as error:
        model(codes)
    assert_error(error, 'conditioning="class"', "class_labels")
    with pytest.raises(ValueError, match="audio_codes"):
        model(torch.zeros(1, 2, 6, dtype=torch.long), class_labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="num_positions"):
        model.generate(class_labels=torch.tensor([0]), num_positions=7)
    with pytest.raises(ValueError, match="labels"):
        model(codes, class_labels=torch.tensor([0]), labels=codes[:, :, :2])
    with pytest.raises(ValueError, match="temperature"):
        model.generate(class_labels=torch.tensor([0]), temperature=0.0)
    with pytest.raises(Exception, match="conditioning"):
        RQTransformerConfig(conditioning="words")


def test_broken_original_checkpoints_are_refused():
    model = build("sequence, per-depth tables")
    weights = model.to_original_state_dict()
    half = {"n_layer": 2, "block": {"n_head": 4, "gelu": "v2"}}
    arguments = {
        **{"vocab_size": 16, "block_size": [2, 3, 3], "embed_dim": 32, "vocab_size_cond": 7, "block_size_cond": 4},
        **{"body": half, "head": {**half, "n_layer": 1}},
    }
    again = RQTransformerModel.from_original(weights, arguments)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)
    with pytest.raises(ValueError, match="unexpected key 'body_transformer.extra'"):
        RQTransformerModel.from_original({**weights, "body_transformer.extra": torch.zeros(1)}, arguments)
    with pytest.raises(ValueError, match="cond_emb.weight.*shape"):
        RQTransformerModel.from_original(weights, {**arguments, "vocab_size_cond": 8})
    with pytest.raises(ValueError, match="tok_emb.offsets"):
        RQTransformerModel.from_original(weights, {**arguments, "vocab_size": 8})
    with pytest.raises(ValueError, match="vocab_size"):
        RQTransformerModel.from_original(weights, {**arguments, "vocab_size": [16, 8, 4]})
    with pytest.raises(ValueError, match="codebooks"):
        RQTransformerModel.from_original(weights, {**arguments, "input_emb_vqvae": True, "input_embed_dim": 8})
    with pytest.raises(ValueError, match="mel"):
        build("mel, codebooks").to_original_state_dict()


def test_a_codebook_missing_in_the_middle_is_refused():
    tables = {f"codebooks.{depth}.weight": torch.randn(5, 3) for depth in range(3)}
    assert codebooks_from_original(tables).shape == (3, 4, 3)
    for missing in ("codebooks.0.weight", "codebooks.1.weight"):
        with pytest.raises(ValueError, match=missing):
            codebooks_from_original({key: value for key, value in tables.items() if key != missing})


def test_docstrings_run():
    results = doctest.testmod(modeling_rq_transformer)
    assert results.attempted > 3
    assert results.failed == 0


@torch.no_grad()
def test_the_mel_condition_by_hand():
    """Two linear layers with an exact GELU between them, column by column, and a position each."""
    model = shake(build("mel, codebooks"))
    mel, layer = torch.randn(2, 128, 3), model.condition_projection
    expected = (
        linear(layer.output, gelu(linear(layer.input, mel.transpose(1, 2)))) + model.condition_positions.weight[:3]
    )
    torch.testing.assert_close(model._condition(2, None, None, mel), expected, rtol=1e-4, atol=1e-4)


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("num_positions", "num_quantizers", "num_hidden_layers", "num_attention_heads", "head_num_hidden_layers"),
        *("head_num_attention_heads", "codebook_dim", "condition_vocab_size", "num_condition_positions"),
    )
    shares = ("attention_dropout", "residual_dropout", "embedding_dropout", "condition_loss_weight")
    shares += ("head_attention_dropout", "head_residual_dropout")
    alone = {"hidden_size": 1, "num_attention_heads": 1, "head_num_attention_heads": 1}
    inside |= dict.fromkeys(shares, (0.0, 0.99)) | {"vocab_size": (2,), "hidden_size": (alone,)}
    outside |= dict.fromkeys(shares, (-0.01, 1.0)) | {"vocab_size": (1,), "hidden_size": (0,)}
    outside |= {"num_attention_heads": (0, 3), "head_num_attention_heads": (0, 3)}
    check_borders(partial(RQTransformerConfig.preset, "tiny", conditioning="sequence"), inside, outside)
    for kind, fields in (("none", {"condition_vocab_size": (2,)}), ("class", {"num_condition_positions": (2,)})):
        others = {"condition_vocab_size": (2,)} if kind == "class" else {}
        check_borders(partial(RQTransformerConfig.preset, "tiny", conditioning=kind), others, fields)
