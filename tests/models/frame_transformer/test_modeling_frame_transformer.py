"""The frame transformer's contract and properties."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from borders import check_borders, from_one
from testing_utils import ModelContractMixin, assert_error

from melreformer_hf.models.frame_transformer import modeling_frame_transformer
from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel

TINY = {
    "n_fft": 128,
    "hop_length": 64,
    "base_channels": 2,
    "channel_multipliers": (1, 2, 3),
}
VARIANTS: dict[str, dict] = {
    "v4": {"num_attention_maps": (2, 2, 3), "num_attention_heads": 4, "feedforward_expansion": 2},
    "frame_primer": {
        "num_attention_maps": (1, 2, 3),
        "num_attention_heads": (8, 4, 4),
        "intermediate_size": 48,
    },
    "frame_transformer3": {
        "channel_multipliers": (1,),
        "num_attention_heads": 4,
        "feedforward_expansion": 2,
        "num_hidden_layers": 3,
    },
    "frame_transformer": {"num_attention_heads": 2, "feedforward_expansion": 2},
    "conv_frame_primer": {"num_attention_heads": 2, "feedforward_expansion": 2},
}
# A version 4 network has six levels; these are the original's names for one.
ORIGINAL = {
    "in_channels": 2,
    "channels": 2,
    "dropout": 0.1,
    "n_fft": 128,
    "num_heads": 1,
    "expansion": 2,
    "num_attention_maps": [1, 1, 1, 2, 2, 2],
}


def tiny(name: str = "v4", **overrides) -> FrameTransformerConfig:
    return FrameTransformerConfig.preset(name, **{**TINY, **VARIANTS[name], **overrides})


def build(name: str = "v4", **overrides) -> FrameTransformerModel:
    torch.manual_seed(0)
    return FrameTransformerModel(tiny(name, **overrides)).eval()


def magnitudes(batch: int, bins: int = 65, frames: int = 21) -> torch.Tensor:
    return torch.rand(3, 2, bins, frames, generator=torch.Generator().manual_seed(1))[:batch]


class FrameTransformerContract(ModelContractMixin):
    model_class = FrameTransformerModel
    main_output = "logits"
    variant = "v4"

    def config(self):
        return tiny(self.variant)

    def inputs(self, batch):
        return {"input_features": magnitudes(batch)}

    def graph_model(self):
        """Two levels of the U-Net have every kind of layer."""
        config, few = self.config(), {}
        for name in ("channel_multipliers", "num_attention_maps", "num_attention_heads"):
            value = getattr(config, name)
            few[name] = value[:2] if isinstance(value, tuple) else value
        return build(self.variant, **few)


class TestVersion4(FrameTransformerContract):
    pass


class TestFramePrimer(FrameTransformerContract):
    variant = "frame_primer"


class TestStack(FrameTransformerContract):
    variant = "frame_transformer3"


class TestPositionwise(FrameTransformerContract):
    variant = "frame_transformer"


class TestConvFramePrimer(FrameTransformerContract):
    variant = "conv_frame_primer"


@pytest.mark.parametrize(("preset", "count"), [("v4", 192_699_428), ("frame_primer", 118_155_192)])
def test_published_sizes(preset, count):
    with torch.device("meta"):
        model = FrameTransformerModel(FrameTransformerConfig.preset(preset))
    assert model.num_parameters() == count
    assert model.config.features == (1024, 512, 256, 128, 64, 32)


def test_the_default_is_version_4_with_the_nyquist_bin():
    assert FrameTransformerConfig() == FrameTransformerConfig.preset("v4")
    assert FrameTransformerConfig().num_bins == 1025
    assert FrameTransformerConfig(nyquist="drop").num_bins == 1024


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("frames", [1, 2, 37])
def test_any_number_of_frames(variant, frames):
    with torch.no_grad():
        output = build(variant)(magnitudes(1, frames=frames))
    assert output.mask.shape == (1, 2, 65, frames)
    assert 0 < output.mask.min() and output.mask.max() < 1


def test_nyquist_bin():
    """It is there, has its neighbour's mask, and changes nothing below it."""
    model, dropping = build(), build(nyquist="drop")
    dropping.load_state_dict(model.state_dict())
    mixture = magnitudes(1)
    with torch.no_grad():
        logits, without = model(mixture).logits, dropping(mixture[:, :, :-1]).logits
    assert torch.equal(logits[:, :, :-1], without)
    assert torch.equal(logits[:, :, -1], logits[:, :, -2])


def test_loss_is_the_error_of_the_masked_mixture():
    model, mixture = build(), magnitudes(2)
    instrumental = mixture * 0.3
    output = model(mixture, labels=instrumental)
    torch.testing.assert_close(output.loss, (mixture * output.mask - instrumental).abs().mean())
    assert model(mixture, labels=mixture * output.mask.detach()).loss < 1e-7


def test_it_learns():
    model = build(dropout=0.0).train()
    mixture = magnitudes(1, frames=8)
    instrumental = mixture * torch.linspace(0, 1, 65)[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = model(mixture, labels=instrumental).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize("variant", ["v4", "frame_transformer"])
def test_gradient_checkpointing_changes_nothing_but_memory(variant):
    model, mixture = build(variant, dropout=0.0).train(), magnitudes(2)

    def gradients():
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(mixture, labels=mixture * 0.5).loss
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, kept

    plain, kept_plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # of older versions
    checkpointed, kept_checkpointed = gradients()
    torch.testing.assert_close(checkpointed, plain)
    assert kept_checkpointed < kept_plain / 4


def test_wrong_shapes_are_refused():
    model = build()
    with pytest.raises(ValueError) as error:
        model(magnitudes(1, bins=64))
    assert_error(error, "input_features", "(batch, 2, 65, frames)", "(1, 2, 64, 21)")
    with pytest.raises(ValueError, match="labels"):
        model(magnitudes(1), labels=magnitudes(1, frames=20))
    with pytest.raises(ValueError, match="name must be one of"):
        FrameTransformerConfig.preset("v5")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_fft", 130),
        ("hop_length", 200),
        ("nyquist", "keep"),
        ("num_attention_maps", (1, 2)),
        ("num_attention_heads", 3),
        ("partial_rotary_factor", 0.0),
        ("resampling", "linear"),
        ("resampling_kernel_size", (2, 3)),
        ("attention_kernel_size", 4),
        ("dropout", 1.0),
    ],
)
def test_wrong_configurations_are_refused(field, value):
    with pytest.raises(Exception, match=field):
        tiny(**{field: value})


def test_original_checkpoints_round_trip(tmp_path):
    config = {**TINY, "channel_multipliers": (1, 2, 4, 6, 8, 10), "num_attention_maps": (1, 1, 1, 2, 2, 2)}
    torch.manual_seed(0)
    model = FrameTransformerModel(
        FrameTransformerConfig(**config, num_attention_heads=1, feedforward_expansion=2, nyquist="replicate")
    ).eval()
    weights = model.to_original_state_dict()
    torch.save(weights, tmp_path / "original.pth")
    again = FrameTransformerModel.from_original(tmp_path / "original.pth", ORIGINAL, nyquist="replicate")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)
    with torch.no_grad():
        torch.testing.assert_close(again(magnitudes(1)).mask, model(magnitudes(1)).mask, rtol=0, atol=0)
    for variant in ("frame_primer", "frame_transformer", "conv_frame_primer", "v4"):
        with pytest.raises(ValueError, match="version 4"):
            build(variant).to_original_state_dict()


def test_broken_original_checkpoints_are_refused(tmp_path):
    config = {**TINY, "channel_multipliers": (1, 2, 4, 6, 8, 10), "num_attention_maps": (1, 1, 1, 2, 2, 2)}
    model = FrameTransformerModel(FrameTransformerConfig(**config, num_attention_heads=1, feedforward_expansion=2))
    weights = model.to_original_state_dict()
    load = FrameTransformerModel.from_original

    with pytest.raises(ValueError, match="unexpected key 'enc1.surprise'"):
        load({**weights, "enc1.surprise": torch.zeros(1)}, ORIGINAL)
    without = {key: value for key, value in weights.items() if key != "enc3_transformer.linear2.weight_pw"}
    with pytest.raises(ValueError, match="missing key 'enc3_transformer.linear2.weight_pw'"):
        load(without, ORIGINAL)
    with pytest.raises(ValueError, match=r"'enc1_transformer.linear1.weight_pw' has shape \(1, 128, 64\)"):
        load(weights, {**ORIGINAL, "expansion": 4})
    with pytest.raises(ValueError, match="channel"):
        load(weights, {**ORIGINAL, "chanels": 2})
    frequencies = "dec2_transformer.skip_attn.rotary_embedding.freqs"
    with pytest.raises(ValueError) as error:
        load({**weights, frequencies: weights[frequencies] * 2}, ORIGINAL)
    assert_error(error, frequencies, "other values")
    with pytest.raises(ValueError, match="dec6_transformer.self_attn"):
        load({**weights, "dec6_transformer.self_attn.rotary_embedding.freqs": torch.ones(1)}, ORIGINAL)
    torch.save({"weights": weights, "code": doctest.DocTestParser()}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="hostile.pth was refused"):
        load(tmp_path / "hostile.pth", ORIGINAL)


def test_docstrings_run():
    results = doctest.testmod(modeling_frame_transformer)
    assert results.attempted > 3
    assert results.failed == 0


def test_borders_of_the_configuration():
    inside, outside = from_one(
        *("sampling_rate", "hop_length", "num_audio_channels", "base_channels", "num_hidden_layers"),
        *("feedforward_expansion", "resampling_expansion", "intermediate_size", "attention_kernel_size"),
    )
    inside |= {
        "hop_length": (1, 128),
        "partial_rotary_factor": (0.01, 1.0),
        "dropout": (0.0, 0.99),
        "resampling_kernel_size": ((1, 1),),
        "channel_multipliers": ((1, 1, 1),),
        "num_attention_maps": ((1, 1, 1), None),
        "num_attention_heads": (1, (64, 32, 16)),
    }
    outside |= {
        "n_fft": (0, 132),
        "hop_length": (0, 129),
        "partial_rotary_factor": (0.0, 1.01),
        "dropout": (-0.01, 1.0),
        "resampling_kernel_size": ((3,), (3, 2), (-1, 3)),
        "attention_kernel_size": (0, 2, -1),
        "channel_multipliers": ((), (1, 2, 0)),
        "num_attention_maps": ((1, 1), (1, 1, 0)),
        "num_attention_heads": (0, (1, 1), (1, 2, 3)),
    }
    check_borders(partial(FrameTransformerConfig.preset, "tiny", n_fft=128), inside, outside)
