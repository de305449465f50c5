"""HiFi vocoders: log-mel to waveform.

One model class, three generators chosen by `config.architecture`:

- `"istft"`: ConvNeXt blocks at the frame rate with an inverse-STFT head (see `generator_istft`), for CPUs.
- `"hifigan"`: Kong, Kim, Bae, HiFi-GAN (arXiv 2010.05646), original repository jik876/hifi-gan.
- `"hifihybrid"`: original repository TariqAHassan/HiFiHybrid.

Deviations: plain weights by default, `apply_weight_norm()` for training as the original does. Where a transposed
convolution's kernel minus its rate is odd, the waveform has a few samples more at its end, as in the originals.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.hifi_vocoder.activations_hifi_vocoder import UpDownSnake, low_pass_taps
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.generator_istft import IstftGenerator, SpectralTables
from melreformer_hf.models.hifi_vocoder.generators_gan import HifiganGenerator, HifihybridGenerator
from melreformer_hf.models.hifi_vocoder.weights_hifi_vocoder import ORIGINAL_FORMAT
from melreformer_hf.nn.conv import apply_weight_norm, has_weight_norm, remove_weight_norm
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block
from melreformer_hf.nn.streaming import Backlog, MelStreamingMixin
from melreformer_hf.originals.formats import OriginalCheckpointMixin
from melreformer_hf.originals.weight_norm import plain_state_dict


@dataclass(frozen=True)
class VocoderStream:
    """A stream of architecture "istft" between two pieces, of constant size.

    Args:
        backlogs: of the generator's stages.
    """

    backlogs: tuple[Backlog, ...]


@dataclass
class HifiVocoderOutput(ModelOutput):
    """Output of `HifiVocoderModel`.

    Args:
        waveform: (batch, frame * hop_length), full scale at 1.
        magnitude: (batch, frame, bin) of the spectrum that architecture "istft" asks for; with `output_magnitude`.
        stream_state: what the next piece of a stream needs; with `last`.
    """

    waveform: torch.FloatTensor | None = None
    magnitude: torch.FloatTensor | None = None
    stream_state: VocoderStream | None = None


def _istft_generator(config: HifiVocoderConfig) -> nn.Module:
    return IstftGenerator(
        config.mel_config,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.kernel_size,
        config.refine_steps,
        config.num_oscillators,
        config.mel_corrections,
        config.refine_momentum,
        config.refine_feedback,
    )


def _upsampling_sizes(config: HifiVocoderConfig) -> tuple:
    return (
        config.num_mel_bins,
        config.upsample_initial_channels,
        config.upsample_rates,
        config.upsample_kernel_sizes,
        config.resblock_kernel_sizes,
        config.resblock_dilations,
    )


def _hifigan_generator(config: HifiVocoderConfig) -> nn.Module:
    return HifiganGenerator(*_upsampling_sizes(config), paired=config.resblock_type == "1")


def _hifihybrid_generator(config: HifiVocoderConfig) -> nn.Module:
    return HifihybridGenerator(*_upsampling_sizes(config))


_GENERATORS = {
    "istft": _istft_generator,
    "hifigan": _hifigan_generator,
    "hifihybrid": _hifihybrid_generator,
}


class HifiVocoderPreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = HifiVocoderConfig
    base_model_prefix = "hifi_vocoder"
    main_input_name = "input_features"
    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "mel-spectrogram", "vocoder")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvNeXtBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, ConvNeXtBlock):
            init_convnext_block(module, std)
        elif isinstance(module, SpectralTables):  # buffers of no checkpoint: loading leaves their memory as it was
            for name, value in module.values("cpu").items():
                init.copy_(module.get_buffer(name), value)
        elif isinstance(module, UpDownSnake):
            taps = low_pass_taps(module.num_taps, module.cutoff).expand_as(module.filter_before)
            init.normal_(module.alpha)
            init.copy_(module.filter_before, taps)
            init.copy_(module.filter_after, taps)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            if self.config.architecture == "hifihybrid":  # the original keeps the library's default
                # a = sqrt(5) is the library's own default, a uniform of one over the root of the fan-in.
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            else:
                init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class HifiVocoderModel(OriginalCheckpointMixin, MelStreamingMixin, HifiVocoderPreTrainedModel):
    """Log-mel spectrograms to waveforms, whole or as a stream.

    Args:
        config: sizes and architecture.

    Example:
        >>> import torch
        >>> from melreformer_hf import HifiVocoderConfig, HifiVocoderModel
        >>> vocoder = HifiVocoderModel(HifiVocoderConfig()).eval()
        >>> mel = torch.full((1, 128, 20), -8.0)
        >>> vocoder(mel).waveform.shape, sum(chunk.shape[-1] for chunk in vocoder.stream(mel.split(5, dim=-1)))
        (torch.Size([1, 5120]), 5120)
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: HifiVocoderConfig) -> None:
        super().__init__(config)
        self.num_mel_bins, self.hop_length = config.num_mel_bins, config.hop_length
        self.generator = _GENERATORS[config.architecture](config)
        self.post_init()

    @property
    def receptive_field_frames(self) -> tuple[int, int]:
        """Frames (before, after) that the samples of a frame depend on, derived from the layers."""
        return self.generator.receptive_field_frames

    def apply_weight_norm(self) -> None:
        """Weight-normalize every convolution of a GAN generator, as HiFi-GAN trains; the output does not change.

        Raises:
            ValueError: the architecture is "istft".
        """
        if self.config.architecture == "istft":
            raise ValueError('apply_weight_norm is for architectures "hifigan" and "hifihybrid", this one is "istft".')
        apply_weight_norm(self.generator)

    def remove_weight_norm(self) -> None:
        """Fold weight norms into plain weights; the output does not change."""
        remove_weight_norm(self.generator)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs,
    ) -> None:
        """Save configuration and plain weights; weight norms are folded into what is written."""
        if has_weight_norm(self.generator) and "state_dict" not in kwargs:
            plain = plain_state_dict(self.generator)
            kwargs["state_dict"] = {f"generator.{key}": value.contiguous() for key, value in plain.items()}
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)

    def forward(
        self,
        input_features: torch.Tensor,
        return_dict: bool | None = None,
        first_frame: int = 0,
        output_magnitude: bool = False,
        stream_state: VocoderStream | None = None,
        last: bool | None = None,
    ) -> HifiVocoderOutput | tuple[torch.Tensor, ...]:
        """Synthesize.

        Args:
            input_features: (batch, mel, frame) log-mel under `config.mel_config`, in any floating point type; the
                waveform has the same. What is not finite comes out so; `stream` refuses it.
            return_dict: `False` gives a tuple.
            first_frame: where in a longer mel the input begins; oscillators continue there.
            output_magnitude: also give the magnitudes that are predicted before windows are joined, for losses.
            stream_state: of the piece before, of architecture "istft"; `None` begins.
            last: the input is a piece of a stream, the last one (which may have no frames) or not: the waveform is
                that of the frames whose future is known. `None`: the input is whole.

        Raises:
            ValueError: the shape is not (batch, num_mel_bins, at least one frame), or not floating point; or
                `output_magnitude` or `last` of an architecture that has none.
        """
        bins, shape = self.num_mel_bins, tuple(input_features.shape)
        if len(shape) != 3 or shape[1] != bins or not shape[0] or not (shape[2] or last):
            raise ValueError(
                f"input_features must be (batch, {bins}, frames) with at least one frame, got {shape}. A single mel "
                "needs a batch axis: mel.unsqueeze(0)."
            )
        if not input_features.is_floating_point():
            raise ValueError(f"input_features must be floating point log-mels, got {input_features.dtype}.")
        for name, value in (("output_magnitude", output_magnitude or None), ("last", last)):
            if value is not None and self.config.architecture != "istft":
                raise ValueError(
                    f'{name} is for architecture "istft", this one is {self.config.architecture!r}, got {value}.'
                )
        magnitude = state = None
        if last is not None:
            backlogs = None if stream_state is None else stream_state.backlogs
            waveform, backlogs = self.generator.advance(input_features, backlogs, last)
            state = VocoderStream(backlogs)
        elif output_magnitude:
            waveform, magnitude = self.generator(input_features, first_frame, True)
        else:
            waveform = self.generator(input_features, first_frame)
        output = HifiVocoderOutput(waveform=waveform, magnitude=magnitude, stream_state=state)
        return output.to_tuple() if return_dict is False else output

    def stream_checked(self, chunks: Iterable[torch.Tensor], step: Callable) -> Iterator[torch.Tensor]:
        # Stage by stage where there are stages: with overlaps of the whole, most of a short chunk would be computed twice.
        if self.config.architecture != "istft":
            yield from super().stream_checked(chunks, step)
            return
        state, chunk = None, None
        for chunk in chunks:
            if not chunk.shape[-1]:
                continue
            output = step(chunk, return_dict=True, stream_state=state, last=False)
            state = output.stream_state
            if output.waveform.shape[-1]:
                yield output.waveform
        if state is not None:
            yield step(chunk[..., :0], return_dict=True, stream_state=state, last=True).waveform

    def synthesize_piece(self, module: Callable, mel: torch.Tensor, first_frame: int) -> torch.Tensor:
        # The oscillators' phases follow the place in the whole signal.
        return module(mel, return_dict=True, first_frame=first_frame).waveform


__all__ = ["HifiVocoderModel", "HifiVocoderOutput", "HifiVocoderPreTrainedModel", "VocoderStream"]
