"""Configuration of the frame transformer."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.stft import Transform
from melreformer_hf.nn.configuration import StrictConfig, waveform_preprocessor

_PRESETS: dict[str, dict] = {
    "v4": {},
    "frame_primer": {
        "base_channels": 16,
        "num_attention_maps": (1, 2, 4, 8, 12, 14),
        "num_attention_heads": (16, 16, 16, 8, 4, 2),
        "map_weights": "shared",
        "intermediate_size": 12288,
        "feedforward_mixes_maps": False,
        "partial_rotary_factor": 0.5,
        "resampling": "preactivation",
        "output_bias": True,
    },
    "frame_transformer3": {
        "layout": "stack",
        "base_channels": 8,
        "channel_multipliers": (1,),
        "num_attention_maps": None,
    },
    "frame_transformer": {
        "base_channels": 4,
        "channel_multipliers": (1, 2, 4, 8, 16, 32),
        "num_attention_maps": None,
        "num_attention_heads": 4,
        "resampling": "positionwise",
        "resampling_expansion": 2,
        "attention_kernel_size": 1,
        "feedforward_mixes_maps": False,
    },
    "conv_frame_primer": {
        "base_channels": 6,
        "channel_multipliers": (1, 2, 4, 8, 16, 32),
        "num_attention_maps": None,
        "num_attention_heads": 4,
        "resampling_kernel_size": (7, 1),
        "resampling_expansion": 2,
        "attention_kernel_size": 7,
        "feedforward_mixes_maps": False,
    },
    "tiny": {
        "n_fft": 128,
        "hop_length": 64,
        "base_channels": 4,
        "channel_multipliers": (1, 2, 3),
        "num_attention_maps": (2, 2, 3),
        "num_attention_heads": 4,
        "feedforward_expansion": 2,
    },
}


@strict
class FrameTransformerConfig(StrictConfig):
    """Configuration of `FrameTransformerModel`; the defaults are version 4 as published (192,699,428 parameters).

    The network is a U-Net over frequency: every level but the first halves the features, and no level changes the
    number of frames. The presets are the generations of the original: `"v4"`, `"frame_primer"` (ordinary linear layers
    shared by the maps), `"frame_transformer3"` (the pictured experiment before version 4: no U-Net but one stack of
    layers at half the resolution, which add up their attention scores), `"frame_transformer"` (position-wise layers instead of convolutions, attention on every
    channel) and `"conv_frame_primer"` (as before, with convolutions over frequency); and `"tiny"`. The first two have the
    published numbers of parameters; of the others no published size could be rebuilt.

    Args:
        sampling_rate: samples per second of the recordings.
        n_fft: length of the Fourier transform (Hann window of the same length); the first level has n_fft / 2 features.
        hop_length: samples between two frames.
        num_audio_channels: channels of the recordings, 2 for stereo.
        nyquist: what becomes of the bin at half the sampling rate, which no level sees: `"replicate"` gives it the mask
            of the bin below; `"drop"` takes and returns spectra without it, as the original does (it then falls to the
            vocals).
        layout: `"unet"`, or `"stack"` (`channel_multipliers` of one entry, no `num_attention_maps`, no other options of
            resampling and feed-forward layers).
        num_hidden_layers: layers of a stack.
        base_channels: width that the multipliers multiply.
        channel_multipliers: width of each level.
        num_attention_maps: maps that each level's transformer works on, squeezed from the level's channels and
            appended to them; `None` lets it work on every channel, in place.
        num_attention_heads: heads of each map, one number or one per level.
        feedforward_expansion: width of a transformer's feed-forward layer over its features.
        intermediate_size: the same width as a number for all levels; `None` uses `feedforward_expansion`.
        feedforward_mixes_maps: whether the first feed-forward layer mixes the maps.
        map_weights: `"own"` gives each map its own linear layers and norms, `"shared"` one set for all maps.
        attention_kernel_size: frames that the convolution of queries, keys and values spans; 1 is no convolution.
        partial_rotary_factor: share of a head's features that rotary positions turn, in (0, 1].
        resampling: residual blocks between levels: `"conv"` (one norm, two convolutions, squared ReLU),
            `"preactivation"` (norm over channels and features together, GELU, convolution, all twice) or
            `"positionwise"` (linear over the features).
        resampling_kernel_size: (features, frames) of their convolutions, odd.
        resampling_expansion: width of their hidden layer, over channels (convolutions) or features (position-wise).
        output_bias: whether the last layer has a bias.
        dropout: on what attention and feed-forward layers add.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_frame_transformer"
    _presets = _PRESETS

    sampling_rate: int = 44100
    n_fft: int = 2048
    hop_length: int = 1024
    num_audio_channels: int = 2
    nyquist: str = "replicate"
    layout: str = "unet"
    num_hidden_layers: int = 12
    base_channels: int = 32
    channel_multipliers: list | tuple = (1, 2, 4, 6, 8, 10)
    num_attention_maps: list | tuple | None = (4, 6, 8, 12, 14, 16)
    num_attention_heads: int | list | tuple = 8
    feedforward_expansion: int = 4
    intermediate_size: int | None = None
    feedforward_mixes_maps: bool = True
    map_weights: str = "own"
    attention_kernel_size: int = 3
    partial_rotary_factor: float = 1.0
    resampling: str = "conv"
    resampling_kernel_size: list | tuple = (3, 3)
    resampling_expansion: int = 1
    output_bias: bool = False
    dropout: float = 0.1

    def __post_init__(self, **kwargs):
        # JSON knows no tuples; equal configurations shall compare equal after loading.
        for name in ("channel_multipliers", "num_attention_maps", "num_attention_heads", "resampling_kernel_size"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        super().__post_init__(**kwargs)

    @property
    def transform(self) -> Transform:
        """The short-time Fourier transform below the magnitudes."""
        return Transform(self.n_fft, self.hop_length, self.n_fft)

    @property
    def num_bins(self) -> int:
        """Frequencies of the model's spectra: n_fft / 2, and one more unless the Nyquist bin is dropped."""
        return self.n_fft // 2 + (self.nyquist == "replicate")

    @property
    def num_levels(self) -> int:
        """Levels of the U-Net."""
        return len(self.channel_multipliers)

    @property
    def features(self) -> tuple:
        """Features (frequencies) of each level."""
        # The first level has n_fft / 2 features: the Nyquist bin would make every halving uneven.
        return tuple(self.n_fft // 2 >> level for level in range(self.num_levels))

    @property
    def preprocessor_config(self) -> dict:
        """What `preprocessor_config.json` says: how a recording becomes this model's waveform."""
        return waveform_preprocessor(self.sampling_rate, self.num_audio_channels)

    @property
    def channels(self) -> tuple:
        """Channels of each level, without attention maps."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def appended_maps(self) -> tuple:
        """Attention maps appended to each level's channels."""
        # Where the transformer works in place on all channels there is nothing to append.
        return (0,) * self.num_levels if self.num_attention_maps is None else self.num_attention_maps

    @property
    def heads(self) -> tuple:
        """Heads of each level."""
        heads = self.num_attention_heads
        return (heads,) * self.num_levels if isinstance(heads, int) else heads

    @property
    def intermediate_sizes(self) -> tuple:
        """Feed-forward width of each level."""
        if self.intermediate_size is not None:
            return (self.intermediate_size,) * self.num_levels
        return tuple(features * self.feedforward_expansion for features in self.features)

    def validate_architecture(self):
        """Rules between fields."""
        for name in (
            *("sampling_rate", "n_fft", "hop_length", "num_audio_channels", "base_channels", "num_hidden_layers"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("feedforward_expansion", "resampling_expansion", "intermediate_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name, known in (
            ("layout", ("unet", "stack")),
            ("nyquist", ("replicate", "drop")),
            ("map_weights", ("own", "shared")),
            ("resampling", ("conv", "preactivation", "positionwise")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if self.hop_length > self.n_fft:
            raise ValueError(f"hop_length must not exceed n_fft {self.n_fft}, got {self.hop_length}.")
        if not 0.0 < self.partial_rotary_factor <= 1.0:
            raise ValueError(f"partial_rotary_factor must be in (0, 1], got {self.partial_rotary_factor}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        kernel = self.resampling_kernel_size
        if len(kernel) != 2 or min(kernel) < 1 or any(size % 2 == 0 for size in kernel):
            raise ValueError(f"resampling_kernel_size must be two odd positive numbers, got {kernel}.")
        if self.attention_kernel_size < 1 or self.attention_kernel_size % 2 == 0:
            raise ValueError(f"attention_kernel_size must be odd and positive, got {self.attention_kernel_size}.")
        self._check_levels()

    def _check_levels(self):
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers must be positive integers, got {self.channel_multipliers}.")
        if self.n_fft % 2**self.num_levels:
            raise ValueError(
                f"n_fft must be a multiple of {2**self.num_levels} for {self.num_levels} levels, got {self.n_fft}."
            )
        for name, values in (("num_attention_maps", self.num_attention_maps), ("num_attention_heads", self.heads)):
            if values is not None and (len(values) != self.num_levels or min(values) < 1):
                raise ValueError(f"{name} must be {self.num_levels} positive numbers, one per level, got {values}.")
        if self.layout == "stack":
            self._check_stack()
        for features, heads in zip(self.features, self.heads, strict=True):
            # Heads share the features of a map out, on every level anew.
            if features % heads:
                raise ValueError(f"num_attention_heads must divide the {features} features of a level, got {heads}.")

    def _check_stack(self):
        fixed = {
            "num_levels": 1,
            "num_attention_maps": None,
            "intermediate_size": None,
            "map_weights": "own",
            "feedforward_mixes_maps": True,
            "resampling": "conv",
            "resampling_kernel_size": (3, 3),
            "resampling_expansion": 1,
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f'{name} must be {value} with layout="stack", got {getattr(self, name)}.')
        if self.n_fft % 4 or self.features[0] // 2 % self.heads[0]:
            raise ValueError(
                f"n_fft must be a multiple of 4 and num_attention_heads divide a quarter of it, got {self.n_fft} and "
                f"{self.heads[0]}."
            )


__all__ = ["FrameTransformerConfig"]
