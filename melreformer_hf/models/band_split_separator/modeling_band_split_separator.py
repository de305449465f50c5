"""Band-split separator: vocals and instrumental of a recording by a complex mask on its spectrum, whole or as a stream.

The split into bands with a linear layer each, modeled over time and across bands in turn, follows Luo, Yu, Music Source
Separation with Band-split RNN (arXiv 2209.15174). Deviations, for CPUs: dilated convolutions over frames, which all bands
share, in place of recurrent networks over time; one bottleneck across all bands of a frame in place of recurrent networks
across bands; magnitudes are compressed; the mask stays within the unit circle. Both stems share the mask, so that they
add up to the mixture.

Every layer reaches a known number of frames, so that a stream equals the whole: a causal model keeps what its
convolutions remember, one that looks ahead computes each block with the frames around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.audio.stft import full_precision
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.band_split_separator.blocks_band_split_separator import (
    BandMerge,
    BandSplit,
    MaskLinear,
    ResidualLinear,
    SeparatorLayer,
    bounded_mask,
    compressed_features,
)
from melreformer_hf.models.band_split_separator.configuration_band_split_separator import BandSplitSeparatorConfig
from melreformer_hf.models.band_split_separator.streaming_band_split_separator import (
    frames_to_samples,
    stream_samples,
    stream_spectrum,
    whole_spectrum,
)
from melreformer_hf.nn.conv import Runner, StreamStep, run_whole
from melreformer_hf.nn.stems import Stems, check_recording
from melreformer_hf.nn.streaming import stream_with_overlap

# Of an untrained mask: both stems get half of the mixture.
_FIRST_SHARE = 0.5
_FIRST_SPREAD = 0.02
# Frames of a block of an offline model, beside those around it; and of a causal one that need not hurry.
_BLOCK_FRAMES = 512


@dataclass
class BandSplitSeparatorOutput(ModelOutput):
    """Output of `BandSplitSeparatorModel`.

    Args:
        vocals: (batch, channel, sample).
        instrumental: (batch, channel, sample), the mixture without the vocals.
        mask: (batch, channel, frame, bin, 2), real and imaginary part of what the mixture's spectrum is multiplied by
            for the vocals, within the unit circle.
    """

    vocals: torch.FloatTensor | None = None
    instrumental: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None


class BandSplitSeparatorPreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values, loading and the model card."""

    config_class = BandSplitSeparatorConfig
    base_model_prefix = "band_split_separator"
    main_input_name = "input_values"
    input_modalities = "audio"
    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "source-separation", "vocals")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SeparatorLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MaskLinear):
            init.normal_(module.weight, 0.0, _FIRST_SPREAD * module.in_features**-0.5)
            bias = torch.zeros_like(module.bias)
            bias[: len(bias) // 2] = math.atanh(_FIRST_SHARE)  # imaginary parts come second
            init.copy_(module.bias, bias)
        elif isinstance(module, nn.Linear):
            # Keeps the power of the signal: variance 1 / fan-in. What all residual layers add has together that of one.
            layers = 2 * self.config.num_hidden_layers if isinstance(module, ResidualLinear) else 1
            init.normal_(module.weight, 0.0, (layers * module.in_features) ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class BandSplitSeparatorModel(BandSplitSeparatorPreTrainedModel):
    """Recordings to vocals and instrumental.

    Args:
        config: sizes, transform, and whether it is causal.

    Example:

        >>> import torch
        >>> from melreformer_hf import BandSplitSeparatorConfig, BandSplitSeparatorModel
        >>> model = BandSplitSeparatorModel(BandSplitSeparatorConfig(causal=True)).eval()
        >>> mixture = torch.randn(1, 22050, generator=torch.Generator().manual_seed(0))
        >>> vocals, instrumental = model.separate(mixture, sampling_rate=22050)
        >>> torch.allclose(vocals + instrumental, mixture, atol=1e-6)
        True
        >>> streamed = [stems.vocals for stems in model.stream(mixture[None].split(1000, dim=-1))]
        >>> torch.allclose(torch.cat(streamed, dim=-1)[0], vocals, atol=1e-5)
        True
    """

    def __init__(self, config: BandSplitSeparatorConfig) -> None:
        super().__init__(config)
        # Read here: a graph would break where a configuration computes while it is traced.
        self.transform, self.reach = config.transform, config.reach
        edges, hidden, channels = config.band_edges, config.hidden_size, config.num_audio_channels
        self.split = BandSplit(edges, 3 * channels, hidden)
        self.layers = nn.ModuleList(
            SeparatorLayer(
                config.num_bands,
                hidden,
                config.intermediate_size,
                config.band_intermediate_size,
                config.kernel_size,
                dilation,
                config.causal,
            )
            for dilation in config.dilations
        )
        self.merge = BandMerge(edges, channels, hidden)
        self.gradient_checkpointing = False
        self.post_init()

    def _mask(self, spectrum: torch.Tensor, run: Runner = run_whole) -> tuple[torch.Tensor, torch.Tensor]:
        """Real and imaginary part of the mask of a spectrum (batch, channel, frame, bin), the same shape, float32."""
        with full_precision(spectrum):
            features = compressed_features(spectrum, self.config.compression)
        hidden = self.split(features.to(self.split.bands[0].weight.dtype))
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(layer.__call__, hidden)
            else:
                hidden = layer(hidden, run)
        return bounded_mask(self.merge(hidden).float())

    def _masked(self, spectrum: torch.Tensor, run: Runner = run_whole) -> torch.Tensor:
        real, imaginary = self._mask(spectrum, run)
        return spectrum * torch.complex(real, imaginary)

    def forward(
        self, input_values: torch.Tensor, return_dict: bool | None = None
    ) -> BandSplitSeparatorOutput | tuple[torch.Tensor, ...]:
        """Separate whole recordings; gradients flow to the weights.

        Args:
            input_values: (batch, channel, sample), any length. What is not finite comes out so; `separate` and `stream`
                refuse it.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: the shape does not fit.
        """
        channels, shape = self.config.num_audio_channels, tuple(input_values.shape)
        if len(shape) != 3 or shape[1] != channels or 0 in shape:
            raise ValueError(f"input_values must be (batch, {channels}, samples), at least one sample, got {shape}.")
        # Transforms and the difference of the stems stay in full precision.
        mixture = input_values.float()
        with full_precision(mixture):
            spectrum = whole_spectrum(mixture, self.transform)
        real, imaginary = self._mask(spectrum)
        with full_precision(mixture):
            samples, _ = frames_to_samples(spectrum * torch.complex(real, imaginary), self.transform)
        begin = self.transform.n_fft - self.transform.hop_length
        vocals = samples[..., begin : begin + shape[-1]]
        output = BandSplitSeparatorOutput(
            vocals=vocals.to(input_values.dtype),
            instrumental=(mixture - vocals).to(input_values.dtype),
            mask=torch.stack([real, imaginary], dim=-1).to(input_values.dtype),
        )
        return output.to_tuple() if return_dict is False else output

    def _masked_stream(self, spectra: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The vocals' spectra of a stream of spectra, (batch, channel, some frames, bin) complex each."""
        if self.config.causal:
            memory = None
            for spectrum in spectra:
                step = StreamStep(memory)
                yield self._masked(spectrum, step)
                memory = step.new_memory
            return
        # As real tensors with the frames last, which is what the overlapped synthesis cuts.
        channels, bins = self.config.num_audio_channels, self.transform.num_bins

        def unpacked(packed: torch.Tensor) -> torch.Tensor:
            return torch.view_as_complex(packed.transpose(1, 2).unflatten(-1, (channels, bins, 2)).contiguous())

        def packed(spectrum: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(spectrum.transpose(1, 2)).flatten(2).transpose(1, 2)

        def synthesize(held: torch.Tensor, first_frame: int) -> torch.Tensor:
            return packed(self._masked(unpacked(held).transpose(1, 2)))

        for made in stream_with_overlap(synthesize, map(packed, spectra), self.reach, hop_length=1):
            yield unpacked(made).transpose(1, 2)

    @torch.no_grad()
    def stream(self, chunks: Iterable[torch.Tensor], block_frames: int | None = None) -> Iterator[Stems]:
        """Separate a recording that arrives in chunks, at constant memory; joined, the stems equal those of the whole.

        Args:
            chunks: (batch, channel, any number of samples each), one after another in time.
            block_frames: frames that are computed at once; `None` is one of a causal model, whose stems then lag
                `config.look_ahead` samples behind at most, and many of an offline one, which computes
                `config.reach` frames more with each block.

        Yields:
            `Stems(vocals, instrumental)`, (batch, channel, some samples) float32; they add up to the mixture.

        Raises:
            ValueError: a chunk has another shape, or is not finite; or `block_frames` is below 1.
        """
        if block_frames is None:
            block_frames = 1 if self.config.causal else _BLOCK_FRAMES
        if block_frames < 1:
            raise ValueError(f"block_frames must be at least 1, got {block_frames}.")
        waiting: list[torch.Tensor] = []

        def checked() -> Iterator[torch.Tensor]:
            for chunk in chunks:
                if chunk.ndim == 3 and chunk.shape[-1] == 0:
                    continue
                if chunk.ndim != 3:
                    raise ValueError(f"every chunk must be (batch, channel, samples), got {tuple(chunk.shape)}.")
                check_recording(chunk, self.config.num_audio_channels, self.config.sampling_rate)
                chunk = chunk.to(self.device, torch.float32)
                waiting.append(chunk)
                yield chunk

        spectra = stream_spectrum(checked(), self.transform, block_frames)
        for vocals in stream_samples(self._masked_stream(spectra), self.transform):
            mixture = torch.cat(waiting, dim=-1)
            # The last window ends after the recording.
            vocals = vocals[..., : mixture.shape[-1]]
            waiting[:] = [mixture[..., vocals.shape[-1] :]]
            if vocals.shape[-1]:
                yield Stems(vocals, mixture[..., : vocals.shape[-1]] - vocals)

    @torch.no_grad()
    def separate(
        self, waveform: torch.Tensor, sampling_rate: int | None = None, block_frames: int = _BLOCK_FRAMES
    ) -> Stems:
        """Split a recording into vocals and instrumental, which add up to it.

        Args:
            waveform: (channel, sample) or (batch, channel, sample) floating point audio of any length.
            sampling_rate: its samples per second, checked where given.
            block_frames: frames that are computed at once; the result does not depend on it.

        Returns:
            `Stems(vocals, instrumental)`, float32 tensors of the shape of `waveform`.

        Raises:
            ValueError: wrong shape, type, values, sampling rate or block.
        """
        check_recording(waveform, self.config.num_audio_channels, self.config.sampling_rate, sampling_rate)
        batch = waveform if waveform.ndim == 3 else waveform[None]
        size = block_frames * self.transform.hop_length if block_frames > 0 else batch.shape[-1]
        pieces = list(self.stream(batch.split(size, dim=-1), block_frames))
        stems = (torch.cat(parts, dim=-1).reshape(waveform.shape) for parts in zip(*pieces, strict=True))
        return Stems(*stems)


__all__ = [
    "BandSplitSeparatorModel",
    "BandSplitSeparatorOutput",
    "BandSplitSeparatorPreTrainedModel",
]
