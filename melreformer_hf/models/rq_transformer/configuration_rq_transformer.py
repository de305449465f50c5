"""Configuration of the spatial/depth transformer."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.configuration import StrictConfig, mel_config_of

CONDITIONINGS = ("none", "class", "sequence", "mel")
_PUBLISHED: dict = {
    "num_positions": 64,
    "num_quantizers": 4,
    "code_embedding": "codebook",
    "head_code_embedding": "codebook",
    "cumulative_depth_context": True,
    "shared_codebook": True,
    "shared_classifier": True,
    "codebook_dim": 256,
    "residual_dropout": 0.1,
}


def _published(vocab_size: int, hidden_size: int, heads: int, layers: tuple[int, int], classes: int = 1) -> dict:
    return {
        **_PUBLISHED,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "head_num_attention_heads": heads,
        "num_hidden_layers": layers[0],
        "head_num_hidden_layers": layers[1],
        "conditioning": "class" if classes > 1 else "none",
        "condition_vocab_size": classes,
    }


_PRESETS: dict[str, dict] = {
    "ffhq_350m": _published(2048, 1024, 16, (24, 4)),
    "church_370m": _published(16384, 1024, 16, (24, 4)),
    "lsun_612m": _published(16384, 1280, 20, (26, 4)),
    "imagenet_480m": _published(16384, 1536, 24, (12, 4), 1000),
    "imagenet_821m": _published(16384, 1536, 24, (24, 4), 1000),
    "imagenet_1400m": _published(16384, 1536, 24, (42, 6), 1000),
    "imagenet_3800m": _published(16384, 2560, 40, (42, 6), 1000),
    "tiny": {
        "vocab_size": 16,
        "num_positions": 12,
        "num_quantizers": 3,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_num_hidden_layers": 1,
        "head_num_attention_heads": 4,
    },
}


@strict
class RQTransformerConfig(StrictConfig):
    """Configuration of `RQTransformerModel`.

    Args:
        vocab_size: codewords per codebook.
        num_positions: longest sequence of positions (frames, or cells of a picture in raster order).
        num_quantizers: codes per position, the depth.
        hidden_size: width of both transformers.
        num_hidden_layers: blocks of the spatial transformer.
        num_attention_heads: their heads.
        head_num_hidden_layers: blocks of the depth transformer.
        head_num_attention_heads: their heads.
        code_embedding: `"table"` (learned) or `"codebook"` (the codec's codewords through a linear layer), spatial.
        head_code_embedding: the same choice for the depth transformer; a table is one for both.
        shared_table: one learned table for all depths, or one per depth.
        shared_codebook: one codebook for all depths, or one per depth.
        shared_classifier: one output layer for all depths, or one per depth.
        codebook_dim: width of the codec's codewords.
        cumulative_depth_context: a depth sees the sum of the codes above it, instead of the last one alone.
        conditioning: `"none"`, `"class"`, `"sequence"` (tokens, with their own loss) or `"mel"` (an idea mel).
        condition_vocab_size: classes, or tokens of the sequence; 1 with `"none"`.
        num_condition_positions: longest condition: 1 for `"none"` and `"class"`, tokens, or columns of the idea mel.
        condition_loss_weight: share of the condition tokens' loss in the loss (`"sequence"`).
        mel: contract of the idea mel as `MelConfig.to_dict()`; `None` is the package's own.
        activation: `"gelu"` (exact) or `"quick_gelu"`.
        attention_dropout: on attention weights.
        residual_dropout: on what a block adds.
        attention_bias: whether queries, keys, values and their output have biases.
        mlp_bias: whether the feed-forward layers have.
        head_activation, head_attention_dropout, head_residual_dropout, head_attention_bias, head_mlp_bias: the same in
            the depth transformer; `None` is as in the spatial one.
        embedding_dropout: on the inputs of both transformers.
        initializer_range: standard deviation of initial weights.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_rq_transformer"
    _presets = _PRESETS

    vocab_size: int = 1024
    num_positions: int = 512
    num_quantizers: int = 8
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    head_num_hidden_layers: int = 3
    head_num_attention_heads: int = 8
    code_embedding: str = "table"
    head_code_embedding: str = "table"
    shared_table: bool = False
    shared_codebook: bool = False
    shared_classifier: bool = False
    codebook_dim: int = 128
    cumulative_depth_context: bool = False
    conditioning: str = "none"
    condition_vocab_size: int = 1
    num_condition_positions: int = 1
    condition_loss_weight: float = 0.1
    mel: dict | None = None
    activation: str = "gelu"
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    attention_bias: bool = True
    mlp_bias: bool = True
    head_activation: str | None = None
    head_attention_dropout: float | None = None
    head_residual_dropout: float | None = None
    head_attention_bias: bool | None = None
    head_mlp_bias: bool | None = None
    embedding_dropout: float = 0.0
    initializer_range: float = 0.02

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of the idea."""
        return mel_config_of(self.mel)

    @property
    def uses_table(self) -> bool:
        """Whether there is a learned table of codes."""
        return "table" in (self.code_embedding, self.head_code_embedding)

    @property
    def uses_codebook(self) -> bool:
        """Whether the codec's codewords are needed."""
        return "codebook" in (self.code_embedding, self.head_code_embedding)

    def block_options(self, prefix: str = "") -> dict:
        """Options of the blocks of the spatial transformer, or with the prefix `"head_"` of the depth transformer."""
        options = {}
        for name in ("activation", "attention_dropout", "residual_dropout", "attention_bias", "mlp_bias"):
            own = getattr(self, prefix + name)
            options[name] = getattr(self, name) if own is None else own
        return options

    def validate_architecture(self):
        """Rules between fields."""
        for name in (
            *("num_positions", "num_quantizers", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("head_num_hidden_layers", "head_num_attention_heads", "codebook_dim", "condition_vocab_size"),
            "num_condition_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {self.vocab_size}.")
        for name in ("num_attention_heads", "head_num_attention_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"{name} must divide hidden_size {self.hidden_size}, got {getattr(self, name)}.")
        for name in ("code_embedding", "head_code_embedding"):
            if getattr(self, name) not in ("table", "codebook"):
                raise ValueError(f'{name} must be "table" or "codebook", got {getattr(self, name)!r}.')
        for name, known in (("activation", ("gelu", "quick_gelu")), ("head_activation", ("gelu", "quick_gelu", None))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        for name in (
            *("attention_dropout", "residual_dropout", "embedding_dropout", "condition_loss_weight"),
            *("head_attention_dropout", "head_residual_dropout"),
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {value}.")
        self._check_conditioning()

    def _check_conditioning(self):
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning must be one of {CONDITIONINGS}, got {self.conditioning!r}.")
        if self.conditioning in ("none", "class") and self.num_condition_positions != 1:
            raise ValueError(
                f'num_condition_positions must be 1 with conditioning="{self.conditioning}", got '
                f"{self.num_condition_positions}."
            )
        if self.conditioning == "none" and self.condition_vocab_size != 1:
            raise ValueError(
                f'condition_vocab_size must be 1 with conditioning="none", got {self.condition_vocab_size}.'
            )


__all__ = ["CONDITIONINGS", "RQTransformerConfig"]
