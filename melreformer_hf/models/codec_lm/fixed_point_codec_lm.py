"""The codec language model in exact arithmetic, for lossless coding, and the container of its streams."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from melreformer_hf.models.codec_lm.configuration_codec_lm import CodecLMConfig
from melreformer_hf.models.codec_lm.integers_codec_lm import (
    FixedPointLinear,
    FixedPointNorm,
    FixedPointPositions,
    attend_integers,
    attention_bits,
    cumulative_ranges,
    gelu,
    to_integers,
)
from melreformer_hf.models.codec_lm.range_coder_codec_lm import RangeDecoder, RangeEncoder
from melreformer_hf.nn.attention import band_mask, merge_heads, split_heads

TOTAL_RANGE_BITS = 24
MAGIC = b"MRCL"
VERSION = 1
# magic, version, quantizers, codes per codebook, frames, fingerprint of the weights, bytes of the payload
_HEADER = struct.Struct(">4sBHIIII")
_CHECKSUM = struct.Struct(">I")
_CHUNK_FRAMES = 64


@dataclass
class FixedPointState:
    """What a stream keeps between calls.

    Args:
        layers: for each layer keys and values, each as integers (batch, head, frame, head_dim) and steps
            (batch, head, frame, 1), of at most `num_context_frames` frames.
        num_frames: frames so far.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
    num_frames: int

    def take(self, rows: torch.Tensor) -> FixedPointState:
        """The state of some rows of the batch."""
        return FixedPointState([tuple(part[rows] for part in layer) for layer in self.layers], self.num_frames)


@dataclass(frozen=True)
class StreamHeader:
    """What a compressed stream says about itself.

    Args:
        num_quantizers: codebooks in use.
        codebook_size: codes per codebook.
        num_frames: frames.
        fingerprint: checksum of the weights and sizes of the model that compressed.
    """

    num_quantizers: int
    codebook_size: int
    num_frames: int
    fingerprint: int


def pack_stream(header: StreamHeader, payload: bytes) -> bytes:
    """Header, payload and a checksum of both."""
    body = _HEADER.pack(
        MAGIC,
        VERSION,
        header.num_quantizers,
        header.codebook_size,
        header.num_frames,
        header.fingerprint,
        len(payload),
    )
    return body + payload + _CHECKSUM.pack(zlib.crc32(body + payload))


def unpack_stream(stream: bytes) -> tuple[StreamHeader, bytes]:
    """Header and payload.

    Raises:
        ValueError: the stream is truncated, corrupt, has bytes behind its end, or is of another kind or version.
    """
    least = _HEADER.size + _CHECKSUM.size
    if len(stream) < least:
        raise ValueError(f"The stream is truncated: it needs at least {least} bytes, got {len(stream)}.")
    magic, version, *numbers, length = _HEADER.unpack_from(stream)
    if magic != MAGIC:
        raise ValueError(f"The stream must begin with {MAGIC!r}, got {magic!r}: it is no compressed codes.")
    if version != VERSION:
        raise ValueError(f"The stream must be of version {VERSION}, got {version}.")
    if len(stream) != least + length:
        kind = "truncated" if len(stream) < least + length else "corrupt"
        raise ValueError(f"The stream is {kind}: its header tells {least + length} bytes, got {len(stream)}.")
    (checksum,) = _CHECKSUM.unpack_from(stream, len(stream) - _CHECKSUM.size)
    actual = zlib.crc32(stream[: -_CHECKSUM.size])
    if checksum != actual:
        raise ValueError(f"The stream is corrupt: its checksum is {checksum:08x}, its bytes give {actual:08x}.")
    return StreamHeader(*numbers), stream[_HEADER.size : -_CHECKSUM.size]


class _Layer:
    """One layer with its weights as integers; see `CodecLMLayer`."""

    def __init__(self, config: CodecLMConfig, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        self.num_heads, self.context = config.num_attention_heads, config.num_context_frames
        self.norm_first, self.activation = config.norm_first, config.activation
        self.qkv, self.out_proj, self.up_proj, self.down_proj = (
            FixedPointLinear(weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"])
            for name in ("attention.qkv", "attention.out_proj", "up_proj", "down_proj")
        )
        self.attention_norm, self.mlp_norm = (
            FixedPointNorm(weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"], config.layer_norm_eps)
            for name in ("attention_norm", "mlp_norm")
        )

    def parts(self) -> list:
        return [self.qkv, self.out_proj, self.up_proj, self.down_proj, self.attention_norm, self.mlp_norm]

    def _stored(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Stored as integers, once: rounding a key again in every call would depend on what it is stored beside.
        key = to_integers(key, attention_bits(key.shape[-1]))
        return (*key, *to_integers(value, attention_bits(self.context + 1)))

    def start(self, batch: int) -> tuple[torch.Tensor, ...]:
        """State before the first frame."""
        _, key, value = self.qkv.bias.expand(batch, 1, -1).chunk(3, dim=-1)
        return self._stored(split_heads(key, self.num_heads), split_heads(value, self.num_heads))

    def _attend(self, hidden: torch.Tensor, past: tuple) -> tuple[torch.Tensor, tuple]:
        query, key, value = (split_heads(x, self.num_heads) for x in self.qkv(hidden).chunk(3, dim=-1))
        # Keys with their steps, then values with theirs: four tensors, (batch, head, frame, head_dim or 1).
        stored = tuple(torch.cat([old, new], dim=2) for old, new in zip(past, self._stored(key, value), strict=True))
        length, visible = stored[0].shape[2], None
        if hidden.shape[1] > 1:  # a single frame sees everything that is kept
            places = torch.arange(length, device=hidden.device)
            visible = band_mask(places[-hidden.shape[1] :], places, self.context, 0)
        # The bound on visible keys is that of any call, so that bits do not depend on how many frames come at once.
        attended = attend_integers(query, stored[:2], stored[2:], visible, self.context + 1)
        kept = max(0, length - self.context)
        return self.out_proj(merge_heads(attended)), tuple(part[:, :, kept:] for part in stored)

    def _mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        # torch's gelu is not the same to the last bit on every machine; this one is made of exact steps.
        inner = self.up_proj(hidden)
        return self.down_proj(gelu(inner) if self.activation == "gelu" else inner.clamp(min=0.0))

    def __call__(self, hidden: torch.Tensor, past: tuple) -> tuple[torch.Tensor, tuple]:
        attended, kept = self._attend(self.attention_norm(hidden) if self.norm_first else hidden, past)
        hidden = hidden + attended
        if self.norm_first:
            return hidden + self._mlp(self.mlp_norm(hidden)), kept
        hidden = self.attention_norm(hidden)
        return self.mlp_norm(hidden + self._mlp(hidden)), kept


class _FrameCodes:
    """`FrameCodes` with its weights as integers."""

    def __init__(self, config: CodecLMConfig, weights: Mapping[str, torch.Tensor]) -> None:
        def linear(name: str) -> FixedPointLinear:
            weight = weights[f"frame_codes.{name}.weight"]
            return FixedPointLinear(weight, weights.get(f"frame_codes.{name}.bias", weight.new_zeros(len(weight))))

        def norm(name: str) -> FixedPointNorm:
            found = (weights[f"frame_codes.{name}.{kind}"] for kind in ("weight", "bias"))
            return FixedPointNorm(*found, config.layer_norm_eps)

        levels = range(config.num_quantizers)
        tables = [weights[f"frame_codes.tables.{level}.weight"].double() for level in levels]
        # What a code adds is looked up: narrow vectors are projected once, in exact sums.
        self.inputs = [linear(f"input_projs.{level}")(tables[level]) for level in levels]
        self.earlier = [linear(f"frame_projs.{level}")(tables[level]) for level in levels[:-1]]
        self.levels = weights["frame_codes.levels.weight"].double()
        self.activation = config.activation
        self.mlp_norm, self.output_norm = norm("mlp_norm"), norm("output_norm")
        self.up_proj, self.down_proj = linear("up_proj"), linear("down_proj")
        self.heads = [linear(f"heads.{level}") for level in levels]
        biases = weights["frame_codes.code_bias.weight"]
        self.codes = [FixedPointLinear(tables[level][1:], biases[level]) for level in levels]

    def tensors(self) -> list[torch.Tensor]:
        """What the result depends on."""
        parts = [self.mlp_norm, self.output_norm, self.up_proj, self.down_proj, *self.heads, *self.codes]
        return [*self.inputs, *self.earlier, self.levels, *(tensor for part in parts for tensor in part.tensors())]

    def seen(self, hidden: torch.Tensor, level: int, codes: torch.Tensor) -> torch.Tensor:
        """`hidden` for the codebooks behind `level`, which see its codes: (..., hidden) and (...) -> (..., hidden)."""
        return hidden + self.earlier[level][codes.to(hidden.device) + 1]

    def logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """(..., hidden), the codes before `level` added -> (..., code)."""
        hidden = hidden + self.levels[level]
        inner = self.up_proj(self.mlp_norm(hidden))
        hidden = hidden + self.down_proj(gelu(inner) if self.activation == "gelu" else inner.clamp(min=0.0))
        return self.codes[level](self.heads[level](self.output_norm(hidden)))


class FixedPointCodecLM:
    """A frozen copy of a `CodecLMModel` whose distributions are the same to the bit however they are computed.

    All at once, frame by frame, alone or in a batch, on any number of threads and on any device with IEEE float64.

    Args:
        config: the model's.
        weights: its state dict, of any floating dtype.

    Raises:
        ValueError: a weight is not finite.
    """

    @torch.no_grad()
    def __init__(self, config: CodecLMConfig, weights: Mapping[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise ValueError(f"weights must be finite to code with, got others in {name!r}.")
        # Integers up to 2^53 are held in float64.
        if any(weight.device.type == "mps" for weight in weights.values()):  # has no float64
            weights = {name: weight.cpu() for name, weight in weights.items()}
        self.config = config
        levels = range(config.num_quantizers)
        self.frame_codes = _FrameCodes(config, weights) if config.frame_code_size else None
        self.heads: FixedPointLinear | None = None
        if self.frame_codes is None:
            self.embeddings = [weights[f"code_embeddings.{level}.weight"].double() for level in levels]
            self.heads = FixedPointLinear(
                # All heads as one layer, of which a call with fewer codebooks uses the first rows.
                *(torch.cat([weights[f"heads.{level}.{kind}"] for level in levels]) for kind in ("weight", "bias"))
            )
        else:
            self.embeddings = self.frame_codes.inputs
        self.input_norm = None
        if config.input_norm:
            self.input_norm = FixedPointNorm(weights["input_norm.weight"], weights["input_norm.bias"], 1e-5)
        self.layers = [_Layer(config, weights, f"layers.{i}.") for i in range(config.num_hidden_layers)]
        self.positions = FixedPointPositions(config.hidden_size, config.position_period)
        self.device = self.embeddings[0].device
        self._fingerprint: int | None = None

    @property
    def fingerprint(self) -> int:
        """32-bit checksum of everything that the distributions depend on."""
        if self._fingerprint is None:
            config = self.config
            sizes = (
                f"{config.num_attention_heads} {config.num_context_frames} {config.activation} {config.norm_first} "
                f"{config.position_period!r} {config.layer_norm_eps!r} {TOTAL_RANGE_BITS}"
            )
            parts = [] if self.heads is None else [self.heads]
            parts += [part for layer in self.layers for part in layer.parts()]
            parts += [part for part in (self.input_norm, self.frame_codes) if part is not None]
            value = zlib.crc32(sizes.encode())
            # Little-endian bytes, so that the number is the same on every machine.
            for tensor in [*self.embeddings, *(tensor for part in parts for tensor in part.tensors())]:
                value = zlib.crc32(tensor.cpu().contiguous().numpy().astype("<f8").tobytes(), value)
            self._fingerprint = value
        return self._fingerprint

    @torch.no_grad()
    def logits(
        self,
        previous_codes: torch.Tensor,
        state: FixedPointState | None = None,
        frame_codes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, FixedPointState]:
        """Logits of the frames that follow some frames.

        Args:
            previous_codes: (batch, quantizer, frame) int64; -1 in the frame before the first one.
            state: of the call for the frames before these.
            frame_codes: (batch, quantizer, frame) int64 of the frames themselves, where the model sees them.

        Returns:
            (batch, quantizer, frame, code) float64, and the state for the next call.
        """
        depth = previous_codes.shape[1]
        hidden, state = self._hidden(previous_codes, state)
        if self.frame_codes is None:
            logits = self.heads(hidden, depth * self.config.codebook_size).unflatten(-1, (depth, -1)).transpose(1, 2)
            return logits, state
        found = []
        for level in range(depth):
            found.append(self.frame_codes.logits(hidden, level))
            if level + 1 < depth:
                hidden = self.frame_codes.seen(hidden, level, frame_codes[:, level])
        return torch.stack(found, dim=1), state

    def _hidden(
        self, previous_codes: torch.Tensor, state: FixedPointState | None
    ) -> tuple[torch.Tensor, FixedPointState]:
        """What the layers make of frames, (batch, frame, hidden), and the state for the next call."""
        batch, depth, frames = previous_codes.shape
        # Embedding 0 stands for the frame before the first one.
        codes = previous_codes.to(self.device) + 1
        # A sum of a fixed order: the codebooks' embeddings are no integers, and another order would round differently.
        hidden = self.embeddings[0][codes[:, 0]]
        for level in range(1, depth):
            hidden = hidden + self.embeddings[level][codes[:, level]]
        if self.input_norm is not None:
            hidden = self.input_norm(hidden)
        past_frames = 0 if state is None else state.num_frames
        hidden = hidden + self.positions(past_frames, frames).to(self.device)
        kept = []
        for index, layer in enumerate(self.layers):
            hidden, layer_state = layer(hidden, layer.start(batch) if state is None else state.layers[index])
            kept.append(layer_state)
        return hidden, FixedPointState(kept, past_frames + frames)

    def cdfs(
        self,
        previous_codes: torch.Tensor,
        state: FixedPointState | None = None,
        frame_codes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, FixedPointState]:
        """Integer cumulative distributions, (batch, quantizer, frame, code) int64, of what `logits` describes."""
        logits, state = self.logits(previous_codes, state, frame_codes)
        return cumulative_ranges(logits, TOTAL_RANGE_BITS), state

    @torch.no_grad()
    def read_frame(
        self, decoders: Sequence[RangeDecoder], previous_codes: torch.Tensor, state: FixedPointState | None
    ) -> tuple[torch.Tensor, FixedPointState]:
        """The next frame of streams.

        Args:
            decoders: of every row.
            previous_codes: (batch, quantizer, 1) of the frame before.
            state: after it.

        Returns:
            (batch, quantizer, 1) int64, and the state for the next call.

        Raises:
            ValueError: the bytes are no codes.
        """
        if self.frame_codes is None:
            cdfs, state = self.cdfs(previous_codes, state)
            rows = cdfs[:, :, 0].cpu()
            found = [torch.from_numpy(decoder.decode(row)) for decoder, row in zip(decoders, rows, strict=True)]
            return torch.stack(found)[..., None], state
        hidden, state = self._hidden(previous_codes, state)
        codes = []
        for level in range(previous_codes.shape[1]):
            rows = cumulative_ranges(self.frame_codes.logits(hidden, level), TOTAL_RANGE_BITS).cpu()
            found = [decoder.decode(row) for decoder, row in zip(decoders, rows, strict=True)]
            codes.append(torch.from_numpy(np.stack(found)))  # (batch, 1)
            if level + 1 < previous_codes.shape[1]:
                hidden = self.frame_codes.seen(hidden, level, codes[-1])
        return torch.stack(codes, dim=1), state

    def check_codes(self, audio_codes: torch.Tensor) -> None:
        """Refuse what are no codes of this model, (batch, quantizer, frame).

        Raises:
            ValueError: names what is wrong.
        """
        depth, size = self.config.num_quantizers, self.config.codebook_size
        if audio_codes.ndim != 3 or not 1 <= audio_codes.shape[1] <= depth or audio_codes.is_floating_point():
            raise ValueError(
                f"audio_codes must be integers (batch, 1 to {depth} quantizers, frame), got "
                f"{audio_codes.dtype} {tuple(audio_codes.shape)}."
            )
        if audio_codes.numel() and not 0 <= int(audio_codes.min()) <= int(audio_codes.max()) < size:
            raise ValueError(
                f"audio_codes must be from 0 to {size - 1}, got {int(audio_codes.min())} to {int(audio_codes.max())}."
            )

    def compress(self, audio_codes: torch.Tensor) -> list[bytes]:
        """(batch, quantizer, frame) int64 -> a stream for each row; see `CodecLMModel.compress`."""
        return self.stream_compress([audio_codes])

    def stream_compress(self, chunks: Iterable[torch.Tensor]) -> list[bytes]:
        """(batch, quantizer, some frames) each -> a stream for each row; see `CodecLMModel.stream_compress`."""
        encoders: list[RangeEncoder] = []
        last, state, num_frames = None, None, 0
        for chunk in chunks:
            self.check_codes(chunk)
            chunk = chunk.cpu()
            if last is None:
                encoders = [RangeEncoder(TOTAL_RANGE_BITS) for _ in chunk]
                last = chunk.new_full((*chunk.shape[:2], 1), -1)
            if chunk.shape[:2] != last.shape[:2]:
                raise ValueError(
                    f"Every chunk must be ({last.shape[0]}, {last.shape[1]}, frame), got {tuple(chunk.shape)}."
                )
            # Distributions take (quantizer * frame * code) int64: a long piece is computed in parts.
            for part in chunk.split(_CHUNK_FRAMES, dim=2) if chunk.shape[2] else ():
                # Each frame is predicted from the one before it, the first of a part from the last of the part before.
                state = self.write_frames(encoders, last, part, state)
                last = part[:, :, -1:]
            num_frames += chunk.shape[2]
        if last is None:
            raise ValueError("chunks must hold at least one (batch, quantizer, frame), got none.")
        header = StreamHeader(last.shape[1], self.config.codebook_size, num_frames, self.fingerprint)
        return [pack_stream(header, encoder.finish()) for encoder in encoders]

    def write_frames(
        self,
        encoders: Sequence[RangeEncoder],
        last: torch.Tensor,
        codes: torch.Tensor,
        state: FixedPointState | None,
    ) -> FixedPointState:
        """Append frames to streams.

        Args:
            encoders: of every row.
            last: (batch, quantizer, 1) of the frame before these; -1 before the first one.
            codes: (batch, quantizer, frame) int64.
            state: after the frame before these.

        Returns:
            the state for the next call.
        """
        cdfs, state = self.cdfs(torch.cat([last, codes[:, :, :-1]], dim=2), state, codes)
        # (batch, quantizer, frame, code) -> (batch, frame * quantizer, code): the order of the stream, frame by frame.
        rows = cdfs.cpu().transpose(1, 2).flatten(1, 2)
        for encoder, symbols, row in zip(encoders, codes.transpose(1, 2).flatten(1, 2), rows, strict=True):
            encoder.encode(symbols, row)
        return state

    def _open(self, stream: bytes) -> tuple[StreamHeader, RangeDecoder]:
        header, payload = unpack_stream(stream)
        config = self.config
        if header.codebook_size != config.codebook_size or not 1 <= header.num_quantizers <= config.num_quantizers:
            raise ValueError(
                f"The stream has {header.num_quantizers} quantizers of {header.codebook_size} codes, the model "
                f"{config.num_quantizers} of {config.codebook_size}: decompress with the model that compressed."
            )
        if header.fingerprint != self.fingerprint:
            raise ValueError(
                f"The stream was compressed with other weights: their fingerprint is {header.fingerprint:08x}, this "
                f"model's is {self.fingerprint:08x}. Load the weights it was compressed with, in the same precision."
            )
        return header, RangeDecoder(payload, TOTAL_RANGE_BITS)

    def _frames(
        self, decoders: list[RangeDecoder], depth: int, lengths: list[int]
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Frame after frame of streams with equally many quantizers: for each stream not ended yet (quantizer,)."""
        active = [index for index, length in enumerate(lengths) if length]
        codes, state = torch.full((len(active), depth, 1), -1), None
        for frame in range(max(lengths, default=0)):
            codes, state = self.read_frame([decoders[i] for i in active], codes, state)
            yield dict(zip(active, codes[..., 0], strict=True))
            # Streams that have ended leave the batch; the others' distributions do not change by that.
            going = [place for place, index in enumerate(active) if lengths[index] > frame + 1]
            if len(going) < len(active):
                for index in set(active) - {active[place] for place in going}:
                    decoders[index].finish()
                state = state.take(torch.tensor(going, dtype=torch.long, device=self.device))
                active = [active[place] for place in going]
            codes = codes[going]

    def stream_decompress(self, stream: bytes) -> Iterator[torch.Tensor]:
        """Yields (quantizer,) int64 for each frame; see `CodecLMModel.stream_decompress`."""
        header, decoder = self._open(stream)
        for found in self._frames([decoder], header.num_quantizers, [header.num_frames]):
            yield found[0]

    def decompress(self, streams: Sequence[bytes]) -> list[torch.Tensor]:
        """Streams -> (quantizer, frame) int64 for each; see `CodecLMModel.decompress`."""
        if isinstance(streams, (bytes, bytearray)):
            raise ValueError("streams must be a list of bytes, got bytes: pass [stream].")
        opened = [self._open(stream) for stream in streams]
        codes: list[list[torch.Tensor]] = [[] for _ in opened]
        # A batch must have equally many codebooks; streams are decoded in groups that do.
        for depth in sorted({header.num_quantizers for header, _ in opened}):
            group = [index for index, (header, _) in enumerate(opened) if header.num_quantizers == depth]
            lengths = [opened[index][0].num_frames for index in group]
            for found in self._frames([opened[index][1] for index in group], depth, lengths):
                for place, frame in found.items():
                    codes[group[place]].append(frame)
        return [
            torch.stack(frames, dim=1) if frames else torch.zeros(header.num_quantizers, 0, dtype=torch.long)
            for frames, (header, _) in zip(codes, opened, strict=True)
        ]


__all__ = ["FixedPointCodecLM", "FixedPointState", "StreamHeader", "pack_stream", "unpack_stream"]
