"""EnCodec's own files (`.ecdc`) of codes, with and without the language model.

The original codes with floating probabilities, computed frame by frame. A file can only be read where these come out
equal to the bit: on a similar machine, with as many torch threads as it was written with (`torch.set_num_threads`);
elsewhere wrong codes may come out without an error. This module repeats the original's operations one by one, in float32
on the CPU, wasteful as they are (keys and values of the whole context are computed for every frame). For files of one's
own `CodecLMModel.compress` depends on neither, and tells damage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import multi_head_attention_forward

from melreformer_hf.models.codec_lm.container_codec_lm import EcdcHeader, pack_bits, packed_size, unpack_bits
from melreformer_hf.models.codec_lm.modeling_codec_lm import NO_CODE, CodecLMLayer, CodecLMModel
from melreformer_hf.models.codec_lm.range_coder_codec_lm import RangeDecoder, RangeEncoder, quantized_cdf

_SCALE = struct.Struct(">f")
_TOTAL_RANGE_BITS = 24


@dataclass
class EcdcSegment:
    """One segment of a signal.

    Args:
        audio_codes: (quantizer, frame) int64.
        scale: loudness that the codec divided by, where it normalizes.
    """

    audio_codes: torch.Tensor
    scale: float | None = None


class OriginalSteps:
    """The original's streaming evaluation: states are inputs of layers, one frame per call.

    Args:
        model: the language model, in float32 on the CPU and in evaluation mode.

    Raises:
        ValueError: the model is elsewhere, in another precision or in training mode.
    """

    def __init__(self, model: CodecLMModel) -> None:
        parameter = next(model.parameters())
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu" or model.training:
            raise ValueError(
                "model must be in float32 on the CPU in evaluation mode for .ecdc files, got "
                f"{parameter.dtype} on {parameter.device}, training={model.training}."
            )
        self.model = model
        width = model.config.hidden_size
        self.states = [torch.zeros(1, 1, width) for _ in model.layers]
        self.num_frames = 0

    def _positions(self) -> torch.Tensor:
        half = self.model.config.hidden_size // 2
        channel = torch.arange(half).view(1, 1, -1)
        position = torch.arange(1).view(1, -1, 1) + self.num_frames
        phase = position / (self.model.config.position_period ** (channel / (half - 1)))
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)

    def _attend(self, layer: CodecLMLayer, hidden: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        # (1, past + 1, hidden): the original keeps layer inputs, not keys, so that keys are computed anew each step.
        # The original keeps layer inputs and projects all of them again for every frame; other operations round
        # differently.
        context, attention = torch.cat([past, hidden], dim=1), layer.attention
        # Of the one query, which comes last: 0 is itself, 1 the frame before.
        distance = past.shape[1] - torch.arange(context.shape[1]).view(1, -1)
        visible = (distance >= 0) & (distance <= attention.context)
        # (batch, frame, hidden) -> (frame, batch, hidden), the layout of torch's functional attention
        key = context.transpose(1, 0)
        attended, _ = multi_head_attention_forward(
            hidden.transpose(1, 0),
            key,
            key,
            hidden.shape[-1],
            attention.num_heads,
            attention.qkv.weight,
            attention.qkv.bias,
            None,
            None,
            False,
            0.0,
            attention.out_proj.weight,
            attention.out_proj.bias,
            training=False,
            need_weights=False,
            attn_mask=~visible,
        )
        return attended.transpose(1, 0)

    def probabilities(self, previous: torch.Tensor) -> torch.Tensor:
        """(quantizer,) codes of the frame before, -1 at first -> (quantizer, code) of the next frame."""
        model, codes = self.model, previous.view(1, -1, 1) + 1
        hidden = sum(model.code_embeddings[level](codes[:, level]) for level in range(len(previous)))
        hidden = model.input_norm(hidden) + self._positions()
        for index, layer in enumerate(model.layers):
            inner = layer.attention_norm(hidden) if layer.norm_first else hidden
            hidden = hidden + self._attend(layer, inner, self.states[index])
            if layer.norm_first:
                hidden = hidden + layer.down_proj(layer.activation(layer.up_proj(layer.mlp_norm(hidden))))
            else:
                hidden = layer.attention_norm(hidden)
                hidden = layer.mlp_norm(hidden + layer.down_proj(layer.activation(layer.up_proj(hidden))))
            # Cut to the context one step late: the mask hides what the step before kept too much.
            # At most the context, the zeros before the first frame included until they fall out.
            self.states[index] = torch.cat([self.states[index], inner], dim=1)[:, -layer.attention.context :]
        self.num_frames += 1
        logits = torch.stack([model.heads[level](hidden) for level in range(len(previous))], dim=1)
        # The original's layout, (batch, code, quantizer, frame), and its softmax over axis 1: another layout may round
        # otherwise.
        return logits.permute(0, 3, 1, 2).softmax(dim=1)[0, :, :, 0].T


def _encode(model: CodecLMModel, codes: torch.Tensor) -> bytes:
    steps, encoder = OriginalSteps(model), RangeEncoder(_TOTAL_RANGE_BITS)
    previous = torch.full((len(codes),), NO_CODE)
    for frame in codes.unbind(dim=1):
        encoder.encode(frame, quantized_cdf(steps.probabilities(previous), _TOTAL_RANGE_BITS))
        previous = frame
    return encoder.finish()


def _decode(model: CodecLMModel, data: bytes, num_quantizers: int, num_frames: int) -> tuple[torch.Tensor, int]:
    steps, decoder = OriginalSteps(model), RangeDecoder(data, _TOTAL_RANGE_BITS)
    previous, found = torch.full((num_quantizers,), NO_CODE), []
    for _ in range(num_frames):
        cdfs = quantized_cdf(steps.probabilities(previous), _TOTAL_RANGE_BITS)
        previous = torch.from_numpy(decoder.decode(cdfs))
        found.append(previous)
    codes = torch.stack(found, dim=1) if found else torch.zeros(num_quantizers, 0, dtype=torch.long)
    return codes, decoder.consumed_bytes


def _bits(codebook_size: int) -> int:
    if codebook_size < 2 or codebook_size & (codebook_size - 1):
        raise ValueError(f"codebook_size must be a power of two for .ecdc files, got {codebook_size}.")
    return codebook_size.bit_length() - 1


def _check(header: EcdcHeader, codebook_size: int, model: CodecLMModel | None) -> None:
    if header.uses_language_model != (model is not None):
        raise ValueError(
            f"model must be given where uses_language_model is True and only there, got a header with "
            f"{header.uses_language_model} and {'a' if model is not None else 'no'} model."
        )
    config = None if model is None else model.config
    if config and (config.codebook_size != codebook_size or header.num_quantizers > config.num_quantizers):
        raise ValueError(
            f"The file has {header.num_quantizers} quantizers of {codebook_size} codes, the model "
            f"{config.num_quantizers} of {config.codebook_size}."
        )


@torch.no_grad()
def write_ecdc(
    header: EcdcHeader, segments: Sequence[EcdcSegment], codebook_size: int, model: CodecLMModel | None = None
) -> bytes:
    """A file as the original writes it.

    Args:
        header: its header; with `uses_language_model` the codes are coded, else packed.
        segments: of the signal, in order.
        codebook_size: codes per codebook, a power of two.
        model: the codec's language model, where it is used.

    Raises:
        ValueError: header, segments and model do not fit each other.
    """
    _check(header, codebook_size, model)
    parts = [header.to_bytes()]
    for segment in segments:
        codes = segment.audio_codes.cpu()
        if codes.ndim != 2 or len(codes) != header.num_quantizers:
            raise ValueError(f"audio_codes must be ({header.num_quantizers}, frame), got {tuple(codes.shape)}.")
        if segment.scale is not None:
            parts.append(_SCALE.pack(segment.scale))
        # (quantizer, frame) -> frame after frame
        parts.append(pack_bits(codes.T, _bits(codebook_size)) if model is None else _encode(model, codes))
    return b"".join(parts)


@torch.no_grad()
def read_ecdc(
    data: bytes,
    segment_frames: Sequence[int],
    codebook_size: int,
    scaled: bool = False,
    model: CodecLMModel | None = None,
) -> tuple[EcdcHeader, list[EcdcSegment]]:
    """Header and segments of a file.

    Args:
        data: the file.
        segment_frames: frames of each segment, which follow from the header's `num_samples` and the codec
            (`EcdcHeader.read` reads the header alone).
        codebook_size: codes per codebook, a power of two.
        scaled: whether each segment begins with a scale.
        model: the codec's language model, where the header says so.

    Raises:
        ValueError: the file is truncated or corrupt, or does not fit the model.
    """
    header, position = EcdcHeader.read(data)
    _check(header, codebook_size, model)
    segments = list(_segments(data[position:], header, segment_frames, codebook_size, scaled, model))
    return header, segments


def _segments(
    data: bytes,
    header: EcdcHeader,
    segment_frames: Sequence[int],
    codebook_size: int,
    scaled: bool,
    model: CodecLMModel | None,
) -> Iterator[EcdcSegment]:
    depth, bits = header.num_quantizers, _bits(codebook_size)
    for frames in segment_frames:
        scale = None
        if scaled:
            if len(data) < _SCALE.size:
                raise ValueError(f"The file is truncated: a scale needs {_SCALE.size} bytes, got {len(data)}.")
            (scale,) = _SCALE.unpack_from(data)
            data = data[_SCALE.size :]
        if model is None:
            size = packed_size(depth * frames, bits)
            codes = unpack_bits(data, depth * frames, bits).view(frames, depth).T
        else:
            codes, size = _decode(model, data, depth, frames)
        data = data[size:]
        yield EcdcSegment(codes.contiguous(), scale)
    if data:
        raise ValueError(f"The file is corrupt: {len(data)} bytes follow the last segment.")


__all__ = ["EcdcSegment", "OriginalSteps", "read_ecdc", "write_ecdc"]
