"""More arguments of the originals at values that the golden fixtures lack, against plain torch; and those refused."""

from __future__ import annotations

import math

import pytest
import torch
from test_original_arguments import spread
from torch.nn.functional import (
    avg_pool2d,
    conv1d,
    conv_transpose1d,
    gelu,
    interpolate,
    layer_norm,
    leaky_relu,
    linear,
)

from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.frame_transformer.blocks_frame_transformer import MultichannelLinear
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.hifi_vocoder.weights_hifi_vocoder import configuration_from_original as hifi_configuration
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.models.mel_vqvae.vqgan_mel_vqvae import Downsample2d, Upsample2d
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d
from melreformer_hf.models.soundstream.weights_quantizers import quantizer_from_original


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


# MelReformer

MEL_REFORMER = {
    "n_mels": 5,
    "window_size": 3,
    "num_blocks": 2,
    "num_heads": 2,
    "dim_embed": 8,
    "encoder_block_size": 6,
    "decoder_block_size": 5,
}


def mel_reformer_training_pass(weights: dict, told: dict, mel: torch.Tensor) -> torch.Tensor:
    """Teacher forcing: (batch, mel, frame) -> the same."""

    def layer(name, values):
        return linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, values):
        return layer_norm(values, values.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attend(name, values, others, causal=False):
        query, key, value = (
            layer(f"{name}.{part}", source).unflatten(-1, (told["num_heads"], -1)).transpose(1, 2)
            for part, source in (("q", values), ("k", others), ("v", others))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
        return layer(f"{name}.output.0", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def feed(name, values):
        return layer(f"{name}.mlp.3", layer(f"{name}.mlp.0", values).relu())

    columns = interpolate(mel, told["encoder_block_size"], mode="linear").transpose(1, 2)
    memory = layer("encoder.1", columns) + weights["encoder.2.pe"]
    for number in range(told["num_blocks"]):
        stem = f"encoder.3.blocks.{number}."
        normed = norm(f"{stem}sublayer0.0", memory)
        memory = memory + attend(f"{stem}sublayer0.1", normed, normed)
        memory = memory + feed(f"{stem}sublayer1.1", norm(f"{stem}sublayer1.0", memory))
    memory = norm("encoder.3.layer_norm", memory)
    folded = torch.stack([part.flatten(1) for part in mel.split(told["window_size"], -1)], 1)
    start = weights["start_token"].expand(len(mel), 1, -1)
    hidden = layer("preprocess_decoder.0", torch.cat([start, folded[:, :-1]], 1))
    hidden = hidden + weights["preprocess_decoder.1.pe"][:, : hidden.shape[1]]
    for number in range(told["num_blocks"]):
        stem = f"decoder.blocks.{number}."
        normed = norm(f"{stem}ln_sa", hidden)
        hidden = hidden + attend(f"{stem}self_attn", normed, normed, causal=True)
        hidden = hidden + attend(f"{stem}cross_attn", norm(f"{stem}ln_ca", hidden), memory)
        hidden = hidden + feed(f"{stem}ff", norm(f"{stem}ln_ff", hidden))
    made = layer("head", norm("decoder.layer_norm", hidden))
    return torch.cat([part.unflatten(1, (told["n_mels"], -1)) for part in made.unbind(1)], -1)


@pytest.mark.parametrize("changes", [{"dim_ff": 5}, {"dim_ff": 0}, {"dim_ff": None, "p_dropout": 0.3}], ids=str)
@torch.no_grad()
def test_feed_forward_width_of_the_mel_reformer(changes):
    told = MEL_REFORMER | changes
    made = spread(MelReformerModel.from_original_arguments(told).to_original_state_dict())
    tables = MelReformerModel.from_original_arguments(told).to_original_state_dict()
    weights = {key: tables[key] if key.endswith((".pe", ".mask")) else value for key, value in made.items()}
    model = MelReformerModel.from_original(weights, told)
    assert model.config.intermediate_size == (told["dim_ff"] or 16)
    assert model.config.dropout == told.get("p_dropout", 0.1)
    mel = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    found = model(mel, torch.full((2,), 12), labels=mel).output_features
    close(found, mel_reformer_training_pass(weights, told, mel))


# HiFi-GAN


HIFIGAN = {
    "upsample_initial_channel": 8,
    "resblock_kernel_sizes": [3, 5],
    "upsample_rates": [5, 2],
    "upsample_kernel_sizes": [11, 4],
}
HIFIGAN_CHANGES = {
    "odd kernels": {"resblock": "1", "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 3]]},
    "one sample more": {
        "resblock": "2",
        "resblock_dilation_sizes": [[1, 2], [2, 6]],
        "upsample_kernel_sizes": [10, 4],
    },
    "unused dilations": {"resblock": "2", "resblock_dilation_sizes": [[1, 2, 9], [2, 6, 9]]},
    "even kernels": {
        "resblock": "2",
        "resblock_kernel_sizes": [4],
        "resblock_dilation_sizes": [[2, 4]],
        "upsample_rates": [3],
        "upsample_kernel_sizes": [8],
    },
    "a number is not the text": {"resblock": 1, "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]]},
}


@pytest.mark.parametrize("name", HIFIGAN_CHANGES)
@torch.no_grad()
def test_generators_of_hifigan(name):
    told = HIFIGAN | HIFIGAN_CHANGES[name]
    weights = spread(HifiVocoderModel(hifi_configuration("hifigan", told)).to_original_state_dict())

    def layer(values, stem, dilation=1):
        taps = weights[f"{stem}.weight"]
        padding = (taps.shape[-1] * dilation - dilation) // 2
        return conv1d(values, taps, weights[f"{stem}.bias"], padding=padding, dilation=dilation)

    mel = torch.randn(2, 80, 4, generator=torch.Generator().manual_seed(1))
    hidden = layer(mel, "conv_pre")
    parallel = len(told["resblock_kernel_sizes"])
    for stage, (rate, kernel) in enumerate(zip(told["upsample_rates"], told["upsample_kernel_sizes"], strict=True)):
        stem = f"ups.{stage}"
        taps, bias = weights[f"{stem}.weight"], weights[f"{stem}.bias"]
        hidden = conv_transpose1d(leaky_relu(hidden, 0.1), taps, bias, rate, padding=(kernel - rate) // 2)
        total = 0.0
        for number, dilations in enumerate(told["resblock_dilation_sizes"]):
            stem, inner = f"resblocks.{stage * parallel + number}.", hidden
            if told["resblock"] == "1":
                for index, dilation in enumerate(dilations[:3]):
                    branch = layer(leaky_relu(inner, 0.1), f"{stem}convs1.{index}", dilation)
                    inner = inner + layer(leaky_relu(branch, 0.1), f"{stem}convs2.{index}")
            else:
                for index, dilation in enumerate(dilations[:2]):
                    inner = inner + layer(leaky_relu(inner, 0.1), f"{stem}convs.{index}", dilation)
            total = total + inner
        hidden = total / parallel
    expected = layer(leaky_relu(hidden, 0.01), "conv_post").tanh().squeeze(1)
    close(HifiVocoderModel.from_original(weights, told)(mel).waveform, expected)


# Mel VQ-VAE

VQVAE = {"ch": 8, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 32}
VQVAE |= {"z_channels": 4, "num_embeddings": 6, "embedding_dim": 3, "group_norm_groups": 2}


def test_levels_of_the_mel_vqvae_without_convolutions():
    told = VQVAE | {"resamp_with_conv": False}
    weights = MelVqvaeModel.from_original_arguments(told).to_original_state_dict()
    assert not [key for key in weights if "sample." in key]
    model = MelVqvaeModel.from_original(weights, told)
    pictures = torch.rand(1, 8, 8, 12)
    levels = [model.encoder.levels[0].resample, model.decoder.levels[1].resample]
    assert isinstance(levels[0], Downsample2d) and isinstance(levels[1], Upsample2d)
    assert torch.equal(levels[0](pictures), avg_pool2d(pictures, 2))
    assert torch.equal(levels[1](pictures), pictures.repeat_interleave(2, -1).repeat_interleave(2, -2))
    mel = torch.rand(2, 80, 16)
    assert model(mel).output_features.shape == mel.shape


def test_the_decoder_counts_its_resolutions_upwards():
    """53 -> 26 -> 13 going down, 13 -> 26 -> 52 going up."""
    keys = MelVqvaeModel.from_original_arguments(
        VQVAE | {"resolution": 53, "attn_resolutions": [53, 52]}
    ).to_original_state_dict()
    found = {key.split(".attn.")[0] for key in keys if ".attn." in key}
    assert found == {"_encoder.down.0", "_decoder.up.0"}
    keys = MelVqvaeModel.from_original_arguments(VQVAE | {"resolution": 53, "attn_resolutions": [53]})
    assert {key.split(".attn.")[0] for key in keys.to_original_state_dict() if ".attn." in key} == {"_encoder.down.0"}


# EnCodec's language model


@torch.no_grad()
def test_a_codec_language_model_without_biases():
    told = {"n_q": 2, "card": 8, "dim": 12, "num_layers": 2, "num_heads": 3, "past_context": 4, "norm_first": True}
    spare = told | {"bias": False, "hidden_scale": 1.5, "gelu": False, "max_period": 50.0, "norm_in": False}
    weights = spread(CodecLMModel.from_original_arguments(spare).to_original_state_dict())
    assert not [key for key in weights if key.startswith("transformer") and key.endswith("bias")]
    model = CodecLMModel.from_original(weights, spare)
    full = CodecLMModel.from_original_arguments(spare | {"bias": True}).to_original_state_dict()
    zeros = {key: weights.get(key, torch.zeros_like(value)) for key, value in full.items()}
    codes = torch.randint(8, (2, 2, 9), generator=torch.Generator().manual_seed(1))
    expected = CodecLMModel.from_original(zeros, spare | {"bias": True})(codes).logits
    close(model(codes).logits, expected)
    assert model.to_original_state_dict().keys() == weights.keys()
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in learned if name.startswith("layers.") and name.endswith("bias")]


# Quantizers


@pytest.mark.parametrize(
    ("size", "axes", "grid"), [(12, 2, (3, 4)), (512, 2, (32, 16)), (7, 2, (7, 1)), (60, 3, (5, 3, 4)), (9, 1, (9,))]
)
def test_grids_of_kohonen_maps(size, axes, grid):
    told = {"num_embeddings": size, "embedding_dim": 2, "grid_dim": axes, "blur": ["Gauss", 0.1]}
    state = {"_w": torch.randn(size, 2), "_ema_w": torch.randn(size, 2)}
    state |= {"_ema_cluster_size": torch.ones(size), "counter": torch.tensor(3.0)}
    quantizer = quantizer_from_original("kohonen_vae", state, told)
    assert quantizer.codebook(0).grid_shape == grid
    assert quantizer.codebook(0).neighborhood.radius == 100.0  # the original's base where none is told


def test_grids_of_one_number():
    told = {"num_embeddings": 9, "embedding_dim": 2, "grid_dim": 2, "grid_shape": 3, "blur": ["Hard", 0.1]}
    state = {"_w": torch.randn(9, 2), "_ema_w": torch.randn(9, 2), "_ema_cluster_size": torch.ones(9)}
    told |= {"epsilon": 0.5, "magic_counter_init": 2.0, "decay": 0.9}
    quantizer = quantizer_from_original("kohonen_vae", state | {"counter": torch.tensor(0.0)}, told)
    assert quantizer.codebook(0).grid_shape == (3, 3) and quantizer.options.epsilon == 0.5


def test_one_tap_of_a_multiresolution_convolution():
    told = {"d_model": 3, "kernel_size": 1, "depth": 2}
    weights = spread(MultiresConv1d.from_original_arguments(told).to_original_state_dict())
    hidden = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1))
    low, high, mixing = weights["h0"][:, 0], weights["h1"][:, 0], weights["w"]
    expected = mixing[:, -1:] * hidden + mixing[:, 2:3] * high * hidden + mixing[:, 1:2] * high * low * hidden
    expected = gelu(expected + mixing[:, :1] * low * low * hidden)
    with torch.no_grad():
        close(MultiresConv1d.from_original(weights, told)(hidden), expected)


@pytest.mark.parametrize("sizes", [(3, 3, 4, 4), (2, 5, 4, 4), (3, 2, 4, 6)])
@torch.no_grad()
def test_biases_of_multichannel_linear_layers(sizes):
    layer = MultichannelLinear(*sizes, depthwise=True, bias=True)
    hidden = torch.randn(2, sizes[0], sizes[2], 7)
    rows = torch.stack(
        [linear(hidden[:, c].mT, layer.weight_pw[c], layer.bias_pw[c, :, 0]) for c in range(sizes[0])], 1
    )
    expected = torch.einsum("oc,bctf->boft", layer.weight_dw, rows) + layer.bias_dw
    torch.testing.assert_close(layer(hidden), expected)


# What cannot be honored

GPT = {"vocab_size": 9, "block_size": 7, "n_layer": 1, "n_head": 2, "n_embd": 8, "class_size": 3}
CODEC = {"n_blocks": 1, "strides": [2], "first_block_channels": 2, "codebook_dim": 4, "codebook_size": 4}


@pytest.mark.parametrize(
    ("model_class", "told", "words"),
    [
        (ClassGptModel, GPT | {"n_unmasked": 4}, "n_unmasked must be 0 or 1: .* they are to predict"),
        (ClassGptModel, GPT | {"last_linear": 18}, "last_linear must be None or vocab_size"),
        (MelVqvaeModel, VQVAE | {"give_pre_end": True}, "give_pre_end must be False: .* makes no mel"),
        (MelVqvaeModel, VQVAE | {"double_z": True}, "double_z must be False: .* no variance"),
        (MelVqvaeModel, VQVAE | {"in_channels": 2}, "in_channels must be 1"),
        (SoundStreamModel, CODEC | {"zero_center": True}, "zero_center must be False .*not among the codes"),
        (SoundStreamModel, CODEC | {"use_energy_transformer": True}, "use_energy_transformer must be False"),
        (MelReformerModel, MEL_REFORMER | {"dropout": 0.1}, "no argument 'dropout'"),
    ],
)
def test_arguments_that_cannot_be_honored_say_why(model_class, told, words):
    with pytest.raises(ValueError, match=words):
        model_class.from_original_arguments(told)
