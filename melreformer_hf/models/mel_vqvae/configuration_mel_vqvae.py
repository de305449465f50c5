"""Configuration of the mel VQ-VAE."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.configuration import MelStrictConfig

_PRESETS: dict[str, dict] = {
    "vas": {},
    "tiny": {
        "base_channels": 16,
        "channel_multipliers": (1, 1, 2),
        "num_residual_blocks": 1,
        "resolution": 64,
        "attention_resolutions": (16,),
        "latent_channels": 16,
        "codebook_size": 64,
        "codebook_dim": 8,
        "num_norm_groups": 8,
    },
}


@strict
class MelVqvaeConfig(MelStrictConfig):
    """Configuration of `MelVqvaeModel`; the defaults are the published size (71,907,713 parameters).

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is SpecVQGAN's (80 bands, values 0 to 1).
        input_range: mel values that the network sees as -1 and +1.
        base_channels: width that the multipliers multiply.
        channel_multipliers: width of each level; every level but the last halves bands and frames.
        num_residual_blocks: residual blocks per level of the encoder; the decoder has one more.
        resolution: training length in frames. It only decides which levels have attention; any length is accepted.
        attention_resolutions: columns at which a level has attention, counted from `resolution / patch_size` by halving.
        latent_channels: channels of the encoder's grid before the codebook's projection.
        codebook_size: number of codewords.
        codebook_dim: their width.
        codebook_update: "gradient" (the original's), or "ema": codewords are running means.
        codebook_decay: of the codebook's running statistics.
        kmeans_iterations: that place the codewords on the first batch; 0: random start.
        restart_threshold: share of the mean use under which codewords are replaced; 0: never.
        commitment_weight: of the pull of encoder outputs towards their codewords.
        num_norm_groups: groups of every group normalization.
        dropout: inside the residual blocks.
        resample_with_conv: whether a convolution follows each repetition, and halves in place of a mean.
        patch_size: bands and frames per pixel that the convolutions see; 1 is the original's. Larger ones cost its square
            times less at equal widths.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_mel_vqvae"
    _presets = _PRESETS

    mel: dict | None = None
    input_range: list | tuple = (0.0, 1.0)
    base_channels: int = 128
    channel_multipliers: list | tuple = (1, 1, 2, 2, 4)
    num_residual_blocks: int = 2
    resolution: int = 848
    attention_resolutions: list | tuple = (53,)
    latent_channels: int = 256
    codebook_size: int = 128
    codebook_dim: int = 256
    codebook_update: str = "gradient"
    codebook_decay: float = 0.99
    kmeans_iterations: int = 0
    restart_threshold: float = 0.0
    commitment_weight: float = 0.25
    num_norm_groups: int = 32
    dropout: float = 0.0
    resample_with_conv: bool = True
    patch_size: int = 1

    def __post_init__(self, **kwargs):
        for name in ("input_range", "channel_multipliers", "attention_resolutions"):
            setattr(self, name, tuple(getattr(self, name)))  # config.json has lists
        super().__post_init__(**kwargs)

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of input and output."""
        return MelConfig.preset("specvqgan") if self.mel is None else MelConfig.from_dict(self.mel)

    @property
    def stride(self) -> int:
        """Bands and frames per token, on either axis."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def num_token_rows(self) -> int:
        """Tokens per column: one for every `stride` bands, lowest first."""
        return self.num_mel_bins // self.stride

    @property
    def attention_levels(self) -> tuple:
        """Numbers of the encoder's levels that have attention."""
        # Level n has resolution / patch / 2^n columns, whatever the length of the mel that is given.
        levels, finest = range(len(self.channel_multipliers)), self.resolution // self.patch_size
        return tuple(level for level in levels if finest // 2**level in self.attention_resolutions)

    @property
    def decoder_attention_levels(self) -> tuple:
        """The same of the decoder, which counts upwards by doubling: others where `resolution` is no multiple."""
        last = len(self.channel_multipliers) - 1
        coarsest = self.resolution // self.patch_size // 2**last
        return tuple(
            level for level in range(last + 1) if coarsest * 2 ** (last - level) in self.attention_resolutions
        )

    def validate_architecture(self):
        """Rules between fields."""
        positive = ("base_channels", "num_residual_blocks", "resolution", "latent_channels", "codebook_dim")
        for name in (*positive, "num_norm_groups", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers must be positive integers, got {self.channel_multipliers}.")
        # Group normalization splits the channels of every level evenly.
        for multiplier in self.channel_multipliers:
            if self.base_channels * multiplier % self.num_norm_groups:
                raise ValueError(
                    f"num_norm_groups must divide every level's width, got {self.num_norm_groups} for "
                    f"{self.base_channels} * {multiplier}."
                )
        if self.base_channels % self.num_norm_groups:
            raise ValueError(f"num_norm_groups must divide base_channels, got {self.num_norm_groups}.")
        if self.num_mel_bins % self.stride:
            raise ValueError(
                f"the mel contract's num_mel_bins must be a multiple of the stride {self.stride}, got "
                f"{self.num_mel_bins}. Use fewer channel_multipliers or another mel."
            )
        if len(self.input_range) != 2 or self.input_range[0] >= self.input_range[1]:
            raise ValueError(f"input_range must be (low, high) with low < high, got {self.input_range}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")

    def validate_quantizer(self):
        """Rules of the codebook."""
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {self.codebook_size}.")
        if self.codebook_update not in ("ema", "gradient"):
            raise ValueError(f"codebook_update must be one of ['ema', 'gradient'], got {self.codebook_update!r}.")
        if self.kmeans_iterations < 0:
            raise ValueError(f"kmeans_iterations must not be negative, got {self.kmeans_iterations}.")
        for name in ("codebook_decay", "restart_threshold"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


__all__ = ["MelVqvaeConfig"]
