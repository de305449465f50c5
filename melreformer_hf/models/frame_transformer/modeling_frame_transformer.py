"""Frame transformer: vocals and instrumental of a recording by a soft mask on its magnitudes.

Original repository carperbr/frame-transformer (MIT), a fork of tsurumeso/vocal-remover, without a paper; version 4 and,
as presets of the configuration, the generations before it. A U-Net halves frequencies and keeps every frame; at each
level a transformer attends from frame to frame within a few maps squeezed from the level's channels, which are appended
to them, as MMDenseLSTM (arXiv 1805.02410) does with one recurrent map.

Deviations: attention by torch's fused kernel, which never holds frame x frame scores, instead of explicit ones; the bin at
half the sampling rate gets the mask of the bin below it (the original leaves it out of the network and gives it to the
vocals; `nyquist="drop"`); windows at the ends of a recording see no zeros beyond it; no rotary frequencies are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import l1_loss, pad
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.frame_transformer.blocks_frame_transformer import (
    ConvBlock,
    ConvDecoder,
    FrameNorm,
    JointFrameNorm,
    MapTransformer,
    MultichannelLinear,
    PositionwiseBlock,
    PositionwiseDecoder,
    PreactivationBlock,
)
from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
from melreformer_hf.models.frame_transformer.separation_frame_transformer import masked_stems
from melreformer_hf.models.frame_transformer.stack_frame_transformer import FrameStack
from melreformer_hf.models.frame_transformer.weights_frame_transformer import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.stems import Stems, check_recording
from melreformer_hf.originals.formats import OriginalCheckpointMixin


@dataclass
class FrameTransformerOutput(ModelOutput):
    """Output of `FrameTransformerModel`.

    Args:
        loss: scalar, mean absolute error between masked and true magnitudes of the instrumental.
        logits: (batch, channel, bin, frame) of the mask.
        mask: (batch, channel, bin, frame) share of the instrumental in the magnitudes, 0 to 1.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None


class FrameTransformerPreTrainedModel(AttentionMixin, HubMixin, PreTrainedModel):
    """Initial values, loading and the model card."""

    card_pipeline_tag = "audio-to-audio"
    card_tags = ("music", "source-separation", "vocals")
    config_class = FrameTransformerConfig
    base_model_prefix = "frame_transformer"
    main_input_name = "input_features"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "ConvBlock",
        "ConvDecoder",
        "MapTransformer",
        "PositionwiseBlock",
        "PositionwiseDecoder",
        "PreactivationBlock",
        "ResidualConvBlock",
        "StackLayer",
    ]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # The library's default for convolutions: uniform within one over the root of the fan-in.
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, MultichannelLinear):
            for weight in (module.weight_pw, module.weight_dw):
                if weight is not None:
                    bound = weight.shape[-1] ** -0.5
                    init.uniform_(weight, -bound, bound)
        elif isinstance(module, (FrameNorm, JointFrameNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class FrameTransformerModel(OriginalCheckpointMixin, FrameTransformerPreTrainedModel):
    """U-Net over frequency with attention from frame to frame, predicting the instrumental's share of magnitudes.

    Args:
        config: sizes, generation and transform.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.frame_transformer.configuration_frame_transformer import FrameTransformerConfig
        >>> from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
        >>> model = FrameTransformerModel(FrameTransformerConfig.preset("tiny")).eval()
        >>> mixture = torch.randn(2, 44100, generator=torch.Generator().manual_seed(0))
        >>> vocals, instrumental = model.separate(mixture, sampling_rate=44100, chunk_frames=256)
        >>> tuple(vocals.shape)
        (2, 44100)
        >>> torch.allclose(vocals + instrumental, mixture, atol=1e-5)
        True
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: FrameTransformerConfig) -> None:
        super().__init__(config)
        self.stack = None
        if config.layout == "stack":
            self._build_stack(config)
        else:
            self._build_unet(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _build_stack(self, config: FrameTransformerConfig) -> None:
        width, spectra = config.channels[0], config.num_audio_channels
        self.stack = FrameStack(
            spectra,
            width,
            config.features[0],
            config.num_hidden_layers,
            config.heads[0],
            config.feedforward_expansion,
            config.attention_kernel_size,
            config.partial_rotary_factor,
            config.dropout,
        )
        self.out = nn.Conv2d(width + spectra, spectra, 1, bias=config.output_bias)

    def _build_unet(self, config: FrameTransformerConfig) -> None:
        # What leaves a level: its channels with the transformer's maps appended.
        joined = [width + maps for width, maps in zip(config.channels, config.appended_maps, strict=True)]
        levels = range(config.num_levels)
        inputs = [config.num_audio_channels, *joined]
        self.encoders = nn.ModuleList(self._encoder(config, level, inputs[level]) for level in levels)
        self.encoder_transformers = nn.ModuleList(self._transformer(config, level) for level in levels)
        self.decoders = nn.ModuleList(
            self._decoder(config, level, joined[level + 1], joined[level]) for level in levels[:-1]
        )
        self.decoder_transformers = nn.ModuleList(
            self._transformer(config, level, joined[level]) for level in levels[:-1]
        )
        self.out = nn.Conv2d(joined[0], config.num_audio_channels, 1, bias=config.output_bias)

    @staticmethod
    def _block(config: FrameTransformerConfig, in_channels: int, level: int, features: int) -> nn.Module:
        """A convolutional residual block into a level, from input of `features` features."""
        kinds = {"conv": ConvBlock, "preactivation": PreactivationBlock}
        return kinds[config.resampling](
            in_channels,
            config.channels[level],
            features,
            features != config.features[level],
            config.resampling_kernel_size,
            config.resampling_expansion,
        )

    @classmethod
    def _encoder(cls, config: FrameTransformerConfig, level: int, in_channels: int) -> nn.Module:
        before, after = config.features[max(0, level - 1)], config.features[level]
        if config.resampling == "positionwise":
            return PositionwiseBlock(in_channels, config.channels[level], before, after, config.resampling_expansion)
        return cls._block(config, in_channels, level, before)

    @classmethod
    def _decoder(cls, config: FrameTransformerConfig, level: int, in_channels: int, skip_channels: int) -> nn.Module:
        width, features = config.channels[level], config.features[level]
        if config.resampling == "positionwise":
            return PositionwiseDecoder(in_channels, skip_channels, width, features, config.resampling_expansion)
        return ConvDecoder(cls._block(config, in_channels + skip_channels, level, features))

    @staticmethod
    def _transformer(config: FrameTransformerConfig, level: int, skip_channels: int | None = None) -> MapTransformer:
        return MapTransformer(
            config.channels[level],
            None if config.num_attention_maps is None else config.num_attention_maps[level],
            config.features[level],
            config.heads[level],
            config.intermediate_sizes[level],
            skip_channels,
            config.feedforward_mixes_maps,
            config.attention_kernel_size,
            config.map_weights == "shared",
            config.partial_rotary_factor,
            config.dropout,
        )

    def _level(
        self, block: nn.Module, transformer: nn.Module, hidden: torch.Tensor, skip: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = block(hidden) if skip is None else block(hidden, skip)
        # The transformer's maps join the channels, as the recurrent map of MMDenseLSTM does.
        maps = transformer(hidden, skip)
        return maps if self.config.num_attention_maps is None else torch.cat((hidden, maps), dim=1)

    def _unet(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, audio channel, feature, frame) -> (batch, channels of the first level, feature, frame)."""
        skips = []
        for block, transformer in zip(self.encoders, self.encoder_transformers, strict=True):
            hidden = self._run(block, transformer, hidden)
            skips.append(hidden)
        for level in reversed(range(len(self.decoders))):
            hidden = self._run(self.decoders[level], self.decoder_transformers[level], hidden, skips[level])
        return hidden

    def _run(self, *arguments: object) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self._level, *arguments)
        return self._level(*arguments)

    def forward(
        self,
        input_features: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> FrameTransformerOutput | tuple[torch.Tensor, ...]:
        """Mask of a recording's magnitudes.

        Args:
            input_features: (batch, channel, bin, frame) magnitudes of the mixture, 0 to 1, with `config.num_bins` bins and
                any number of frames.
            labels: the same shape, magnitudes of the instrumental on the same scale.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: a shape does not fit.
        """
        channels, bins = self.config.num_audio_channels, self.config.num_bins
        shape = tuple(input_features.shape)
        if len(shape) != 4 or shape[1:3] != (channels, bins) or shape[3] < 1:
            raise ValueError(
                f"input_features must be magnitudes (batch, {channels}, {bins}, frames), got {shape}. For waveforms "
                "use separate."
            )
        if labels is not None and tuple(labels.shape) != shape:
            raise ValueError(f"labels must have the shape of input_features {shape}, got {tuple(labels.shape)}.")
        # The network works on n_fft / 2 bins; the one at half the sampling rate is left out here.
        hidden = input_features[:, :, : self.config.features[0]]
        if self.stack is not None:
            logits = self.out(torch.cat((hidden, self.stack(hidden)), dim=1))
        else:
            logits = self.out(self._unet(hidden))
        if bins > logits.shape[2]:
            # The left out bin follows the one below it.
            logits = torch.cat((logits, logits[:, :, -1:]), dim=2)
        mask = logits.sigmoid()
        loss = None if labels is None else l1_loss(input_features * mask, labels)
        output = FrameTransformerOutput(loss=loss, logits=logits, mask=mask)
        return output.to_tuple() if return_dict is False else output

    def _full_mask(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """Mask for spectra with all their bins; bins that the model drops get 0, so that they fall to the vocals."""
        bins = self.config.num_bins
        # The network may be in half precision; spectra and the product with them stay in full.
        mask = self(magnitudes[:, :, :bins].to(self.dtype)).mask.to(magnitudes.dtype)
        return pad(mask, (0, 0, 0, magnitudes.shape[2] - bins))

    @torch.no_grad()
    def separate(
        self,
        waveform: torch.Tensor,
        sampling_rate: int | None = None,
        chunk_frames: int = 512,
        context_frames: int = 128,
    ) -> Stems:
        """Split a recording into vocals and instrumental, which add up to it.

        The recording is scaled by its largest magnitude for the network alone. Windows of `chunk_frames` are computed with
        `context_frames` more on each side, which are dropped; only the recording and its spectrum are held as a whole.

        Args:
            waveform: (channel, sample) or (batch, channel, sample) floating point audio of any length.
            sampling_rate: its samples per second, checked where given.
            chunk_frames: frames kept of each window.
            context_frames: frames before and after them.

        Returns:
            `Stems(vocals, instrumental)`, float32 tensors of the shape of `waveform`.

        Raises:
            ValueError: wrong shape, type, values, sampling rate or window; or a model in training mode.
        """
        check_recording(waveform, self.config.num_audio_channels, self.config.sampling_rate, sampling_rate)
        if chunk_frames < 1 or context_frames < 0:
            raise ValueError(
                f"chunk_frames must be positive and context_frames not negative, got {chunk_frames}, {context_frames}."
            )
        if self.training:
            raise ValueError("separate needs a model without dropout, got one in training mode: call model.eval().")
        batch = waveform.to(self.device, torch.float32)
        # (channel, sample) -> (1, channel, sample); the stems get the shape of the recording back.
        batch = batch.unsqueeze(0) if waveform.ndim == 2 else batch
        stems = masked_stems(batch, self.config.transform, self._full_mask, chunk_frames, context_frames)
        return Stems(*(stem.reshape(waveform.shape) for stem in stems))


__all__ = [
    "FrameTransformerModel",
    "FrameTransformerOutput",
    "FrameTransformerPreTrainedModel",
]
