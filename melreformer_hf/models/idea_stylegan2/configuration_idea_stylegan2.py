"""Configuration of the StyleGAN2 idea model."""

import math

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import MelStrictConfig

_PRESETS: dict[str, dict] = {
    "base": {},
    "tiny": {"style_size": 128, "num_mapping_layers": 4, "channels": (96, 96, 64, 48, 32, 16)},
}


@strict
class IdeaStyleGan2Config(MelStrictConfig):
    """Configuration of `IdeaStyleGan2Model`.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own (128 bands).
        num_columns: columns of an idea.
        num_channels: pictures per idea; 1, or 3 for checkpoints of color pictures.
        style_size: width of latents and styles.
        num_mapping_layers: layers from latent to style.
        mapping_rate_multiplier: how much slower they learn.
        channels: width at every resolution, the coarsest first; each doubles the bands and columns of the one before.
        blur_taps: filter of all resampling.
        predict_duration: whether the style also says how long the music is.
        style_mean_decay: of the running mean of styles, which truncation pulls towards.
        mel_mean: subtracted from log-mels.
        mel_std: then divided by, so that ideas have about unit variance.
        log2_frames_mean: mean of log2 of the number of frames in the training data.
        log2_frames_std: its standard deviation.
        log2_frames_min: shortest duration that is generated.
        log2_frames_max: longest duration that is generated.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_idea_stylegan2"
    _presets = _PRESETS

    mel: dict | None = None
    num_columns: int = 256
    num_channels: int = 1
    style_size: int = 512
    num_mapping_layers: int = 8
    mapping_rate_multiplier: float = 0.01
    channels: list | tuple = (512, 512, 512, 512, 256, 128)
    blur_taps: list | tuple = (1, 3, 3, 1)
    predict_duration: bool = True
    style_mean_decay: float = 0.995
    mel_mean: float = -5.5
    mel_std: float = 3.0
    log2_frames_mean: float = 11.0
    log2_frames_std: float = 1.0
    log2_frames_min: float = 8.0
    log2_frames_max: float = 14.0

    def __post_init__(self, **kwargs):
        self.channels = tuple(self.channels)  # config.json has lists
        self.blur_taps = tuple(self.blur_taps)
        super().__post_init__(**kwargs)

    @property
    def coarsest_shape(self) -> tuple:
        """(bands, columns) of the learned constant that everything grows from."""
        factor = 2 ** (len(self.channels) - 1)
        return self.num_mel_bins // factor, self.num_columns // factor

    @property
    def num_styles(self) -> int:
        """Styles per picture: one per convolution, and one for the last conversion to a picture."""
        return 2 * len(self.channels)

    def validate_architecture(self):
        """Rules between fields."""
        for name in ("num_columns", "num_channels", "style_size", "num_mapping_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        widths = self.channels
        if not widths or any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError(f"channels must hold positive whole numbers, got {widths}.")
        # Every resolution but the first doubles the one before.
        factor = 2 ** (len(widths) - 1)
        for name in ("num_mel_bins", "num_columns"):
            if getattr(self, name) % factor:
                raise ValueError(
                    f"{name} must be a multiple of {factor} (doubled once per entry of channels after the first), got "
                    f"{getattr(self, name)}. Change it, or use fewer channels."
                )
        # A filter that sums to zero would take the picture's mean away with every resampling.
        if len(self.blur_taps) < 2 or sum(self.blur_taps) == 0:
            raise ValueError(f"blur_taps must hold at least 2 numbers whose sum is not zero, got {self.blur_taps}.")
        if self.mapping_rate_multiplier <= 0:
            raise ValueError(f"mapping_rate_multiplier must be positive, got {self.mapping_rate_multiplier}.")
        if not 0.0 <= self.style_mean_decay < 1.0:
            raise ValueError(f"style_mean_decay must be in [0, 1), got {self.style_mean_decay}.")

    def validate_statistics(self):
        """Rules of the scaling of mels and durations."""
        names = ("mel_mean", "mel_std", "log2_frames_mean", "log2_frames_std", "log2_frames_min", "log2_frames_max")
        for name in names:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}.")
        for name in ("mel_std", "log2_frames_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.log2_frames_min > self.log2_frames_max:
            raise ValueError(
                f"log2_frames_min must not exceed log2_frames_max, got {self.log2_frames_min} and "
                f"{self.log2_frames_max}."
            )


__all__ = ["IdeaStyleGan2Config"]
