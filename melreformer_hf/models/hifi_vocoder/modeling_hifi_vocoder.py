"""HiFi vocoders: log-mel to waveform.

One model class, three generators chosen by `config.architecture`:

- `"istft"`: ConvNeXt blocks at the frame rate with an inverse-STFT head (see `generator_istft`), for CPUs.
- `"hifigan"`: Kong, Kim, Bae, HiFi-GAN (arXiv 2010.05646), original repository jik876/hifi-gan.
- `"hifihybrid"`: original repository TariqAHassan/HiFiHybrid.

Deviations: see the generators; the waveform always has `frames * hop_length` samples when the rates multiply to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.generator_istft import IstftGenerator
from melreformer_hf.models.hifi_vocoder.streaming import stream_with_overlap
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block


@dataclass
class HifiVocoderOutput(ModelOutput):
    """Output of `HifiVocoderModel`.

    Args:
        waveform: (batch, frame * hop_length), full scale at 1.
    """

    waveform: torch.FloatTensor | None = None


def _istft_generator(config: HifiVocoderConfig) -> nn.Module:
    return IstftGenerator(
        config.mel_config,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.kernel_size,
        config.refine_steps,
    )


_GENERATORS = {"istft": _istft_generator}


class HifiVocoderPreTrainedModel(PreTrainedModel):
    """Initial values and loading."""

    config_class = HifiVocoderConfig
    base_model_prefix = "hifi_vocoder"
    main_input_name = "input_features"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvNeXtBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, ConvNeXtBlock):
            init_convnext_block(module, std)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class HifiVocoderModel(HifiVocoderPreTrainedModel):
    """Log-mel spectrograms to waveforms, whole or as a stream.

    Args:
        config: sizes and architecture.
    """

    def __init__(self, config: HifiVocoderConfig) -> None:
        super().__init__(config)
        self.generator = _GENERATORS[config.architecture](config)
        self.post_init()

    @property
    def receptive_field_frames(self) -> tuple[int, int]:
        """Frames (before, after) that the samples of a frame depend on, derived from the layers."""
        return self.generator.receptive_field_frames

    def forward(
        self, input_features: torch.Tensor, return_dict: bool | None = None
    ) -> HifiVocoderOutput | tuple[torch.Tensor]:
        """Synthesize.

        Args:
            input_features: (batch, mel, frame) log-mel under `config.mel_config`.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: the shape is not (batch, num_mel_bins, at least one frame).
        """
        bins = self.config.num_mel_bins
        if input_features.ndim != 3 or input_features.shape[1] != bins or input_features.shape[2] < 1:
            raise ValueError(
                f"input_features must be (batch, {bins}, frames) with at least one frame, got "
                f"{tuple(input_features.shape)}. A single mel needs a batch axis: mel.unsqueeze(0)."
            )
        waveform = self.generator(input_features)
        if return_dict is False:
            return (waveform,)
        return HifiVocoderOutput(waveform=waveform)

    @torch.no_grad()
    def stream(self, mel_chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Synthesize a mel that arrives in chunks; the concatenated output equals that of the whole mel.

        Every piece is computed with as many frames of context as the receptive field asks for, so the output lags
        `receptive_field_frames[1]` frames behind the input. Memory does not grow with the length.

        Args:
            mel_chunks: tensors (batch, mel, any number of frames), one after another in time.

        Yields:
            (batch, sample); the samples of all frames that are settled.
        """
        yield from stream_with_overlap(
            lambda mel: self(mel).waveform, mel_chunks, self.receptive_field_frames, self.config.hop_length
        )


__all__ = ["HifiVocoderModel", "HifiVocoderOutput", "HifiVocoderPreTrainedModel"]
