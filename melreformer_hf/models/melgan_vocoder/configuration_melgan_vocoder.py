"""Configuration of the MelGAN vocoder."""

import math

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.configuration import MelStrictConfig

_PRESETS: dict[str, dict] = {
    "melgan": {"mel": MelConfig.preset("melgan").to_dict()},
    "tiny": {"base_channels": 4, "num_residual_layers": 2},
}


@strict
class MelGanVocoderConfig(MelStrictConfig):
    """Configuration of `MelGanVocoderModel`.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own (128 bands).
        base_channels: channels before the output convolution; every stage before it has twice as many.
        num_residual_layers: residual blocks per stage, of dilations 1, 3, 9, ...
        upsample_rates: strides of the transposed convolutions, whose kernels are twice as long.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_melgan_vocoder"
    _presets = _PRESETS

    mel: dict | None = None
    base_channels: int = 32
    num_residual_layers: int = 3
    upsample_rates: list | tuple = (8, 8, 2, 2)

    def __post_init__(self, **kwargs):
        self.upsample_rates = tuple(self.upsample_rates)
        super().__post_init__(**kwargs)

    @property
    def stage_channels(self) -> tuple:
        """Channels after the input convolution, then after each stage."""
        stages = len(self.upsample_rates)
        return tuple(self.base_channels * 2 ** (stages - index) for index in range(stages + 1))

    def validate_architecture(self):
        """Rules between fields."""
        if self.base_channels < 1:
            raise ValueError(f"base_channels must be positive, got {self.base_channels}.")
        if self.num_residual_layers < 0:
            raise ValueError(f"num_residual_layers must not be negative, got {self.num_residual_layers}.")
        rates = self.upsample_rates
        if not rates or any(isinstance(rate, bool) or not isinstance(rate, int) or rate < 1 for rate in rates):
            raise ValueError(f"upsample_rates must hold positive whole numbers, got {rates}.")
        if math.prod(rates) != self.hop_length:
            raise ValueError(
                f"upsample_rates must multiply to the mel contract's hop_length, {self.hop_length}, got {rates} "
                f"(product {math.prod(rates)}). Change either."
            )


__all__ = ["MelGanVocoderConfig"]
