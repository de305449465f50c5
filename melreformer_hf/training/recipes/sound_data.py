"""What recipes of labelled sounds share: crops of one length, silence around sounds, classes by name."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch.nn.functional import pad

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.audio import AudioOptions, AudioRecipe, length_of

_BLOCK = 256  # samples whose level decides about silence
_SHORTEST = 4  # blocks; shorter recordings are left out
_ANY = "any"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundOptions(AudioOptions):
    """Settings that recipes of sounds share.

    Raises:
        ValueError: a field breaks its rule.
    """

    label_column: str = option("label", "column with the class of a recording, of datasets of other programs")
    crop_frames: int = option(
        352, "mel frames per item; longer recordings are cropped, shorter ones are followed by silence"
    )
    trim_db: float = option(
        60.0,
        "what is this far below the loudest moment, at the beginning and at the end, is silence and is cut; 0 cuts none",
    )
    gain_augmentation_db: float = option(0.0, "items are scaled by a random gain of up to this many dB down")
    validation_sounds: int = option(80, "held-out recordings that are measured")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_frames", "validation_sounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("trim_db", "gain_augmentation_db"):
            if getattr(self, name) < 0:
                raise ValueError(f"options.{name} must not be negative, got {getattr(self, name)}.")


def trim_silence(waveform: torch.Tensor, trim_db: float) -> torch.Tensor:
    """A waveform without the silence before its first and after its last sound.

    Args:
        waveform: (sample,).
        trim_db: blocks of 256 samples whose level is this far below the loudest one's are silent; 0 keeps all.

    Returns:
        (sample,), whole blocks of it; what is silent as a whole stays as it is.
    """
    blocks = waveform[: len(waveform) // _BLOCK * _BLOCK].unflatten(0, (-1, _BLOCK))
    level = blocks.square().mean(1).sqrt()  # (block,)
    if trim_db == 0 or not len(level) or level.max() == 0:
        return waveform
    heard = (level > level.max() * 10 ** (-trim_db / 20)).nonzero()
    return waveform[int(heard[0]) * _BLOCK : (int(heard[-1]) + 1) * _BLOCK]


def sound_crop(waveform: torch.Tensor, num_samples: int, trim_db: float, generator: torch.Generator) -> torch.Tensor:
    """Exactly `num_samples` samples of a sound: a random stretch of it, or all of it with silence behind it."""
    sound = trim_silence(waveform, trim_db)
    start = int(torch.randint(max(len(sound) - num_samples, 0) + 1, (), generator=generator))
    return pad(sound[start : start + num_samples], (0, max(num_samples - len(sound), 0)))


class SoundRecipe(AudioRecipe):
    """A recipe whose items are log-mels of sounds, `input_features` (batch, mel, frame), and `class_labels` (batch,).

    Attributes:
        needs_labels: whether a dataset without labels is refused; otherwise all its sounds are of one class.
    """

    reads_labels = True
    needs_labels = False

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.label_column = self.options.label_column
        self._held_out: dict[str, torch.Tensor] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in order; `any` where the dataset has none.

        Raises:
            ValueError: there are none and the recipe needs them.
        """
        labels = self.recordings("train").labels
        if labels:
            return labels
        if self.needs_labels:
            raise ValueError(
                f"dataset must tell the class of its recordings, got {self.config.dataset} without labels. Put each class "
                "into a folder of its own, or name the column with --options.label_column."
            )
        return (_ANY,)

    def stream(self, rank: int, world_size: int) -> ItemStream:
        hop, rate = self.mel.hop_length, self.mel.sampling_rate
        with length_of("crop_frames", self.options.crop_frames):
            # Whole recordings: where their silence ends is known only then. Soft ones count as much as loud ones.
            return self.recordings("train").crops(
                max(hop, _SHORTEST * _BLOCK, rate // 20),
                max(self.options.crop_frames * hop, rate // 20, _SHORTEST * _BLOCK),
                seed=self.config.seed,
                rank=rank,
                world_size=world_size,
                silence_weight=1.0,
                whole_share=1.0,
            )

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return self._made(item, generator, self.options.gain_augmentation_db)

    def _made(self, item: dict, generator: torch.Generator, gain_db: float) -> dict[str, torch.Tensor]:
        samples = self.options.crop_frames * self.mel.hop_length
        crop = sound_crop(item["waveform"], samples, self.options.trim_db, generator)
        # Down only: never louder than full scale. In decibels of amplitude, hence 20.
        decibels = -gain_db * torch.rand((), generator=generator)
        mel = log_mel_spectrogram(crop * 10 ** (decibels / 20), self.mel)
        return {"input_features": mel[:, : self.options.crop_frames], "class_labels": self._label(item)}

    def _label(self, item: dict) -> torch.Tensor:
        names = self.class_names
        name = str(item.get("label", _ANY)) if names != (_ANY,) else _ANY
        if name not in names:
            raise ValueError(
                f"The class of {item['recording']!r} must be one of the training split's {list(names)}, got {name!r}."
            )
        return torch.tensor(names.index(name))

    def held_out(self) -> dict[str, torch.Tensor]:
        """The held-out sounds, made once: `input_features` (sound, mel, frame) and `class_labels` (sound,).

        Raises:
            ValueError: there are none.
        """
        if self._held_out is None:
            split = self.validation_split
            # A minute at most: what is longer is no sound, but a recording with sounds in it.
            items = self.recordings(split).whole(60 * self.mel.sampling_rate, self.options.validation_sounds)
            if not items:
                raise ValueError(f"The split {split!r} must hold recordings to measure on, got none.")
            self._held_out = self._joined(items)
        return self._held_out

    def first_items(self, count: int) -> dict[str, torch.Tensor]:
        """The first `count` items of the training, as `held_out` gives them, without changes of gain."""
        return self._joined(list(itertools.islice(self.stream(0, 1), count)))

    def _joined(self, items: list[dict]) -> dict[str, torch.Tensor]:
        # Each with a seed of its own: the same crops every time.
        made = [self._made(item, torch.Generator().manual_seed(index), 0.0) for index, item in enumerate(items)]
        return {name: torch.stack([item[name] for item in made]) for name in ("input_features", "class_labels")}


__all__ = ["SoundOptions", "SoundRecipe", "sound_crop", "trim_silence"]
