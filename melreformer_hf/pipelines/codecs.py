"""One face for all codecs: our own, and transformers' EnCodec, DAC and Mimi wherever ours goes.

The face is a part of `SoundStreamModel`'s: `config` with the sizes of `CodecSizes`, `stream_encode`, `stream_decode`, and a
state dict by which weights are told apart. Ours streams; the others hear a sound whole, because their layers look ahead,
have no memory to hand on, or pad anew with every call: they need memory that grows with the sound.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from transformers import DacModel, EncodecModel, MimiModel, PreTrainedConfig, PreTrainedModel

from melreformer_hf.hub.bundled import find_bundled
from melreformer_hf.models.codec_lm.fixed_point_codec_lm import FixedPointCodecLM
from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.nn.quantization.bitrates import kbps_of, levels_within

if TYPE_CHECKING:
    Codec: TypeAlias = "SoundStreamModel | TransformersCodec"

ENTROPY_FOLDER = "entropy"


@dataclasses.dataclass(frozen=True)
class CodecSizes:
    """What must be known of a codec to use it.

    Args:
        sampling_rate: samples per second.
        audio_channels: of the sound.
        hop_length: samples per frame of codes.
        codebook_sizes: codewords of every level, coarse to fine.
    """

    sampling_rate: int
    audio_channels: int
    hop_length: int
    codebook_sizes: tuple[int, ...]

    @property
    def num_quantizers(self) -> int:
        """Levels."""
        return len(self.codebook_sizes)

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sampling_rate / self.hop_length

    def bandwidth(self, num_quantizers: int | None = None) -> float:
        """Kilobits per second of so many levels; all by default."""
        return kbps_of(self.codebook_sizes[:num_quantizers], self.frame_rate)

    def quantizers_within(self, bandwidth: float) -> int:
        """The most levels within so many kilobits per second; a ValueError where there is none."""
        return levels_within(self.codebook_sizes, self.frame_rate, bandwidth)


def _encodec(model: EncodecModel, waveform: torch.Tensor) -> torch.Tensor:
    # (1, batch, quantizer, frame): one chunk, as there are no scales and no chunks.
    return model.encode(waveform, bandwidth=model.config.target_bandwidths[-1], return_dict=True).audio_codes[0]


# Per family of transformers: samples of a frame, all codes of a (1, channel, sample), and the sound of codes.
_FAMILIES: dict[str, tuple[type[PreTrainedModel], Callable, Callable, Callable]] = {
    "encodec": (
        EncodecModel,
        lambda config: config.hop_length,
        _encodec,
        lambda model, codes: model.decode(codes[None], [None], return_dict=True).audio_values,
    ),
    "dac": (
        DacModel,
        lambda config: config.hop_length,
        lambda model, waveform: model.encode(waveform, return_dict=True).audio_codes,
        lambda model, codes: model.decode(audio_codes=codes, return_dict=True).audio_values[:, None],
    ),
    "mimi": (
        MimiModel,
        lambda config: round(config.sampling_rate / config.frame_rate),
        lambda model, waveform: model.encode(waveform, return_dict=True).audio_codes,
        lambda model, codes: model.decode(codes, return_dict=True).audio_values,
    ),
}


class TransformersCodec(nn.Module):
    """transformers' EnCodec, DAC or Mimi with the face of our own codec.

    Args:
        model: in evaluation mode.

    Raises:
        ValueError: another model, or one whose sound is more than its codes: EnCodec at 48 kHz cuts it into chunks, each
            with a loudness of its own.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        config = model.config
        if config.model_type not in _FAMILIES:
            raise ValueError(f"model must be one of {sorted(_FAMILIES)}, got {config.model_type!r}.")
        if getattr(config, "normalize", False) or getattr(config, "chunk_length_s", None) is not None:
            raise ValueError(
                "model must turn a sound into codes alone, got one that normalizes or cuts into chunks "
                f"(normalize={config.normalize}, chunk_length_s={config.chunk_length_s}). Use the one at 24 kHz."
            )
        self.model, self.name_or_path = model, model.name_or_path
        _, hop_of, self._encode, self._decode = _FAMILIES[config.model_type]
        levels = config.n_codebooks if config.model_type == "dac" else config.num_quantizers
        self.config = CodecSizes(
            sampling_rate=config.sampling_rate,
            audio_channels=getattr(config, "audio_channels", 1),
            hop_length=int(hop_of(config)),
            codebook_sizes=(config.codebook_size,) * levels,
        )

    @torch.no_grad()
    def stream_encode(
        self, chunks: Iterable[torch.Tensor], num_quantizers: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Codes of a sound, all at its end; see `SoundStreamModel.stream_encode`.

        Args:
            chunks: (1, channel, any number of samples each).
            num_quantizers: levels of codes, the first ones.

        Yields:
            (1, quantizer, frame), once.
        """
        parts = list(chunks)
        waveform = torch.cat(parts, dim=-1) if parts else None
        if waveform is None or not waveform.shape[-1]:
            return
        hop = self.config.hop_length
        frames = -(-waveform.shape[-1] // hop)
        padded = nn.functional.pad(waveform, (0, frames * hop - waveform.shape[-1]))
        yield self._encode(self.model, padded)[:, :num_quantizers, :frames]

    @torch.no_grad()
    def stream_decode(self, chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Sound of codes, all at their end; see `SoundStreamModel.stream_decode`.

        Yields:
            (1, channel, frame * hop_length), once.
        """
        parts = list(chunks)
        if not parts:
            return
        codes = torch.cat(parts, dim=-1)
        waveform = self._decode(self.model, codes)
        wanted = codes.shape[-1] * self.config.hop_length
        # Convolutions of uneven strides give a few samples more or less than whole frames.
        yield nn.functional.pad(waveform, (0, max(0, wanted - waveform.shape[-1])))[..., :wanted]


def load_codec(name: str | os.PathLike, subfolder: str = "") -> Codec:
    """A codec, in float32 and evaluation mode.

    Args:
        name: folder or Hub id of a `SoundStreamModel`, or of an EnCodec, DAC or Mimi of transformers; or the name of one
            that comes with the package.
        subfolder: of it.

    Raises:
        ValueError: it is none of these, or cannot be found.
    """
    place = find_bundled(name, subfolder)
    try:
        values, _ = PreTrainedConfig.get_config_dict(place, subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise ValueError(f"codec must be the folder or Hub id of a codec, got {name}: {error}") from error
    kind = values.get("model_type")
    if kind == SoundStreamConfig.model_type:
        return SoundStreamModel.from_pretrained(place, subfolder=subfolder, dtype=torch.float32).eval()
    if kind not in _FAMILIES:
        raise ValueError(
            f"codec must be a SoundStreamModel, or one of {sorted(_FAMILIES)} of transformers, got {name} of model type "
            f"{kind!r}."
        )
    model = _FAMILIES[kind][0].from_pretrained(place, subfolder=subfolder, dtype=torch.float32)
    return TransformersCodec(model.eval())


def load_entropy(name: str | os.PathLike) -> FixedPointCodecLM:
    """The language model that lies beside a codec, in its folder `entropy`, in exact arithmetic.

    Args:
        name: of the codec, as of `load_codec`.

    Raises:
        ValueError: there is none.
    """
    try:
        model = CodecLMModel.from_pretrained(find_bundled(name), subfolder=ENTROPY_FOLDER, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The codec {name} has no language model to shorten its codes with, which would lie in its folder "
            f"{ENTROPY_FOLDER}. Train one: melreformer train codec_lm --options.codec {name}."
        ) from error
    return model.eval().fixed_point()


__all__ = ["ENTROPY_FOLDER", "CodecSizes", "TransformersCodec", "load_codec", "load_entropy"]
