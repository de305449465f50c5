"""Properties of the residual and the single vector quantizer."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from quantization_utils import (
    DIM,
    KINDS,
    LEVELS,
    SIZE,
    batch,
    build,
    generator,
    learn,
    trained,
)
from testing_utils import assert_error

from melreformer_hf.nn.quantization import (
    ResidualVectorQuantizer,
    SomQuantizer,
    VectorQuantizer,
    kmeans,
    nearest_codes,
    residual,
    som,
)
from melreformer_hf.nn.quantization.codebook import Codebook
from melreformer_hf.nn.quantization.options import CodebookOptions


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_say_everything(kind):
    """Decoding the codes of any prefix gives what the quantizer puts out; prefixes of codes are codes of prefixes."""
    quantizer, hidden = trained(kind).eval(), batch(seed=9)
    codes = quantizer.encode(hidden)
    assert codes.dtype == torch.int64 and codes.shape == (3, LEVELS, 40)
    errors = []
    for levels in range(1, LEVELS + 1):
        output = quantizer(hidden, levels)
        assert torch.equal(quantizer.encode(hidden, levels), codes[:, :levels])
        assert torch.equal(output.audio_codes, codes[:, :levels])
        assert torch.equal(quantizer.decode(codes[:, :levels]), output.quantized)
        assert output.perplexity.shape == (levels,)
        assert (output.perplexity <= torch.tensor(quantizer.codebook_sizes[:levels]) + 1e-3).all()
        errors.append((output.quantized - hidden).square().mean().item())
    if not quantizer.in_projections:  # those are still random
        assert errors == sorted(errors, reverse=True), "more levels must not be worse on trained codebooks"
    torch.testing.assert_close(quantizer.decode_levels(codes).sum(1), quantizer.decode(codes))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_batch_equals_single(kind):
    quantizer, hidden = trained(kind).eval(), batch(seed=9)
    together = quantizer(hidden)
    for row in range(3):
        alone = quantizer(hidden[row : row + 1])
        assert torch.equal(alone.audio_codes, together.audio_codes[row : row + 1])
        torch.testing.assert_close(alone.quantized, together.quantized[row : row + 1])


@pytest.mark.parametrize("path", ["once", "undetached", "every_level"])
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_gradient_paths(path, update):
    quantizer = trained(update=update, gradient_path=path)
    hidden = batch(seed=9).requires_grad_()
    output = quantizer(hidden)
    weights = batch(seed=10)
    (straight,) = torch.autograd.grad(output.quantized, hidden, weights, retain_graph=True)
    torch.testing.assert_close(straight, weights * (LEVELS if path == "every_level" else 1.0))
    (commitment,) = torch.autograd.grad(output.loss, hidden)
    parts = quantizer.eval().decode_levels(output.audio_codes) if update == "gradient" else None
    if parts is not None:  # codewords do not move inside the step
        remainders = hidden.detach() - parts.cumsum(1).transpose(0, 1)
        alive = remainders[:1] if path == "undetached" else remainders
        expected = 2.0 * alive.sum(0) / hidden.numel() / LEVELS
        torch.testing.assert_close(commitment, expected, rtol=1e-4, atol=1e-7)
    assert commitment.abs().max() > 0


def test_one_straight_path_through_factorized_codes():
    """The input gets the identity; the layers around the codes get the gradient of the output."""
    quantizer = trained("factorized")
    hidden = batch(seed=9).requires_grad_()
    output = quantizer(hidden)
    weights = batch(seed=10)
    (straight,) = torch.autograd.grad(output.quantized, hidden, weights, retain_graph=True)
    torch.testing.assert_close(straight, weights)
    output.quantized.backward(weights, retain_graph=True)
    layers = [*quantizer.in_projections, *quantizer.out_projections]
    assert all(layer.weight.grad.abs().max() > 0 for layer in layers)
    assert all(codebook.codewords.grad is None for codebook in quantizer.codebooks)
    output.loss.backward()
    assert all(codebook.codewords.grad.abs().max() > 0 for codebook in quantizer.codebooks)


def test_losses_have_their_weights():
    quantizer, hidden = trained("gradient").eval(), batch(seed=9)
    error = quantizer(hidden).loss
    for commitment, codebook, reduction, factor in ((0.25, 3.0, "mean", 3.25), (1.0, 0.0, "sum", LEVELS)):
        quantizer.commitment_weight, quantizer.codebook_weight = commitment, codebook
        quantizer.level_reduction = reduction
        torch.testing.assert_close(quantizer(hidden).loss, error * factor / 2)


def test_running_means_follow_the_formula():
    quantizer = trained(decay=0.9, restart_threshold=0.0)
    old, hidden = copy.deepcopy(quantizer), batch(seed=9)
    output = learn(quantizer, hidden)
    remainder = hidden.transpose(1, 2).reshape(-1, DIM).double()
    for level in range(LEVELS):
        before, after = old.codebook(level), quantizer.codebook(level)
        chosen = torch.nn.functional.one_hot(output.audio_codes[:, level].flatten(), SIZE).double()
        counts = 0.9 * before.cluster_size.double() + 0.1 * chosen.sum(0)
        sums = 0.9 * before.vector_sum.double() + 0.1 * chosen.T @ remainder
        total = counts.sum()
        smoothed = (counts + 1e-5) / (total + SIZE * 1e-5) * total
        torch.testing.assert_close(after.cluster_size.double(), counts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after.vector_sum.double(), sums, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(after.codewords.double(), sums / smoothed[:, None], rtol=1e-4, atol=1e-5)
        remainder = remainder - chosen @ before.codewords.double()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_unused_codewords_restart_at_vectors_of_the_batch(update):
    quantizer = trained(update=update)
    codebook, hidden = quantizer.codebook(0), batch(seed=9)
    with torch.no_grad():
        codebook.codewords[::4] = 1000.0
        codebook.cluster_size[::4] = 1e-6
        if update == "ema":
            codebook.vector_sum[::4] = 1e-3
    mean = codebook.cluster_size.mean()
    learn(quantizer, hidden)
    vectors = hidden.transpose(1, 2).reshape(-1, DIM)
    exact = torch.cdist(codebook.codewords[::4], vectors, compute_mode="donot_use_mm_for_euclid_dist")
    assert exact.amin(1).max() < 1e-3
    assert (codebook.cluster_size[::4] > 0.5 * mean).all()
    assert len(quantizer.eval().encode(hidden)[:, 0].unique()) > SIZE // 2
    kept = trained(update=update, restart_threshold=0.0)
    with torch.no_grad():
        kept.codebook(0).codewords[::4] = 1000.0
        kept.codebook(0).cluster_size[::4] = 1e-6
    used = kept.train()(hidden).audio_codes[:, 0]
    assert not (used % 4 == 0).any()


def test_kmeans_places_the_codewords_once():
    centers = 10 * torch.eye(DIM)
    hidden = centers.repeat_interleave(20, 0)[torch.randperm(240, generator=generator())]
    hidden = (hidden + 0.1 * torch.randn(240, DIM, generator=generator(1))).reshape(6, 40, DIM).transpose(1, 2)
    quantizer = ResidualVectorQuantizer(DIM, 24, 2, kmeans_iterations=20, restart_threshold=0.0).train()
    assert not quantizer.codebook(0).initted
    quantizer.initialize_codebooks(hidden, generator=generator())
    assert quantizer.codebook(0).initted and quantizer.codebook(1).initted
    assert (quantizer.eval()(hidden).quantized - hidden).square().mean() < 0.02  # the noise has 0.01
    again = ResidualVectorQuantizer(DIM, 24, 2, kmeans_iterations=20, restart_threshold=0.0).train()
    learn(again, *hidden.split(2))  # the first update makes up for it, with the vectors of all micro batches
    for name, tensor in quantizer.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    before = quantizer.codebook(0).codewords.clone()
    quantizer.initialize_codebooks(hidden * 3)
    assert torch.equal(quantizer.codebook(0).codewords, before)
    learn(quantizer.train(), hidden * 3)
    assert (quantizer.codebook(0).codewords - before).norm() < 0.1 * before.norm() * 3


def test_kmeans_lowers_the_distortion_and_keeps_lonely_means():
    vectors = torch.randn(300, 4, generator=generator())

    def distortion(iterations):
        means, counts = kmeans(vectors, 16, iterations, generator())
        assert counts.sum() == 300
        return (vectors - means[nearest_codes(vectors, means)]).square().mean()

    errors = [distortion(iterations) for iterations in (1, 3, 20)]
    assert errors[0] > errors[1] > errors[2]
    few = torch.randn(3, 4, generator=generator())
    means, counts = kmeans(few, 8, 5, generator())
    assert means.shape == (8, 4) and means.isfinite().all() and counts.sum() == 3


def test_dropout_keeps_prefixes():
    quantizer = trained(quantizer_dropout=1.0)
    output = quantizer(batch(64, 5, seed=9), generator=generator(3))
    present = (output.audio_codes >= 0).all(-1)
    assert torch.equal(present, (output.audio_codes >= 0).any(-1))
    depths = present.sum(1)
    assert torch.equal(present, torch.arange(LEVELS) < depths[:, None])
    assert set(depths.tolist()) == set(range(1, LEVELS + 1))
    again = trained(quantizer_dropout=1.0)
    repeated = again(batch(64, 5, seed=9), generator=generator(3))
    assert torch.equal(repeated.audio_codes, output.audio_codes)
    never = trained(quantizer_dropout=0.5)
    kept = (never(batch(400, 2, seed=9), generator=generator(3)).audio_codes >= 0).all(-1).sum(1) == LEVELS
    assert 0.55 < kept.float().mean() < 0.70  # 1 - 0.5 * 3 / 4
    assert (never.eval()(batch()).audio_codes >= 0).all()


def test_dropped_levels_add_nothing():
    quantizer = trained("gradient", quantizer_dropout=1.0)
    output = quantizer(batch(8, 5, seed=9), generator=generator(3))
    # Codewords learn by gradient, so that those of the step are still there.
    torch.testing.assert_close(quantizer.decode(output.audio_codes), output.quantized)


def test_padding_counts_nowhere():
    hidden, mask = batch(seed=9), torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    mask[2, 7:] = False
    noisy = torch.where(mask[:, None], hidden, 100.0)
    made = []
    for values in (hidden, noisy):
        quantizer = build(restart_threshold=0.0).train()
        for step in range(2):
            output = learn(quantizer, values, seed=step, padding_mask=mask)
        made.append((quantizer.state_dict(), output))
    for name, tensor in made[0][0].items():
        torch.testing.assert_close(made[1][0][name], tensor, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(made[0][1].loss, made[1][1].loss)
    torch.testing.assert_close(made[0][1].perplexity, made[1][1].perplexity)
    kept = mask[:, None].expand_as(hidden)
    torch.testing.assert_close(made[0][1].quantized[kept], made[1][1].quantized[kept])


@pytest.mark.parametrize("kind", KINDS)
def test_learning_goes_on_after_saving(kind, tmp_path):
    from safetensors.torch import load_file, save_file

    quantizer = trained(kind)
    save_file(quantizer.state_dict(), tmp_path / "quantizer.safetensors")
    loaded = build(kind).train()
    loaded.load_state_dict(load_file(tmp_path / "quantizer.safetensors"))
    for step in range(2):
        outputs = [learn(one, batch(seed=20 + step), seed=step) for one in (quantizer, loaded)]
        for field in ("quantized", "audio_codes", "loss", "perplexity"):
            torch.testing.assert_close(outputs[0][field], outputs[1][field], rtol=0, atol=0, msg=field)
    for name, tensor in quantizer.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    quantizer, hidden = trained(kind).eval(), batch(seed=9)
    expected = quantizer(hidden)
    half = copy.deepcopy(quantizer).to(torch.bfloat16)
    assert half.codebook(0).codewords.dtype == torch.bfloat16
    assert half.codebook(0).cluster_size.dtype == torch.float32
    output = half(hidden.bfloat16())
    assert output.quantized.dtype == torch.bfloat16
    assert torch.equal(half.encode(hidden.bfloat16()), output.audio_codes)
    torch.testing.assert_close(half.decode(output.audio_codes), output.quantized)
    error, plain = ((o.quantized.float() - hidden).square().mean() for o in (output, expected))
    assert error < 1.1 * plain
    half.train()
    for step in range(20):  # running statistics must go on moving
        before = half.codebook(0).cluster_size.clone()
        learn(half, batch(seed=step).bfloat16())
        assert not torch.equal(before, half.codebook(0).cluster_size)
    assert all(tensor.isfinite().all() for tensor in half.state_dict().values())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(hidden)
        assert torch.equal(quantizer.encode(hidden), mixed.audio_codes)
        if "factorized" not in kind:
            assert torch.equal(mixed.audio_codes, expected.audio_codes)
        learn(quantizer.train(), hidden)
    assert quantizer.codebook(0).cluster_size.dtype == torch.float32


@pytest.mark.parametrize(
    ("count", "size", "dim"), [(700, 1024, 16), (300, 1000, 8), (33, 257, 5), (10, 3, 2), (0, 9, 4)]
)
def test_search_finds_the_nearest(count, size, dim):
    vectors = torch.randn(count, dim, generator=generator())
    codewords = torch.randn(size, dim, generator=generator(1))
    codewords[size // 2] = codewords[0]  # the first of equals
    exact = torch.cdist(vectors.double(), codewords.double()).argmin(1)
    assert torch.equal(nearest_codes(vectors, codewords), exact)
    cosine = torch.nn.functional.cosine_similarity(vectors.double()[:, None], codewords.double()[None], dim=-1)
    assert torch.equal(nearest_codes(vectors, codewords, cosine=True), cosine.argmax(1))


def test_codes_equal_those_of_encodec():
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    dim, size, levels = 32, 512, 6
    torch.manual_seed(0)
    ours = ResidualVectorQuantizer(dim, size, levels, kmeans_iterations=3).train()
    hidden = torch.randn(4, dim, 300, generator=generator())
    ours.initialize_codebooks(hidden)
    ours.eval()
    peer = EncodecResidualVectorQuantizer(EncodecConfig(codebook_dim=dim, codebook_size=size, hidden_size=dim))
    for level in range(levels):
        peer.layers[level].codebook.embed.copy_(ours.codebook(level).codewords)
    peer.num_quantizers, peer.layers = levels, peer.layers[:levels]
    codes = peer.encode(hidden)
    assert torch.equal(ours.encode(hidden), codes.transpose(0, 1))
    torch.testing.assert_close(ours.decode(ours.encode(hidden)), peer.decode(codes))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_training_lowers_the_error(update):
    quantizer = ResidualVectorQuantizer(DIM, SIZE, LEVELS, update=update, decay=0.9, kmeans_iterations=0).train()
    torch.nn.init.normal_(mixing := torch.empty(DIM, DIM), generator=generator())
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, 0.03) if parameters else None
    errors = []
    for step in range(60):
        hidden = torch.einsum("ij,bjt->bit", mixing, batch(seed=100 + step))
        output = learn(quantizer, hidden, seed=step)
        errors.append((output.quantized - hidden).square().mean().item())
        if optimizer is not None:
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
    assert sum(errors[-5:]) / 5 < 0.5 * errors[0]
    assert output.perplexity.min() > SIZE / 3


@pytest.mark.parametrize("kind", ["sizes", "factorized", "som"])
def test_graphs_can_be_captured(kind):
    if kind == "som":
        torch.manual_seed(0)
        quantizer = SomQuantizer(DIM, SIZE, update="gradient", codebook_dim=3)
    else:
        quantizer = trained(kind)
    torch.compiler.reset()
    hidden, mask = batch(seed=9), torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    expected = quantizer.train()(hidden, padding_mask=mask)
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    actual = compiled(hidden, padding_mask=mask)
    for field in ("quantized", "audio_codes", "loss", "perplexity"):
        torch.testing.assert_close(actual[field], expected[field], msg=field)
    quantizer.eval()
    exported = torch.export.export(quantizer, (hidden,)).module()(hidden)
    torch.testing.assert_close(exported.quantized, quantizer(hidden).quantized)
    codes = torch.compile(quantizer.encode, backend="eager", fullgraph=True)(hidden)
    assert torch.equal(codes, quantizer.encode(hidden))
    decoded = torch.compile(quantizer.decode, backend="eager", fullgraph=True)(codes)
    torch.testing.assert_close(decoded, quantizer.decode(codes))


BROKEN = {
    "update": ({"update": "sgd"}, ("update", "ema", "'sgd'")),
    "decay": ({"decay": 1.0}, ("decay", "[0, 1)", "1.0")),
    "decays": ({"decay": [0.9, 0.8]}, ("decay", "one per level (4)", "[0.9, 0.8]")),
    "sizes": ({"codebook_size": [3, 4, 5, 6], "shared_codebook": True}, ("shared", "[3, 4, 5, 6]")),
    "empty": ({"codebook_size": 0}, ("at least one codeword", "0")),
    "narrow": ({"codebook_dim": 0}, ("at least one codeword and one dimension", "0")),
    "path": ({"gradient_path": "twice"}, ("gradient_path", "once", "'twice'")),
    "dropout": ({"quantizer_dropout": 1.5}, ("quantizer_dropout", "[0, 1]", "1.5")),
    "restart": ({"restart_threshold": 2.0}, ("restart_threshold", "share", "2.0")),
    "epsilon": ({"epsilon": 0.0}, ("epsilon", "positive", "0.0")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_wrong_arguments_are_refused(name):
    changes, fragments = BROKEN[name]
    with pytest.raises(ValueError) as error:
        build(**changes)
    assert_error(error, *fragments)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="codebook_decay"):
        build(codebook_decay=0.9)


@torch.no_grad()
def test_wrong_inputs_are_refused():
    quantizer = build().eval()
    cases = [
        (lambda: quantizer(torch.zeros(2, DIM + 1, 5)), ("hidden", f"(batch, {DIM}, frame)", "(2, 13, 5)")),
        (lambda: quantizer.encode(batch(), 9), ("num_quantizers", f"1..{LEVELS}", "9")),
        (lambda: quantizer.decode(torch.zeros(1, 5, 3, dtype=torch.long)), ("audio_codes", "1..4", "(1, 5, 3)")),
        (lambda: quantizer.decode(torch.full((1, 1, 3), SIZE)), ("audio_codes", "level 0", f"0..{SIZE - 1}")),
        (lambda: quantizer(batch(), padding_mask=torch.ones(3, 2)), ("padding_mask", "(3, 40)", "(3, 2)")),
    ]
    for call, fragments in cases:
        with pytest.raises(ValueError) as error:
            call()
        assert_error(error, *fragments)


@pytest.mark.parametrize("kind", [VectorQuantizer, SomQuantizer])
@torch.no_grad()
def test_single_codebooks_keep_the_contract(kind):
    torch.manual_seed(0)
    quantizer, hidden = kind(DIM, SIZE).train(), batch()
    learn(quantizer, hidden)
    output = quantizer.eval()(hidden)
    assert output.audio_codes.shape == (3, 1, 40) and output.perplexity.shape == (1,)
    assert torch.equal(quantizer.encode(hidden), output.audio_codes)
    assert torch.equal(quantizer.decode(output.audio_codes), output.quantized)
    assert torch.equal(quantizer.encode(hidden, num_quantizers=1), output.audio_codes)


@pytest.mark.parametrize("module", [residual, som])
def test_examples_run(module):
    torch.manual_seed(0)
    results = doctest.testmod(module)
    assert results.attempted > 3 and results.failed == 0


@torch.no_grad()
def test_factorized_codes_by_their_formulas():
    """Project, find the codeword of largest cosine, project back, go on with what is left over."""
    quantizer, hidden = trained("factorized").eval(), batch(seed=9)
    remainder, total, distances = hidden.transpose(1, 2).double(), 0.0, []
    for level in range(LEVELS):
        inner, outer, table = (
            module.double()
            for module in copy.deepcopy(
                (
                    quantizer.in_projections[level],
                    quantizer.out_projections[level],
                    quantizer.codebook(level).codewords,
                )
            )
        )
        part = remainder @ inner.weight.T + inner.bias
        cosine = torch.nn.functional.normalize(part, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
        codes = cosine.argmax(-1)
        assert torch.equal(quantizer(hidden).audio_codes[:, level], codes)
        distances.append((part - table[codes]).square().mean())
        made = table[codes] @ outer.weight.T + outer.bias
        total, remainder = total + made, remainder - made
    torch.testing.assert_close(quantizer(hidden).quantized.double(), total.transpose(1, 2), rtol=1e-4, atol=1e-5)
    expected = (1.0 + 1.0) * torch.stack(distances).mean()  # commitment and codebook term have weight 1 each
    torch.testing.assert_close(quantizer(hidden).loss.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_smallest_codebook_has_one_codeword_of_one_number():
    smallest = Codebook(1, 1, CodebookOptions())
    assert smallest.search(torch.ones(3, 1)).tolist() == [0, 0, 0]
    for size, dim in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"got {size} and {dim}"):
            Codebook(size, dim, CodebookOptions())
