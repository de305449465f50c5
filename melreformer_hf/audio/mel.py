"""The mel contract: one configuration, one differentiable log-mel transform.

Every checkpoint that eats or makes mel spectrograms carries a `MelConfig`; parts may be joined only when theirs agree.
The presets reproduce four published front ends exactly:

| preset | source | spectrum | log | range |
|---|---|---|---|---|
| `melreformer` | TariqAHassan/MelReformer | power + 1e-9, 128 bands, full range | natural, floor 1e-5 | about -11.5..8 |
| `hifigan` | jik876/hifi-gan | magnitude (epsilon 1e-9), 80 bands, 0-8000 Hz | natural, floor 1e-5 | about -11.5..2.5 |
| `melgan` | descriptinc/melgan-neurips | magnitude, 80 bands, full range | base 10, floor 1e-5 | -5..1 |
| `specvqgan` | v-iashin/SpecVQGAN | centered magnitude, 80 bands, 125-7600 Hz | (20 log10 + 80) / 100 | clipped to 0..1 |
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

from melreformer_hf._text import suggest
from melreformer_hf.audio.stft import Transform, cached_table, full_precision, map_frames, power, reflect

_PRESETS: dict[str, dict] = {
    "melreformer": {"num_mel_bins": 128, "power": 2.0, "magnitude_epsilon": 1e-9},
    "hifigan": {"num_mel_bins": 80, "fmax": 8000.0, "magnitude_epsilon": 1e-9},
    "melgan": {"num_mel_bins": 80, "log_base": "10"},
    "specvqgan": {
        "num_mel_bins": 80,
        "fmin": 125.0,
        "fmax": 7600.0,
        "log_base": "10",
        "log_multiplier": 0.2,
        "log_offset": 0.8,
        "clip_min": 0.0,
        "clip_max": 1.0,
        "center": True,
    },
}
# Presets whose originals pad int((n_fft - hop) / 2) samples on both sides.
_EVEN_PADDING = ("hifigan", "melgan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """What a log-mel spectrogram of this package means, to the last number.

    The value of a bin is `clip(log_multiplier * log(max(mel, log_floor)) + log_offset)`, with
    `mel = filters @ (re^2 + im^2 + magnitude_epsilon) ** (power / 2)`.

    Args:
        sampling_rate: samples per second.
        n_fft: length of the Fourier transform in samples.
        win_length: length of the periodic Hann window in samples, at most `n_fft`.
        hop_length: samples between two frames.
        num_mel_bins: number of Slaney mel bands (Slaney area normalization).
        fmin: lower edge of the lowest band in Hz.
        fmax: upper edge of the highest band in Hz; `None` is half the sampling rate.
        power: exponent of the spectrum, 1.0 (magnitude) or 2.0 (power).
        magnitude_epsilon: added to the squared magnitude.
        log_base: `"e"` or `"10"`.
        log_floor: mel values are clamped here before the logarithm.
        log_multiplier: factor after the logarithm.
        log_offset: added after the factor.
        clip_min: lowest final value, `None` for no clipping.
        clip_max: highest final value, `None` for no clipping.
        center: pad by `n_fft // 2` on both sides (1 + samples // hop frames) in place of `(n_fft - hop_length) / 2`
            (exactly samples // hop frames). Both pad by reflection.
        even_padding: where `n_fft - hop_length` is odd, leave its last sample out of the padding at the end, as HiFi-GAN
            and MelGAN do ((samples - 1) // hop frames). Their presets set it there; nothing changes elsewhere.

    Raises:
        ValueError: a field breaks its rule; the message names field, rule and value.
    """

    sampling_rate: int = 22050
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 256
    num_mel_bins: int = 128
    fmin: float = 0.0
    fmax: float | None = None
    power: float = 1.0
    magnitude_epsilon: float = 0.0
    log_base: str = "e"
    log_floor: float = 1e-5
    log_multiplier: float = 1.0
    log_offset: float = 0.0
    clip_min: float | None = None
    clip_max: float | None = None
    center: bool = False
    even_padding: bool = False

    def __post_init__(self) -> None:
        self._check_kinds()
        nyquist = self.sampling_rate / 2
        rules = [
            ("sampling_rate", self.sampling_rate > 0, "be positive"),
            ("n_fft", self.n_fft > 0, "be positive"),
            ("win_length", 0 < self.win_length <= self.n_fft, f"be in 1..n_fft={self.n_fft}"),
            ("hop_length", 0 < self.hop_length <= self.n_fft, f"be in 1..n_fft={self.n_fft}"),
            ("num_mel_bins", self.num_mel_bins > 0, "be positive"),
            ("fmin", 0 <= self.fmin < self.max_frequency, f"be in 0..fmax={self.max_frequency}"),
            ("fmax", self.max_frequency <= nyquist, f"be at most half the sampling rate, {nyquist}"),
            ("power", self.power in (1.0, 2.0), "be 1.0 or 2.0"),
            ("magnitude_epsilon", self.magnitude_epsilon >= 0, "not be negative"),
            ("log_base", self.log_base in ("e", "10"), 'be "e" or "10"'),
            ("log_floor", self.log_floor > 0, "be positive"),
            ("log_multiplier", self.log_multiplier > 0, "be positive"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"MelConfig.{name} must {rule}, got {getattr(self, name)!r}.")

    def _check_kinds(self) -> None:
        """Numbers are finite, counts whole, and only what may be absent is."""
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if kind in ("str", "bool"):
                right = isinstance(value, str if kind == "str" else bool)
            elif value is None:
                right = kind.endswith("| None")
            else:
                right = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
                right = right and math.isfinite(value)
            if not right:
                wanted = {"int": "a whole number", "str": "a string", "bool": "true or false"}.get(
                    kind, "a finite number"
                )
                raise ValueError(f"MelConfig.{field.name} must be {wanted}, got {value!r}.")

    @classmethod
    def preset(cls, name: str, **overrides: object) -> MelConfig:
        """A published front end by name, with single fields replaced by `overrides`."""
        if name not in _PRESETS:
            raise ValueError(f"MelConfig.preset: name must be one of {sorted(_PRESETS)}, got {name!r}.")
        config = cls.from_dict({**_PRESETS[name], **overrides})
        odd = (config.n_fft - config.hop_length) % 2 == 1
        if odd and name in _EVEN_PADDING and "even_padding" not in overrides:
            return dataclasses.replace(config, even_padding=True)
        return config

    @classmethod
    def from_dict(cls, values: dict) -> MelConfig:
        """The inverse of `to_dict`; unknown keys are refused."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"MelConfig has no field {key!r}. {suggest(key, known)}")
        try:
            return _contract(**values)
        except TypeError:  # a value that cannot be hashed is no number either, and named as such
            return cls(**values)

    def to_dict(self) -> dict:
        """All fields as plain numbers and strings (JSON-ready)."""
        return dataclasses.asdict(self)

    @property
    def max_frequency(self) -> float:
        """Upper edge of the highest band in Hz."""
        return self.sampling_rate / 2 if self.fmax is None else self.fmax

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def padding(self) -> tuple[int, int]:
        """Samples of reflected padding before and after the waveform."""
        if self.center:
            return self.n_fft // 2, self.n_fft // 2
        total = self.n_fft - self.hop_length
        return total // 2, total // 2 if self.even_padding else total - total // 2

    @property
    def floor_value(self) -> float:
        """The value that silence has."""
        value = self._log(self.log_floor) * self.log_multiplier + self.log_offset
        return value if self.clip_min is None else max(value, self.clip_min)

    def _log(self, value: float) -> float:
        return math.log(value) if self.log_base == "e" else math.log10(value)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of `num_samples` samples."""
        return (num_samples + sum(self.padding) - self.n_fft) // self.hop_length + 1

    def check_matches(self, other: MelConfig, self_name: str = "this", other_name: str = "other") -> None:
        """Raise ValueError naming every field in which two contracts differ, with both values."""
        mine, theirs = self.to_dict(), other.to_dict()
        for values, config in ((mine, self), (theirs, other)):  # what means the same
            values["fmax"], values["even_padding"] = config.max_frequency, config.padding[0] == config.padding[1]
        lines = [
            f"  {key}: {self_name} has {mine[key]!r}, {other_name} has {theirs[key]!r}"
            for key in mine
            if mine[key] != theirs[key]
        ]
        if lines:
            raise ValueError(
                f"The mel contracts of {self_name} and {other_name} differ; they cannot be joined:\n"
                + "\n".join(lines)
                + "\nLoad parts that were trained with the same MelConfig."
            )


@functools.lru_cache(maxsize=64, typed=True)  # typed: 256.0 must be refused also after 256 was accepted
def _contract(**values: object) -> MelConfig:
    """One object per contract: configurations ask for theirs at every access."""
    return MelConfig(**values)


@cached_table
def _filter_bank(config: MelConfig, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    from transformers.audio_utils import mel_filter_bank as slaney_bank

    bank = slaney_bank(
        num_frequency_bins=config.n_fft // 2 + 1,
        num_mel_filters=config.num_mel_bins,
        min_frequency=config.fmin,
        max_frequency=config.max_frequency,
        sampling_rate=config.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    # First the type, then the device: the bank is float64, which some devices do not have.
    return torch.from_numpy(bank.T.copy()).to(dtype).to(device)


def mel_filter_bank(
    config: MelConfig, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """Slaney filter bank of shape (num_mel_bins, n_fft // 2 + 1), equal to librosa's default to 2e-9.

    It is shared between calls and must not be changed.
    """
    return _filter_bank(config, dtype, torch.device("cpu" if device is None else device))


def mel_spectrogram(waveform: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """Mel spectrogram before the logarithm.

    Args:
        waveform: (..., samples) floating point, any leading shape, full scale at 1.
        config: the contract.

    Returns:
        (..., num_mel_bins, frames), differentiable, in the precision of `waveform` (float32 at least, also under
        autocast).

    Raises:
        ValueError: `waveform` is not floating point, or too short to be padded by reflection.
    """
    if not waveform.is_floating_point():
        raise ValueError(
            f"waveform must be a floating point tensor with full scale at 1, got {waveform.dtype}. "
            "Divide integer audio by its full scale first."
        )
    shortest = max(max(config.padding) + 1, config.n_fft - sum(config.padding))
    if waveform.shape[-1] < shortest:
        raise ValueError(
            f"waveform must have at least {shortest} samples for n_fft={config.n_fft}, hop_length="
            f"{config.hop_length}, got {waveform.shape[-1]}. Pad it with zeros first."
        )
    leading, transform = waveform.shape[:-1], Transform.of(config)
    with full_precision(waveform):
        waveform = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
        rows = reflect(waveform.reshape(-1, waveform.shape[-1]), config.padding)
        bank = mel_filter_bank(config, rows.dtype, rows.device).T
        tiny = torch.finfo(rows.dtype).tiny

        def mel_of(spectrum: torch.Tensor) -> torch.Tensor:
            values = power(spectrum, config.magnitude_epsilon)
            if config.power == 1.0:
                # The root's gradient at zero is infinite; below the smallest number the clamp's is zero.
                values = (values if config.magnitude_epsilon > tiny else values.clamp(min=tiny)).sqrt()
            return values @ bank

        mel = map_frames(rows, transform, mel_of)
    return mel.transpose(1, 2).reshape(*leading, config.num_mel_bins, -1)


def log_mel_spectrogram(waveform: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """Log-mel spectrogram, the only one of the package: features, losses and metrics all call it.

    Args:
        waveform: (..., samples) floating point, full scale at 1.
        config: the contract.

    Returns:
        (..., num_mel_bins, frames) with `config.num_frames(samples)` frames, float32 at least.

    Raises:
        ValueError: see `mel_spectrogram`.
    """
    mel = mel_spectrogram(waveform, config).clamp(min=config.log_floor)
    value = mel.log() if config.log_base == "e" else mel.log10()
    if config.log_multiplier != 1.0 or config.log_offset != 0.0:
        value = value * config.log_multiplier + config.log_offset
    if config.clip_min is None and config.clip_max is None:
        return value
    return value.clamp(config.clip_min, config.clip_max)


def undo_log(log_mel: torch.Tensor, config: MelConfig) -> torch.Tensor:
    """Mel spectrogram (before the logarithm) of a log-mel; the inverse of clamping and clipping is the identity."""
    exponent = (log_mel - config.log_offset) / config.log_multiplier
    return exponent.exp() if config.log_base == "e" else torch.pow(10.0, exponent)


__all__ = ["MelConfig", "log_mel_spectrogram", "mel_filter_bank", "mel_spectrogram", "undo_log"]
