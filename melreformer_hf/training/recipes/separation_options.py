"""Settings of the separation's recipe."""

from __future__ import annotations

import dataclasses

from melreformer_hf.data.mixtures import MixtureSettings
from melreformer_hf.training.config import option
from melreformer_hf.training.recipes.audio import AudioOptions

ARCHITECTURES = ("band_split", "frame_transformer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparationOptions(AudioOptions):
    """Settings of the separation recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    accompaniment: str = option("", "folder or Hub id of instrumental recordings; --dataset has those of voices")
    architecture: str = option("band_split", "band_split: waveforms, complex mask; frame_transformer: magnitudes")
    preset: str = option("tiny", "preset of the architecture's configuration that --model.NAME values change")
    crop_seconds: float = option(3.0, "length of a training mixture")
    accompaniment_layers: int = option(1, "instrumental crops that are mixed to one accompaniment, 1 or 2")
    level_db: float = option(-22.0, "root mean square of each crop, in dB of full scale, before its gain")
    gains_db: tuple[float, float] = option((-8.0, 8.0), "lowest and highest gain of each source in dB")
    mute: float = option(0.1, "probability that a source is silent: mixtures without voice, and voices alone")
    swap_channels: float = option(0.5, "probability that left and right of a source change places")
    speeds: tuple[float, float] = option((0.8, 1.25), "how much slower, and faster, a source may play")
    equalizer_db: float = option(6.0, "largest boost or cut of each source's random filter; 0 is none")
    ratio_weight: float = option(1.0, "weight of both stems' distortion ratio in 10 dB (band_split)")
    stft_weight: float = option(1.0, "weight of the error's spectrum as a share of the mixture's (band_split)")
    validation_crops: int = option(16, "held-out mixtures that are measured")
    validation_seconds: float = option(6.0, "length of each")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.accompaniment:
            raise ValueError("options.accompaniment must be given: a folder of instrumental recordings, or a dataset.")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"options.architecture must be one of {ARCHITECTURES}, got {self.architecture!r}.")
        if self.accompaniment_layers not in (1, 2):
            raise ValueError(f"options.accompaniment_layers must be 1 or 2, got {self.accompaniment_layers}.")
        for name in ("crop_seconds", "validation_crops", "validation_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"options.{name} must be above 0, got {getattr(self, name)}.")
        weights = ("ratio_weight", "stft_weight")
        if min(getattr(self, name) for name in weights) < 0 or not any(getattr(self, name) for name in weights):
            raise ValueError(
                f"options.ratio_weight and options.stft_weight must not be negative, and one above 0, got "
                f"{self.ratio_weight} and {self.stft_weight}."
            )
        try:
            self.mixtures(1)
        except ValueError as error:
            raise ValueError(f"options.{error}") from error

    def mixtures(self, num_samples: int) -> MixtureSettings:
        """How voices and accompaniments are mixed to so many samples."""
        return MixtureSettings(
            gains_db=self.gains_db,
            swap_channels=self.swap_channels,
            mute=self.mute,
            level_db=self.level_db,
            speeds=self.speeds,
            equalizer_db=self.equalizer_db,
            num_samples=num_samples,
        )


__all__ = ["ARCHITECTURES", "SeparationOptions"]
