"""Blocks of codes as bytes: what a file of codes is made of when a language model shortens it."""

from __future__ import annotations

import torch

from melreformer_hf.models.codec_lm.fixed_point_codec_lm import TOTAL_RANGE_BITS, FixedPointCodecLM, FixedPointState
from melreformer_hf.models.codec_lm.range_coder_codec_lm import RangeDecoder, RangeEncoder

_CHUNK_FRAMES = 64


class BlockCoder:
    """One stream of codes to blocks of bytes, or back; a block is coded by what all blocks before it held.

    Args:
        model: in exact arithmetic; its probabilities are the same on every machine and any number of threads.
        num_quantizers: codebooks of the stream, the first ones.

    Raises:
        ValueError: the model has not so many codebooks.
    """

    def __init__(self, model: FixedPointCodecLM, num_quantizers: int) -> None:
        if not 1 <= num_quantizers <= model.config.num_quantizers:
            raise ValueError(f"num_quantizers must be in 1..{model.config.num_quantizers}, got {num_quantizers}.")
        self.model = model
        self._last = torch.full((1, num_quantizers, 1), -1)
        self._state: FixedPointState | None = None

    @property
    def fingerprint(self) -> str:
        """What tells one model from another."""
        return f"{self.model.fingerprint:08x}"

    def encode(self, codes: torch.Tensor) -> bytes:
        """(quantizer, frame) int64, the next frames -> their bytes.

        Raises:
            ValueError: codes that are not in their codebooks, or of another number of these.
        """
        self.model.check_codes(codes[None])
        if len(codes) != self._last.shape[1]:
            raise ValueError(f"codes must be ({self._last.shape[1]}, frame), got {tuple(codes.shape)}.")
        encoder = RangeEncoder(TOTAL_RANGE_BITS)
        # Distributions take (quantizer * frame * code) int64: a long block is computed in parts.
        for part in codes[None].cpu().split(_CHUNK_FRAMES, dim=2):
            if part.shape[2]:
                self._state = self.model.write_frames([encoder], self._last, part, self._state)
                self._last = part[:, :, -1:]
        return encoder.finish()

    def decode(self, payload: bytes, num_frames: int) -> torch.Tensor:
        """The bytes of the next block -> (quantizer, frame) int64.

        Raises:
            ValueError: the bytes end too early, are too many, or no codes at all.
        """
        decoder, found = RangeDecoder(payload, TOTAL_RANGE_BITS), []
        for _ in range(num_frames):
            self._last, self._state = self.model.read_frame([decoder], self._last, self._state)
            found.append(self._last[0])
        decoder.finish()
        return torch.cat(found, dim=1) if found else self._last[0, :, :0]


__all__ = ["BlockCoder"]
