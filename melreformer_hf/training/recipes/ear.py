"""Recipe `ear`: recordings to notes, from performances whose notes are known.

The notes of a MIDI file are exact and its rendering costs nothing, so that the ear learns from renderings; rooms, noise,
levels and microphones are added to them, so that it also hears what was recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from melreformer_hf._text import duration_in_words
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.data.performances import PerformanceStore
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics.transcription import mean_scores, transcription_scores
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import (
    Phase,
    Recipe,
    StepContext,
    Trainable,
    Validation,
    check_validation_split,
)
from melreformer_hf.training.recipes.ear_data import HearingOptions, changed_sound, note_targets, separated_notes


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarOptions(HearingOptions):
    """Settings of the ear's recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of NoteEarConfig that --model.NAME values change")
    more_datasets: tuple[str, ...] = option((), "further datasets of performances, by other instruments; mixed evenly")
    crop_steps: int = option(240, "steps of the ear per training crop")
    validation_recordings: int = option(24, "held-out recordings of each dataset that are transcribed")
    validation_seconds: float = option(20.0, "of each, from its beginning")
    validation_split: str = option("validation", "split that measures the model and chooses the best")

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = [
            ("crop_steps", self.crop_steps >= 1, "be at least 1"),
            ("validation_recordings", self.validation_recordings >= 1, "be at least 1"),
            ("validation_seconds", self.validation_seconds > 0, "be positive"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"options.{name} must {rule}, got {getattr(self, name)!r}.")
        check_validation_split(self.validation_split)


class TurnStream(ItemStream):
    """Items of several streams of one seed in turns; a stream's own indices stay without gaps."""

    def __init__(self, streams: list[ItemStream], seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(seed, rank, world_size)
        self.streams = streams

    def item(self, index: int) -> dict:
        """The item at `index` of the global sequence."""
        turn, which = divmod(index, len(self.streams))
        return {**self.streams[which].item(turn), "index": index}


class EarRecipe(Recipe):
    """Train the ear (NoteEarModel): recordings to notes."""

    name = "ear"
    best_metric = "onset_f1"
    greater_is_better = True
    reads_performances = True
    Options = EarOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = NoteEarConfig.preset(self.options.preset, **config.model)
        self.mel = self.model_config.mel_config
        self._stores: dict[tuple[str, str], PerformanceStore] = {}
        self._held_out: list[dict] = []

    def store(self, dataset: str, split: str) -> PerformanceStore:
        """The performances of a split, opened once."""
        if (dataset, split) not in self._stores:
            store = PerformanceStore(dataset, split, self.mel.sampling_rate, self.config.cache_minutes)
            self._stores[dataset, split] = store
        return self._stores[dataset, split]

    def stores(self, split: str) -> list[PerformanceStore]:
        """Those of all datasets."""
        return [self.store(dataset, split) for dataset in (self.config.dataset, *self.options.more_datasets)]

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(NoteEarModel(self.model_config))}

    def stream(self, rank: int, world_size: int) -> ItemStream:
        samples, seed = self.options.crop_steps * self.model_config.step_samples, self.config.seed
        streams = [store.crops(samples, seed=seed + turn) for turn, store in enumerate(self.stores("train"))]
        return TurnStream(streams, seed, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        waveform = changed_sound(item["waveform"], self.mel.sampling_rate, self.options, generator)
        return {
            "waveform": waveform,
            "labels": note_targets(item["notes"], self.options.crop_steps, self.model_config),
        }

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        features = log_mel_spectrogram(batch["waveform"], self.mel)
        output = self.modules["model"](features, labels=batch["labels"])
        parts = {f"{name}_loss": output[f"{name}_loss"] for name in ("onset", "frame", "offset", "velocity")}
        yield Phase("model", output.loss, {"loss": output.loss, **parts})

    def prepare_validation(self) -> None:
        for store in self.stores(self.options.validation_split):
            wanted = self.options.validation_recordings
            for recording in store.recordings[:: max(1, len(store.recordings) // wanted)][:wanted]:
                length = min(recording.num_samples, round(self.options.validation_seconds * store.sampling_rate))
                self._held_out.append(store.item_of(recording, 0, length))

    def validate(self, model: nn.Module) -> Validation:
        if not self._held_out:
            self.prepare_validation()
        scores, losses, device = [], [], next(model.parameters()).device
        config, rate = self.model_config, self.mel.sampling_rate
        for item in self._held_out:
            steps = len(item["waveform"]) // config.step_samples
            waveform = item["waveform"][: steps * config.step_samples]
            labels = note_targets(item["notes"], steps, config)[None].to(device)
            losses.append(model(log_mel_spectrogram(waveform[None].to(device), self.mel), labels=labels).loss.item())
            notes = separated_notes(item["notes"])
            played = notes.where(notes.onset < len(waveform) / rate)
            scores.append(transcription_scores(model.transcribe(waveform, rate), played))
        metrics = {**mean_scores(scores), "loss": sum(losses) / len(losses)}
        words = f"{metrics['onset_f1']:.1%} of onsets, {metrics['offset_f1']:.1%} of whole notes (F1)"
        return Validation(metrics, summary=words, counts={"recordings": len(scores)})

    def describe_data(self) -> str:
        hours = sum(store.hours for store in self.stores("train"))
        return f"{duration_in_words(60 * hours)} of performances"


__all__ = ["EarOptions", "EarRecipe", "TurnStream"]
