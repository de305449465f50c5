"""The multiresolution convolution and its gradients equal thjashin/multires-conv (fixture 12)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d
from melreformer_hf.models.soundstream.wavelets_soundstream import wavelet_filters


@pytest.fixture(scope="module")
def golden():
    return fixture("12_multires_conv")


def layers(golden):
    for number, arguments in enumerate(golden.config["args"]):
        yield f"m{number}", arguments, MultiresConv1d.from_original(golden.weights(f"m{number}."), arguments)


def test_outputs_and_depths(golden):
    depths = []
    for name, _, layer in layers(golden):
        hidden = golden.io[f"{name}.in"]
        with torch.no_grad():
            golden.assert_close(f"{name}.out", layer(hidden))
            golden.assert_close(f"{name}.pre_activation", layer.mix(hidden, layer._begin(hidden))[0])
        depths.append(layer.depth)
    assert depths == golden.config["depths"]


def test_gradients(golden):
    for name, _, layer in layers(golden):
        hidden = golden.io[f"{name}.in"].clone().requires_grad_()
        layer(hidden).backward(golden.io[f"{name}.grad_out"])
        golden.assert_close(f"{name}.grad_in", hidden.grad)
        golden.assert_close(f"{name}.grad_h0", layer.low_pass.grad)
        golden.assert_close(f"{name}.grad_w", layer.mixing.grad)


def test_streams_equal_the_original(golden):
    for name, _, layer in layers(golden):
        memory, pieces = None, []
        with torch.no_grad():
            for chunk in golden.io[f"{name}.in"].split(7, dim=-1):
                piece, memory = layer.step(chunk, memory)
                pieces.append(piece)
        golden.assert_close(f"{name}.out", torch.cat(pieces, dim=-1))


def test_wavelet_filters(golden):
    for number, arguments in enumerate(golden.config["args"]):
        if arguments.get("wavelet_init") is None:
            continue
        for ours, key in zip(wavelet_filters(arguments["wavelet_init"]), ("h0", "h1"), strict=True):
            expected = golden.io[f"m{number}.init.{key}"]
            golden.assert_close(f"m{number}.init.{key}", ours.expand_as(expected))


def test_round_trip(golden):
    for name, _, layer in layers(golden):
        weights, ours = golden.weights(f"{name}."), layer.to_original_state_dict()
        assert ours.keys() == weights.keys()
        for key, value in weights.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=0, msg=key)
