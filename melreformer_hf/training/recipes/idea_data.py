"""What the recipes of idea models share: crops and whole pieces as ideas with their lengths, and the statistics of them."""

from __future__ import annotations

import dataclasses
import math

import torch

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.mel_crops import MelCropStream
from melreformer_hf.data.recordings import CropSettings
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.training.config import option
from melreformer_hf.training.recipes.audio import AudioOptions, AudioRecipe, length_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdeaDataOptions(AudioOptions):
    """Settings that recipes of idea models share.

    Raises:
        ValueError: a field breaks its rule.
    """

    min_frames: int = option(512, "shortest crop in mel frames; lengths are log-uniform")
    max_frames: int = option(16384, "longest crop in mel frames; shorter recordings are taken whole")
    whole_share: float = option(0.0, "share of the ideas that are of whole recordings, whatever max_frames says")
    whole_frames: int = option(32768, "longest recording that is taken whole, in mel frames")
    silence_weight: float | None = option(
        None, "how often a crop that is mostly silent is taken, 0 to 1; none: what the dataset was built with"
    )
    keep_mels: bool | None = option(
        None,
        "compute every recording's log-mel once and keep it (75 MB per hour and worker); for built datasets, for which "
        "it is the default",
    )
    fit_crops: int = option(
        64, "training crops that normalization and prior of durations are fitted to; 0 keeps the model's"
    )
    duration_quantiles: int = option(
        0, "values that the prior of durations has in the model; 0: a normal one of their logarithms"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_frames < 1:
            raise ValueError(f"options.min_frames must be at least 1, got {self.min_frames}.")
        if self.max_frames < self.min_frames:
            raise ValueError(
                f"options.max_frames must be at least min_frames={self.min_frames}, got {self.max_frames}."
            )
        if not 0 <= self.whole_share <= 1:
            raise ValueError(f"options.whole_share must be in [0, 1], got {self.whole_share}.")
        if self.whole_frames < self.min_frames:
            raise ValueError(
                f"options.whole_frames must be at least min_frames={self.min_frames}, got {self.whole_frames}."
            )
        if self.silence_weight is not None and not 0 <= self.silence_weight <= 1:
            raise ValueError(f"options.silence_weight must be in [0, 1] or none, got {self.silence_weight}.")
        if self.fit_crops < 0 or self.fit_crops == 1:
            raise ValueError(f"options.fit_crops must be 0 or at least 2, got {self.fit_crops}.")
        if self.duration_quantiles < 0 or self.duration_quantiles == 1:
            raise ValueError(f"options.duration_quantiles must be 0 or at least 2, got {self.duration_quantiles}.")

    @property
    def longest_frames(self) -> int:
        """The longest piece that an idea may stand for."""
        return max(self.max_frames, self.whole_frames) if self.whole_share else self.max_frames


class IdeaDataRecipe(AudioRecipe):
    """A recipe whose items are ideas with the log2 of their lengths in frames.

    Subclasses set `mel` and `columns` in `__init__`.

    Attributes:
        columns: of an idea.
    """

    columns: int

    def stream(self, rank: int, world_size: int) -> ItemStream:
        return self._lengths("train", rank, world_size)

    def _lengths(self, split: str, rank: int = 0, world_size: int = 1) -> ItemStream:
        options, hop, recordings = self.options, self.mel.hop_length, self.recordings(split)
        weight = recordings.silence_weight if options.silence_weight is None else options.silence_weight
        settings = CropSettings(
            min_samples=options.min_frames * hop,
            max_samples=options.max_frames * hop,
            multiple=hop,
            silence_weight=weight,
            whole_share=options.whole_share,
            whole_samples=options.whole_frames * hop,
        )
        with length_of("min_frames", options.min_frames):
            built = isinstance(recordings, BuiltRecordings)
            if not (built if options.keep_mels is None else options.keep_mels):
                return recordings.crops(
                    **dataclasses.asdict(settings), seed=self.config.seed, rank=rank, world_size=world_size
                )
            if not built:
                raise ValueError(
                    "options.keep_mels must be false for a dataset that `melreformer data build` did not make: it is "
                    "streamed, got true."
                )
            return MelCropStream(recordings, settings, self.mel, self.config.seed, rank, world_size)

    def _idea(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mel = log_mel_spectrogram(waveform, self.mel)
        return resize_mel(mel, self.columns), torch.tensor(math.log2(mel.shape[-1]))

    def idea_of(self, item: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Idea (mel, column) of an item of the stream, and the log2 of its length."""
        if "waveform" in item:
            return self._idea(item["waveform"])
        mel = item["mel"].float()
        return resize_mel(mel, self.columns), torch.tensor(math.log2(mel.shape[-1]))

    def ideas_of(self, items: ItemStream, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` ideas (idea, mel, column) of a stream and their log2 lengths (idea,)."""
        pairs = [self.idea_of(items.item(index)) for index in range(count)]
        return torch.stack([idea for idea, _ in pairs]), torch.stack([length for _, length in pairs])

    def fitted(self, ideas: torch.Tensor, lengths: torch.Tensor) -> dict[str, object]:
        """Fields of an idea model's configuration that say how its data are scaled."""
        found: dict[str, object] = {
            "mel_mean": round(ideas.mean().item(), 4),
            "mel_std": round(ideas.std().item(), 4),
            "log2_frames_mean": round(lengths.mean().item(), 4),
            "log2_frames_std": round(max(lengths.std().item(), 0.1), 4),
            # The shortest and longest crops bound the prior of durations.
            "log2_frames_min": math.log2(self.options.min_frames),
            "log2_frames_max": math.log2(self.options.longest_frames),
        }
        return found

    def quantiles(self, lengths: torch.Tensor) -> tuple[float, ...] | None:
        """Prior of durations by its values at even shares; `None` where the options ask for none."""
        count = self.options.duration_quantiles
        if not count:
            return None
        return tuple(round(value, 4) for value in lengths.quantile(torch.linspace(0, 1, count)).tolist())


__all__ = ["IdeaDataOptions", "IdeaDataRecipe"]
