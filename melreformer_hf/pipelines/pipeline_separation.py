"""Recordings to vocals and instrumental: tensors, files of any length, streams."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from melreformer_hf.audio.io import audio_info, stream_audio

# Imported by name: diffusers resolves saved components among modules that are loaded.
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
from melreformer_hf.nn.stems import Stems
from melreformer_hf.pipelines.outputs import SeparationOutput
from melreformer_hf.pipelines.pipeline_utils import AudioPipeline, bare
from melreformer_hf.pipelines.separating import check_channels, separate_stream, write_stems

# By model type.
_SEPARATORS = {model.config_class.model_type: model for model in (BandSplitSeparatorModel, FrameTransformerModel)}
# Of pieces that a whole recording is cut into, and frames that are computed at once of files.
_PIECE_SECONDS, _FILE_FRAMES = 10.0, 512


class SeparationPipeline(AudioPipeline):
    """Vocals and instrumental of recordings of any rate, mono or stereo.

    Args:
        separator: splits recordings at its own rate.

    Example:
        >>> import torch
        >>> from melreformer_hf import BandSplitSeparatorConfig, BandSplitSeparatorModel, SeparationPipeline
        >>> pipe = SeparationPipeline(BandSplitSeparatorModel(BandSplitSeparatorConfig()).eval())
        >>> stereo = 0.1 * torch.randn(2, 44100, generator=torch.Generator().manual_seed(0))
        >>> output = pipe(stereo, sampling_rate=44100)
        >>> tuple(output.vocals.shape), torch.allclose(output.vocals + output.instrumental, stereo, atol=1e-6)
        ((2, 44100), True)
    """

    card_template = "separation_pipeline_card.md"
    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "source-separation", "vocals")
    model_cpu_offload_seq = "separator"

    def __init__(self, separator: BandSplitSeparatorModel | FrameTransformerModel) -> None:
        super().__init__()
        self.register_modules(separator=separator)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """As of every pipeline; a folder may also hold the separator alone, as `melreformer train separation` writes it.

        Raises:
            ValueError: as there, or the folder holds a model that does not separate.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / "model_index.json").is_file() or not (folder / "config.json").is_file():
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in _SEPARATORS:
            raise ValueError(
                f"{folder} must hold a separator ({', '.join(_SEPARATORS)}), got the model type {kind!r}."
            )
        kwargs.setdefault("dtype", torch.float32)
        return cls(_SEPARATORS[kind].from_pretrained(folder, **kwargs).eval())

    @property
    def sampling_rate(self) -> int:
        """Samples per second at which the separator listens."""
        return bare(self.separator).config.sampling_rate

    def stream(
        self,
        pieces: Iterable[np.ndarray],
        sampling_rate: int,
        channels: int = 1,
        block_frames: int | None = None,
    ) -> Iterator[Stems]:
        """Separate a recording while it arrives, at constant memory (with a `BandSplitSeparatorModel`).

        Args:
            pieces: float32 arrays, (some samples,) of mono, (2, some samples) of stereo.
            sampling_rate: of the pieces.
            channels: of the pieces.
            block_frames: see `BandSplitSeparatorModel.stream`.

        Yields:
            `Stems(vocals, instrumental)`, (channel, some samples) float32 at the rate of the pieces.

        Raises:
            ValueError: more than two channels, or a sampling rate that is not positive.
        """
        check_channels(channels)
        if sampling_rate <= 0:
            raise ValueError(f"sampling_rate must be a positive number of samples per second, got {sampling_rate}.")
        yield from separate_stream(bare(self.separator), pieces, sampling_rate, channels, block_frames)

    def __call__(self, audio: torch.Tensor | np.ndarray, sampling_rate: int | None = None) -> SeparationOutput:
        """Separate a recording.

        Args:
            audio: (sample,) or (channel, sample), full scale at 1.
            sampling_rate: of the audio; default: the separator's own.

        Returns:
            both stems, (channel, sample); they add up to the audio.

        Raises:
            ValueError: another shape, more than two channels, no samples, or values that are not finite.
        """
        waveform = torch.as_tensor(audio)
        waveform = waveform[None] if waveform.ndim == 1 else waveform
        if waveform.ndim != 2 or not waveform.shape[-1]:
            raise ValueError(f"audio must be (samples,) or (channel, samples), got {tuple(waveform.shape)}.")
        check_channels(len(waveform), "audio")
        if not waveform.is_floating_point() or not waveform.isfinite().all():
            raise ValueError(f"audio must be floating point and finite, got {waveform.dtype} or NaN, infinity.")
        rate, channels = sampling_rate or self.sampling_rate, len(waveform)
        whole = waveform.detach().cpu().float().numpy()
        size = max(1, round(_PIECE_SECONDS * rate))
        pieces = (whole[:, begin : begin + size] for begin in range(0, whole.shape[1], size))
        flat = (piece[0] if channels == 1 else piece for piece in pieces)
        made = list(self.stream(flat, rate, channels, _FILE_FRAMES))
        vocals, instrumental = (torch.cat(stem, dim=-1) for stem in zip(*made, strict=True))
        return SeparationOutput(vocals, instrumental, rate)

    def separate_file(
        self,
        source: str | os.PathLike,
        folder: str | os.PathLike,
        suffix: str = ".wav",
        on_stems: Callable[[Stems], None] | None = None,
    ) -> list[Path]:
        """Separate a file of any length while it is read; memory does not grow with it.

        Args:
            source: WAV, FLAC, OGG or MP3, mono or stereo. Of a WAV or MP3 file that was cut off, what is there counts.
            folder: for `vocals` and `instrumental`; made when missing. What fails leaves no files.
            suffix: of the two files: .wav (32-bit float), .flac, .ogg or .mp3.
            on_stems: told what was written, piece by piece.

        Returns:
            both files.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be decoded, holds no samples, NaN, infinity, or more than two channels; or a suffix that is
                not written.
        """
        rate, channels, _ = audio_info(source)
        check_channels(channels, str(source))
        _, pieces = stream_audio(source, channels)
        first = next(pieces, None)
        if first is None:
            raise ValueError(f"{source} holds no samples.")

        def heard() -> Iterator[np.ndarray]:
            yield first
            yield from pieces

        # Files are in no hurry: large blocks, so that little is computed twice.
        stems = self.stream(heard(), rate, channels, block_frames=_FILE_FRAMES)
        return write_stems(stems, Path(folder), suffix, rate, channels, on_stems)


__all__ = ["SeparationPipeline"]
