"""What recipes share that learn from recordings: opening them, checking the mel contract, splits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from torch import nn

from melreformer_hf._text import duration_in_words
from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.data.recordings import Recordings
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import Recipe, check_validation_split


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioOptions:
    """Settings that recipes of audio share.

    Raises:
        ValueError: the split that chooses the best model is `test`.
    """

    validation_split: str = option(
        "validation", "split that measures the model while it is trained and chooses the best"
    )

    def __post_init__(self) -> None:
        check_validation_split(self.validation_split)


@contextlib.contextmanager
def length_of(option: str, frames: int) -> Iterator[None]:
    """Let an error about lengths of recordings name the option that asked for them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"options.{option} must fit the recordings, got {frames} frames. {error}") from error


class AudioRecipe(Recipe):
    """A recipe whose items are crops of recordings at the sampling rate of its mel contract.

    Subclasses set `mel` in `__init__`.

    Attributes:
        mel: the mel contract of the model.
        channels: of the recordings.
        label_column: column with their classes, of datasets of other programs.
        validation_split: what `validate` measures on; `melreformer evaluate` sets `test` here.
    """

    mel: MelConfig
    channels: int = 1
    label_column: str = "label"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.validation_split: str = self.options.validation_split
        self._recordings: dict[tuple[str, str], Recordings] = {}

    def recordings(self, split: str, dataset: str | None = None) -> Recordings:
        """The recordings of a split, opened once; of `config.dataset` unless another one is named.

        Raises:
            ValueError: no such dataset or split, or its sampling rate is not that of the mel contract.
        """
        dataset = dataset or self.config.dataset
        if (dataset, split) not in self._recordings:
            self._recordings[dataset, split] = open_recordings(
                dataset,
                split,
                sampling_rate=self.mel.sampling_rate,
                channels=self.channels,
                audio_column=self.config.audio_column,
                label_column=self.label_column,
                cache_minutes=self.config.cache_minutes,
            )
        return self._recordings[dataset, split]

    def crops(
        self,
        split: str,
        min_frames: int,
        max_frames: int,
        rank: int = 0,
        world_size: int = 1,
        option: str = "min_frames",
    ) -> ItemStream:
        """Endless crops of log-uniform length in whole mel frames; `option` is the one that says `min_frames`.

        Raises:
            ValueError: no recording is long enough.
        """
        hop, recordings = self.mel.hop_length, self.recordings(split)
        with length_of(option, min_frames):
            return recordings.crops(
                min_frames * hop,
                max_frames * hop,
                seed=self.config.seed,
                multiple=hop,
                rank=rank,
                world_size=world_size,
            )

    def describe_data(self) -> str:
        hours = self.recordings("train").hours
        return "streamed audio" if hours is None else f"{duration_in_words(60 * hours)} of audio"

    def check_start(self, pretrained: nn.Module) -> None:
        # diffusers models have the contract as a property, transformers models in their config.
        theirs = getattr(pretrained, "mel_config", None) or pretrained.config.mel_config
        theirs.check_matches(self.mel, "init_from", "this training")


__all__ = ["AudioOptions", "AudioRecipe", "length_of"]
