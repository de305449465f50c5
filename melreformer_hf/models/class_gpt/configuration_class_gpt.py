"""Configuration of the class-conditional GPT."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import StrictConfig

_PRESETS: dict[str, dict] = {
    "vas": {},
    "tiny": {
        "vocab_size": 64,
        "num_tokens": 80,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_classes": 4,
    },
}


@strict
class ClassGptConfig(StrictConfig):
    """Configuration of `ClassGptModel`; the defaults are the published size (302,854,144 parameters).

    Args:
        vocab_size: tokens, the mel VQ-VAE's `codebook_size`.
        num_tokens: longest token sequence; the class takes one position more.
        hidden_size: width.
        num_hidden_layers: blocks.
        num_attention_heads: heads per block.
        num_classes: classes.
        class_names: of the classes, in order, where they are known.
        null_class: whether there is a class more, number `num_classes`, that stands for any: generation can then be guided
            by how a class differs from it, or go without one.
        any_order: whether tokens may come in any order (`forward(order=...)`), so that what is missing can follow what is
            there on both of its sides.
        embedding_dropout: on embeddings.
        attention_dropout: on attention weights.
        residual_dropout: on what a block adds.
        initializer_range: standard deviation of initial weights.
        use_cache: whether generation keeps keys and values.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_class_gpt"
    _presets = _PRESETS

    vocab_size: int = 128
    num_tokens: int = 265
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_classes: int = 8
    class_names: list | tuple = ()
    null_class: bool = False
    any_order: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        self.class_names = tuple(self.class_names)  # config.json has a list
        super().__post_init__(**kwargs)

    def class_label(self, name: str) -> int:
        """Number of a class by its name.

        Raises:
            ValueError: there is none of that name; tells those that there are.
        """
        if name not in self.class_names:
            raise ValueError(f"The class must be one of {list(self.class_names)}, got {name!r}.")
        return self.class_names.index(name)

    def validate_classes(self):
        """Names are as many as classes, and different."""
        names = self.class_names
        if names and (len(names) != self.num_classes or len(set(names)) != len(names)):
            raise ValueError(f"class_names must be num_classes={self.num_classes} different names, got {list(names)}.")
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"class_names must be texts, got {list(names)}.")

    def validate_architecture(self):
        """Rules between fields."""
        for name in ("num_tokens", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {self.vocab_size}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} for {self.hidden_size}."
            )
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["ClassGptConfig"]
