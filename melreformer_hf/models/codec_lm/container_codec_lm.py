"""EnCodec's files (`.ecdc`): their header, and codes packed at a fixed number of bits.

Source: facebookresearch/encodec. A file is the header, then for each segment of the signal an optional scale (float32,
big endian) and the codes frame after frame: packed, or coded with the language model's probabilities
(`models.codec_lm.ecdc_codec_lm`).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy
import torch

_MAGIC, _VERSION = b"ECDC", 0
_FIXED = struct.Struct(">4sBI")
_NAMES = {"m": "model_name", "al": "num_samples", "nc": "num_quantizers", "lm": "uses_language_model"}
_TYPES = {"m": str, "al": int, "nc": int, "lm": bool}
# The original's headers have about 60 bytes: what claims more is damaged, or made to exhaust its reader.
_LONGEST_HEADER = 4096


@dataclass(frozen=True)
class EcdcHeader:
    """What a file says about itself.

    Args:
        model_name: codec, such as `encodec_24khz`.
        num_samples: length of the signal.
        num_quantizers: codebooks in use.
        uses_language_model: whether codes are arithmetically coded rather than packed.
    """

    model_name: str
    num_samples: int
    num_quantizers: int
    uses_language_model: bool

    def to_bytes(self) -> bytes:
        """The header as the original writes it."""
        text = json.dumps({key: getattr(self, name) for key, name in _NAMES.items()}).encode()
        return _FIXED.pack(_MAGIC, _VERSION, len(text)) + text

    @classmethod
    def read(cls, data: bytes) -> tuple[EcdcHeader, int]:
        """The header at the beginning of a file and its size in bytes.

        Raises:
            ValueError: the file is truncated, of another kind or version, or its header is broken.
        """
        if len(data) < _FIXED.size:
            raise ValueError(f"The file is truncated: a header needs {_FIXED.size} bytes, got {len(data)}.")
        magic, version, length = _FIXED.unpack_from(data)
        if magic != _MAGIC or version != _VERSION:
            raise ValueError(f"The file must be {_MAGIC!r} of version {_VERSION}, got {magic!r} of version {version}.")
        if length > _LONGEST_HEADER:
            raise ValueError(
                f"The file is corrupt: its header must have at most {_LONGEST_HEADER} bytes, it tells {length}."
            )
        size = _FIXED.size + length
        if len(data) < size:
            raise ValueError(f"The file is truncated: its header tells {size} bytes, got {len(data)}.")
        try:
            values = json.loads(data[_FIXED.size : size])
        except (ValueError, RecursionError) as error:  # lists in lists in lists ... end in the latter
            raise ValueError(f"The file is corrupt: its header is no JSON of names and values ({error}).") from error
        for key, kind in _TYPES.items():
            found = values.get(key) if isinstance(values, dict) else None
            if type(found) is not kind or (kind is int and found < 0):
                # Lists and mappings are not shown: writing them out would recurse as reading them did.
                shown = found if isinstance(found, (str, int, float)) else type(found).__name__
                raise ValueError(f"The file is corrupt: its header must give {key!r} as {kind.__name__}, got {shown}.")
        return cls(**{name: values[key] for key, name in _NAMES.items()}), size


def pack_bits(values: torch.Tensor, bits: int) -> bytes:
    """Non-negative integers of `bits` bits one after the other, lowest bit first, the last byte filled with zeros.

    Raises:
        ValueError: a value does not fit.
    """
    numbers = values.flatten().cpu().numpy()
    if not 1 <= bits <= 32 or (numbers.size and (numbers.min() < 0 or numbers.max() >= 2**bits)):
        raise ValueError(
            f"values must be from 0 to 2 ** bits - 1 with bits from 1 to 32, got {bits} bits for {values}."
        )
    # (value, bit), lowest bit first, then eight bits to a byte, the first of them its lowest
    parts = (numbers[:, None] >> numpy.arange(bits)) & 1
    return numpy.packbits(parts.astype(numpy.uint8).reshape(-1), bitorder="little").tobytes()


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return -(-count * bits // 8)


def unpack_bits(data: bytes, count: int, bits: int) -> torch.Tensor:
    """The first `count` integers that `pack_bits` packed: (count,) int64.

    Raises:
        ValueError: there are fewer.
    """
    size = packed_size(count, bits)
    if len(data) < size:
        raise ValueError(
            f"The packed data is truncated: {count} values of {bits} bits need {size} bytes, got {len(data)}."
        )
    parts = numpy.unpackbits(numpy.frombuffer(data, dtype=numpy.uint8, count=size), bitorder="little")
    parts = parts[: count * bits].reshape(count, bits).astype(numpy.int64)
    return torch.from_numpy((parts << numpy.arange(bits)).sum(axis=1))


__all__ = ["EcdcHeader", "pack_bits", "packed_size", "unpack_bits"]
