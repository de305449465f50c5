"""Recordings to files of codes and back: piece by piece, at constant memory, whatever the length."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from melreformer_hf.audio.io import resample_stream
from melreformer_hf.models.codec_lm.blocks_codec_lm import BlockCoder
from melreformer_hf.models.codec_lm.fixed_point_codec_lm import FixedPointCodecLM
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel, SoundStreamState
from melreformer_hf.processing.codec_files import CodecFileError, CodecFileHeader, CodecFileReader, CodecFileWriter

if TYPE_CHECKING:
    from melreformer_hf.pipelines.codecs import Codec

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


def fingerprint(model: torch.nn.Module) -> str:
    """What tells one codec from another: a hash of its weights in float32, whatever they are computed in."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


def header_of(model: Codec, num_quantizers: int, entropy: str | None = None) -> CodecFileHeader:
    """Header of files of so many levels of a codec, and of the fingerprint of an entropy coder."""
    config = model.config
    return CodecFileHeader(
        codec=fingerprint(model),
        sampling_rate=config.sampling_rate,
        channels=config.audio_channels,
        hop_length=config.hop_length,
        codebook_sizes=tuple(config.codebook_sizes[:num_quantizers]),
        entropy=entropy,
    )


def block_coder(model: FixedPointCodecLM, codebook_sizes: tuple[int, ...]) -> BlockCoder:
    """An entropy coder for one stream of codes.

    Args:
        model: a language model of the codec's codes, in exact arithmetic (`CodecLMModel.fixed_point()`).
        codebook_sizes: codewords of every level in the stream.

    Raises:
        ValueError: the model is one of other codes.
    """
    config = model.config
    if len(codebook_sizes) > config.num_quantizers or set(codebook_sizes) != {config.codebook_size}:
        raise ValueError(
            f"The language model is one of up to {config.num_quantizers} levels of {config.codebook_size} codes, got "
            f"{len(codebook_sizes)} levels of {sorted(set(codebook_sizes))}: train one with this codec "
            "(`melreformer train codec_lm`)."
        )
    return BlockCoder(model, len(codebook_sizes))


def encode_stream(
    model: Codec,
    pieces: Iterable[np.ndarray],
    rate: int,
    file: BinaryIO,
    bandwidth: float | None = None,
    on_samples: Callable[[int], None] | None = None,
    block_seconds: float = BLOCK_SECONDS,
    entropy: FixedPointCodecLM | None = None,
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
        entropy: a language model of the codec's codes, which makes the file smaller and takes time.

    Raises:
        ValueError: the bandwidth is below that of one level, or the codec does not stream.
    """
    config, device = model.config, next(model.parameters()).device
    levels = config.num_quantizers if bandwidth is None else config.quantizers_within(bandwidth)
    coder = None if entropy is None else block_coder(entropy, tuple(config.codebook_sizes[:levels]))
    writer = CodecFileWriter(file, header_of(model, levels, coder and coder.fingerprint), coder)
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


def check_codec(model: Codec, header: CodecFileHeader) -> None:
    """Refuse codes of another codec.

    Raises:
        ValueError: other weights made them.
    """
    own = header_of(model, len(header.codebook_sizes), header.entropy)
    if own != header:
        raise ValueError(
            f"The file was made by the codec {header.codec} ({header.sampling_rate} Hz, {header.channels} channels), got "
            f"{own.codec} ({own.sampling_rate} Hz, {own.channels} channels): decode it with the codec that encoded it."
        )


def decode_stream(
    model: Codec,
    reader: CodecFileReader,
    partial: bool = False,
    on_damage: Callable[[str], None] | None = None,
    entropy: FixedPointCodecLM | None = None,
) -> Iterator[torch.Tensor]:
    """The sound of a file of codes while it is read, (1, channel, sample) one after another.

    The last frame is held back until the end of the file says how many of its samples count.

    Args:
        model: the codec that encoded it.
        reader: of the file.
        partial: give what lies before damage, instead of raising.
        on_damage: told what is wrong, with `partial`.
        entropy: the language model that shortened the file, where one did (`reader.header.entropy`).

    Raises:
        ValueError: another codec or another language model made the file.
        CodecFileError: the file is damaged or not complete, and `partial` is false.
    """
    check_codec(model, reader.header)
    if reader.header.entropy is not None and entropy is not None:
        reader.coder = block_coder(entropy, reader.header.codebook_sizes)
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


@dataclasses.dataclass
class LiveTimes:
    """How long the hops of a live round trip took.

    Args:
        hop_seconds: sound in a hop, which is the latency.
        count: hops so far.
        total: seconds for all of them.
        longest: seconds for the slowest.
    """

    hop_seconds: float
    count: int = 0
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one hop."""
        self.count, self.total = self.count + 1, self.total + seconds
        self.longest = max(self.longest, seconds)

    @property
    def real_time_factor(self) -> float:
        """Seconds of sound per second of work, on average."""
        return self.count * self.hop_seconds / self.total if self.total else 0.0

    @property
    def kept_up(self) -> bool:
        """Whether no hop took longer than it sounds."""
        return self.longest <= self.hop_seconds


@torch.no_grad()
def round_trip(
    model: SoundStreamModel,
    pieces: Iterable[np.ndarray],
    rate: int,
    times: LiveTimes,
    bandwidth: float | None = None,
) -> Iterator[torch.Tensor]:
    """A sound through the codec and back, hop by hop, as on a line: a hop is heard before the next one is there.

    Args:
        model: a codec that streams.
        pieces: float32, (samples,) of mono and (channel, samples) otherwise.
        rate: of the pieces, in samples per second.
        times: what every hop took is counted there.
        bandwidth: kilobits per second that the codes may take; `None` is all levels.

    Yields:
        (1, channel, hop_length), and less at the end.

    Raises:
        ValueError: the codec does not stream, or the bandwidth is below that of one level.
    """
    if not isinstance(model, SoundStreamModel):
        raise ValueError(
            f"A live round trip needs a codec that streams (SoundStreamModel), got {type(model).__name__}."
        )
    config, device = model.config, next(model.parameters()).device
    levels = config.num_quantizers if bandwidth is None else config.quantizers_within(bandwidth)
    hop, channels = config.hop_length, config.audio_channels
    sender, receiver, held = SoundStreamState(), SoundStreamState(), np.zeros((channels, 0), np.float32)
    for piece in resample_stream(pieces, rate, config.sampling_rate, channels):
        held = np.concatenate([held, piece.reshape(channels, -1)], axis=1)
        whole = held.shape[1] // hop * hop
        for begin in range(0, whole, hop):
            started = time.perf_counter()
            chunk = torch.from_numpy(held[None, :, begin : begin + hop]).to(device)
            sent = model.encode(chunk, num_quantizers=levels, state=sender)
            heard = model.decode(sent.audio_codes, state=receiver)
            sender, receiver = sent.state, heard.state
            times.add(time.perf_counter() - started)
            yield heard.audio_values
        held = held[:, whole:]
    if held.shape[1]:
        last = torch.from_numpy(held[None]).to(device)
        sent = model.encode(last, num_quantizers=levels, state=sender, end_of_stream=True)
        yield model.decode(sent.audio_codes, state=receiver).audio_values[..., : held.shape[1]]


__all__ = [
    "BLOCK_SECONDS",
    "Coded",
    "LiveTimes",
    "block_coder",
    "check_codec",
    "decode_stream",
    "encode_stream",
    "fingerprint",
    "header_of",
    "round_trip",
]
