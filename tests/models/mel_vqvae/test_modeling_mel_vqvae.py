"""The mel VQ-VAE's contract and properties."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from huggingface_hub.errors import StrictDataclassError
from model_checks import assert_recomputing_changes_nothing
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.models.mel_vqvae import modeling_mel_vqvae
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel


class TestMelVqvaeContract(ModelContractMixin):
    model_class = MelVqvaeModel
    main_output = "output_features"

    def config(self):
        return MelVqvaeConfig.preset("tiny", channel_multipliers=(1, 2), resolution=32)

    def inputs(self, batch):
        generator = torch.Generator().manual_seed(1)
        return {"input_features": torch.rand(3, 80, 24, generator=generator)[:batch]}

    def steps(self, model):
        mel = self.inputs(1)["input_features"]
        return {"encode": (model.encode, (mel,)), "decode": (model.decode, (model.encode(mel),))}


def test_published_size():
    with torch.device("meta"):
        model = MelVqvaeModel(MelVqvaeConfig.preset("vas"))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["encoder"] == 29_295_872
    assert counts["decoder"] == 42_447_489
    assert counts["quant_conv"] + counts["post_quant_conv"] == 131_584
    assert model.num_parameters() == 71_907_713
    assert (model.config.stride, model.config.num_token_rows) == (16, 5)


@pytest.mark.parametrize("columns", [1, 3, 17])
def test_any_multiple_of_the_stride(columns):
    torch.manual_seed(0)
    model = MelVqvaeModel(MelVqvaeConfig.preset("tiny")).eval()
    mel = torch.rand(2, 80, columns * model.config.stride)
    with torch.no_grad():
        output = model(mel)
        codes = model.encode(mel)
        assert torch.equal(output.codes, codes)
        assert torch.equal(model.tokens_to_codes(model.codes_to_tokens(codes)), codes)
        torch.testing.assert_close(model.decode(codes), output.output_features, rtol=1e-4, atol=1e-5)


def test_a_codeword_is_its_own_nearest():
    model = MelVqvaeModel(MelVqvaeConfig.preset("tiny"))
    codes = torch.arange(model.config.codebook_size).reshape(1, 1, -1)
    output = model.quantizer(model.quantizer.decode(codes))
    assert torch.equal(output.audio_codes, codes)
    assert output.loss.item() == 0
    assert output.perplexity.item() == pytest.approx(model.config.codebook_size, rel=1e-4)


EMA = {"codebook_update": "ema", "kmeans_iterations": 5, "restart_threshold": 0.1, "codebook_decay": 0.8}


def mels(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 80, 24, generator=torch.Generator().manual_seed(seed))


def test_running_means_train_and_use_the_codebook():
    torch.manual_seed(0)
    model = MelVqvaeModel(MelVqvaeConfig.preset("tiny", **EMA)).train()
    model.initialize_codebooks(mels(), torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    assert not any("codewords" in name for name, _ in model.named_parameters())
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        for part in mels(step % 3).split(1):  # two micro batches
            output = model(part)
            output.loss.backward()
            model.accumulate_codebooks(output)
        optimizer.step()
        before = model.quantizer.codebook(0).codewords.clone()
        assert model.update_codebooks(torch.Generator().manual_seed(step))
        assert not torch.equal(before, model.quantizer.codebook(0).codewords)
        losses.append(output.loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
    assert output.perplexity > 4
    assert torch.equal(model.eval().encode(mels()), model(mels()).codes)


@torch.no_grad()
def test_mels_are_scaled_to_one_around_zero_and_back():
    torch.manual_seed(0)
    model = MelVqvaeModel(MelVqvaeConfig.preset("tiny", input_range=(-5.0, 2.0))).eval()
    mel = 7 * mels() - 5
    torch.testing.assert_close(model._scale(mel)[:, 0], 2 * mels() - 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(model._unscale(model._scale(mel)), mel, rtol=0, atol=1e-5)
    output = model(mel)
    torch.testing.assert_close(model.decode(model.encode(mel)), output.output_features, rtol=0, atol=1e-4)
    error = (output.output_features - mel).abs().mean() * 2 / 7
    torch.testing.assert_close(output.reconstruction_loss, error)
    torch.testing.assert_close(output.loss, error + output.quantization_loss)


def test_dropout_is_drawn_again_when_activations_are_recomputed():
    torch.manual_seed(0)
    model = MelVqvaeModel(MelVqvaeConfig.preset("tiny", dropout=0.1))
    assert_recomputing_changes_nothing(model, {"input_features": mels()}, lambda output: output.loss)


def test_wrong_lengths_and_codes_are_refused():
    model = MelVqvaeModel(MelVqvaeConfig.preset("tiny"))
    with pytest.raises(ValueError) as error:
        model(torch.zeros(1, 80, 30))
    assert_error(error, "input_features", "multiple of 4", "(1, 80, 30)")
    with pytest.raises(ValueError) as error:
        model.decode(torch.full((1, 20, 2), 64))
    assert_error(error, "codes", "0..63", "64")
    with pytest.raises(ValueError, match=r"codes must be in 0\.\.63, got -1\.\.0"):
        model.decode(torch.tensor([[[0, -1]]]).expand(1, 20, 2))
    assert model.decode(torch.tensor([[[0, 63]]]).expand(1, 20, 2)).shape == (1, 80, 8)
    for shape in ((1, 19, 2), (1, 20, 0), (20, 2)):
        with pytest.raises(ValueError, match=r"codes must be \(batch, 20, columns\)"):
            model.decode(torch.zeros(shape, dtype=torch.long))
    for shape in ((1, 30), (20,)):
        with pytest.raises(ValueError, match="tokens must be .batch, a multiple of 20"):
            model.tokens_to_codes(torch.zeros(shape, dtype=torch.long))
    for shape in ((1, 79, 32), (1, 80, 0), (80, 32)):
        with pytest.raises(ValueError, match="input_features must be .batch, 80, frames"):
            model(torch.zeros(shape))
    with pytest.raises(Exception, match="num_norm_groups"):
        MelVqvaeConfig(num_norm_groups=7)
    for name, value in (("codebook_update", "sgd"), ("codebook_decay", 1.0), ("kmeans_iterations", -1)):
        with pytest.raises(Exception, match=name):
            MelVqvaeConfig(**{name: value})


def test_broken_original_checkpoints_are_refused():
    weights = MelVqvaeModel(MelVqvaeConfig.preset("tiny")).to_original_state_dict()
    arguments = {
        "ch": 16,
        "ch_mult": (1, 1, 2),
        "num_res_blocks": 1,
        "resolution": 64,
        "attn_resolutions": (16,),
        "z_channels": 16,
        "num_embeddings": 64,
        "embedding_dim": 8,
        "group_norm_groups": 8,
    }
    assert isinstance(MelVqvaeModel.from_original(weights, arguments), MelVqvaeModel)
    with pytest.raises(ValueError, match="unexpected key 'surprise'"):
        MelVqvaeModel.from_original({**weights, "surprise": torch.zeros(1)}, arguments)
    with pytest.raises(ValueError, match="_vq_vae._embedding.weight"):
        MelVqvaeModel.from_original(weights, {**arguments, "num_embeddings": 32})
    with pytest.raises(ValueError, match="missing key '_encoder.conv_in.weight'"):
        MelVqvaeModel.from_original({k: v for k, v in weights.items() if k != "_encoder.conv_in.weight"}, arguments)
    with pytest.raises(ValueError, match="chh"):
        MelVqvaeModel.from_original(weights, {**arguments, "chh": 3})


def test_docstrings_run():
    assert doctest.testmod(modeling_mel_vqvae).failed == 0
    assert doctest.testmod(modeling_mel_vqvae).attempted > 3


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("num_residual_blocks", "resolution", "latent_channels", "codebook_dim", "num_norm_groups")
    )
    inside |= {
        "base_channels": ({"base_channels": 1, "num_norm_groups": 1},),
        "channel_multipliers": ((1,),),
        "input_range": ((0.0, 0.1),),
        "dropout": (0.0, 0.99),
        "codebook_size": (2,),
        "kmeans_iterations": (0,),
        "codebook_decay": (0.0, 0.99),
        "restart_threshold": (0.0, 0.99),
    }
    outside |= {
        "base_channels": (0, {"base_channels": 12, "channel_multipliers": (2,)}),
        "channel_multipliers": ((), (1, 0)),
        "num_norm_groups": (0, 3),
        "num_mel_bins": ({"channel_multipliers": (1, 1, 1, 1, 1, 1)},),  # 80 bands are no multiple of 32
        "input_range": ((0.1, 0.1), (0.0,)),
        "dropout": (-0.01, 1.0),
        "codebook_size": (1,),
        "kmeans_iterations": (-1,),
        "codebook_decay": (-0.01, 1.0),
        "restart_threshold": (-0.01, 1.0),
    }
    check_borders(partial(MelVqvaeConfig.preset, "tiny"), inside, outside)


@torch.no_grad()
def test_patches_are_pixels_of_several_bins():
    torch.manual_seed(0)
    config = MelVqvaeConfig.preset("tiny", patch_size=2, channel_multipliers=(1, 2), attention_resolutions=(32,))
    model = MelVqvaeModel(config).eval()
    assert (config.stride, config.num_token_rows, config.attention_levels) == (4, 20, (0,))
    assert model.encoder.conv_in.in_channels == model.decoder.conv_out.out_channels == 4
    output = model(mels())
    assert output.codes.shape == (2, 20, 6) and output.output_features.shape == mels().shape
    # A patch and its neighbors are a pixel and its neighbors: the first convolution sees two bands and frames at once.
    seen = []
    model.encoder.conv_in.register_forward_hook(lambda module, inputs, made: seen.append(inputs[0]))
    model(mels())
    pixel = model._scale(mels())[:, 0, 2:4, 4:6].flatten(1)
    torch.testing.assert_close(seen[0][:, :, 1, 2], pixel)
    with pytest.raises(ValueError, match="patch_size must be 1 for the original"):
        model.to_original_state_dict()
    with pytest.raises(StrictDataclassError):
        MelVqvaeConfig.preset("tiny", patch_size=0)
