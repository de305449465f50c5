"""Files of codes (`.mrc`): written while they are made, read while they arrive, never taken for whole when they are not.

```
header   "MRC" and a version byte, uint32 size, JSON of that size, uint32 CRC of all of it
block    uint32 frames, uint32 size, uint32 CRC of the former two, payload of that size, uint32 CRC of the payload
...
end      a block of 0 frames and 8 bytes: uint64 samples of the sound
```

All numbers are big endian, CRCs are CRC-32. In version 1 a payload holds the codes of its frames, frame after frame, each
code in as many bits as its codebook needs. In version 2 the header names an `entropy` coder, and a payload is what that made
of the codes; it takes what came before into account, so that blocks are only to be read in order. A reader learns of damage where it is, and keeps what lies before; it never asks for more memory
than a block of `MAX_BLOCK_FRAMES` frames takes, whatever the file claims.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np
import torch

MAX_BLOCK_FRAMES = 4096
_MAGIC, _PACKED, _ENTROPY = b"MRC", 1, 2
_FIXED, _NUMBER = struct.Struct(">3sBI"), struct.Struct(">I")
_BLOCK, _LENGTH = struct.Struct(">II"), struct.Struct(">Q")
_LONGEST_HEADER = 1 << 16
_MAX_CODEBOOKS, _MAX_CODEBOOK_SIZE = 256, 1 << 24
_WORST_BITS, _TAIL_BYTES = 25, 8  # of a code by a coder with ranges of 24 bits, and of what ends a payload


class EntropyCoder(Protocol):
    """Turns the codes of one stream into fewer bytes, block after block, and back."""

    @property
    def fingerprint(self) -> str:
        """What tells it from others: only the same one can decode."""

    def encode(self, codes: torch.Tensor) -> bytes:
        """(quantizer, frame) int64, the next frames -> their bytes."""

    def decode(self, payload: bytes, num_frames: int) -> torch.Tensor:
        """The inverse; raises a ValueError where the bytes are no codes."""


class CodecFileError(ValueError):
    """A file of codes that cannot be read on.

    Args:
        reason: what is wrong.
        position: byte at which the part begins that is wrong.
    """

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"At byte {position}: {reason}")
        self.position = position


@dataclasses.dataclass(frozen=True)
class CodecFileHeader:
    """What a file says about its codes.

    Args:
        codec: fingerprint of the weights that made them, which are needed to decode them.
        sampling_rate: samples per second of the sound.
        channels: of the sound.
        hop_length: samples per frame.
        codebook_sizes: codewords of every level that is in the file, coarse to fine.
        entropy: fingerprint of the entropy coder that shortened the codes; `None`: none did.

    Raises:
        ValueError: a field is of another type or out of range.
    """

    codec: str
    sampling_rate: int
    channels: int
    hop_length: int
    codebook_sizes: tuple[int, ...]
    entropy: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.codec, str) or not self.codec:
            raise ValueError(f"codec must be the fingerprint of a codec, got {self.codec!r}.")
        if self.entropy is not None and (not isinstance(self.entropy, str) or not self.entropy):
            raise ValueError(f"entropy must be the fingerprint of an entropy coder or None, got {self.entropy!r}.")
        for name in ("sampling_rate", "channels", "hop_length"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 1 << 31:
                raise ValueError(f"{name} must be a whole number from 1 to 2^31 - 1, got {value!r}.")
        sizes = self.codebook_sizes
        if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= _MAX_CODEBOOKS:
            raise ValueError(f"codebook_sizes must hold 1 to {_MAX_CODEBOOKS} sizes, got {sizes!r:.80}.")
        if any(type(size) is not int or not 2 <= size <= _MAX_CODEBOOK_SIZE for size in sizes):
            raise ValueError(f"codebook_sizes must be from 2 to {_MAX_CODEBOOK_SIZE}, got {sizes!r:.80}.")

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of a code of every level."""
        return tuple((size - 1).bit_length() for size in self.codebook_sizes)

    def payload_sizes(self, frames: int) -> range:
        """Bytes that the codes of so many frames may take."""
        if self.entropy is not None:
            return range(1, -(-frames * len(self.bits) * _WORST_BITS // 8) + _TAIL_BYTES + 1)
        packed = -(-frames * sum(self.bits) // 8)
        return range(packed, packed + 1)

    def to_bytes(self) -> bytes:
        """The header as it stands in a file."""
        values = dataclasses.asdict(self)
        if self.entropy is None:  # as programs read it that know packed codes alone
            del values["entropy"]
        text = json.dumps(values).encode()
        head = _FIXED.pack(_MAGIC, _PACKED if self.entropy is None else _ENTROPY, len(text)) + text
        return head + _NUMBER.pack(zlib.crc32(head))


def _pack(codes: np.ndarray, bits: tuple[int, ...]) -> bytes:
    """(quantizer, frame) -> the bits of every frame, highest first, filled up to a byte at the end."""
    planes = [(codes[level][:, None] >> np.arange(count)[::-1]) & 1 for level, count in enumerate(bits)]
    return np.packbits(np.concatenate(planes, axis=1).astype(np.uint8)).tobytes()


def _unpack(payload: bytes, frames: int, bits: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_pack`: (quantizer, frame) int64."""
    flat = np.unpackbits(np.frombuffer(payload, np.uint8), count=frames * sum(bits)).reshape(frames, sum(bits))
    parts = np.split(flat.astype(np.int64), np.cumsum(bits)[:-1], axis=1)
    return np.stack([part @ (1 << np.arange(part.shape[1])[::-1]) for part in parts])


class CodecFileWriter:
    """Writes codes to an open file, block by block; a file without its end is known to be incomplete.

    Args:
        file: open for writing bytes; nothing is sought in it, so that it may be a pipe.
        header: what the codes are.
        coder: that `header.entropy` names.

    Raises:
        ValueError: the header names another entropy coder, or none.
    """

    def __init__(self, file: BinaryIO, header: CodecFileHeader, coder: EntropyCoder | None = None) -> None:
        if header.entropy != (None if coder is None else coder.fingerprint):
            raise ValueError(
                f"coder must be the one that the header names, got {coder and coder.fingerprint} for {header.entropy}."
            )
        self.file, self.header, self.coder, self.num_frames = file, header, coder, 0
        self.num_bytes = file.write(header.to_bytes())

    def write(self, codes: torch.Tensor) -> None:
        """Append (quantizer, frame) codes; each call makes blocks of its own, of `MAX_BLOCK_FRAMES` frames at most.

        Raises:
            ValueError: another number of levels, or codes that are not in their codebooks.
        """
        sizes = self.header.codebook_sizes
        if codes.ndim != 2 or len(codes) != len(sizes) or codes.is_floating_point():
            raise ValueError(
                f"codes must be whole numbers ({len(sizes)}, frame), got {tuple(codes.shape)} {codes.dtype}."
            )
        values = codes.cpu().numpy()
        if values.size and (values.min() < 0 or (values.max(axis=1) >= np.array(sizes)).any()):
            raise ValueError(
                f"codes must be from 0 to below codebook_sizes={sizes}, got {values.min()} to {values.max()}."
            )
        for begin in range(0, values.shape[1], MAX_BLOCK_FRAMES):
            block = values[:, begin : begin + MAX_BLOCK_FRAMES]
            if self.coder is None:
                self._block(block.shape[1], _pack(block, self.header.bits))
            else:
                self._block(block.shape[1], self.coder.encode(torch.from_numpy(block)))
        self.num_frames += values.shape[1]

    def close(self, num_samples: int) -> None:
        """Write the end; the file itself is left open.

        Args:
            num_samples: of the sound; the last frame may have more.

        Raises:
            ValueError: the frames that were written do not hold that many samples.
        """
        most = self.num_frames * self.header.hop_length
        if not 0 <= num_samples <= most:
            raise ValueError(
                f"num_samples must be from 0 to {most}, what {self.num_frames} frames hold, got {num_samples}."
            )
        self._block(0, _LENGTH.pack(num_samples))

    def _block(self, frames: int, payload: bytes) -> None:
        head = _BLOCK.pack(frames, len(payload))
        parts = (head, _NUMBER.pack(zlib.crc32(head)), payload, _NUMBER.pack(zlib.crc32(payload)))
        self.num_bytes += self.file.write(b"".join(parts))
        self.file.flush()


class CodecFileReader:
    """Reads a file of codes, block by block, at constant memory.

    Args:
        file: open for reading bytes; may be a pipe.

    Attributes:
        header: what the codes are.
        coder: that `header.entropy` names; to be set before the codes are read, where it names one.
        position: bytes that were read and found right.
        num_samples: length of the sound, once the end was read.

    Raises:
        CodecFileError: the header is damaged or of another kind of file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position, self.num_frames = file, 0, 0
        self.num_samples: int | None = None
        self.coder: EntropyCoder | None = None
        self.header = self._read_header()

    def _take(self, size: int, what: str) -> bytes:
        parts, missing = [], size
        while missing:  # a pipe gives what it has
            part = self.file.read(missing)
            if not part:
                raise CodecFileError(
                    f"the file ends within {what}, at least {missing} bytes are missing.", self.position
                )
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _read_header(self) -> CodecFileHeader:
        fixed = self._take(_FIXED.size, "its header")
        magic, version, size = _FIXED.unpack(fixed)
        if magic != _MAGIC:
            raise CodecFileError(f"a file of codes must begin with {_MAGIC!r}, got {magic!r}.", 0)
        if version not in (_PACKED, _ENTROPY):
            raise CodecFileError(f"this program reads versions {_PACKED} and {_ENTROPY}, got {version}. Update it.", 0)
        if size > _LONGEST_HEADER:
            raise CodecFileError(f"the header must have at most {_LONGEST_HEADER} bytes, it claims {size}.", 0)
        text = self._take(size, "its header")
        if _NUMBER.unpack(self._take(_NUMBER.size, "its header"))[0] != zlib.crc32(fixed + text):
            raise CodecFileError("the header is damaged: its checksum differs.", 0)
        try:
            values = json.loads(text)
            fields = {**values, "codebook_sizes": tuple(values["codebook_sizes"])}
            header = CodecFileHeader(**fields)
            if (header.entropy is not None) != (version == _ENTROPY):
                raise ValueError(f"version {version} with the entropy coder {header.entropy}.")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CodecFileError(f"the header is none of this version: {error}", 0) from error
        self.position = _FIXED.size + size + _NUMBER.size
        return header

    def _read_block(self) -> tuple[int, bytes]:
        """Frames and payload of the next block, checked."""
        head = self._take(_BLOCK.size, "a block")
        if _NUMBER.unpack(self._take(_NUMBER.size, "a block"))[0] != zlib.crc32(head):
            raise CodecFileError("the beginning of a block is damaged: its checksum differs.", self.position)
        frames, size = _BLOCK.unpack(head)
        wanted = self.header.payload_sizes(frames) if frames else (_LENGTH.size,)
        if frames > MAX_BLOCK_FRAMES or size not in wanted:
            raise CodecFileError(
                f"a block must have at most {MAX_BLOCK_FRAMES} frames and the bytes that these take, got {frames} frames "
                f"and {size} bytes.",
                self.position,
            )
        payload = self._take(size, "a block")
        if _NUMBER.unpack(self._take(_NUMBER.size, "a block"))[0] != zlib.crc32(payload):
            raise CodecFileError("the codes of a block are damaged: their checksum differs.", self.position)
        return frames, payload

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Codes of one block after the other, (quantizer, frame) int64.

        Raises:
            CodecFileError: damage, or an end that is missing; all codes before it were given.
            ValueError: the file names an entropy coder, and `coder` is another one, or none.
        """
        coder = None if self.coder is None else self.coder.fingerprint
        if coder != self.header.entropy:
            raise ValueError(
                f"The file was shortened by the entropy coder {self.header.entropy}, got {coder}: decode it with that one."
            )
        sizes = np.array(self.header.codebook_sizes)[:, None]
        while self.num_samples is None:
            frames, payload = self._read_block()
            if frames:
                codes = self._codes(payload, frames)
                if (codes >= sizes).any():
                    raise CodecFileError("a code is outside its codebook.", self.position)
                self.num_frames += frames
                self._count(payload)
                yield torch.from_numpy(codes)
                continue
            (num_samples,) = _LENGTH.unpack(payload)
            if num_samples > self.num_frames * self.header.hop_length:
                raise CodecFileError(
                    f"the end claims {num_samples} samples, the frames hold {self.num_frames * self.header.hop_length}.",
                    self.position,
                )
            self._count(payload)
            self.num_samples = num_samples
        if self.file.read(1):
            raise CodecFileError("there is something behind the end.", self.position)

    def _codes(self, payload: bytes, frames: int) -> np.ndarray:
        """(quantizer, frame) of a block."""
        if self.coder is None:
            return _unpack(payload, frames, self.header.bits)
        try:
            return self.coder.decode(payload, frames).numpy()
        except ValueError as error:
            raise CodecFileError(f"the codes of a block cannot be read: {error}", self.position) from error

    def _count(self, payload: bytes) -> None:
        self.position += _BLOCK.size + 2 * _NUMBER.size + len(payload)


__all__ = [
    "MAX_BLOCK_FRAMES",
    "CodecFileError",
    "CodecFileHeader",
    "CodecFileReader",
    "CodecFileWriter",
    "EntropyCoder",
]
