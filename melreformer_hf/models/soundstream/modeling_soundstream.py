"""SoundStream-like codec: a waveform as a few codes per frame, and back, whole or as a stream.

Zeghidour, Luebs, Omran, Skoglund, Tagliasacchi, SoundStream (arXiv 2107.03312), in the form of the original repository
LumenPallidium/audio_generation (`CausalVQAE`, commit 80aade1), whose checkpoints load.

`architecture="spectral"` is our own: the same contract at a fraction of the cost (`spectral_soundstream`).

Deviations: one padding of the waveform where the original pads before every strided convolution, which makes a stream
equal to the whole (the original's padding is `padding="original"`); latents get their gradient once, not once per level
of the quantizer; plain weights by default, `apply_weight_norm()` for training; wavelet upsampling is a causal
overlap-add; an energy transformer stands before or behind the quantizer, not in its place. No adversary here: the loss
in `forward` is the mean absolute error plus the quantizer's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput

from melreformer_hf.hub.bundled import BundledMixin
from melreformer_hf.hub.int8 import Int8StorageMixin
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.soundstream.coder_soundstream import SoundStreamDecoder, SoundStreamEncoder
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.energy_soundstream import EnergyTransformer, init_energy_weights
from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d, WaveletSynthesis
from melreformer_hf.models.soundstream.spectral_soundstream import SpectralDecoder, SpectralEncoder
from melreformer_hf.models.soundstream.weights_soundstream import ORIGINAL_FORMAT
from melreformer_hf.nn.conv import (
    CausalConv1d,
    CausalConvTranspose1d,
    StreamStep,
    apply_weight_norm,
    has_weight_norm,
    remove_weight_norm,
)
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block
from melreformer_hf.nn.exporting import register_state
from melreformer_hf.nn.quantization import (
    Codebook,
    CodebookInputs,
    CodebookModelMixin,
    Neighborhood,
    QuantizerOutput,
    ResidualVectorQuantizer,
)
from melreformer_hf.originals.formats import OriginalCheckpointMixin
from melreformer_hf.originals.weight_norm import plain_state_dict


@register_state
@dataclass(frozen=True)
class SoundStreamState:
    """What encoder or decoder remember of a stream; a fresh one begins a stream, none is ever changed in place.

    Args:
        memory: one tensor, or tuple of tensors, per layer; their sizes do not grow with the stream.
        length: samples (encoder) or frames (decoder) so far.
    """

    memory: tuple | None = None
    length: int = 0


@dataclass
class SoundStreamEncoderOutput(ModelOutput):
    """Output of `SoundStreamModel.encode`.

    Args:
        audio_codes: (batch, quantizer, frame) int64; -1 on frames that are padding.
        latents: (batch, hidden_size, frame) what was quantized.
        state: for the next chunk of a stream; `None` outside streams.
    """

    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    state: SoundStreamState | None = None


@dataclass
class SoundStreamDecoderOutput(ModelOutput):
    """Output of `SoundStreamModel.decode`.

    Args:
        audio_values: (batch, channel, frame * hop_length).
        hidden_states: stages of the decoder, coarse to fine, the waveform last: (batch, stage's width, stage's length).
        state: for the next chunk of a stream; `None` outside streams.
    """

    audio_values: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    state: SoundStreamState | None = None


@dataclass
class SoundStreamOutput(ModelOutput):
    """Output of `SoundStreamModel`.

    Args:
        loss: scalar, `reconstruction_weight * reconstruction_loss + quantization_loss`.
        audio_values: (batch, channel, sample) as long as the input.
        audio_codes: (batch, quantizer, frame) int64; -1 on frames that are padding and on dropped levels.
        quantization_loss: scalar.
        reconstruction_loss: scalar, mean absolute error of the samples.
        perplexity: (quantizer,) number of codes in use, counted by entropy.
        decoder_hidden_states: stages of the decoder, coarse to fine, the waveform last; not trimmed to the input.
        codebook_inputs: what `accumulate_codebooks` reads; in training mode only.
    """

    loss: torch.FloatTensor | None = None
    audio_values: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    quantization_loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    codebook_inputs: CodebookInputs | None = None


class SoundStreamPreTrainedModel(
    CodebookModelMixin, HubMixin, BundledMixin, Int8StorageMixin, PreTrainedAudioTokenizerBase, PreTrainedModel
):
    """Initial values and loading."""

    config_class = SoundStreamConfig
    base_model_prefix = "soundstream"
    main_input_name = "input_values"
    input_modalities = "audio"
    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "audio-codec")
    _no_split_modules = ["ResidualUnit", "ConvNeXtBlock"]
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["cluster_size", "vector_sum"]  # running sums, see `Codebook`

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_energy_weights(module)
        if isinstance(module, ConvNeXtBlock):
            init_convnext_block(module, 0.02)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, (CausalConv1d, CausalConvTranspose1d, nn.Linear)):
            fan_in = module.weight[0].numel()
            # An output sample of a transposed convolution sums taps / stride inputs, not all taps.
            if isinstance(module, CausalConvTranspose1d):
                fan_in = module.in_channels * module.kernel_size[0] / module.stride[0]
            # Uniform of variance 1 / fan_in, which keeps the signal's power.
            bound = (3.0 / fan_in) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, (Codebook, MultiresConv1d, WaveletSynthesis)):
            module.reset_parameters()


class SoundStreamModel(OriginalCheckpointMixin, SoundStreamPreTrainedModel):
    """Waveforms to codes and back.

    Args:
        config: sizes.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
        >>> from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
        >>> model = SoundStreamModel(SoundStreamConfig.preset("tiny")).eval()
        >>> waveform = torch.rand(1, 1, 1000) - 0.5
        >>> codes = model.encode(waveform).audio_codes
        >>> tuple(codes.shape)
        (1, 3, 32)
        >>> tuple(model.decode(codes[:, :1]).audio_values.shape)
        (1, 1, 1024)
        >>> pieces = model.stream_decode(model.stream_encode(waveform.split(77, dim=-1)))
        >>> sum(piece.shape[-1] for piece in pieces)
        1024
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: SoundStreamConfig) -> None:
        super().__init__(config)
        spectral = config.architecture == "spectral"
        self.encoder = SpectralEncoder(config) if spectral else SoundStreamEncoder(config)
        # Radius 0 is a plain codebook, which then needs no map at all.
        maps = Neighborhood(kernel=config.som_kernel, radius=config.som_radius, shrink=config.som_shrink)
        self.quantizer = ResidualVectorQuantizer(
            config.hidden_size,
            config.codebook_size,
            config.num_quantizers,
            config.codebook_dim,
            config.codebook_update,
            decay=config.codebook_decay,
            normalize=config.codebook_normalize,
            kmeans_iterations=config.kmeans_iterations,
            restart_threshold=config.restart_threshold,
            commitment_weight=config.commitment_weight,
            codebook_weight=config.codebook_weight,
            level_reduction=config.level_reduction,
            gradient_path=config.gradient_path,
            quantizer_dropout=config.quantizer_dropout,
            neighborhood=maps if config.som_radius else None,
        )
        self.energy = None
        if config.energy_stage != "none":
            self.energy = EnergyTransformer(
                config.hidden_size, config.hidden_size, config.num_energy_heads, num_steps=config.num_energy_steps
            )
        self.decoder = SpectralDecoder(config) if spectral else SoundStreamDecoder(config)
        self.post_init()

    def apply_weight_norm(self) -> None:
        """Weight-normalize every convolution, as the original trains; the function does not change."""
        apply_weight_norm(self.encoder)
        apply_weight_norm(self.decoder)

    def remove_weight_norm(self) -> None:
        """Fold weight norms into plain weights; the function does not change."""
        remove_weight_norm(self)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save configuration and plain weights; weight norms are folded into what is written."""
        if has_weight_norm(self) and "state_dict" not in kwargs:
            kwargs["state_dict"] = plain_state_dict(self)
        super().save_pretrained(save_directory, **kwargs)

    def _levels(self, num_quantizers: int | None, bandwidth: float | None) -> int:
        if num_quantizers is not None and bandwidth is not None:
            raise ValueError(f"Give num_quantizers or bandwidth, not both; got {num_quantizers} and {bandwidth}.")
        if bandwidth is not None:
            return self.config.quantizers_within(bandwidth)
        levels = self.config.num_quantizers if num_quantizers is None else num_quantizers
        if not 1 <= levels <= self.config.num_quantizers:
            raise ValueError(f"num_quantizers must be in 1..{self.config.num_quantizers}, got {num_quantizers}.")
        return levels

    def _check_waveform(self, input_values: torch.Tensor, shortest: int = 1) -> None:
        channels = self.config.audio_channels
        if input_values.ndim != 3 or input_values.shape[1] != channels or input_values.shape[2] < shortest:
            raise ValueError(
                f"input_values must be (batch, {channels}, sample), at least {shortest} sample, got "
                f"{tuple(input_values.shape)}."
            )

    def _masks(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(batch, 1, sample) and (batch, frame) bool, true where there is music; `None` without padding."""
        if padding_mask is None:
            return None, None
        batch, _, samples = input_values.shape
        mask = padding_mask[:, 0] if padding_mask.ndim == 3 else padding_mask
        if mask.shape != (batch, samples):
            raise ValueError(
                f"padding_mask must be (batch, sample) = {(batch, samples)}, got {tuple(padding_mask.shape)}."
            )
        hop = self.config.hop_length
        # A frame counts where any of its samples does: (batch, sample) -> (batch, frame, hop) -> (batch, frame).
        frames = nn.functional.pad(mask.bool(), (0, -samples % hop)).unflatten(1, (-1, hop)).any(dim=-1)
        return mask.bool().unsqueeze(1), frames

    def _settle(self, hidden: torch.Tensor, stage: str, mask: torch.Tensor | None) -> torch.Tensor:
        """Run the energy transformer where it stands at this stage: (batch, hidden_size, frame) -> the same shape."""
        if self.energy is None or self.config.energy_stage != stage:
            return hidden
        # (batch, hidden_size, frame) -> (batch, frame, hidden_size) and back
        return self.energy(hidden.transpose(1, 2), mask=mask).hidden.transpose(1, 2)

    def _latents(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        samples_mask, frames_mask = self._masks(input_values, padding_mask)
        if samples_mask is not None:
            # Silence, as if the shorter sound stood alone: its codes must not depend on what was padded.
            input_values = input_values * samples_mask
        # Once, here: padded before each strided convolution, as the original does, no stream could equal the whole.
        if self.config.padding == "causal":
            input_values = nn.functional.pad(input_values, (0, -input_values.shape[-1] % self.config.hop_length))
        latents = self._settle(self.encoder(input_values), "before_quantizer", frames_mask)
        return latents, samples_mask, frames_mask

    @torch.no_grad()
    def initialize_codebooks(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Place the codewords by k-means on the latents of a first batch, before the first step; once.

        Without this call the first `update_codebooks` does it, and the first step trains on random codewords.

        Args:
            input_values: (batch, channel, sample).
            padding_mask: (batch, sample) bool, false where there is padding.
            generator: makes k-means repeatable.

        Raises:
            ValueError: shapes do not fit, or latents are not finite.
        """
        self._check_waveform(input_values)
        latents, _, frames_mask = self._latents(input_values, padding_mask)
        self.quantizer.initialize_codebooks(latents, frames_mask, generator)

    def _check_stream(self, stage: str) -> None:
        if self.config.padding != "causal":
            raise ValueError(f'Streams need padding="causal", this codec has padding={self.config.padding!r}.')
        if self.config.energy_stage == stage:
            raise ValueError(f"Streams need every layer causal; energy_stage={stage!r} attends to all frames.")

    def _stream_latents(
        self, input_values: torch.Tensor, state: SoundStreamState, end_of_stream: bool
    ) -> tuple[torch.Tensor, SoundStreamState]:
        self._check_stream("before_quantizer")
        length = state.length + input_values.shape[-1]
        if end_of_stream:
            input_values = nn.functional.pad(input_values, (0, -length % self.config.hop_length))
        step = StreamStep(state.memory)
        return self.encoder(input_values, step), SoundStreamState(step.new_memory, length)

    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        bandwidth: float | None = None,
        state: SoundStreamState | None = None,
        end_of_stream: bool = False,
        return_dict: bool | None = None,
    ) -> SoundStreamEncoderOutput | tuple:
        """Codes of a waveform, or of the next chunk of a stream.

        Args:
            input_values: (batch, channel, sample), any length; full scale at 1.
            padding_mask: (batch, sample) bool, false where there is padding; not in streams.
            num_quantizers: levels of codes, the first ones; all by default.
            bandwidth: kilobits per second that the codes must fit into, instead of `num_quantizers`.
            state: of the stream so far, `SoundStreamState()` at its beginning; `None`: the waveform is whole. A chunk
                may have any length, also none; samples that do not fill a frame wait for the next one.
            end_of_stream: complete the last frame with zeros.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: shapes, levels or state do not fit.
        """
        levels, frames_mask = self._levels(num_quantizers, bandwidth), None
        self._check_waveform(input_values, 1 if state is None else 0)
        if state is None:
            if end_of_stream:
                raise ValueError("end_of_stream=True needs the state of a stream; a whole waveform has none.")
            latents, _, frames_mask = self._latents(input_values, padding_mask)
        elif padding_mask is not None:
            raise ValueError("padding_mask is for whole waveforms; rows of a stream must have equal lengths.")
        else:
            latents, state = self._stream_latents(input_values, state, end_of_stream)
        codes = self.quantizer.encode(latents, levels)
        if frames_mask is not None:
            # -1 decodes to zeros, which is what a shorter sound has there.
            codes = codes.masked_fill(~frames_mask[:, None], -1)
        output = SoundStreamEncoderOutput(audio_codes=codes, latents=latents, state=state)
        return output.to_tuple() if return_dict is False else output

    def decode(
        self,
        audio_codes: torch.Tensor,
        state: SoundStreamState | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> SoundStreamDecoderOutput | tuple:
        """Waveform of codes, or of the next codes of a stream.

        Args:
            audio_codes: (batch, quantizer, frame) int64, any prefix of the levels; -1 adds nothing.
            state: of the stream so far, `SoundStreamState()` at its beginning; `None`: the codes are whole.
            output_hidden_states: whether to return the stages of the decoder.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: shapes, codes or state do not fit.
        """
        if audio_codes.ndim != 3 or (state is None and audio_codes.shape[2] < 1):
            raise ValueError(
                f"audio_codes must be (batch, quantizer, frame), at least 1 frame, got {tuple(audio_codes.shape)}."
            )
        quantized = self.quantizer.decode(audio_codes)
        if state is None:
            # Frames of padding are known by their codes: the first level has one everywhere else.
            stages = self._decode_stages(quantized, audio_codes[:, 0] >= 0)
        else:
            self._check_stream("after_quantizer")
            step = StreamStep(state.memory)
            stages = self.decoder(quantized, step)
            state = SoundStreamState(step.new_memory, state.length + audio_codes.shape[2])
        hidden_states = tuple(stages) if output_hidden_states else None
        output = SoundStreamDecoderOutput(audio_values=stages[-1], hidden_states=hidden_states, state=state)
        return output.to_tuple() if return_dict is False else output

    def _decode_stages(self, quantized: torch.Tensor, frames_mask: torch.Tensor | None) -> list[torch.Tensor]:
        return self.decoder(self._settle(quantized, "after_quantizer", frames_mask))

    @torch.no_grad()
    def stream_encode(
        self, chunks: Iterable[torch.Tensor], num_quantizers: int | None = None, bandwidth: float | None = None
    ) -> Iterator[torch.Tensor]:
        """Codes of a stream, as soon as their samples are there; together they equal those of the whole waveform.

        Args:
            chunks: (batch, channel, any number of samples each).
            num_quantizers: levels of codes, the first ones.
            bandwidth: kilobits per second, instead.

        Yields:
            (batch, quantizer, at least one frame).
        """
        state, last = SoundStreamState(), None
        for chunk in chunks:
            output = self.encode(chunk, None, num_quantizers, bandwidth, state)
            state, last = output.state, chunk
            if output.audio_codes.shape[-1]:
                yield output.audio_codes
        if last is not None:
            # A chunk of no samples flushes what the strides still hold back; it has the batch and the type of the last
            # one.
            output = self.encode(last[..., :0], None, num_quantizers, bandwidth, state, end_of_stream=True)
            if output.audio_codes.shape[-1]:
                yield output.audio_codes

    @torch.no_grad()
    def stream_decode(self, chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Waveform of a stream of codes, each chunk at once; together they equal that of all codes.

        Args:
            chunks: (batch, quantizer, any number of frames each) int64.

        Yields:
            (batch, channel, frame * hop_length).
        """
        state = SoundStreamState()
        for chunk in chunks:
            output = self.decode(chunk, state)
            state = output.state
            yield output.audio_values

    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
        bandwidth: float | None = None,
        output_hidden_states: bool = False,
        generator: torch.Generator | None = None,
        train_encoder: bool = True,
        return_dict: bool | None = None,
    ) -> SoundStreamOutput | tuple:
        """Encode, quantize, decode; the codebooks learn by `accumulate_codebooks` and `update_codebooks` only.

        Args:
            input_values: (batch, channel, sample), any length.
            padding_mask: (batch, sample) bool, false where there is padding, which counts in no loss.
            num_quantizers: levels of codes, the first ones; all by default.
            bandwidth: kilobits per second, instead.
            output_hidden_states: whether to return the stages of the decoder.
            generator: makes quantizer dropout repeatable.
            train_encoder: `False`: gradients of the reconstruction are zero in encoder and quantizer.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: shapes or levels do not fit.
        """
        levels = self._levels(num_quantizers, bandwidth)
        self._check_waveform(input_values)
        latents, samples_mask, frames_mask = self._latents(input_values, padding_mask)
        quantized: QuantizerOutput = self.quantizer(latents, levels, frames_mask, generator)
        hidden = quantized.quantized
        if not train_encoder:
            # Zero rather than none, which processes that average their gradients would wait for.
            hidden = hidden.detach() + 0.0 * hidden
        if frames_mask is not None:
            # As decode does with -1; else forward and decode would differ on padded rows.
            hidden = hidden * frames_mask[:, None]
        stages = self._decode_stages(hidden, frames_mask)
        audio_values = stages[-1][..., : input_values.shape[-1]]
        # In float32: a mean over 10^5 samples in half precision would stop growing.
        error = (audio_values.float() - input_values.float()).abs()
        if samples_mask is not None:
            # The mean over samples that are music, whatever the lengths in the batch.
            weights = samples_mask / (samples_mask.sum() * error.shape[1]).clamp(min=1)
            reconstruction_loss = (error * weights).sum()
        else:
            reconstruction_loss = error.mean()
        codes = quantized.audio_codes
        output = SoundStreamOutput(
            loss=self.config.reconstruction_weight * reconstruction_loss + quantized.loss,
            audio_values=audio_values,
            audio_codes=codes if frames_mask is None else codes.masked_fill(~frames_mask[:, None], -1),
            quantization_loss=quantized.loss,
            reconstruction_loss=reconstruction_loss,
            perplexity=quantized.perplexity,
            decoder_hidden_states=tuple(stages) if output_hidden_states else None,
            codebook_inputs=quantized.codebook_inputs,
        )
        return output.to_tuple() if return_dict is False else output


__all__ = [
    "SoundStreamDecoderOutput",
    "SoundStreamEncoderOutput",
    "SoundStreamModel",
    "SoundStreamOutput",
    "SoundStreamPreTrainedModel",
    "SoundStreamState",
]
