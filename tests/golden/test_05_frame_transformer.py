"""The frame transformer and its blocks equal version 4 of the original (fixture 05)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture, recipe_tensor

from melreformer_hf.models.frame_transformer.blocks_frame_transformer import (
    ConvBlock,
    ConvDecoder,
    FrameNorm,
    MapTransformer,
    MultichannelAttention,
    MultichannelLinear,
    padded_attention,
    rotate_pairs,
)
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
from melreformer_hf.models.frame_transformer.weights_frame_transformer import (
    ORIGIN,
    attention_table,
    block_table,
    transformer_table,
)
from melreformer_hf.originals.renaming import rename_keys

# The fixtures' README: accumulated rounding of whole networks.
NETWORK_TOLERANCE = 5e-4
FREQUENCIES = "rotary_embedding.freqs"


@pytest.fixture(scope="module")
def golden():
    return fixture("05_frame_transformer_v4")


@pytest.fixture(scope="module")
def model(golden):
    return FrameTransformerModel.from_original(golden.weights("net."), golden.config["args"])


def arguments(golden, name):
    """Positional and keyword arguments of an original module."""
    given = golden.config[f"{name}_args"]
    if isinstance(given, list):
        return given, {}
    return given.get("a", []), {key: value for key, value in given.items() if key != "a"}


def load(golden, module, name, table=None):
    """`module` with the fixture's weights below `name`."""
    weights = {f"{name}.{key}": value for key, value in golden.weights(f"{name}.").items() if FREQUENCIES not in key}
    rows = [(f"{name}.", "ours.")] if table is None else table(name, "ours")
    renamed = rename_keys(weights, rows, ORIGIN)
    module.load_state_dict({key.removeprefix("ours."): value for key, value in renamed.items()})
    return module.eval()


def test_every_level_and_the_mask(golden, model):
    taps, hooks = {}, []
    for kind, blocks, transformers in (
        ("enc", model.encoders, model.encoder_transformers),
        ("dec", model.decoders, model.decoder_transformers),
    ):
        for level, (block, transformer) in enumerate(zip(blocks, transformers, strict=True), start=1):
            for key, module in ((f"{kind}{level}", block), (f"{kind}{level}_transformer", transformer)):
                hooks.append(module.register_forward_hook(lambda _, __, out, key=key: taps.update({key: out})))
    with torch.no_grad():
        output = model(golden.io["in.x"])
    for hook in hooks:
        hook.remove()
    compared = golden.assert_stored(taps, NETWORK_TOLERANCE)
    assert compared == {key for key in golden.io if key.startswith(("enc", "dec"))}
    golden.assert_close("net.out", output.logits, NETWORK_TOLERANCE)
    golden.assert_close("net.mask", output.mask)


def test_round_trip(golden, model):
    weights, made = golden.weights("net."), model.to_original_state_dict()
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        fixed = key.endswith(FREQUENCIES)  # computed, not stored: equal up to the rounding of a power
        torch.testing.assert_close(made[key], value, rtol=1e-5 if fixed else 0, atol=0, msg=key)


def test_recipe_weights(golden):
    """A network too large to store, with weights by the fixtures' recipe."""
    recipe = golden.config["recipe_net"]
    wide = FrameTransformerModel.from_original_arguments(recipe["args"])
    weights = {
        key: value if key.endswith("freqs") else recipe_tensor(key, value.shape, recipe["seed"], recipe["bound_mul"])
        for key, value in wide.to_original_state_dict().items()
    }
    model = FrameTransformerModel.from_original(weights, recipe["args"])
    with torch.no_grad():
        golden.assert_close("recipe_net.out", model(golden.io["recipe_net.in"]).logits, NETWORK_TOLERANCE)


def linears() -> list[str]:
    """The fixture's linear layers, `mlinear`, `mlinear_pw` and `mlinear_dw` in the committed set."""
    try:
        config = fixture("05_frame_transformer_v4").config
    except pytest.skip.Exception:
        return ["mlinear"]
    return [key.removesuffix("_args") for key in config if key.startswith("mlinear") and key.endswith("_args")]


@pytest.mark.parametrize("name", linears())
def test_multichannel_linear(golden, name):
    sizes, options = arguments(golden, name)
    module = load(golden, MultichannelLinear(*sizes, **options), name)
    golden.assert_close(f"{name}.out", module(golden.io[f"{name}.in"]))


def test_frame_norm(golden):
    sizes, options = arguments(golden, "framenorm")
    module = load(golden, FrameNorm(*sizes, **options), "framenorm")
    golden.assert_close("framenorm.out", module(golden.io["framenorm.in"]))


def test_rotary_positions(golden):
    values = golden.io["rope.in"]
    golden.assert_close("rope.out", rotate_pairs(values, torch.arange(values.shape[-2])))


def test_attention(golden):
    sizes, options = arguments(golden, "attn")
    module = load(golden, MultichannelAttention(*sizes, **options), "attn", attention_table)
    with torch.no_grad():
        golden.assert_close("attn.self_out", module(golden.io["attn.in"]))
        golden.assert_close("attn.cross_out", module(golden.io["attn.in"], golden.io["attn.mem"]))


def test_attention_of_filled_up_heads(golden):
    """What accelerators compute, whose kernels want larger heads."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 11, 6, generator=generator)
    plain = ((query @ key.transpose(-1, -2)) * 0.3).softmax(-1) @ value
    layer = MultichannelAttention(1, 12, 1)
    found = padded_attention(layer, query, key, value, 0.3, head_multiple=8)
    torch.testing.assert_close(found.transpose(1, 2), plain)


def test_residual_block(golden):
    sizes, options = arguments(golden, "resblock_down")
    module = load(golden, ConvBlock(*sizes, **options), "resblock_down", block_table)
    golden.assert_close("resblock_down.out", module(golden.io["resblock_down.in"]))


def test_frame_decoder(golden):
    sizes, options = arguments(golden, "framedecoder")
    module = ConvDecoder(ConvBlock(*sizes, **options))
    load(golden, module, "framedecoder", lambda name, ours: block_table(f"{name}.body.0", f"{ours}.block"))
    golden.assert_close("framedecoder.upsampled", module.upsample(golden.io["framedecoder.in"]))
    golden.assert_close("framedecoder.out", module(golden.io["framedecoder.in"], golden.io["framedecoder.skip"]))


def test_transformer_layers(golden):
    published = golden.config["published_config"]
    for name in ("tenc", "tdec"):
        sizes, options = arguments(golden, name)
        in_channels, *skip_channels, maps, features = sizes
        module = MapTransformer(
            in_channels,
            maps,
            features,
            options.get("num_heads", published["num_heads"]),
            features * options.get("expansion", published["expansion"]),
            skip_channels[0] if skip_channels else None,
        )
        load(golden, module, name, lambda a, b, decoder=bool(skip_channels): transformer_table(a, b, decoder))
        skip = [golden.io[f"{name}.skip"]] if skip_channels else []
        with torch.no_grad():
            golden.assert_close(f"{name}.out", module(golden.io[f"{name}.in"], *skip))


def test_published_size(golden):
    """The original's published arguments give its published number of parameters."""
    with torch.device("meta"):
        model = FrameTransformerModel.from_original_arguments(golden.config["published_config"])
    assert model.num_parameters() == golden.config["published_config_param_count"]
