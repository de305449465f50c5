"""Configuration of the performer."""

from huggingface_hub.dataclasses import strict

from melreformer_hf.nn.configuration import MelStrictConfig

_PRESETS: dict[str, dict] = {
    "test": {
        "lowest_key": 48,
        "num_keys": 24,
        "num_ages": 24,
        "last_age_in_s": 2.0,
        "age_scale_in_s": 0.05,
        "num_velocities": 5,
        "release_tail_in_s": 0.3,
        "num_voices": 4,
        "room_frames": 6,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "kernel_size": 3,
    },
    "tiny": {},
    "small": {"num_ages": 192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6},
}


@strict
class NotePerformerConfig(MelStrictConfig):
    """Configuration of `NotePerformerModel`.

    Args:
        mel: the mel contract as `MelConfig.to_dict()`; `None` is the package's own.
        lowest_key: MIDI pitch of the instrument's lowest key; notes beyond its keys are played octaves nearer.
        num_keys: keys.
        num_ages: moments in the life of a note whose spectra are learned; between them, energies are interpolated.
        first_age_in_s: the first of these moments, before the onset: a frame's window reaches ahead of its middle.
        last_age_in_s: the last of them; later a note fades at a learned rate.
        age_scale_in_s: up to about this age the moments are equally far apart, then each step is longer than the last.
        num_velocities: velocities, evenly spread over 0..128, whose loudness and damping are learned.
        release_tail_in_s: how long a note may be heard after its damper fell; then it is gone.
        num_voices: notes that may sound in one frame; of more, the loudest do.
        room_frames: frames of the past that the room still gives back.
        hidden_size: channels of the correction.
        intermediate_size: width of its perceptrons.
        num_hidden_layers: its blocks.
        kernel_size: odd kernel of its stem and blocks in frames.
        initializer_range: standard deviation of its initial weights.

    Raises:
        StrictDataclassError: a field has the wrong type or breaks its rule (the cause is a ValueError).
        ValueError: a keyword is no field.
    """

    model_type = "melreformer_note_performer"
    _presets = _PRESETS

    mel: dict | None = None
    lowest_key: int = 21
    num_keys: int = 88
    num_ages: int = 96
    first_age_in_s: float = -0.03
    last_age_in_s: float = 8.0
    age_scale_in_s: float = 0.03
    num_velocities: int = 17
    release_tail_in_s: float = 1.0
    num_voices: int = 48
    room_frames: int = 96
    hidden_size: int = 192
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    kernel_size: int = 5
    initializer_range: float = 0.01

    def validate_architecture(self):
        """Rules between fields."""
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_voices", "room_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("num_ages", "num_velocities"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}.")
        if self.num_keys < 12 or self.lowest_key < 0 or self.lowest_key + self.num_keys > 128:
            raise ValueError(
                "num_keys must be an octave or more, and all keys in 0..127, got "
                f"lowest_key={self.lowest_key}, num_keys={self.num_keys}."
            )
        if not self.first_age_in_s < 0 < self.last_age_in_s:
            raise ValueError(
                f"first_age_in_s < 0 < last_age_in_s must hold, got {self.first_age_in_s} and {self.last_age_in_s}."
            )
        # Softened by half a window to each side, a release could otherwise reach the end of its tail.
        window = self.mel_config.win_length / self.sampling_rate
        if not self.release_tail_in_s > window:
            raise ValueError(
                f"release_tail_in_s must be longer than the window of {window:.3f} s, got {self.release_tail_in_s}."
            )
        if not self.age_scale_in_s > 0:
            raise ValueError(f"age_scale_in_s must be positive, got {self.age_scale_in_s}.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {self.kernel_size}.")


__all__ = ["NotePerformerConfig"]
