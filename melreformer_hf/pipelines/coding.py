"""Recordings to files of codes and back: piece by piece, at constant memory, whatever the length."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import torch

from melreformer_hf.audio.io import resample_stream
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.processing.codec_files import CodecFileError, CodecFileHeader, CodecFileReader, CodecFileWriter

BLOCK_SECONDS = 5.0  # of a block in a file: 16 bytes more each, 0.2 % of 12 kbit/s and 0.9 % of 3
_CHUNK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Coded:
    """What came of coding.

    Args:
        num_samples: of the sound, at the codec's rate.
        num_bytes: of the file, header and checksums included.
        seconds: length of the sound.
    """

    num_samples: int
    num_bytes: int
    seconds: float

    @property
    def kbps(self) -> float:
        """Kilobits per second of sound, as counted."""
        return 8 * self.num_bytes / 1000 / self.seconds if self.seconds else 0.0


def fingerprint(model: SoundStreamModel) -> str:
    """What tells one codec from another: a hash of its weights in float32, whatever they are computed in."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


def header_of(model: SoundStreamModel, num_quantizers: int) -> CodecFileHeader:
    """Header of files of so many levels of a codec."""
    config = model.config
    return CodecFileHeader(
        codec=fingerprint(model),
        sampling_rate=config.sampling_rate,
        channels=config.audio_channels,
        hop_length=config.hop_length,
        codebook_sizes=tuple(config.codebook_sizes[:num_quantizers]),
    )


def encode_stream(
    model: SoundStreamModel,
    pieces: Iterable[np.ndarray],
    rate: int,
    file: BinaryIO,
    bandwidth: float | None = None,
    on_samples: Callable[[int], None] | None = None,
    block_seconds: float = BLOCK_SECONDS,
) -> Coded:
    """Write a recording's codes while it is read.

    Args:
        model: a codec that streams.
        pieces: float32, (samples,) of mono and (channel, samples) otherwise.
        rate: of the pieces, in samples per second.
        file: open for writing bytes.
        bandwidth: kilobits per second that the codes may take; `None` is all levels.
        on_samples: told how many samples, at the codec's rate, were coded since the last call.
        block_seconds: sound that a block of the file holds; less is sooner there, and larger.

    Raises:
        ValueError: the bandwidth is below that of one level, or the codec does not stream.
    """
    config, device = model.config, next(model.parameters()).device
    levels = config.num_quantizers if bandwidth is None else config.quantizers_within(bandwidth)
    writer = CodecFileWriter(file, header_of(model, levels))
    per_block = max(1, round(block_seconds * config.frame_rate))
    waiting: list[torch.Tensor] = []
    count = 0

    def chunks() -> Iterator[torch.Tensor]:
        nonlocal count
        for piece in resample_stream(pieces, rate, config.sampling_rate, config.audio_channels):
            count += piece.shape[-1]
            yield torch.from_numpy(piece).reshape(1, config.audio_channels, -1).to(device)
            if on_samples is not None:
                on_samples(piece.shape[-1])

    for codes in model.stream_encode(chunks(), num_quantizers=levels):
        waiting.append(codes[0])
        if sum(part.shape[1] for part in waiting) >= per_block:
            joined = torch.cat(waiting, dim=1)
            whole = joined.shape[1] // per_block * per_block
            for block in joined[:, :whole].split(per_block, dim=1):
                writer.write(block)
            waiting = [joined[:, whole:]]
    for part in [torch.cat(waiting, dim=1)] if waiting else []:
        writer.write(part)
    writer.close(count)
    return Coded(count, writer.num_bytes, count / config.sampling_rate)


def check_codec(model: SoundStreamModel, header: CodecFileHeader) -> None:
    """Refuse codes of another codec.

    Raises:
        ValueError: other weights made them.
    """
    own = header_of(model, len(header.codebook_sizes))
    if own != header:
        raise ValueError(
            f"The file was made by the codec {header.codec} ({header.sampling_rate} Hz, {header.channels} channels), got "
            f"{own.codec} ({own.sampling_rate} Hz, {own.channels} channels): decode it with the codec that encoded it."
        )


def decode_stream(
    model: SoundStreamModel,
    reader: CodecFileReader,
    partial: bool = False,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[torch.Tensor]:
    """The sound of a file of codes while it is read, (1, channel, sample) one after another.

    The last frame is held back until the end of the file says how many of its samples count.

    Args:
        model: the codec that encoded it.
        reader: of the file.
        partial: give what lies before damage, instead of raising.
        on_damage: told what is wrong, with `partial`.

    Raises:
        ValueError: another codec made the file.
        CodecFileError: the file is damaged or not complete, and `partial` is false.
    """
    check_codec(model, reader.header)
    device, size = next(model.parameters()).device, max(1, round(_CHUNK_SECONDS * model.config.frame_rate))

    def chunks() -> Iterator[torch.Tensor]:
        try:
            for codes in reader:
                yield from codes[None].to(device).split(size, dim=-1)
        except CodecFileError as error:
            if not partial:
                raise
            if on_damage is not None:
                on_damage(str(error))

    given, held = 0, None
    for waveform in model.stream_decode(chunks()):
        if held is not None:
            given += held.shape[-1]
            yield held
        held = waveform
    if held is not None:
        # Where the end is missing all samples of the frames that are there count.
        last = held.shape[-1] if reader.num_samples is None else reader.num_samples - given
        yield held[..., :last]


__all__ = ["Coded", "check_codec", "decode_stream", "encode_stream", "fingerprint", "header_of"]
