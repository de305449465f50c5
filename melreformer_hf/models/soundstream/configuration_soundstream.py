"""Configuration of the SoundStream-like codec."""

import math

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import StrictConfig, waveform_preprocessor
from melreformer_hf.nn.quantization.bitrates import kbps_of, levels_within

ACTIVATIONS = ("leaky_relu", "elu")
PADDINGS = ("causal", "original")
ENERGY_STAGES = ("none", "before_quantizer", "after_quantizer")
_CHOICES = {
    "architecture": ("convolution", "spectral"),
    "activation": ACTIVATIONS,
    "padding": PADDINGS,
    "energy_stage": ENERGY_STAGES,
    "codebook_update": ("ema", "gradient"),
    "level_reduction": ("mean", "sum"),
    "gradient_path": ("once", "undetached", "every_level"),
    "som_kernel": ("hard", "gaussian"),
}
# 50 frames per second, 0.5 kbit/s a level, 0.5 to 6 kbit/s.
_SPECTRAL = {
    "architecture": "spectral",
    "num_quantizers": 12,
    "codebook_dim": 8,
    "codebook_update": "gradient",
    "codebook_normalize": True,
    "quantizer_dropout": 0.5,
    "commitment_weight": 0.25,
}
_PRESETS: dict[str, dict] = {
    "small": {**_SPECTRAL, "sampling_rate": 22050, "strides": (3, 3, 7, 7), "hidden_size": 128},
    "base": {
        **_SPECTRAL,
        "sampling_rate": 44100,
        "audio_channels": 2,
        "strides": (2, 3, 3, 7, 7),
        "n_fft": 3528,
        "synthesis_overlap": 198,
        "hidden_size": 256,
        "frame_size": 768,
        "frame_intermediate_size": 2304,
        "num_frame_layers": 8,
    },
    "soundstream": {"activation": "elu", "quantizer_dropout": 1.0},
    "lumenpallidium": {
        "sampling_rate": 48000,
        "padding": "original",
        "codebook_update": "gradient",
        "kmeans_iterations": 0,
    },
    "tiny": {
        "sampling_rate": 8000,
        "base_channels": 8,
        "strides": (2, 4, 4),
        "num_residual_units": 2,
        "hidden_size": 16,
        "num_quantizers": 3,
        "codebook_size": 32,
    },
}


@strict
class SoundStreamConfig(StrictConfig):
    """Configuration of `SoundStreamModel`; the defaults are 24 kHz, 75 frames per second, 8 codes of 10 bits each.

    Args:
        architecture: "convolution" (SEANet, at the sampling rate) or "spectral" (at the frame rate, many times cheaper); see
            `coder_soundstream` and `spectral_soundstream`. Fields say where they belong to one of them.
        sampling_rate: samples per second.
        audio_channels: channels of the waveform.
        base_channels: width at the sampling rate (convolution, as the next nine but `strides` and `kernel_size`).
        channel_multiplier: growth of the width with every stride.
        strides: downsampling of each block of the encoder; the decoder's blocks have them in reverse. Their product is the
            hop, which is all that the spectral architecture takes from them.
        num_residual_units: per block.
        kernel_size: taps of the convolutions that keep the length.
        dilation_base: unit i of a block has dilation `dilation_base ** i`.
        depthwise: a learned gain per channel before each unit's first convolution.
        activation: "leaky_relu" or "elu".
        activation_slope: of a leaky ReLU below zero.
        wavelet_blocks: blocks of the decoder, from 0 (coarsest), that upsample by wavelets instead of a transposed
            convolution.
        multires_depth: levels of a multiresolution convolution that leads from the waveform past the encoder; 0: none.
        multires_kernel_size: its taps.
        n_fft: samples of the encoder's windows, which end with their hops (spectral, as the next nine).
        synthesis_overlap: samples by which the decoder's frames overlap, at most a hop.
        frame_size: width at the frame rate.
        frame_intermediate_size: width of its perceptrons.
        num_frame_layers: blocks of encoder and of decoder.
        analysis_fade: samples over which the encoder's windows fall at their end; 0: Hann windows, in which the newest hop,
            the one that the decoder is to sound, is hardly seen (spectral).
        spectral_power: magnitudes of real and imaginary parts are taken to this power; below one soft partials are seen
            beside loud ones, and noise beside both (spectral).
        normalized_phases: whether the head's (cosine, sine) pairs are angles alone; otherwise their lengths count too, so
            that what is uncertain can be soft and phases are learned sooner (spectral).
        magnitude_features: whether the encoder also sees the logarithm of every bin's magnitude (spectral): from sums of
            real and imaginary parts, whose phases turn from frame to frame, it could not tell most of them.
        latent_norm: whether latents have mean zero and variance one per channel, of the batch in training and of what was
            trained on afterwards (spectral): they cannot all drift to one codeword.
        padding: how lengths that are no multiple of `hop_length` are completed. "causal": zeros after the waveform,
            streams equal the whole. "original": zeros before every strided convolution, no streams.
        hidden_size: width of what is quantized.
        num_quantizers: levels of the quantizer.
        codebook_size: codewords per level, one number or one per level.
        codebook_dim: width of factorized codewords; `None`: `hidden_size`.
        codebook_update: "ema" or "gradient".
        codebook_decay: of the codebooks' running statistics.
        codebook_normalize: whether codewords are found by the angle (Descript Audio Codec), not by the distance.
        kmeans_iterations: that place the codewords on the first training batch; 0: random start.
        restart_threshold: share of the mean use under which codewords are replaced; 0: never.
        commitment_weight: of the distance of latents from their codewords.
        codebook_weight: of the distance of gradient codewords from their latents.
        level_reduction: losses of levels are averaged ("mean") or added ("sum").
        gradient_path: "once", "undetached" or "every_level", see `ResidualVectorQuantizer`.
        som_radius: makes the codebooks self-organizing maps, in which codewords within so many grid units learn together;
            0: plain codebooks.
        som_kernel: "hard" or "gaussian" neighborhood.
        som_shrink: speed at which it fades with the training steps.
        quantizer_dropout: probability that an example of a training batch keeps only its first n levels.
        energy_stage: an energy transformer over all frames, "before_quantizer" or "after_quantizer"; "none". With one,
            that half of the codec is no longer causal.
        num_energy_steps: its steps.
        num_energy_heads: its heads.
        reconstruction_weight: of the mean absolute error of samples in the loss.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_soundstream"
    _presets = _PRESETS

    architecture: str = "convolution"
    sampling_rate: int = 24000
    audio_channels: int = 1
    base_channels: int = 32
    channel_multiplier: int = 2
    strides: list | tuple = (2, 4, 5, 8)
    num_residual_units: int = 3
    kernel_size: int = 7
    dilation_base: int = 3
    depthwise: bool = False
    activation: str = "leaky_relu"
    activation_slope: float = 0.3
    wavelet_blocks: list | tuple = ()
    multires_depth: int = 0
    multires_kernel_size: int = 7
    n_fft: int = 1764
    synthesis_overlap: int = 99
    frame_size: int = 256
    frame_intermediate_size: int = 768
    num_frame_layers: int = 6
    analysis_fade: int = 0
    spectral_power: float = 0.3
    normalized_phases: bool = True
    magnitude_features: bool = False
    latent_norm: bool = False
    padding: str = "causal"
    hidden_size: int = 512
    num_quantizers: int = 8
    codebook_size: int | list | tuple = 1024
    codebook_dim: int | None = None
    codebook_update: str = "ema"
    codebook_decay: float = 0.99
    codebook_normalize: bool = False
    kmeans_iterations: int = 10
    restart_threshold: float = 0.1
    commitment_weight: float = 1.0
    codebook_weight: float = 1.0
    level_reduction: str = "mean"
    gradient_path: str = "once"
    som_radius: float = 0.0
    som_kernel: str = "hard"
    som_shrink: float = 0.1
    quantizer_dropout: float = 0.0
    energy_stage: str = "none"
    num_energy_steps: int = 12
    num_energy_heads: int = 8
    reconstruction_weight: float = 1.0

    def __post_init__(self, **kwargs):
        for name in ("strides", "wavelet_blocks", "codebook_size"):
            value = getattr(self, name)
            setattr(self, name, tuple(value) if isinstance(value, list) else value)  # config.json has lists
        super().__post_init__(**kwargs)

    @property
    def hop_length(self) -> int:
        """Samples per frame of codes."""
        return math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sampling_rate / self.hop_length

    @property
    def preprocessor_config(self) -> dict:
        """What `preprocessor_config.json` says: how a recording becomes this model's waveform."""
        return waveform_preprocessor(self.sampling_rate, self.audio_channels)

    @property
    def channels(self) -> tuple:
        """Widths of the encoder, from the sampling rate down."""
        return tuple(self.base_channels * self.channel_multiplier**level for level in range(len(self.strides) + 1))

    @property
    def codebook_sizes(self) -> tuple:
        """Codewords of each level."""
        size = self.codebook_size
        return (size,) * self.num_quantizers if isinstance(size, int) else size

    def bandwidth(self, num_quantizers: int | None = None) -> float:
        """Kilobits per second of so many levels (all by default), one code of each per frame."""
        return kbps_of(self.codebook_sizes[:num_quantizers], self.frame_rate)

    def quantizers_within(self, bandwidth: float) -> int:
        """The most levels that fit into a bandwidth.

        Args:
            bandwidth: kilobits per second.

        Raises:
            ValueError: not even one level fits.
        """
        return levels_within(self.codebook_sizes, self.frame_rate, bandwidth)

    def validate_architecture(self):
        """Rules between fields."""
        positive = ("sampling_rate", "audio_channels", "base_channels", "channel_multiplier", "kernel_size")
        positive += ("dilation_base", "hidden_size", "num_quantizers", "num_energy_steps", "num_energy_heads")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        not_negative = ("num_residual_units", "multires_depth", "kmeans_iterations", "reconstruction_weight")
        not_negative += ("commitment_weight", "codebook_weight", "som_radius", "som_shrink")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        # Their product is the frame; a stride of 1 is legal and keeps the rate.
        if not self.strides or any(not isinstance(stride, int) or stride < 1 for stride in self.strides):
            raise ValueError(f"strides must be positive integers, at least one, got {self.strides}.")
        if self.architecture == "spectral":
            self._validate_spectral()
        elif self.latent_norm or self.magnitude_features:
            raise ValueError(
                "latent_norm and magnitude_features belong to the spectral architecture: leave them False, got "
                f"{self.latent_norm} and {self.magnitude_features}."
            )
        if any(block not in range(len(self.strides)) for block in self.wavelet_blocks):
            raise ValueError(f"wavelet_blocks must be in 0..{len(self.strides) - 1}, got {self.wavelet_blocks}.")
        # One tap has no two parts: low and high would be the same signal.
        if self.multires_depth and self.multires_kernel_size < 2:
            raise ValueError(f"multires_kernel_size must be at least 2, got {self.multires_kernel_size}.")
        # Rotary positions turn pairs of features, so that a head's width must be even.
        if self.energy_stage != "none" and self.hidden_size % (2 * self.num_energy_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * num_energy_heads (rotary pairs), got {self.hidden_size} and "
                f"{self.num_energy_heads}."
            )

    def _validate_spectral(self) -> None:
        for name in ("frame_size", "frame_intermediate_size", "num_frame_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd in the spectral architecture, got {self.kernel_size}.")
        hop = self.hop_length
        if self.n_fft < hop or not 0 <= self.synthesis_overlap <= hop:
            raise ValueError(
                f"n_fft must be at least the hop of {hop} samples (the product of strides) and synthesis_overlap between 0 "
                f"and it, got {self.n_fft} and {self.synthesis_overlap}."
            )
        if not 0 <= self.analysis_fade < self.n_fft or not 0 < self.spectral_power <= 1:
            raise ValueError(
                f"analysis_fade must be from 0 to below n_fft={self.n_fft} and spectral_power in (0, 1], got "
                f"{self.analysis_fade} and {self.spectral_power}."
            )
        if self.wavelet_blocks or self.multires_depth or self.padding != "causal":
            raise ValueError(
                "wavelet_blocks, multires_depth and padding belong to the convolution architecture: leave them at (), 0 and "
                f"'causal', got {self.wavelet_blocks}, {self.multires_depth} and {self.padding!r}."
            )

    def validate_quantizer(self):
        """Rules of the codebooks."""
        # Code 0 of a codebook of one codeword would say nothing and cost no bits, but still take its place in every
        # frame.
        sizes = self.codebook_sizes
        if len(sizes) != self.num_quantizers or any(not isinstance(size, int) or size < 2 for size in sizes):
            raise ValueError(
                f"codebook_size must be an integer of at least 2, or one per level ({self.num_quantizers}), got "
                f"{self.codebook_size}."
            )
        for name in ("codebook_decay", "restart_threshold"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        if not 0.0 <= self.quantizer_dropout <= 1.0:
            raise ValueError(f"quantizer_dropout must be in [0, 1], got {self.quantizer_dropout}.")
        if self.codebook_dim is not None and self.codebook_dim < 1:
            raise ValueError(f"codebook_dim must be positive or None, got {self.codebook_dim}.")

    def validate_choices(self):
        """Fields that name one of several ways."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}.")


__all__ = ["SoundStreamConfig"]
