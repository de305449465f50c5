"""Mel VQ-VAE: a mel spectrogram as a small grid of codewords, and back.

Taming-transformers' VQGAN (arXiv 2012.09841) as SpecVQGAN (arXiv 2110.08791) uses it on mels, in the size of the
original repository karchkha/MelSpec_VQVAE. Its discriminator is among `melreformer_hf.training.discriminators`.

Deviations: any number of frames that is a multiple of the stride, not 848 alone; mels in the units of their contract,
scaled to -1..1 inside; patches of several bins as pixels, where asked for; the two experimental noises of the original
(on code numbers, and replacing unused codewords by copies of used ones) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import l1_loss, pixel_shuffle, pixel_unshuffle
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.vqgan_mel_vqvae import VqganDecoder, VqganEncoder, VqganShape
from melreformer_hf.models.mel_vqvae.weights_mel_vqvae import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.quantization import (
    Codebook,
    CodebookInputs,
    CodebookModelMixin,
    QuantizerOutput,
    VectorQuantizer,
)
from melreformer_hf.originals.formats import OriginalCheckpointMixin


@dataclass
class MelVqvaeOutput(ModelOutput):
    """Output of `MelVqvaeModel`.

    Args:
        loss: scalar, mean absolute error in the network's scale (-1..1) plus `quantization_loss`.
        output_features: (batch, mel, frame) reconstruction in the units of the mel contract.
        codes: (batch, row, column) int64, lowest bands first.
        quantization_loss: scalar.
        reconstruction_loss: scalar.
        perplexity: scalar, number of codewords in use, counted by entropy.
        codebook_inputs: what `accumulate_codebooks` reads; in training mode only.
    """

    loss: torch.FloatTensor | None = None
    output_features: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    quantization_loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None
    codebook_inputs: CodebookInputs | None = None


class MelVqvaePreTrainedModel(AttentionMixin, CodebookModelMixin, HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = MelVqvaeConfig
    base_model_prefix = "mel_vqvae"
    main_input_name = "input_features"
    card_pipeline_tag = "audio-to-audio"
    _no_split_modules = ["Level"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["cluster_size", "vector_sum"]  # running sums, see `Codebook`

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # torch's own default, written out since from_pretrained builds modules without initial values.
            bound = 1.0 / module.weight[0].numel() ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Codebook):
            module.reset_parameters(bound=1.0 / module.size)


class MelVqvaeModel(OriginalCheckpointMixin, MelVqvaePreTrainedModel):
    """Mel spectrograms to tokens and back.

    Args:
        config: sizes and mel contract.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
        >>> from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
        >>> model = MelVqvaeModel(MelVqvaeConfig.preset("tiny")).eval()
        >>> mel = torch.rand(1, model.config.num_mel_bins, 48)
        >>> tokens = model.codes_to_tokens(model.encode(mel))
        >>> tuple(tokens.shape)
        (1, 240)
        >>> tuple(model.decode(model.tokens_to_codes(tokens)).shape)
        (1, 80, 48)
    """

    original_format = ORIGINAL_FORMAT

    def __init__(self, config: MelVqvaeConfig) -> None:
        super().__init__(config)
        shape = VqganShape(
            config.latent_channels,
            config.base_channels,
            config.channel_multipliers,
            config.num_residual_blocks,
            config.num_norm_groups,
            config.dropout,
            config.resample_with_conv,
        )
        pixel_channels = config.patch_size**2
        self.encoder = VqganEncoder(pixel_channels, shape, config.attention_levels)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.quantizer = VectorQuantizer(
            config.codebook_dim,
            config.codebook_size,
            update=config.codebook_update,
            decay=config.codebook_decay,
            kmeans_iterations=config.kmeans_iterations,
            restart_threshold=config.restart_threshold,
            commitment_weight=config.commitment_weight,
        )
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        self.decoder = VqganDecoder(pixel_channels, shape, config.decoder_attention_levels)
        # Kept here, since configurations build their mel contract anew, which no graph can capture.
        self.num_mel_bins, self.num_token_rows = config.num_mel_bins, config.num_token_rows
        self.post_init()

    def _check(self, input_features: torch.Tensor) -> None:
        bins, stride = self.num_mel_bins, self.config.stride
        frames = input_features.shape[-1]
        if input_features.ndim != 3 or input_features.shape[1] != bins or frames < 1 or frames % stride:
            raise ValueError(
                f"input_features must be (batch, {bins}, frames) with frames a multiple of {stride}, got "
                f"{tuple(input_features.shape)}. Crop the mel, or pad it with the value of silence."
            )

    def _scale(self, mel: torch.Tensor) -> torch.Tensor:
        low, high = self.config.input_range
        # (batch, mel, frame) -> (batch, 1, mel, frame): a picture of one channel, lowest band first
        return (2.0 * (mel - low) / (high - low) - 1.0).unsqueeze(1)

    def _unscale(self, pictures: torch.Tensor) -> torch.Tensor:
        low, high = self.config.input_range
        return (pictures.squeeze(1) + 1.0) * (0.5 * (high - low)) + low

    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """Codes of a mel: (batch, mel, frame) -> (batch, mel / stride, frame / stride) int64."""
        self._check(input_features)
        latents = self._latents(self._scale(input_features))
        return self.quantizer.encode(latents)[:, 0].unflatten(1, (self.num_token_rows, -1))

    def _latents(self, pictures: torch.Tensor) -> torch.Tensor:
        """What is quantized, row by row of the grid: (batch, 1, mel, frame) -> (batch, codebook_dim, row * column)."""
        # A patch of p x p bins becomes p * p channels of one pixel, nothing is lost.
        return self.quant_conv(self.encoder(pixel_unshuffle(pictures, self.config.patch_size))).flatten(2)

    def _pictures(self, vectors: torch.Tensor) -> torch.Tensor:
        """The inverse: (batch, codebook_dim, row * column) -> (batch, 1, mel, frame)."""
        grid = vectors.unflatten(2, (self.num_token_rows, -1))
        pixels = self.decoder(self.post_quant_conv(grid.to(self.post_quant_conv.weight.dtype)))
        return pixel_shuffle(pixels, self.config.patch_size)

    @torch.no_grad()
    def initialize_codebooks(self, input_features: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """Place the codewords by k-means on the latents of a first batch, where `kmeans_iterations` asks for it; once.

        Without this call the first `update_codebooks` does it, and the first step trains on random codewords.

        Args:
            input_features: (batch, mel, frame).
            generator: makes k-means repeatable.

        Raises:
            ValueError: the shape does not fit, or latents are not finite.
        """
        self._check(input_features)
        self.quantizer.initialize_codebooks(self._latents(self._scale(input_features)), generator=generator)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Mel of codes: (batch, row, column) int64 -> (batch, mel, frame) in the units of the contract."""
        rows, size = self.num_token_rows, self.config.codebook_size
        if codes.ndim != 3 or codes.shape[1] != rows or codes.shape[2] < 1:
            raise ValueError(f"codes must be (batch, {rows}, columns), got {tuple(codes.shape)}.")
        if not torch.compiler.is_compiling() and (codes.min() < 0 or codes.max() >= size):
            raise ValueError(f"codes must be in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}.")
        return self._unscale(self._pictures(self.quantizer.decode(codes.flatten(1).unsqueeze(1))))

    def codes_to_tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid to sequence, one column after the other: (batch, row, column) -> (batch, row * column)."""
        # Column by column: a language model over tokens then goes through time, low bands before high ones.
        return codes.transpose(1, 2).flatten(1)

    def tokens_to_codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sequence to grid, the inverse of `codes_to_tokens`."""
        rows = self.num_token_rows
        if tokens.ndim != 2 or tokens.shape[1] % rows:
            raise ValueError(f"tokens must be (batch, a multiple of {rows}), got {tuple(tokens.shape)}.")
        return tokens.unflatten(1, (-1, rows)).transpose(1, 2)

    def forward(
        self, input_features: torch.Tensor, return_dict: bool | None = None
    ) -> MelVqvaeOutput | tuple[torch.Tensor, ...]:
        """Reconstruct.

        Args:
            input_features: (batch, mel, frame) mel under `config.mel_config`, frame a multiple of `config.stride`.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: the shape does not fit.
        """
        self._check(input_features)
        pictures = self._scale(input_features)
        quantized: QuantizerOutput = self.quantizer(self._latents(pictures))
        reconstruction = self._pictures(quantized.quantized)
        # In the network's scale: loss weights then mean the same for every mel contract.
        error = l1_loss(reconstruction, pictures)
        output = MelVqvaeOutput(
            loss=error + quantized.loss,
            output_features=self._unscale(reconstruction),
            codes=quantized.audio_codes[:, 0].unflatten(1, (self.num_token_rows, -1)),
            quantization_loss=quantized.loss,
            reconstruction_loss=error,
            perplexity=quantized.perplexity[0],
            codebook_inputs=quantized.codebook_inputs,
        )
        return output.to_tuple() if return_dict is False else output


__all__ = ["MelVqvaeModel", "MelVqvaeOutput", "MelVqvaePreTrainedModel"]
