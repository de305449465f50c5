"""Configuration of the MelReformer expansion model."""

import math

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.configuration import MelStrictConfig, mel_config_of

HEADS = ("l1", "energy", "flow")
_PRESETS: dict[str, dict] = {
    "tiny": {},
    "base": {
        "fold_size": 32,
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_encoder_layers": 3,
        "num_decoder_layers": 4,
        "num_attention_heads": 12,
        "decoder_window": 64,
        "postnet_size": 384,
        "postnet_layers": 6,
        "band_channels": (64, 96, 128),
        "band_blocks": 3,
        "num_bases": 32,
    },
}


@strict
class MelReformerConfig(MelStrictConfig):
    """Configuration of `MelReformerModel`.

    Args:
        architecture: `"local"` (any length, streaming, linear cost) or `"original"` (the program of
            TariqAHassan/MelReformer with its fixed sizes and point sampling).
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own, or the original's.
        idea_columns: columns of an idea; for `"original"` the encoder's block size.
        fold_size: mel columns per decoder step.
        hidden_size: width of encoder and decoder.
        intermediate_size: width of their perceptrons.
        num_encoder_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder; 0 leaves it out, and the head works on the encoder's drawing of all
            columns at once, in tokens of `fold_size` (local).
        num_attention_heads: heads of every attention.
        encoder_window: columns to each side that an encoder column sees (local).
        decoder_window: earlier steps that a step sees (local); for `"original"` the decoder's block size.
        cross_reach: columns to each side of a step that it attends to (local).
        context_frames: frames of re-interpolated idea before and after its own that a step is given (local).
        postnet_size: channels of the convolutional post-net (local).
        postnet_layers: its blocks (local).
        postnet_kernel: odd kernel of its convolutions in frames (local).
        band_channels: channels of the encoder's net over bands and columns; each level halves the bands (local).
        band_blocks: its residual blocks per level and direction (local).
        num_bases: curves per column and band that draw what happens inside a column (local).
        head: `"l1"` (the post-net: one result, the middle of what might have been played), `"energy"` (a sampler trained
            by an energy score) or `"flow"` (one trained by flow matching) (local).
        head_size: channels of a sampling head.
        head_layers: its convolutional blocks.
        head_kernel: their odd kernel in tokens: frames, or without a decoder `fold_size` frames.
        head_dilations: of the blocks, in turn.
        head_noise: numbers of noise per frame (energy).
        head_column_noise: numbers of noise per column of the idea, which let what happens inside a long column be one
            thing or another as a whole (energy).
        head_long_temperature: a free expansion's noise is scaled by this in pieces of 64 frames per column or more, by 1
            in those of 8 or less, and by powers of it in between: long columns say least of what happens inside them, and
            a head that was trained for a short time draws too much there.
        energy_patches: bands and frames of the patches that the energy score compares.
        flow_steps: steps of a draw (flow).
        frames_per_column: fewest and most frames per column that were trained: lengths beyond are drawn like the
            nearest of these, because the nets' answers to lengths that they have never seen mean nothing (local).
        dropout: of the original architecture.
        mel_shift: subtracted from a log-mel before the network (local).
        mel_scale: then divided by (local).
        initializer_range: standard deviation of initial weights (local).

    Raises:
        ValueError: a field breaks its rule, or is unknown.
    """

    model_type = "melreformer_mel_reformer"
    _presets = _PRESETS

    architecture: str = "local"
    mel: dict | None = None
    idea_columns: int = 256
    fold_size: int = 8
    hidden_size: int = 192
    intermediate_size: int = 576
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    num_attention_heads: int = 4
    encoder_window: int = 16
    decoder_window: int = 32
    cross_reach: int = 3
    context_frames: int = 4
    postnet_size: int = 128
    postnet_layers: int = 2
    postnet_kernel: int = 7
    band_channels: list | tuple = (32, 48, 64)
    band_blocks: int = 2
    num_bases: int = 16
    head: str = "l1"
    head_size: int = 256
    head_layers: int = 4
    head_kernel: int = 7
    head_dilations: list | tuple = (1,)
    head_noise: int = 16
    head_column_noise: int = 0
    head_long_temperature: float = 1.0
    energy_patches: list | tuple = ((8, 2), (16, 4), (32, 8), (128, 8))
    flow_steps: int = 8
    frames_per_column: list | tuple = (4.0, 64.0)
    dropout: float = 0.1
    mel_shift: float = -5.5
    mel_scale: float = 3.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.band_channels = tuple(self.band_channels)
        self.head_dilations = tuple(self.head_dilations)
        self.energy_patches = tuple(tuple(patch) for patch in self.energy_patches)
        self.frames_per_column = tuple(float(value) for value in self.frames_per_column)
        super().__post_init__(**kwargs)

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of ideas and results."""
        if self.mel is None and self.architecture == "original":
            return MelConfig.preset("melreformer")
        return mel_config_of(self.mel)

    def validate_architecture(self):
        """Rules between fields."""
        if self.architecture not in ("local", "original"):
            raise ValueError(f'architecture must be "local" or "original", got {self.architecture!r}.')
        positive = ("idea_columns", "fold_size", "hidden_size", "intermediate_size", "num_encoder_layers")
        positive += ("num_attention_heads", "decoder_window", "postnet_size", "postnet_layers", "band_blocks")
        positive += ("num_bases", "head_size", "head_layers", "head_noise", "flow_steps")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        not_negative = ("num_decoder_layers", "encoder_window", "cross_reach", "context_frames", "dropout")
        for name in (*not_negative, "head_column_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size must be an even multiple of num_attention_heads={self.num_attention_heads}, "
                f"got {self.hidden_size}."
            )
        if not self.band_channels or min(self.band_channels) < 1:
            raise ValueError(f"band_channels must name at least one positive width, got {self.band_channels}.")
        limits = self.frames_per_column
        if len(limits) != 2 or not 0 < limits[0] <= limits[1] < math.inf:
            raise ValueError(f"frames_per_column must be two positive numbers, the lower first, got {limits}.")
        if self.postnet_kernel < 1 or self.postnet_kernel % 2 == 0:
            raise ValueError(f"postnet_kernel must be odd and positive, got {self.postnet_kernel}.")
        self._validate_head()
        if not 0 < self.head_long_temperature < math.inf:
            raise ValueError(f"head_long_temperature must be a positive number, got {self.head_long_temperature}.")
        if self.mel_scale <= 0:
            raise ValueError(f"mel_scale must be positive, got {self.mel_scale}.")

    def _validate_head(self):
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {self.head!r}.")
        if self.architecture == "original" and (self.head != "l1" or not self.num_decoder_layers):
            raise ValueError(
                'head must be "l1" and num_decoder_layers at least 1 with architecture "original", got '
                f"{self.head!r} and {self.num_decoder_layers}."
            )
        if self.head_kernel < 1 or self.head_kernel % 2 == 0:
            raise ValueError(f"head_kernel must be odd and positive, got {self.head_kernel}.")
        if not self.head_dilations or min(self.head_dilations) < 1:
            raise ValueError(f"head_dilations must name at least one positive number, got {self.head_dilations}.")
        patches = self.energy_patches
        if not patches or any(len(patch) != 2 or min(patch) < 1 for patch in patches):
            raise ValueError(f"energy_patches must be pairs of positive numbers (bands, frames), got {patches}.")


__all__ = ["HEADS", "MelReformerConfig"]
