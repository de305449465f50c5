"""The original MelReformer's numbers: resize, fold, encoder, decoder, loss, free-running generation."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.audio.fold import fold, unfold
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel


@pytest.fixture(scope="module")
def golden():
    return fixture("01_melreformer")


@pytest.fixture(scope="module")
def model(golden):
    return MelReformerModel.from_original(golden.weights(), golden.config["args"])


def lengths(mel: torch.Tensor) -> torch.Tensor:
    return torch.full((mel.shape[0],), mel.shape[-1])


def record(store: dict[str, torch.Tensor], name: str, module: torch.nn.Module, of_input: bool) -> None:
    """Keep what a module is given, or what it gives, while the model runs."""
    if of_input:
        module.register_forward_pre_hook(lambda _, args: store.update({name: args[0]}))
    else:
        module.register_forward_hook(lambda _, __, output: store.update({name: output}))


def test_fold_and_unfold(golden):
    size = golden.config["args"]["window_size"]
    golden.assert_close("fold.out", fold(golden.io["in.x"], size))
    golden.assert_close("unfold.out", unfold(golden.io["fold.out"], size))


@pytest.mark.parametrize(
    ("source", "result"), [("in.x", "out"), ("in.x_long", "long_out"), ("in.x_short", "short_out")]
)
def test_point_sampling(golden, source, result):
    if source not in golden.io:
        pytest.skip(f"the golden set in use has no {source}")
    columns, mel = golden.config["args"]["encoder_block_size"], golden.io[source]
    resized = resize_mel(mel, columns, mode="point") if mel.shape[-1] > columns else mel
    golden.assert_close(f"resize.{result}", resized.transpose(1, 2))


@torch.no_grad()
def test_teacher_forcing_and_every_stage(golden):
    model = MelReformerModel.from_original(golden.weights(), golden.config["args"])
    net, mel = model.expansion, golden.io["in.x"]
    block = net.decoder_layers[0]
    stages = [
        ("encoder.linear_out", net.encoder_in, False),
        ("encoder.pos_out", net.encoder_layers[0], True),
        ("encoder.block0_out", net.encoder_layers[0], False),
        ("encoder.out", net.encoder_norm, False),
        ("decoder.shifted_in", net.decoder_in, True),
        ("decoder.pre_out", block, True),
        ("decoder.block0_after_selfattn", block.cross_norm, True),
        ("decoder.block0_after_cross", block.feed_forward_norm, True),
        ("decoder.block0_out", block, False),
        ("decoder.out", net.decoder_norm, False),
    ]
    seen: dict[str, torch.Tensor] = {}
    for stage in stages:
        record(seen, *stage)
    result = model(mel, lengths(mel), labels=mel)
    golden.assert_close("train_forward.out", result.output_features)
    golden.assert_close("loss.l1", result.loss)
    stored = {key for key in golden.io if key.startswith(("encoder.", "decoder."))}
    assert golden.assert_stored(seen) == stored


def test_generation(golden, model):
    keys = [key for key in golden.io if key.startswith(("generate.", "generate_beyond."))]
    assert keys
    for key in keys:
        mel, frames = golden.io["in.x"], golden.io[key].shape[-1]
        golden.assert_close(key, model.generate(mel, torch.full((mel.shape[0],), frames)))


def test_primed_generation(golden, model):
    mel, expected = golden.io["in.x"], golden.io["generate_primed.out"]
    size = golden.config["args"]["window_size"]
    # The fixture does not say how long the prime was; it is returned unchanged as the first windows.
    shared = (mel[..., : expected.shape[-1]] == expected[..., : mel.shape[-1]]).all(0).all(0)
    primed = int(shared.long().cumprod(0).sum()) // size * size
    assert primed >= size
    made = model.generate(mel, torch.full((mel.shape[0],), expected.shape[-1]), prime=mel[..., :primed])
    golden.assert_close("generate_primed.out", made)


def test_round_trip_of_the_checkpoint(golden, model):
    original, back = golden.weights(), model.to_original_state_dict()
    assert set(back) == set(original)
    for key, value in original.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=1e-6, msg=key)


def test_published_size(golden):
    with torch.device("meta"):
        model = MelReformerModel.from_original_arguments({"encoder_block_size": 64})
    expected = golden.config["full_size_param_count_default_args"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
