"""Configuration of the HiFi vocoder family."""

import math

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.configuration import MelStrictConfig

_HIFIGAN_MEL = MelConfig.preset("hifigan").to_dict()
_HIFIGAN_V1 = {"architecture": "hifigan", "mel": _HIFIGAN_MEL, "initializer_range": 0.01}
_PRESETS: dict[str, dict] = {
    "hifigan_v1": _HIFIGAN_V1,
    "hifigan_v2": {**_HIFIGAN_V1, "upsample_initial_channels": 128},
    "hifigan_v3": {
        **_HIFIGAN_V1,
        "upsample_initial_channels": 256,
        "upsample_rates": (8, 8, 4),
        "upsample_kernel_sizes": (16, 16, 8),
        "resblock_type": "2",
        "resblock_kernel_sizes": (3, 5, 7),
        "resblock_dilations": ((1, 2), (2, 6), (3, 12)),
    },
    "hifihybrid": {
        "architecture": "hifihybrid",
        "mel": MelConfig.preset("melreformer").to_dict(),
        "resblock_dilations": ((1, 1), (3, 1), (5, 1)),
    },
    "istft_tiny": {"architecture": "istft"},
}


def _as_tuple(values: object) -> object:
    """JSON turns tuples into lists; comparing configurations wants one of them."""
    return tuple(_as_tuple(value) for value in values) if isinstance(values, (list, tuple)) else values


@strict
class HifiVocoderConfig(MelStrictConfig):
    """Configuration of `HifiVocoderModel`.

    Args:
        architecture: `"istft"` (inverse-STFT head, the fast one), `"hifigan"` or `"hifihybrid"`.
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own.
        hidden_size: channels of the ConvNeXt blocks (istft).
        intermediate_size: width of their perceptrons (istft).
        num_hidden_layers: number of blocks (istft).
        kernel_size: odd kernel of stem and blocks in frames (istft).
        refine_steps: unrolled consistency projections after the head; they have no weights, so a trained model may be
            loaded with more: `from_pretrained(..., refine_steps=3)` (istft).
        num_oscillators: reference oscillators per frequency bin that carry the predicted phase, 0 for none (istft).
        mel_corrections: how often the predicted magnitudes are scaled so that the mel that they imply comes nearer to the
            one that was given; they have no weights, as the following two (istft).
        refine_momentum: acceleration of the refine steps, in [0, 1); 0 is plain Griffin-Lim (istft).
        refine_feedback: how far, in [0, 1], each refine step raises magnitudes where the mel of what the step before
            made is short of the given one, and lowers them where it is above: the exponent of their ratio (istft).
        upsample_initial_channels: channels before the first transposed convolution; each stage halves them (GAN).
        upsample_rates: strides of the transposed convolutions (GAN).
        upsample_kernel_sizes: their kernels (GAN).
        resblock_type: `"1"` (pairs of dilated and plain convolutions) or `"2"` (dilated convolutions) (hifigan).
        resblock_kernel_sizes: kernels of the parallel residual blocks (GAN).
        resblock_dilations: dilations of each of them (GAN).
        initializer_range: standard deviation of initial weights.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_hifi_vocoder"
    _presets = _PRESETS

    architecture: str = "istft"
    mel: dict | None = None
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    kernel_size: int = 7
    refine_steps: int = 1
    num_oscillators: int = 2
    mel_corrections: int = 0
    refine_momentum: float = 0.0
    refine_feedback: float = 0.0
    upsample_initial_channels: int = 512
    upsample_rates: list | tuple = (8, 8, 2, 2)
    upsample_kernel_sizes: list | tuple = (16, 16, 4, 4)
    resblock_type: str = "1"
    resblock_kernel_sizes: list | tuple = (3, 7, 11)
    resblock_dilations: list | tuple = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for name in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes", "resblock_dilations"):
            setattr(self, name, _as_tuple(getattr(self, name)))
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Rules between fields."""
        if self.architecture not in ("istft", "hifigan", "hifihybrid"):
            raise ValueError(f'architecture must be "istft", "hifigan" or "hifihybrid", got {self.architecture!r}.')
        if self.architecture == "istft":
            self._check_istft()
        else:
            self._check_upsampling()

    def _check_istft(self):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd so that frames stay in place, got {self.kernel_size}.")
        for name in ("refine_steps", "num_oscillators", "mel_corrections"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.refine_momentum < 1:
            raise ValueError(f"refine_momentum must be in [0, 1), got {self.refine_momentum}.")
        if not 0 <= self.refine_feedback <= 1:
            raise ValueError(f"refine_feedback must be in [0, 1], got {self.refine_feedback}.")
        mel = self.mel_config
        # With fewer than two windows over every sample the inverse transform has holes.
        if mel.center or mel.win_length < 2 * mel.hop_length:
            raise ValueError(
                'architecture "istft" needs a mel contract with center=False and win_length of at least two hops, got '
                f"center={mel.center}, win_length={mel.win_length}, hop_length={mel.hop_length}."
            )

    def _check_upsampling(self):
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if not rates or len(rates) != len(kernels):
            raise ValueError(
                f"upsample_kernel_sizes must hold one kernel per rate: got {kernels} for upsample_rates {rates}."
            )
        for rate, kernel in zip(rates, kernels, strict=True):
            if rate < 1 or kernel < rate:
                raise ValueError(
                    f"every upsample kernel must be at least its rate, and rates positive, got {kernel} for {rate}."
                )
        if self.resblock_type not in ("1", "2"):
            raise ValueError(f'resblock_type must be "1" or "2", got {self.resblock_type!r}.')
        if not self.resblock_kernel_sizes or len(self.resblock_kernel_sizes) != len(self.resblock_dilations):
            raise ValueError(
                "resblock_dilations must hold one list per kernel: got "
                f"{self.resblock_dilations} for resblock_kernel_sizes {self.resblock_kernel_sizes}."
            )
        if self.upsample_initial_channels < 2 ** len(rates):
            raise ValueError(
                f"upsample_initial_channels must be at least 2**{len(rates)} (each stage halves it), got "
                f"{self.upsample_initial_channels}."
            )
        # One mel frame must become exactly one hop of samples.
        if math.prod(rates) != self.hop_length:
            raise ValueError(
                f"upsample_rates must multiply to the mel contract's hop_length, {self.hop_length}, got {rates} "
                f"(product {math.prod(rates)}). Change either."
            )


__all__ = ["HifiVocoderConfig"]
