"""Mel VQ-VAE: a mel spectrogram as a small grid of codewords, and back.

Taming-transformers' VQGAN (arXiv 2012.09841) as SpecVQGAN (arXiv 2110.08791) uses it on mels, in the size of the
original repository karchkha/MelSpec_VQVAE. Its discriminator is among `melreformer_hf.training.discriminators`.

Deviations: any number of frames that is a multiple of the stride, not 848 alone; mels in the units of their contract,
scaled to -1..1 inside; the two experimental noises of the original (on code numbers, and replacing unused codewords by
copies of used ones) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import embedding, l1_loss, mse_loss
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.vqgan_mel_vqvae import VqganDecoder, VqganEncoder
from melreformer_hf.models.mel_vqvae.weights_mel_vqvae import ORIGINAL_FORMAT
from melreformer_hf.originals.formats import OriginalCheckpointMixin


@dataclass
class MelVqvaeQuantizerOutput(ModelOutput):
    """Output of `NearestCodeword`.

    Args:
        latents: (batch, codebook_dim, row, column) codewords; gradients pass straight through to the input.
        codes: (batch, row, column) int64 numbers of the codewords.
        loss: scalar, codebook loss plus weighted commitment loss.
        perplexity: scalar, exponential of the entropy of code use in this batch.
    """

    latents: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None


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
    """

    loss: torch.FloatTensor | None = None
    output_features: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    quantization_loss: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None


class NearestCodeword(nn.Module):
    """Vector quantisation by the nearest codeword, with a codebook that learns by gradient (arXiv 1711.00937)."""

    def __init__(self, codebook_size: int, codebook_dim: int, commitment_weight: float) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook_size, codebook_dim)
        self.commitment_weight = commitment_weight

    def forward(self, latents: torch.Tensor) -> MelVqvaeQuantizerOutput:
        """Quantise (batch, codebook_dim, row, column)."""
        vectors = latents.movedim(1, -1)
        codes = torch.cdist(
            vectors.detach().float().reshape(-1, vectors.shape[-1]),
            self.codebook.weight.detach().float(),
            compute_mode="donot_use_mm_for_euclid_dist",
        ).argmin(dim=-1)
        codes = codes.reshape(vectors.shape[:-1])
        quantized = embedding(codes, self.codebook.weight).movedim(-1, 1)
        loss = mse_loss(quantized, latents.detach()) + self.commitment_weight * mse_loss(quantized.detach(), latents)
        usage = torch.bincount(codes.flatten(), minlength=self.codebook.num_embeddings) / codes.numel()
        return MelVqvaeQuantizerOutput(
            latents=latents + (quantized - latents).detach(),
            codes=codes,
            loss=loss,
            perplexity=torch.exp(-(usage * torch.log(usage + 1e-10)).sum()),
        )

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(batch, row, column) int64 -> (batch, codebook_dim, row, column)."""
        return self.codebook(codes).movedim(-1, 1)


class MelVqvaePreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = MelVqvaeConfig
    base_model_prefix = "mel_vqvae"
    main_input_name = "input_features"
    card_pipeline_tag = "audio-to-audio"
    _no_split_modules = ["Level"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            bound = 1.0 / module.weight[0].numel() ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1.0 / module.num_embeddings, 1.0 / module.num_embeddings)


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
        sizes = (
            config.latent_channels,
            config.base_channels,
            config.channel_multipliers,
            config.num_residual_blocks,
            config.attention_levels,
            config.num_norm_groups,
            config.dropout,
        )
        self.encoder = VqganEncoder(1, *sizes)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.quantizer = NearestCodeword(config.codebook_size, config.codebook_dim, config.commitment_weight)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        self.decoder = VqganDecoder(1, *sizes)
        self.post_init()

    def _check(self, input_features: torch.Tensor) -> None:
        bins, stride = self.config.num_mel_bins, self.config.stride
        frames = input_features.shape[-1]
        if input_features.ndim != 3 or input_features.shape[1] != bins or frames < 1 or frames % stride:
            raise ValueError(
                f"input_features must be (batch, {bins}, frames) with frames a multiple of {stride}, got "
                f"{tuple(input_features.shape)}. Crop the mel, or pad it with the value of silence."
            )

    def _scale(self, mel: torch.Tensor) -> torch.Tensor:
        low, high = self.config.input_range
        return (2.0 * (mel - low) / (high - low) - 1.0).unsqueeze(1)

    def _unscale(self, pictures: torch.Tensor) -> torch.Tensor:
        low, high = self.config.input_range
        return (pictures.squeeze(1) + 1.0) * (0.5 * (high - low)) + low

    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """Codes of a mel: (batch, mel, frame) -> (batch, mel / stride, frame / stride) int64."""
        self._check(input_features)
        return self.quantizer(self.quant_conv(self.encoder(self._scale(input_features)))).codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Mel of codes: (batch, row, column) int64 -> (batch, mel, frame) in the units of the contract."""
        rows, size = self.config.num_token_rows, self.config.codebook_size
        if codes.ndim != 3 or codes.shape[1] != rows or codes.shape[2] < 1:
            raise ValueError(f"codes must be (batch, {rows}, columns), got {tuple(codes.shape)}.")
        if codes.min() < 0 or codes.max() >= size:
            raise ValueError(f"codes must be in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}.")
        return self._unscale(self.decoder(self.post_quant_conv(self.quantizer.decode(codes))))

    def codes_to_tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """Grid to sequence, one column after the other: (batch, row, column) -> (batch, row * column)."""
        return codes.transpose(1, 2).flatten(1)

    def tokens_to_codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sequence to grid, the inverse of `codes_to_tokens`."""
        rows = self.config.num_token_rows
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
        quantized = self.quantizer(self.quant_conv(self.encoder(pictures)))
        reconstruction = self.decoder(self.post_quant_conv(quantized.latents))
        error = l1_loss(reconstruction, pictures)
        output = MelVqvaeOutput(
            loss=error + quantized.loss,
            output_features=self._unscale(reconstruction),
            codes=quantized.codes,
            quantization_loss=quantized.loss,
            reconstruction_loss=error,
            perplexity=quantized.perplexity,
        )
        return output.to_tuple() if return_dict is False else output


__all__ = ["MelVqvaeModel", "MelVqvaeOutput", "MelVqvaePreTrainedModel", "MelVqvaeQuantizerOutput", "NearestCodeword"]
