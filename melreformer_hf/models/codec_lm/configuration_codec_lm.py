"""Configuration of the codec language model."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import StrictConfig

ACTIVATIONS = ("gelu", "relu")
_MAX_CODEBOOK_SIZE = 2**20
_PRESETS: dict[str, dict] = {
    "encodec_24khz": {"num_quantizers": 32, "num_context_frames": 262},
    "encodec_48khz": {"num_quantizers": 16, "num_context_frames": 525},
    "tiny": {
        "num_quantizers": 3,
        "codebook_size": 16,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_context_frames": 6,
    },
    # Small tables instead of full ones, and codes of a frame that see each other: 1.3 M parameters for 12 codebooks.
    "small": {
        "num_quantizers": 12,
        "hidden_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 320,
        "num_context_frames": 100,
        "norm_first": True,
        "frame_code_size": 32,
    },
}


@strict
class CodecLMConfig(StrictConfig):
    """Configuration of `CodecLMModel`; the defaults are EnCodec's at 24 kHz (15,559,768 parameters).

    Args:
        num_quantizers: codebooks; a call may use the first few of them.
        codebook_size: codes per codebook.
        hidden_size: width, even.
        num_hidden_layers: layers.
        num_attention_heads: heads per layer.
        intermediate_size: width between the two linear layers of a layer.
        num_context_frames: frames before its own that a frame sees in every layer.
        activation: `"gelu"` or `"relu"`.
        norm_first: whether layers normalize their input instead of their output.
        bias: `False`: the biases of attention, feed-forward layers and their norms are and stay zero.
        input_norm: whether the summed embeddings are normalized.
        position_period: longest wavelength of the position codes is 2 pi times this, in frames.
        dropout: on attention weights, between the linear layers, and on what a layer adds.
        layer_norm_eps: added to variances.
        initializer_range: standard deviation of initial weights.
        frame_code_size: 0: the codes of a frame are predicted at once from the frames before it, as EnCodec does. Above
            0: a code is also predicted from those of the earlier codebooks of its own frame, and each codebook has one
            table of vectors of this width, which inputs and predictions share.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_codec_lm"
    _presets = _PRESETS

    num_quantizers: int = 32
    codebook_size: int = 1024
    hidden_size: int = 200
    num_hidden_layers: int = 5
    num_attention_heads: int = 8
    intermediate_size: int = 800
    num_context_frames: int = 262
    activation: str = "gelu"
    norm_first: bool = False
    bias: bool = True
    input_norm: bool = True
    position_period: float = 10000.0
    dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    frame_code_size: int = 0

    def validate_architecture(self):
        """Rules between fields."""
        for name in (
            "num_quantizers",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_context_frames",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        # The range coder gives every code a range of at least two out of 2^24.
        if not 2 <= self.codebook_size <= _MAX_CODEBOOK_SIZE:
            raise ValueError(f"codebook_size must be from 2 to {_MAX_CODEBOOK_SIZE}, got {self.codebook_size}.")
        if self.frame_code_size < 0:
            raise ValueError(f"frame_code_size must not be negative, got {self.frame_code_size}.")
        # Half of the width are cosines and half sines; with a single pair the slowest wave is not defined.
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2 or self.hidden_size < 4:
            raise ValueError(
                "hidden_size must be even, at least 4 and a multiple of num_attention_heads, got "
                f"{self.hidden_size} for {self.num_attention_heads} heads."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        # At a period of 1 all waves would be equally fast.
        if self.position_period <= 1.0 or self.layer_norm_eps <= 0.0:
            raise ValueError(
                "position_period must be above 1 and layer_norm_eps above 0, got "
                f"{self.position_period} and {self.layer_norm_eps}."
            )


__all__ = ["CodecLMConfig"]
