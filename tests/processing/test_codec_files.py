"""Files of codes: what comes back, what damage is told, and that nothing claims more than it holds."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from melreformer_hf.processing import codec_files
from melreformer_hf.processing.codec_files import (
    MAX_BLOCK_FRAMES,
    CodecFileError,
    CodecFileHeader,
    CodecFileReader,
    CodecFileWriter,
)

SIZES = (1024, 2, 5, 1 << 14)


def header(**changes) -> CodecFileHeader:
    fields = {"codec": "abc123", "sampling_rate": 22050, "channels": 2, "hop_length": 441, "codebook_sizes": SIZES}
    return CodecFileHeader(**{**fields, **changes})


def drawn(frames: int, seed: int = 0, sizes=SIZES) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([random.integers(0, size, frames) for size in sizes]))


class Squeezed:
    """An entropy coder for tests: what follows is coded by what came before."""

    fingerprint = "squeezed"

    def __init__(self) -> None:
        self.before = b"codes"

    def encode(self, codes: torch.Tensor) -> bytes:
        plain = codes.numpy().astype(">i4").tobytes()
        squeezer = zlib.compressobj(zdict=self.before)
        self.before = plain
        return squeezer.compress(plain) + squeezer.flush()

    def decode(self, payload: bytes, num_frames: int) -> torch.Tensor:
        try:
            self.before = zlib.decompressobj(zdict=self.before).decompress(payload)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        codes = np.frombuffer(self.before, ">i4").astype(np.int64)
        if codes.size != len(SIZES) * num_frames:
            raise ValueError(f"{codes.size} codes")
        return torch.from_numpy(codes.reshape(len(SIZES), num_frames))


def written(*parts: torch.Tensor, num_samples: int | None = None, coder: Squeezed | None = None) -> bytes:
    file = io.BytesIO()
    writer = CodecFileWriter(file, header(entropy=coder and coder.fingerprint), coder)
    for part in parts:
        writer.write(part)
    writer.close(writer.num_frames * 441 if num_samples is None else num_samples)
    assert writer.num_bytes == len(file.getvalue())
    return file.getvalue()


class Drops(io.BytesIO):
    """A pipe that gives one to three bytes at a time."""

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, 1 + self.tell() % 3))


@pytest.mark.parametrize("kind", [io.BytesIO, Drops])
@pytest.mark.parametrize("cuts", [(1,), (7, 1, 0, 30), (MAX_BLOCK_FRAMES, 3), (2 * MAX_BLOCK_FRAMES + 1,), ()])
def test_codes_come_back(kind, cuts):
    parts = [drawn(count, seed) for seed, count in enumerate(cuts)]
    total = sum(cuts)
    data = written(*parts, num_samples=max(0, 441 * total - 5))
    reader = CodecFileReader(kind(data))
    found = list(reader)
    assert reader.header == header() and reader.num_samples == max(0, 441 * total - 5)
    assert reader.position == len(data) and reader.num_frames == total
    expected = torch.cat([torch.zeros(4, 0, dtype=torch.long), *parts], dim=1)
    assert torch.equal(torch.cat([torch.zeros(4, 0, dtype=torch.long), *found], dim=1), expected)
    assert all(0 < part.shape[1] <= MAX_BLOCK_FRAMES for part in found)


def test_a_frame_takes_the_bits_of_its_codebooks():
    # 10 + 1 + 3 + 14 bits; 8 bytes around the payload of a block and its checksums' 8.
    assert header().bits == (10, 1, 3, 14)
    one, two = len(written(drawn(100))), len(written(drawn(200)))
    assert two - one == 100 * 28 // 8
    assert len(written(drawn(100), drawn(100))) - two == 16


def test_the_layout_is_as_described():
    data = written(torch.tensor([[1], [1], [2], [3]]), num_samples=400)
    size = struct.unpack(">I", data[4:8])[0]
    assert data[:4] == b"MRC\x01" and data[8:9] == b"{"
    assert struct.unpack(">I", data[8 + size : 12 + size])[0] == zlib.crc32(data[: 8 + size])
    block = data[12 + size :]
    # 0000000001 1 010 00000000000011, filled with zeros
    payload = int("00000000011010000000000000110000", 2).to_bytes(4, "big")
    expected = struct.pack(">II", 1, 4)
    expected += struct.pack(">I", zlib.crc32(expected)) + payload + struct.pack(">I", zlib.crc32(payload))
    end = struct.pack(">II", 0, 8)
    end += struct.pack(">I", zlib.crc32(end)) + struct.pack(">Q", 400)
    end += struct.pack(">I", zlib.crc32(struct.pack(">Q", 400)))
    assert block == expected + end


def test_a_file_that_was_cut_gives_what_lies_before_and_says_where():
    parts = [drawn(20, seed) for seed in range(4)]
    data = written(*parts)
    first = len(header().to_bytes())
    block = 16 + 70
    for length in range(len(data)):
        reader, found = None, []
        with pytest.raises(CodecFileError) as caught:
            reader = CodecFileReader(io.BytesIO(data[:length]))
            found.extend(reader)
        if length < first:
            assert reader is None and caught.value.position == 0
            continue
        whole = min((length - first) // block, 4)
        assert len(found) == whole and caught.value.position == first + whole * block
        assert f"At byte {first + whole * block}: the file ends" in str(caught.value)
        assert all(torch.equal(one, two) for one, two in zip(found, parts, strict=False))
        assert reader.num_samples is None


def reading(data: bytes, squeezed: bool) -> CodecFileReader:
    reader = CodecFileReader(io.BytesIO(data))
    reader.coder = Squeezed() if squeezed else None
    return reader


@pytest.mark.parametrize("squeezed", [False, True])
def test_10_000_damaged_files_end_with_an_error_or_an_exact_beginning(squeezed):
    parts = [drawn(20, seed) for seed in range(4)]
    data, random = written(*parts, coder=Squeezed() if squeezed else None), np.random.default_rng(0)
    tracemalloc.start()
    for _ in range(10_000):
        damaged = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(len(damaged)))
            kind = random.integers(4)
            if kind == 0:
                damaged[place] ^= 1 << int(random.integers(8))
            elif kind == 1:
                damaged[place : place + 4] = random.bytes(4)
            elif kind == 2:
                del damaged[place : place + int(random.integers(1, 40))]
            else:
                damaged[place:place] = random.bytes(int(random.integers(1, 40)))
        if bytes(damaged) == data:
            continue
        found = []
        with pytest.raises(CodecFileError):
            for codes in reading(bytes(damaged), squeezed):
                found.append(codes)
        assert all(torch.equal(one, two) for one, two in zip(found, parts, strict=False)) and len(found) <= 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_an_entropy_coder_has_blocks_of_its_own_size():
    parts = [drawn(20), drawn(20), drawn(3, 1)]
    data = written(*parts, coder=Squeezed())
    assert data[3] == 2 and written(*parts)[3] == 1 and b"entropy" not in written(*parts)
    reader = reading(data, True)
    assert all(torch.equal(one, two) for one, two in zip(reader, parts, strict=True))
    assert reader.num_samples == 43 * 441 and reader.position == len(data)
    for damaged, squeezed in ((data, False), (written(*parts), True)):
        with pytest.raises(ValueError, match="shortened by the entropy coder"):
            next(iter(reading(damaged, squeezed)))
    for given, coder in (
        (header(), Squeezed()),
        (header(entropy="squeezed"), None),
        (header(entropy="x"), Squeezed()),
    ):
        with pytest.raises(ValueError, match="coder must be the one that the header names"):
            CodecFileWriter(io.BytesIO(), given, coder)


@pytest.mark.parametrize(
    "frames, payload, message",
    [
        (3, b"no codes", "At byte [0-9]+: the codes of a block cannot be read"),
        (2, zlib.compress(bytes(16)), "cannot be read: 4 codes"),
        (1, zlib.compress(b"\0\0\x04\0" + bytes(12)), "a code is outside its codebook"),
        (1, bytes(22), "got 1 frames and 22 bytes"),
        (1, b"", "got 1 frames and 0 bytes"),
    ],
)
def test_blocks_of_an_entropy_coder_with_right_checksums_and_wrong_claims(frames, payload, message):
    reader = reading(header(entropy="squeezed").to_bytes() + block(frames, payload), True)
    with pytest.raises(CodecFileError, match=message):
        list(reader)


def forged(text: bytes, version: bytes = b"\x01") -> bytes:
    head = b"MRC" + version + struct.pack(">I", len(text)) + text
    return head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"RIFFxxxx", "must begin with b'MRC'"),
        (b"MRC\x03" + bytes(4), "reads versions 1 and 2, got 3"),
        (forged(header().to_bytes()[8:-4], b"\x02"), "version 2 with the entropy coder None"),
        (forged(header(entropy="a").to_bytes()[8:-4]), "version 1 with the entropy coder a"),
        (
            forged(header(entropy="a").to_bytes()[8:-4].replace(b'"a"', b"5"), b"\x02"),
            "entropy must be the fingerprint",
        ),
        (b"MRC\x01\xff\xff\xff\xff", "at most 65536 bytes, it claims 4294967295"),
        (b"", "the file ends within its header, at least 8 bytes are missing"),
        (forged(b"[]"), "none of this version"),
        (forged(b"[" * 60_000), "none of this version"),
        (forged(b'{"codec": "a"}'), "none of this version"),
        (forged(header().to_bytes()[8:-4].replace(b"22050", b"2.5")), "sampling_rate must be a whole number"),
        (forged(header().to_bytes()[8:-4].replace(b"22050", b"true")), "sampling_rate must be a whole number"),
        (forged(header().to_bytes()[8:-4].replace(b"1024, 2", b"1024, 1")), "codebook_sizes must be from 2"),
        (forged(header().to_bytes()[8:-4].replace(b"1024, 2", b"1024, 99999999")), "codebook_sizes must be from 2"),
    ],
)
def test_headers_that_are_none(data, message):
    with pytest.raises(CodecFileError, match=message) as caught:
        CodecFileReader(io.BytesIO(data))
    assert caught.value.position == 0 and str(caught.value).startswith("At byte 0: ")


def block(frames: int, payload: bytes, size: int | None = None) -> bytes:
    head = struct.pack(">II", frames, len(payload) if size is None else size)
    return head + struct.pack(">I", zlib.crc32(head)) + payload + struct.pack(">I", zlib.crc32(payload))


@pytest.mark.parametrize(
    "blocks, message",
    [
        (block(MAX_BLOCK_FRAMES + 1, bytes(14340)), "at most 4096 frames"),
        (block(4_000_000_000, b"", 4_000_000_000), "at most 4096 frames"),
        (block(2, bytes(8)), "got 2 frames and 8 bytes"),
        (block(0, bytes(9)), "got 0 frames and 9 bytes"),
        (block(1, bytes([0, 0b00110000, 0, 0])), None),
        (block(1, bytes([0, 0b00010100, 0, 0])), "a code is outside its codebook"),
        (block(0, struct.pack(">Q", 1)), "the end claims 1 samples, the frames hold 0"),
        (block(0, bytes(8)) + b"x", "something behind the end"),
    ],
)
def test_blocks_with_right_checksums_and_wrong_claims(blocks, message):
    data = header().to_bytes() + blocks
    reader = CodecFileReader(io.BytesIO(data))
    with pytest.raises(CodecFileError, match=message or "the file ends"):
        list(reader)


def test_wrong_codes_are_not_written():
    writer = CodecFileWriter(io.BytesIO(), header())
    for codes, message in (
        (drawn(3)[:3], r"codes must be whole numbers \(4, frame\)"),
        (drawn(3).float(), "codes must be whole numbers"),
        (drawn(3) - 5000, "codes must be from 0"),
        (drawn(3) + torch.tensor([[0], [0], [5], [0]]), "codes must be from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write(codes)
    writer.write(drawn(2))
    for count in (-1, 883):
        with pytest.raises(ValueError, match="num_samples must be from 0 to 882"):
            writer.close(count)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"codec": ""}, "codec must be the fingerprint"),
        ({"channels": 0}, "channels must be a whole number"),
        ({"hop_length": 2**31}, "hop_length must be a whole number"),
        ({"codebook_sizes": ()}, "codebook_sizes must hold 1 to 256"),
        ({"codebook_sizes": (2,) * 257}, "codebook_sizes must hold 1 to 256"),
    ],
)
def test_headers_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        header(**changes)
    assert header(codebook_sizes=(2,) * 256).payload_sizes(1) == range(32, 33)
    assert codec_files._LONGEST_HEADER > len(header(codebook_sizes=(1 << 24,) * 256).to_bytes())
