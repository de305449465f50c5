"""The codec language model and the range coder equal EnCodec's (fixture 09, tensors `lm.`, `ac*`)."""

from __future__ import annotations

import pytest
import torch
from golden_utils import fixture

from melreformer_hf.audio.range_coder import RangeDecoder, RangeEncoder, quantized_cdf


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
