"""Configuration of the note transformer."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import StrictConfig

_PRESETS: dict[str, dict] = {
    "test": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "window": 24,
    },
    "tiny": {},
    "small": {"hidden_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8, "intermediate_size": 1536},
}


@strict
class NoteTransformerConfig(StrictConfig):
    """Configuration of `NoteTransformerModel`.

    Args:
        vocab_sizes: values of each attribute of a note, in the order in which a note is written; the first attribute is
            the time since the previous note, and its last value ends the piece.
        num_marks: roles of positions that are no notes, such as a piece's beginning; they come first among the roles.
        num_note_roles: roles of positions that are notes, such as played and given ones.
        num_upcoming: chords to come that every position is told of, where notes are given.
        hidden_size: width.
        num_hidden_layers: blocks.
        num_attention_heads: heads; each sees order and time with one half of its channels.
        intermediate_size: width inside the perceptrons.
        window: notes of the past that a note sees, itself included.
        max_period_in_s: longest wavelength of the rotary codes of time, in seconds.
        min_period_in_s: shortest wavelength of the rotary codes of time, in seconds.
        phrase_filter_bytes: size of the memory of phrases that the model was trained on, which it then does not write
            again; 0 for none, 1.7 bytes per note for one error in 600.
        phrase_length: steps from note to note (in pitch and time) that make a phrase.
        dropout: on what blocks add and on inputs.
        initializer_range: standard deviation of initial weights.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_note_transformer"
    _presets = _PRESETS

    vocab_sizes: tuple[int, ...] | list[int] = (110, 128, 70, 32, 2)
    num_marks: int = 2
    num_note_roles: int = 2
    num_upcoming: int = 2
    hidden_size: int = 256
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    intermediate_size: int = 704
    window: int = 512
    max_period_in_s: float = 100.0
    min_period_in_s: float = 0.1
    phrase_filter_bytes: int = 0
    phrase_length: int = 12
    dropout: float = 0.1
    initializer_range: float = 0.02

    @property
    def num_attributes(self) -> int:
        """Attributes of a note."""
        return len(self.vocab_sizes)

    @property
    def end_id(self) -> int:
        """The time that ends a piece."""
        return self.vocab_sizes[0] - 1

    def validate_architecture(self):
        """Rules between fields."""
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "window")
        for name in (*sizes, "num_marks", "num_note_roles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if len(self.vocab_sizes) < 2 or min(self.vocab_sizes) < 2:
            raise ValueError(f"vocab_sizes must be two or more sizes of at least 2, got {self.vocab_sizes}.")
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 4 * num_attention_heads = {4 * self.num_attention_heads}, got "
                f"{self.hidden_size}."
            )
        if self.num_upcoming < 0:
            raise ValueError(f"num_upcoming must not be negative, got {self.num_upcoming}.")
        if self.phrase_filter_bytes < 0:
            raise ValueError(f"phrase_filter_bytes must not be negative, got {self.phrase_filter_bytes}.")
        if self.phrase_length < 2:
            raise ValueError(f"phrase_length must be at least 2, got {self.phrase_length}.")
        if not 0 < self.min_period_in_s < self.max_period_in_s:
            raise ValueError(
                "0 < min_period_in_s < max_period_in_s must hold, got "
                f"{self.min_period_in_s} and {self.max_period_in_s}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")


__all__ = ["NoteTransformerConfig"]
