"""Configuration of the band-split separator."""

import math

from huggingface_hub.dataclasses import strict

from melreformer_hf.audio.stft import Transform
from melreformer_hf.nn.configuration import StrictConfig, waveform_preprocessor

# Below this frequency bands have one width, above it widths grow in proportion, as those of hearing do.
_KNEE = 700.0

_PRESETS: dict[str, dict] = {
    "test": {
        "n_fft": 64,
        "hop_length": 16,
        "num_bands": 5,
        "hidden_size": 12,
        "intermediate_size": 16,
        "band_intermediate_size": 10,
        "num_hidden_layers": 3,
        "dilation_cycle": 2,
    },
    "tiny": {},
    "causal_tiny": {"causal": True, "n_fft": 1024, "hop_length": 256},
    "small": {"hidden_size": 64, "intermediate_size": 160, "band_intermediate_size": 128, "num_hidden_layers": 10},
}


@strict
class BandSplitSeparatorConfig(StrictConfig):
    """Configuration of `BandSplitSeparatorModel`; the defaults have 2.6 million parameters.

    Args:
        sampling_rate: samples per second of the recordings.
        num_audio_channels: channels that are heard together; 1 separates every channel of a recording by itself.
        n_fft: length of the Fourier transform in samples (Hann window of the same length), a multiple of `hop_length`.
        hop_length: samples between two frames.
        num_bands: bands that the bins are divided into, narrow ones below, wide ones above.
        hidden_size: values of a band at a frame.
        intermediate_size: width of the layers over time, which all bands share.
        band_intermediate_size: width of the layers across all bands.
        num_hidden_layers: pairs of a layer over time and one across bands.
        kernel_size: taps of a layer over time.
        dilation_cycle: the taps of layer `i` lie `2 ** (i % dilation_cycle)` frames apart.
        causal: whether no layer looks ahead; the output then lags by the window alone. Otherwise taps lie to both sides,
            which needs an odd `kernel_size`.
        compression: exponent of the magnitudes that the network reads, in (0, 1].

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_band_split_separator"
    _presets = _PRESETS

    sampling_rate: int = 22050
    num_audio_channels: int = 1
    n_fft: int = 2048
    hop_length: int = 512
    num_bands: int = 28
    hidden_size: int = 48
    intermediate_size: int = 96
    band_intermediate_size: int = 96
    num_hidden_layers: int = 8
    kernel_size: int = 3
    dilation_cycle: int = 5
    causal: bool = False
    compression: float = 0.3

    @property
    def transform(self) -> Transform:
        """The short-time Fourier transform."""
        return Transform(self.n_fft, self.hop_length, self.n_fft)

    @property
    def num_bins(self) -> int:
        """Frequencies of a frame."""
        return self.n_fft // 2 + 1

    @property
    def dilations(self) -> tuple[int, ...]:
        """Frames between the taps of each layer."""
        return tuple(2 ** (layer % self.dilation_cycle) for layer in range(self.num_hidden_layers))

    @property
    def reach(self) -> tuple[int, int]:
        """Frames (before, after) that the mask of a frame depends on."""
        total = (self.kernel_size - 1) * sum(self.dilations)
        return (total, 0) if self.causal else (total // 2, total // 2)

    @property
    def look_ahead(self) -> int:
        """Samples after a sample of the recording that its stems may depend on."""
        # A sample lies in several windows, the last of which begins with it; each hears the frames that layers reach.
        return self.n_fft - 1 + self.reach[1] * self.hop_length

    @property
    def band_edges(self) -> tuple[int, ...]:
        """First bin of each band, and one past the last: `num_bands` + 1 numbers."""
        top = math.log1p(self.sampling_rate / 2 / _KNEE)
        bin_width = self.sampling_rate / self.n_fft
        edges = [0]
        for band in range(1, self.num_bands):
            ideal = round(_KNEE * math.expm1(top * band / self.num_bands) / bin_width)
            # At least one bin each, and one left for each band above.
            edges.append(min(max(ideal, edges[-1] + 1), self.num_bins - (self.num_bands - band)))
        return (*edges, self.num_bins)

    @property
    def preprocessor_config(self) -> dict:
        """What `preprocessor_config.json` says: how a recording becomes this model's waveform."""
        return waveform_preprocessor(self.sampling_rate, self.num_audio_channels)

    def validate_architecture(self):
        """Rules between fields."""
        positive = ("sampling_rate", "num_audio_channels", "n_fft", "hop_length", "num_bands", "hidden_size")
        positive += ("intermediate_size", "band_intermediate_size", "num_hidden_layers", "kernel_size")
        for name in (*positive, "dilation_cycle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.n_fft % self.hop_length or self.n_fft < 2 * self.hop_length:
            raise ValueError(
                f"n_fft must be a multiple of hop_length {self.hop_length}, at least twice, got {self.n_fft}."
            )
        if self.n_fft % 2:
            raise ValueError(f"n_fft must be even, got {self.n_fft}.")
        if self.num_bands > self.num_bins:
            raise ValueError(f"num_bands must not exceed the {self.num_bins} bins, got {self.num_bands}.")
        if not self.causal and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd unless causal is true, got {self.kernel_size}.")
        if not 0.0 < self.compression <= 1.0:
            raise ValueError(f"compression must be in (0, 1], got {self.compression}.")


__all__ = ["BandSplitSeparatorConfig"]
