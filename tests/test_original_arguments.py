"""Arguments of the originals at other values than the golden fixtures have: compared with the formulas in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv1d, conv_transpose1d, embedding, gelu, layer_norm, leaky_relu, linear, pad

from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel
from melreformer_hf.models.gpt_vae.weights_gpt_vae import configuration_from_original as gpt_vae_configuration
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.hifi_vocoder.weights_hifi_vocoder import configuration_from_original as hifi_configuration
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.models.mel_vqvae.weights_mel_vqvae import configuration_from_original as vqvae_configuration
from melreformer_hf.models.rq_transformer.modeling_rq_transformer import RQTransformerModel
from melreformer_hf.models.rq_transformer.weights_rq_transformer import configuration_from_original as rq_configuration
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.models.soundstream.weights_soundstream import configuration_from_original as codec_configuration
from melreformer_hf.originals.weight_norm import fold_weight_norms


def spread(weights: dict[str, torch.Tensor], scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Random values of the same shapes, large enough that every term shows."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: scale * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in weights.items()
    }


# RQ-Transformer


def block(hidden: torch.Tensor, weights: dict, stem: str, heads: int, quick: bool) -> torch.Tensor:
    """Pre-norm transformer block with causal attention."""

    def layer(name: str, values: torch.Tensor) -> torch.Tensor:
        return linear(values, weights[f"{stem}{name}.weight"], weights.get(f"{stem}{name}.bias"))

    def norm(name: str, values: torch.Tensor) -> torch.Tensor:
        return layer_norm(values, values.shape[-1:], weights[f"{stem}{name}.weight"], weights[f"{stem}{name}.bias"])

    normed = norm("ln1", hidden)
    query, key, value = (
        layer(f"attn.{name}", normed).unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("query", "key", "value")
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    hidden = hidden + layer("attn.proj", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    inner = layer("mlp.0", norm("ln2", hidden))
    inner = inner * torch.sigmoid(1.702 * inner) if quick else gelu(inner)
    return hidden + layer("mlp.2", inner)


def rq_logits(weights: dict, arguments: dict, codebooks: torch.Tensor | None, codes: torch.Tensor, condition):
    """(batch, position, depth) codes -> (batch, position, depth, code) logits."""
    depth, width = codes.shape[-1], arguments["embed_dim"]

    def codewords() -> torch.Tensor:
        tables = [codebooks[level % len(codebooks)] for level in range(depth)]
        return torch.stack([table[codes[..., level]] for level, table in enumerate(tables)], dim=2)

    def project(name: str, vectors: torch.Tensor) -> torch.Tensor:
        return linear(vectors, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def tokens() -> torch.Tensor:
        offsets = 0 if arguments.get("shared_tok_emb") else torch.arange(depth) * arguments["vocab_size"]
        return embedding(codes + offsets, weights["tok_emb.weight"])

    def stack(half: str, hidden: torch.Tensor) -> torch.Tensor:
        told = arguments[half]["block"]
        for number in range(arguments[half]["n_layer"]):
            stem = f"{half}_transformer.blocks.{number}."
            hidden = block(hidden, weights, stem, told["n_head"], told.get("gelu") == "v2")
        return hidden

    embedded = project("input_mlp", codewords()) if arguments.get("input_emb_vqvae") else tokens()
    embedded = embedded.sum(2) + weights["pos_emb_hw"]
    start = embedding(condition, weights["cond_emb.weight"]) + weights["pos_emb_cond"]
    context = stack("body", torch.cat([start, embedded[:, :-1]], 1))[:, condition.shape[1] - 1 :]
    if arguments.get("head_emb_vqvae"):  # codewords are summed before the layer, whose bias counts once
        vectors = codewords()
        parts = project("head_mlp", vectors.cumsum(2) if arguments.get("cumsum_depth_ctx") else vectors)
    else:  # learned tables never are
        parts = tokens()
    hidden = torch.cat([context[:, :, None], parts[:, :, :-1]], 2) + weights["pos_emb_d"]
    hidden = layer_norm(
        stack("head", hidden.flatten(0, 1)),
        (width,),
        weights["classifier.layer_norm.weight"],
        weights["classifier.layer_norm.bias"],
    )
    matrix, bias = weights["classifier.linear.weight"], weights["classifier.linear.bias"]
    if arguments.get("shared_cls_emb"):
        logits = linear(hidden, matrix, bias)
    else:
        logits = torch.einsum("bdi,dio->bdo", hidden, matrix) + bias
    return logits.unflatten(0, codes.shape[:2])


BLOCKS = {"body": {"n_head": 2, "gelu": "v1"}, "head": {"n_head": 4, "gelu": "v1"}}
RQ_CHANGES = {
    "own tables": {},
    "shared table": {"shared_tok_emb": True, "cumsum_depth_ctx": True},
    "sequence": {"shared_cls_emb": True, "vocab_size_cond": 5, "block_size_cond": 3},
    "codewords in the body": {"input_emb_vqvae": True, "input_embed_dim": 6, "vocab_size_cond": 5},
    "codewords in the head": {"head_emb_vqvae": True, "input_embed_dim": 6, "cumsum_depth_ctx": True},
    "codewords in both": {
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "input_embed_dim": 6,
        "shared_cls_emb": True,
    },
    "codewords as wide as the model": {"input_emb_vqvae": True, "input_embed_dim": None},
    "nothing told, said so": {"vocab_size_cond": 0, "block_size_cond": 0, "use_padding_emb": False},
    "no biases": {"body.block": {"attn_bias": False, "mlp_bias": False}, "head.block": {"attn_bias": False}},
    "biases in one half": {"head.block": {"attn_bias": False, "mlp_bias": False, "gelu": "v2", "resid_pdrop": 0.3}},
    "quick gelu": {"body.block": {"gelu": "v2", "attn_pdrop": 0.2}},
}


@pytest.mark.parametrize("name", RQ_CHANGES)
def test_every_kind_of_rq_transformer(name):
    changes = dict(RQ_CHANGES[name])
    halves = {
        half: {"n_layer": layers, "block": BLOCKS[half] | changes.pop(f"{half}.block", {})}
        for half, layers in (("body", 2), ("head", 1))
    }
    arguments = {"type": "rq-transformer", "vocab_size": 7, "block_size": [2, 2, 3], "embed_dim": 16}
    arguments |= halves | changes
    generator = torch.Generator().manual_seed(3)
    codebooks = None
    if "input_embed_dim" in changes:
        rows = 1 if "head_emb_vqvae" in changes else 3
        codebooks = torch.randn(rows, 7, changes["input_embed_dim"] or 16, generator=generator)
    shared = codebooks is not None and len(codebooks) == 1
    weights = spread(RQTransformerModel(rq_configuration(arguments, shared)).to_original_state_dict())
    model = RQTransformerModel.from_original(weights, arguments, codebooks=codebooks)
    codes = torch.randint(7, (2, 4, 3), generator=generator)
    length, classes = max(1, changes.get("block_size_cond", 1)), max(1, changes.get("vocab_size_cond", 1))
    condition = torch.randint(classes, (2, length), generator=generator)
    named = {"none": {}, "class": {"class_labels": condition[:, 0]}, "sequence": {"condition_ids": condition}}
    with torch.no_grad():
        found = model(codes.transpose(1, 2), **named[model.config.conditioning]).logits.transpose(1, 2)
    torch.testing.assert_close(found, rq_logits(weights, arguments, codebooks, codes, condition), rtol=1e-4, atol=1e-4)
    assert model.to_original_state_dict().keys() == weights.keys()


# HiFiHybrid


@pytest.mark.parametrize("strides", [[3, 2], [5, 4]])
def test_odd_strides_of_hifihybrid(strides):
    """Kernels of twice an odd stride leave one sample more per stage."""
    arguments = {"n_mels": 6, "initial_channels": 8, "stride_sizes": strides}
    arguments |= {"amp_kernel_sizes": [3, 5], "amp_dilation_sizes": [[1, 2], [3]]}
    weights = spread(HifiVocoderModel(hifi_configuration("hifihybrid", arguments)).to_original_state_dict())

    def same(values, name, dilation=1, groups=1):
        taps = weights[f"{name}.weight"] if f"{name}.weight" in weights else weights[name]
        reach = dilation * (taps.shape[-1] - 1)
        values = pad(values, (reach // 2, reach - reach // 2))
        return conv1d(values, taps, weights.get(f"{name}.bias"), dilation=dilation, groups=groups)

    def snake(values, stem):
        groups, alpha = values.shape[1], weights[f"{stem}alpha"].reshape(1, -1, 1)
        values = same(values, f"{stem}lowpass_conv0.low_pass", groups=groups)
        values = values + (alpha * values).sin().square() / (alpha + 1e-8)
        return same(values, f"{stem}lowpass_conv1.low_pass", groups=groups)

    mel = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    hidden = same(mel, "initial_block")
    for stage, stride in enumerate(strides):
        stem = f"blocks.{stage}.tconv"
        hidden = conv_transpose1d(
            hidden, weights[f"{stem}.weight"], weights[f"{stem}.bias"], stride, padding=(2 * stride - stride) // 2
        )
        total = 0.0
        for number, dilations in enumerate(arguments["amp_dilation_sizes"]):
            stem = f"blocks.{stage}.amp_complex.amps.{number}."
            inner = snake(hidden, f"{stem}activation.")
            for index, dilation in enumerate(dilations):
                inner = inner + same(inner, f"{stem}convs.{index}", dilation)
            total = total + inner
        hidden = total
    expected = same(snake(hidden, "final_block.activation."), "final_block.conv").squeeze(1)
    assert expected.shape[-1] > math.prod(strides) * mel.shape[-1]
    with torch.no_grad():
        found = HifiVocoderModel.from_original(weights, arguments)(mel).waveform
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


# The codec


@pytest.mark.parametrize("changes", [{"depthwise": True}, {"vq_type": "ema", "channel_multiplier": 3}, {"strides": 3}])
def test_encoders_of_other_codecs(changes):
    """Causal padding: `dilation (taps - 1) - stride + 1` zeros before, and what the last stride lacks behind."""
    arguments = {"n_blocks": 2, "n_layers_per_block": 3, "first_block_channels": 2, "num_quantizers": 2}
    arguments |= {"codebook_size": 5, "codebook_dim": 6, "strides": [2, 3], **changes}
    strides = [arguments["strides"]] * 2 if isinstance(arguments["strides"], int) else arguments["strides"]
    weights = SoundStreamModel(codec_configuration(arguments)).to_original_state_dict()
    weights = {key: value.abs() + 0.1 if key.endswith("weight_g") else value for key, value in spread(weights).items()}
    plain = fold_weight_norms(weights, "test")

    def causal(values, name, stride=1, dilation=1, groups=1):
        taps = plain[f"{name}.conv.weight"]
        before = dilation * (taps.shape[-1] - 1) - stride + 1
        missing = -values.shape[-1] % stride
        return conv1d(pad(values, (before, missing)), taps, plain[f"{name}.conv.bias"], stride, 0, dilation, groups)

    waveform = torch.randn(2, 1, 6 * math.prod(strides), generator=torch.Generator().manual_seed(2))
    hidden = causal(waveform, "encoders.0.1")
    for number, stride in enumerate(strides, start=1):
        for unit in range(arguments["n_layers_per_block"] - 1):
            stem, inner = f"encoders.{number}.layers.{unit}.0.", hidden
            if changes.get("depthwise"):
                inner = causal(inner, f"{stem}conv1.0", groups=inner.shape[1])
            inner = causal(inner, f"{stem}conv1.1" if changes.get("depthwise") else f"{stem}conv1", dilation=3**unit)
            hidden = leaky_relu(hidden + causal(leaky_relu(inner, 0.3), f"{stem}conv2"), 0.3)
        hidden = causal(hidden, f"encoders.{number}.layers.{arguments['n_layers_per_block'] - 1}.0", stride)
        hidden = leaky_relu(hidden, 0.3)
    expected = causal(hidden, f"encoders.{len(strides) + 1}")
    with torch.no_grad():
        output = SoundStreamModel.from_original(weights, arguments).encode(waveform)
    torch.testing.assert_close(output.latents, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    first = plain["quantizer.quantizers.0.codebook"]
    assert torch.equal(output.audio_codes[:, 0], torch.cdist(expected.transpose(1, 2), first.T[None]).argmin(-1))


# Others


def test_a_fixed_variance_of_the_gpt_vae():
    arguments = {"vocab_size": 9, "block_size": 6, "n_layer": 1, "n_head": 2, "n_embd": 8, "fix_var": 0.25}
    weights = GptVaeModel(gpt_vae_configuration(arguments)).to_original_state_dict()
    posterior = GptVaeModel.from_original(weights, arguments).encode(torch.randint(9, (2, 6)))
    torch.testing.assert_close(posterior.log_variance, torch.full((2, 8), math.log(0.25)))


@pytest.mark.parametrize("attn_resolutions", [[], [16], [32, 8]])
def test_levels_of_the_mel_vqvae_with_attention(attn_resolutions):
    arguments = {"ch": 8, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": attn_resolutions}
    arguments |= {"resolution": 32, "z_channels": 4, "num_embeddings": 6, "embedding_dim": 3, "group_norm_groups": 2}
    keys = MelVqvaeModel(vqvae_configuration(arguments, None)).to_original_state_dict()
    levels = [level for level in range(3) if 32 // 2**level in attn_resolutions]
    found = {key.rpartition(".attn.")[0] + key.rpartition(".attn.")[2][:1] for key in keys if ".attn." in key}
    assert found == {
        f"{half}.{level}{number}"
        for half, blocks in (("_encoder.down", 2), ("_decoder.up", 3))
        for level in levels
        for number in range(blocks)
    }
