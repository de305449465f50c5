"""Configuration of the GPT-VAE."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import StrictConfig

FREE_BITS = ("none", "sample", "dimension", "batch")
_PRESETS: dict[str, dict] = {
    "vas": {},
    "tiny": {
        "vocab_size": 64,
        "num_tokens": 80,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


@strict
class GptVaeConfig(StrictConfig):
    """Configuration of `GptVaeModel`; the defaults are the published size (607,656,960 parameters).

    Args:
        vocab_size: tokens, the mel VQ-VAE's `codebook_size`.
        num_tokens: longest token sequence; in the decoder the latent takes one position more.
        hidden_size: width of both transformers and of the latent.
        num_hidden_layers: blocks of each.
        num_attention_heads: heads per block.
        fixed_variance: variance of the posterior where it shall not be learned; 0 learns it.
        free_bits: where the divergence counts: `"none"` everywhere; `"sample"` in samples, `"dimension"` in latent
            dimensions, `"batch"` in batches whose divergence exceeds the target.
        target_kl: that target in nats per sample (a dimension's is `target_kl / hidden_size`).
        embedding_dropout: on embeddings of the decoder.
        attention_dropout: on attention weights of the decoder.
        residual_dropout: on what a block of the decoder adds.
        initializer_range: standard deviation of initial weights.
        use_cache: whether generation keeps keys and values.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_gpt_vae"
    _presets = _PRESETS

    vocab_size: int = 128
    num_tokens: int = 265
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    fixed_variance: float = 0.0
    free_bits: str = "none"
    target_kl: float = 8.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True

    def validate_architecture(self):
        """Rules between fields."""
        for name in ("num_tokens", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {self.vocab_size}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} for {self.hidden_size}."
            )
        if self.free_bits not in FREE_BITS:
            raise ValueError(f"free_bits must be one of {FREE_BITS}, got {self.free_bits!r}.")
        for name in ("target_kl", "fixed_variance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["FREE_BITS", "GptVaeConfig"]
