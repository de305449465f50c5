"""Headers and packed codes of .ecdc files."""

from __future__ import annotations

import struct

import pytest
import torch

from melreformer_hf.models.codec_lm.container_codec_lm import EcdcHeader, pack_bits, packed_size, unpack_bits

HEADER = EcdcHeader("encodec_24khz", 48000, 8, True)


@pytest.mark.parametrize("bits", [1, 3, 8, 10, 32])
def test_packed_values_come_back(bits):
    values = torch.randint(2**bits, (37,), generator=torch.Generator().manual_seed(bits))
    data = pack_bits(values, bits)
    assert len(data) == packed_size(37, bits)
    assert torch.equal(unpack_bits(data + b"rest", 37, bits), values)
    with pytest.raises(ValueError, match="truncated"):
        unpack_bits(data[:-1], 37, bits)


def test_values_that_do_not_fit_are_refused():
    for values in ([8], [-1]):
        with pytest.raises(ValueError, match="3 bits"):
            pack_bits(torch.tensor(values), 3)


def test_header_comes_back():
    data = HEADER.to_bytes()
    assert EcdcHeader.read(data + b"codes") == (HEADER, len(data))


def test_broken_headers_are_refused():
    data = HEADER.to_bytes()
    for length in range(len(data)):
        with pytest.raises(ValueError, match="truncated"):
            EcdcHeader.read(data[:length])
    for broken in (b"RIFF" + data[4:], data[:4] + b"\1" + data[5:]):
        with pytest.raises(ValueError, match="version 0"):
            EcdcHeader.read(broken)
    texts = (
        b"{",
        b"[1]",
        b'{"m": "x", "al": 3, "nc": true, "lm": false}',
        b'{"m": "x", "al": -3, "nc": 1, "lm": false}',
    )
    for text in (*texts, b"\xff\xfe"):
        with pytest.raises(ValueError, match="corrupt"):
            EcdcHeader.read(struct.pack(">4sBI", b"ECDC", 0, len(text)) + text)


def test_nested_headers_are_refused():
    """They would exhaust the stack of the JSON reader, and of the message that shows them."""
    for text in (b"[" * 2000, b'{"m":' * 800 + b"1" + b"}" * 800, b'{"m": ' + b"[" * 400 + b"]" * 400 + b"}"):
        with pytest.raises(ValueError, match="corrupt") as error:
            EcdcHeader.read(struct.pack(">4sBI", b"ECDC", 0, len(text)) + text)
        assert len(str(error.value)) < 300
    long = b'{"m": "' + b"x" * 5000 + b'"}'
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        EcdcHeader.read(struct.pack(">4sBI", b"ECDC", 0, len(long)) + long)
