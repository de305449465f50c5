"""Settings of the codec's recipe."""

from __future__ import annotations

import dataclasses

from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.training.config import option
from melreformer_hf.training.losses.codec import DEFAULT_MEL_WINDOWS, DEFAULT_STAGE_WEIGHTS
from melreformer_hf.training.recipes.audio import AudioOptions

_BALANCED = ("waveform", "si_sdr", "mel", "stft", "adversarial", "feature_matching")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecOptions(AudioOptions):
    """Settings of the codec recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("small", "preset of SoundStreamConfig that --model.NAME values change")
    crop_frames: int = option(50, "codec frames per training crop")
    decoder_first_steps: int = option(
        0,
        "steps in which the decoder alone learns; a decoder that does not know yet how loud music is pushes all latents "
        "the same way, until one codeword serves them all",
    )
    balance: bool = option(True, "weights are shares of the gradient at the waveform; false: of the losses themselves")
    waveform_weight: float = option(0.1, "weight of the mean absolute error of samples")
    si_sdr_weight: float = option(
        0.0,
        "weight of the scale-invariant signal-to-distortion ratio, by which phases are learned; the error of samples alone "
        "makes silence of what it cannot predict",
    )
    mel_weight: float = option(1.0, "weight of the mel spectrograms of several windows")
    mel_windows: tuple[int, ...] = option(
        DEFAULT_MEL_WINDOWS, "samples of those windows, multiples of 4; the shortest take most of a step's time"
    )
    stft_weight: float = option(1.0, "weight of the multi-resolution STFT distance")
    average_weight: float = option(
        0.0, "weight of the channel average of the decoder's stages (convolution, mono); beside the balanced losses"
    )
    stage_weights: tuple[float, ...] = option(DEFAULT_STAGE_WEIGHTS, "weights of the stages in it, the output last")
    adversarial_weight: float = option(0.0, "weight of the hinge loss; 0 builds no discriminator")
    feature_matching_weight: float = option(
        3.0, "weight of the relative feature matching, where there is a hinge loss"
    )
    discriminators: tuple[str, ...] = option(
        ("waveform", "stft_2048", "stft_1024", "stft_512", "stft_256", "stft_128"),
        "any of mpd, msd, mrd, ms_stft, waveform, stft_N with N samples",
    )
    discriminator_size: int = option(8, "channels of the discriminators' first layers; 32 is the published size")
    judges: str = option("one", "one: one discriminator at a time, the hardest more often; all: all at once")
    draw_every: int = option(100, "steps after which the next one is drawn")
    judged_bitrates: bool = option(
        True, "each has its own bitrate: the first all levels, the others 1/(n-1), 2/(n-1) ..."
    )
    separation_weight: float = option(
        0.0, "price on discriminators that say the same of real and decoded; 0.001 was used"
    )
    adversarial_start: float = option(0.3, "share of the training after which the adversarial game begins")
    gain_augmentation_db: float = option(12.0, "crops are scaled by a random gain of up to this many dB down")
    validation_crops: int = option(12, "held-out crops that are measured")
    validation_frames: int = option(250, "length of each in codec frames")
    validation_kbps: tuple[float, ...] = option(
        (), "bitrates that are measured; default: a quarter, half, and all levels"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_frames", "validation_crops", "validation_frames", "draw_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        weights = [f"{name}_weight" for name in _BALANCED]
        not_negative = ("average_weight", "separation_weight", "gain_augmentation_db", "decoder_first_steps")
        for name in (*weights, *not_negative):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")
        if not any(getattr(self, name) for name in weights[:4]):
            raise ValueError(f"One of options.{', options.'.join(weights[:4])} must be above 0, got 0 for all.")
        if not self.mel_windows or any(window < 4 or window % 4 for window in self.mel_windows):
            raise ValueError(f"options.mel_windows must be multiples of 4, at least one, got {self.mel_windows}.")
        if self.judges not in ("one", "all"):
            raise ValueError(f"options.judges must be 'one' or 'all', got {self.judges!r}.")
        if not 0 <= self.adversarial_start <= 1:
            raise ValueError(f"options.adversarial_start must be in [0, 1], got {self.adversarial_start}.")
        if self.adversarial_weight and (
            not self.discriminators or len(set(self.discriminators)) < len(self.discriminators)
        ):
            raise ValueError(f"options.discriminators must be different and at least one, got {self.discriminators}.")

    def balanced_weights(self) -> dict[str, float]:
        """Weights of the losses that the balancer sees, without those of zero."""
        weights = {name: getattr(self, f"{name}_weight") for name in _BALANCED}
        if not self.adversarial_weight:
            weights["feature_matching"] = 0.0
        return {name: weight for name, weight in weights.items() if weight}

    def bitrates(self, config: SoundStreamConfig) -> tuple[int, ...]:
        """Numbers of levels that are measured, rising."""
        if self.validation_kbps:
            return tuple(sorted({config.quantizers_within(kbps) for kbps in self.validation_kbps}))
        levels = config.num_quantizers
        return tuple(sorted({max(1, levels // 4), max(1, levels // 2), levels}))


__all__ = ["CodecOptions"]
