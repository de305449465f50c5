"""GPT-VAE: mel tokens to one latent vector, and from a latent vector to mel tokens.

Two GPTs as in the original repository karchkha/MelSpec_GPT_VQVAE; training after Li, He, Neubig, Berg-Kirkpatrick and
Yang, A Surprisingly Effective Fix for Deep Latent Variable Modeling of Text (EMNLP 2019): first an autoencoder
(`kl_weight=0`), then a fresh decoder (`reset_decoder`) with free bits and a growing weight.

Deviations: keys and values are cached; decoding modes have transformers' names (the original's "beam" is top-k sampling,
its "sample" takes the likeliest token).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.gpt_vae.configuration_gpt_vae import GptVaeConfig
from melreformer_hf.models.gpt_vae.weights_gpt_vae import ORIGINAL_FORMAT
from melreformer_hf.nn.attention import AttentionMixin
from melreformer_hf.nn.gpt import GptBackbone, PrefixGenerationMixin, init_gpt_weights
from melreformer_hf.originals.formats import OriginalCheckpointMixin


@dataclass
class GptVaePosterior(ModelOutput):
    """What the encoder knows of the latent.

    Args:
        mean: (batch, hidden).
        log_variance: (batch, hidden).
        attentions: for each layer (batch, head, step, step), where asked for.
    """

    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class GptVaeOutput(ModelOutput):
    """Output of `GptVaeModel`.

    Args:
        loss: scalar, mean over samples of reconstruction plus weighted divergence (where it counts).
        logits: (batch, step + 1, vocab) of the next token after the latent and after every input token; without the
            first of these where the latent came from the cache.
        latents: (batch, hidden).
        reconstruction_loss: (batch,) nats, summed over tokens.
        kl: (batch,) divergence of the posterior from the standard normal in nats.
        counted_kl: (batch,) what of it counts under the configured free bits.
        posterior_mean: (batch, hidden).
        posterior_log_variance: (batch, hidden).
        past_key_values: the decoder's cache.
        attentions: for each layer of the decoder (batch, head, position, position), where asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    kl: torch.FloatTensor | None = None
    counted_kl: torch.FloatTensor | None = None
    posterior_mean: torch.FloatTensor | None = None
    posterior_log_variance: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Divergence of a diagonal normal from the standard normal, per dimension, in nats."""
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - log s^2 - 1) / 2 (Kingma, Welling, arXiv 1312.6114, appendix B).
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0)


def counted_divergence(kl: torch.Tensor, mode: str, target: float) -> torch.Tensor:
    """The part of a divergence that training pays for.

    A 0/1 mask, so that the gradient is that of max(target, divergence) while the value below the target is 0.

    Args:
        kl: (batch, dimension) divergences.
        mode: `"none"` counts all; `"sample"`, `"dimension"` and `"batch"` count those above the target.
        target: nats per sample; a dimension's is the share of it.

    Returns:
        (batch,).

    Raises:
        ValueError: the mode is unknown.
    """
    total = kl.sum(-1)
    if mode == "none":
        return total
    if mode == "sample":
        # The comparison has no gradient: below the target nothing is paid and nothing is pulled.
        return total * (total > target)
    if mode == "dimension":
        return (kl * (kl > target / kl.shape[-1])).sum(-1)
    if mode == "batch":
        return total * (total.mean() > target)
    raise ValueError(f'mode must be "none", "sample", "dimension" or "batch", got {mode!r}.')


class _Gpt(nn.Module):
    """A backbone and a linear head without bias."""

    def __init__(self, config: GptVaeConfig, num_positions: int, head_size: int, causal: bool) -> None:
        super().__init__()
        dropouts = {
            "attention_dropout": config.attention_dropout,
            "residual_dropout": config.residual_dropout,
            "embedding_dropout": config.embedding_dropout,
        }
        self.backbone = GptBackbone(
            config.vocab_size,
            num_positions,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            causal=causal,
            **(dropouts if causal else {}),
        )
        self.head = nn.Linear(config.hidden_size, head_size, bias=False)


class GptVaePreTrainedModel(AttentionMixin, HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = GptVaeConfig
    base_model_prefix = "gpt_vae"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GptBlock"]
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        init_gpt_weights(module, self.config.initializer_range)


class GptVaeModel(OriginalCheckpointMixin, GptVaePreTrainedModel, PrefixGenerationMixin):
    """Variational autoencoder of token sequences.

    Args:
        config: sizes and free bits.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.gpt_vae.configuration_gpt_vae import GptVaeConfig
        >>> from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel
        >>> model = GptVaeModel(GptVaeConfig.preset("tiny")).eval()
        >>> tokens = torch.randint(64, (2, 12))
        >>> ends = model.encode(tokens).mean
        >>> between = model.interpolate(ends[:1], ends[1:], steps=5)
        >>> tuple(model.generate(latents=between, max_new_tokens=12).shape)
        (5, 12)
    """

    original_format = ORIGINAL_FORMAT

    prefix_name = "latents"

    def __init__(self, config: GptVaeConfig) -> None:
        super().__init__(config)
        # The encoder sees both ways and writes mean and logarithmic variance side by side.
        self.encoder = _Gpt(config, config.num_tokens, 2 * config.hidden_size, causal=False)
        self.decoder = _Gpt(config, config.num_tokens + 1, config.vocab_size, causal=True)
        self.post_init()

    @property
    def max_tokens(self) -> int:
        """Longest token sequence."""
        return self.config.num_tokens

    @torch.no_grad()
    def reset_decoder(self) -> None:
        """Give the decoder fresh weights and keep the encoder: the second stage of training begins so."""
        std = self.config.initializer_range
        for module in self.decoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, std)
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def encode(self, input_ids: torch.Tensor, output_attentions: bool = False) -> GptVaePosterior:
        """Posterior of the latent, read at the last token: (batch, step) int64."""
        hidden, attentions = self.encoder.backbone(input_ids, output_attentions=output_attentions)
        # The last position has seen every token; (batch, 2 * hidden) -> two of (batch, hidden).
        mean, log_variance = self.encoder.head(hidden[:, -1]).chunk(2, dim=-1)
        if self.config.fixed_variance > 0:
            log_variance = torch.full_like(mean, math.log(self.config.fixed_variance))
        return GptVaePosterior(mean=mean, log_variance=log_variance, attentions=attentions)

    @staticmethod
    def log_posterior(latents: torch.Tensor, posterior: GptVaePosterior) -> torch.Tensor:
        """Log density of latents: (batch, sample, hidden) -> (batch, sample) in nats."""
        mean, log_variance = posterior.mean.unsqueeze(1), posterior.log_variance.unsqueeze(1)
        scaled = (latents - mean).square() / log_variance.exp()
        return -0.5 * (scaled + log_variance + math.log(2 * math.pi)).sum(-1)

    @staticmethod
    def interpolate(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
        """Latents on the straight line from `start` to `end` (1, hidden), both included: (steps, hidden)."""
        if steps < 2:
            raise ValueError(f"steps must be at least 2 (both ends), got {steps}.")
        weight = torch.linspace(0.0, 1.0, steps, device=start.device, dtype=start.dtype)[:, None]
        return start + (end - start) * weight

    @torch.no_grad()
    def mutual_information(self, posterior: GptVaePosterior, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Estimate in nats of what latents tell about their sequence, by the aggregate posterior of this batch.

        Args:
            posterior: of a batch.
            noise: (batch, hidden) standard normal; drawn where `None`.
        """
        # A sum over thousands of dimensions, in float64 on the CPU: not every accelerator has that precision.
        mean, log_variance = posterior.mean.cpu().double(), posterior.log_variance.cpu().double()
        noise = torch.randn_like(mean) if noise is None else noise.cpu().double()
        latents = mean + noise * (0.5 * log_variance).exp()
        # Every latent under every posterior of the batch: (sample, posterior, hidden).
        scaled = (latents[:, None] - mean[None]).square() / log_variance.exp()[None]
        densities = -0.5 * (scaled + log_variance[None] + math.log(2 * math.pi)).sum(-1)
        # log of the mean density, the aggregate posterior q(z) of Hoffman and Johnson (2016).
        aggregate = densities.logsumexp(1) - math.log(len(mean))
        return (densities.diagonal() - aggregate).mean().float().to(posterior.mean.device)

    @staticmethod
    def active_units(means: torch.Tensor, threshold: float = 0.01) -> torch.Tensor:
        """Number of latent dimensions whose posterior mean varies over a data set: (sample, hidden) -> scalar."""
        return (means.var(dim=0) > threshold).sum()

    def _latents(self, input_ids: torch.Tensor | None, noise: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        if input_ids is None:
            raise ValueError("forward needs input_ids to encode, or latents to decode; got neither.")
        posterior = self.encode(input_ids)
        if noise is None:
            noise = torch.randn_like(posterior.mean) if self.training else torch.zeros_like(posterior.mean)
        # The reparameterization: a normal draw whose gradient reaches mean and variance.
        latents = posterior.mean + noise * (0.5 * posterior.log_variance).exp()
        return latents, posterior.mean, posterior.log_variance

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        kl_weight: float = 1.0,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        decoder_input_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> GptVaeOutput | tuple:
        """Encode and decode, or decode given latents.

        Args:
            input_ids: (batch, step) int64 tokens. Without `latents` they are encoded too, and decoded under teacher
                forcing.
            latents: (batch, hidden); skips the encoder.
            labels: (batch, step) int64 targets, -100 ignored; usually `input_ids` themselves.
            noise: (batch, hidden) of the reparameterisation; `None` is drawn in training mode and zero otherwise.
            decoder_input_ids: (batch, step) int64 tokens that the decoder is given in place of `input_ids`, such as those
                with some replaced, of which it learns to listen to the latent.
            kl_weight: weight of the divergence (0 in the first stage, then growing to 1).
            past_key_values: the decoder's cache of a former call; holds the latent already.
            use_cache: whether to return a cache.
            output_attentions: whether to return the decoder's attention weights.
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: neither tokens nor latents are given, or the sequence is too long.
        """
        mean = log_variance = prefix = None
        if self.begins(past_key_values, latents):
            if latents is None:
                latents, mean, log_variance = self._latents(input_ids, noise)
            # (batch, hidden) -> (batch, 1, hidden): the latent takes the first position.
            prefix = latents.unsqueeze(1)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        given = input_ids if decoder_input_ids is None else decoder_input_ids
        hidden, attentions = self.decoder.backbone(given, prefix, past_key_values, output_attentions)
        output = GptVaeOutput(
            logits=self.decoder.head(hidden),
            latents=latents,
            posterior_mean=mean,
            posterior_log_variance=log_variance,
            past_key_values=past_key_values,
            attentions=attentions,
        )
        self._add_losses(output, labels, kl_weight)
        return output.to_tuple() if return_dict is False else output

    def _add_losses(self, output: GptVaeOutput, labels: torch.Tensor | None, kl_weight: float) -> None:
        mean = output.posterior_mean
        if mean is not None:
            divergence = gaussian_kl(mean, output.posterior_log_variance)
            output.kl = divergence.sum(-1)
            output.counted_kl = counted_divergence(divergence, self.config.free_bits, self.config.target_kl)
        if labels is None:
            return
        if labels.shape[1] > output.logits.shape[1]:
            raise ValueError(f"labels must have at most {output.logits.shape[1]} tokens, got {labels.shape[1]}.")
        # (batch, token, vocab) -> (batch, vocab, token), where cross_entropy wants the classes.
        predicted = output.logits[:, : labels.shape[1]].transpose(1, 2)
        output.reconstruction_loss = cross_entropy(predicted, labels, reduction="none").sum(-1)
        per_sample = output.reconstruction_loss
        if mean is not None:
            per_sample = per_sample + kl_weight * output.counted_kl
        output.loss = per_sample.mean()


__all__ = [
    "GptVaeModel",
    "GptVaeOutput",
    "GptVaePosterior",
    "GptVaePreTrainedModel",
    "counted_divergence",
    "gaussian_kl",
]
