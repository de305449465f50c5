"""Codec language model, range coder and files equal EnCodec's (fixture 09: `lm.`, `ac*`, `pack*`, containers)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.models.codec_lm.container_codec_lm import EcdcHeader, pack_bits, unpack_bits
from melreformer_hf.models.codec_lm.ecdc_codec_lm import EcdcSegment, OriginalSteps, read_ecdc, write_ecdc
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel, frame_positions
from melreformer_hf.models.codec_lm.range_coder_codec_lm import RangeDecoder, RangeEncoder, quantized_cdf


@pytest.fixture(scope="module")
def golden():
    return fixture("09_encodec")


def coders() -> list[str]:
    """The fixture's runs of the arithmetic coder."""
    try:
        return sorted(key for key in fixture("09_encodec").config["info"] if key.startswith("ac"))
    except pytest.skip.Exception:
        return ["ac1"]


@pytest.mark.parametrize("name", coders())
def test_range_coder(golden, name):
    bits = golden.config["info"][name]["total_range_bits"]
    cdfs = quantized_cdf(golden.io[f"{name}.pdf"], bits)
    golden.assert_close(f"{name}.cdf", cdfs)
    symbols, expected = golden.io[f"{name}.symbols"], bytes(golden.io[f"{name}.bytes"].tolist())
    encoder = RangeEncoder(bits)
    encoder.encode(symbols, cdfs)
    assert encoder.finish() == expected
    decoder = RangeDecoder(expected, bits)
    golden.assert_close(f"{name}.symbols", torch.from_numpy(decoder.decode(cdfs)))
    decoder.finish()


@pytest.fixture(scope="module")
def model(golden):
    return CodecLMModel.from_original(golden.weights("lm."), golden.config["lm"])


def ours(indices):
    """The original counts "no code yet" as 0 and codes from 1 on."""
    return indices - 1


def theirs(logits):
    """(batch, quantizer, frame, code) -> probabilities (batch, code, quantizer, frame)."""
    return logits.softmax(dim=-1).permute(0, 3, 1, 2)


@torch.no_grad()
def test_probabilities(golden, model):
    codes = ours(golden.io["lm.indices"])
    golden.assert_close("lm.probas", theirs(model(codes).logits))
    for key in golden.io:
        if key.startswith("lm.probas_offset"):
            offset = int(key.removeprefix("lm.probas_offset"))
            golden.assert_close(key, theirs(model(codes, position_offset=offset).logits))


@torch.no_grad()
def test_streamed_probabilities(golden, model):
    cache, steps = None, []
    for codes in ours(golden.io["lm.indices"]).split(1, dim=2):
        output = model(codes, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    golden.assert_close("lm.probas_streaming", theirs(torch.cat(steps, dim=2)))
    if "lm.state0_last" not in golden.io:
        return
    kept = golden.io["lm.state0_last"]  # inputs of the first layer, where we keep what it makes of them
    _, key, value = model.layers[0].attention.qkv(kept).chunk(3, dim=-1)
    for found, expected in ((cache.keys[0], key), (cache.values[0], value)):
        torch.testing.assert_close(found.transpose(1, 2).flatten(2), expected, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_probabilities_in_fixed_point(golden, model):
    """Exact arithmetic changes probabilities by less than what they are worth to a coder (2e-4 of a bit)."""
    logits, _ = model.fixed_point().logits(ours(golden.io["lm.indices"]))
    expected = golden.io["lm.probas"]
    torch.testing.assert_close(theirs(logits), expected.double(), rtol=1e-4, atol=1e-6)


def test_position_codes(golden):
    """The fixture does not tell the first position: the cosine of the fastest wave does."""
    stored = golden.io["lm.sin_embedding"][0]
    candidates = torch.arange(1000)
    period = float(golden.config["lm"].get("max_period", 10000.0))
    table = frame_positions(candidates, stored.shape[-1], period)
    first = int((table - stored[0]).abs().sum(dim=-1).argmin())
    golden.assert_close("lm.sin_embedding", table[first : first + len(stored)][None])


def test_round_trip(golden, model):
    weights, made = golden.weights("lm."), model.to_original_state_dict()
    assert made.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, msg=key)


# Packed codes and whole files


def stored_bytes(golden, key: str) -> bytes:
    return bytes(golden.io[key].tolist())


def test_packed_bits(golden):
    names = [key.removesuffix(".values") for key in golden.io if key.startswith("pack") and key.endswith(".values")]
    assert names
    for name in names:
        values, bits = golden.io[f"{name}.values"], int(name.removeprefix("pack"))
        packed = stored_bytes(golden, f"{name}.bytes")
        assert pack_bits(values, bits) == packed
        golden.assert_close(f"{name}.values", unpack_bits(packed, len(values), bits))


def segments(golden, name: str) -> list[EcdcSegment]:
    """What the original encoder made of the first signal."""
    found = []
    while f"{name}.codes{len(found)}" in golden.io:
        index = len(found)
        scale = golden.io.get(f"{name}.scale{index}")
        found.append(EcdcSegment(golden.io[f"{name}.codes{index}"][0], None if scale is None else scale[0].item()))
    return found


def codecs() -> list[str]:
    """The fixture's codecs with files."""
    try:
        info = fixture("09_encodec").config["info"]
    except pytest.skip.Exception:
        return ["a"]
    return [name for name, values in info.items() if "container_model_name" in values]


def check_read(golden, name: str, data: bytes, language_model: CodecLMModel | None = None) -> None:
    expected = segments(golden, name)
    frames = [segment.audio_codes.shape[1] for segment in expected]
    scaled = expected[0].scale is not None
    header, found = read_ecdc(data, frames, golden.config[name]["q"]["bins"], scaled, language_model)
    assert header.model_name == golden.config["info"][name]["container_model_name"]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.audio_codes, other.audio_codes) and one.scale == other.scale


@pytest.mark.parametrize("name", codecs())
def test_packed_files(golden, name):
    stored = stored_bytes(golden, f"{name}.container_lm0.bytes")
    header, _ = EcdcHeader.read(stored)
    assert not header.uses_language_model
    assert write_ecdc(header, segments(golden, name), golden.config[name]["q"]["bins"]) == stored
    check_read(golden, name, stored)


@torch.no_grad()
def test_steps_of_files(golden, model):
    """What writes and reads files follows the original's streaming evaluation, not only some evaluation of its own."""
    for row, codes in enumerate(ours(golden.io["lm.indices"])):
        steps = OriginalSteps(model)
        made = torch.stack([steps.probabilities(frame) for frame in codes.unbind(1)], dim=-1)  # quantizer, code, frame
        expected = golden.io["lm.probas_streaming"][row]
        torch.testing.assert_close(
            made.transpose(0, 1), expected, rtol=0, atol=golden.tolerance("lm.probas_streaming")
        )


@pytest.mark.parametrize("name", codecs())
def test_files_of_the_language_model(golden, name):
    """Float32 probabilities depend on the linear algebra that made them, so that a byte may differ; no size does."""
    stored = stored_bytes(golden, f"{name}.container_lm1.bytes")
    header, start = EcdcHeader.read(stored)
    model = CodecLMModel.from_original(golden.weights(f"{name}_lm."), golden.config["info"][name]["lm"])
    written = write_ecdc(header, segments(golden, name), golden.config[name]["q"]["bins"], model)
    assert written[:start] == stored[:start] == header.to_bytes()
    assert abs(len(written) - len(stored)) <= len(segments(golden, name))  # one byte where a rounding tips a segment
    check_read(golden, name, written, model)
    if segments(golden, name)[0].scale is not None:
        assert written[start : start + 4] == stored[start : start + 4]
