"""Configuration of the ear."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import MelStrictConfig

_PRESETS: dict[str, dict] = {
    "test": {
        "stem_channels": (4, 6),
        "hidden_size": 24,
        "intermediate_size": 32,
        "kernel_size": 4,
        "dilations": (1, 2),
        "look_ahead": (1, 0),
    },
    "tiny": {},
    "small": {
        "stem_channels": (48, 64),
        "hidden_size": 640,
        "intermediate_size": 1536,
        "dilations": (1, 2, 4, 8, 1, 2, 4, 8),
        "look_ahead": (3, 1, 0, 0, 1, 0, 0, 0),
    },
}


@strict
class NoteEarConfig(MelStrictConfig):
    """Configuration of `NoteEarModel`.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own.
        fold_size: mel frames that make one step of the ear.
        lowest_pitch: MIDI pitch of the lowest key.
        num_keys: keys.
        stem_channels: channels of the two convolutions over frequency and time; each halves the bands.
        hidden_size: width of the layers over time.
        intermediate_size: width inside their perceptrons.
        kernel_size: taps of their convolutions over time.
        dilations: steps between the taps, one number per layer.
        look_ahead: how many of a layer's taps lie in the future, one number per layer.
        label_reach: half the width of the triangles that mark onsets and offsets, in steps; decoding inverts them.
        onset_weight: how much more a step with an onset counts in training than one without, offsets alike.
        velocity_weight: weight of the velocities' squared error in the loss.
        onset_threshold: a note begins at a peak above this probability.
        frame_threshold: a note ends where the probability that it sounds falls below this.
        offset_threshold: a note ends at a peak of its end's probability above this.
        input_mean: of log-mel values, subtracted.
        input_std: what they are then divided by.
        initializer_range: standard deviation of initial weights.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_note_ear"
    _presets = _PRESETS

    mel: dict | None = None
    fold_size: int = 2
    lowest_pitch: int = 21
    num_keys: int = 88
    stem_channels: tuple[int, ...] | list[int] = (16, 32)
    hidden_size: int = 320
    intermediate_size: int = 480
    kernel_size: int = 8
    dilations: tuple[int, ...] | list[int] = (1, 2, 4, 8)
    look_ahead: tuple[int, ...] | list[int] = (3, 1, 0, 0)
    label_reach: float = 2.0
    onset_weight: float = 2.0
    velocity_weight: float = 12.0
    onset_threshold: float = 0.25
    frame_threshold: float = 0.1
    offset_threshold: float = 0.5
    input_mean: float = -6.0
    input_std: float = 3.0
    initializer_range: float = 0.02

    @property
    def step_samples(self) -> int:
        """Samples per step."""
        return self.fold_size * self.hop_length

    @property
    def step_in_s(self) -> float:
        """Seconds per step."""
        return self.step_samples / self.sampling_rate

    def validate_architecture(self):
        """Rules between fields."""
        sizes = ("fold_size", "num_keys", "hidden_size", "intermediate_size", "kernel_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.lowest_pitch < 0 or self.lowest_pitch + self.num_keys > 128:
            raise ValueError(
                "lowest_pitch must not be negative and lowest_pitch + num_keys at most 128, got "
                f"{self.lowest_pitch} and {self.num_keys}."
            )
        if len(self.stem_channels) != 2 or min(self.stem_channels) < 1:
            raise ValueError(f"stem_channels must be two positive numbers, got {self.stem_channels}.")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be positive, one per layer, got {self.dilations}.")
        if len(self.look_ahead) != len(self.dilations) or not all(
            0 <= taps < self.kernel_size for taps in self.look_ahead
        ):
            raise ValueError(
                f"look_ahead must be one number in 0..kernel_size-1 = {self.kernel_size - 1} per dilation "
                f"({len(self.dilations)}), got {self.look_ahead}."
            )
        self._validate_scales()
        # Steps are whole: a contract that makes one frame more or less than samples // hop has no place for it.
        frames = self.mel_config.num_frames(64 * self.hop_length)
        if frames != 64:
            raise ValueError(
                f"mel must make exactly one frame of every hop_length samples, got {frames} of 64: set center and "
                "even_padding to false."
            )

    def _validate_scales(self):
        for name in ("onset_threshold", "frame_threshold", "offset_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        for name in ("onset_weight", "input_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.label_reach < 1:
            raise ValueError(f"label_reach must be at least 1 step, got {self.label_reach}.")
        if self.velocity_weight < 0:
            raise ValueError(f"velocity_weight must not be negative, got {self.velocity_weight}.")


__all__ = ["NoteEarConfig"]
