"""What the expansion and its convolutional baseline share: ideas with windows of their music, and the measurement."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.recordings import Recordings
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.metrics import crps, drift, log_mel_l1, seam, sharpness
from melreformer_hf.plotting import stack_mels
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.audio import AudioOptions, AudioRecipe, length_of
from melreformer_hf.training.recipes.base import Validation

Generate = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionDataOptions(AudioOptions):
    """Settings that expansion and baseline share.

    Raises:
        ValueError: a field breaks its rule.
    """

    min_frames: int = option(512, "shortest crop in mel frames; lengths are log-uniform")
    max_frames: int = option(16384, "longest crop in mel frames; shorter recordings are taken whole")
    focus_frames: int = option(2048, "usual length: some crops are shortened to about this many frames")
    focus_share: float = option(0.0, "share of the crops that are shortened to 0.75 to 1.25 of focus_frames")
    window_frames: int = option(2048, "frames that are trained in each window of a crop")
    windows_per_crop: int = option(1, "windows that are trained per crop")
    validation_crops: int = option(8, "held-out crops of crop_frames frames")
    validation_crop_frames: int = option(2048, "length of the held-out crops in frames")
    validation_pieces: int = option(4, "held-out recordings that are expanded whole")
    validation_max_frames: int = option(16384, "whole recordings longer than this are left out")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("windows_per_crop", "validation_crops", "validation_pieces", "validation_crop_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"options.{name} must be at least 1, got {getattr(self, name)}.")
        if self.focus_frames < 2 or not 0 <= self.focus_share <= 1:
            raise ValueError(
                "options must keep focus_frames >= 2 and 0 <= focus_share <= 1, got "
                f"{self.focus_frames}, {self.focus_share}."
            )
        if self.window_frames < 1 or not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(
                "options must keep window_frames >= 1 and 1 <= min_frames <= max_frames, got "
                f"{self.window_frames}, {self.min_frames}, {self.max_frames}."
            )


def idea_and_windows(
    waveform: torch.Tensor,
    mel_config: MelConfig,
    columns: int,
    options: ExpansionDataOptions,
    generator: torch.Generator,
    lead: int = 0,
) -> dict[str, torch.Tensor]:
    """The idea of a crop and random windows of its mel.

    Args:
        waveform: (samples,).
        mel_config: the contract.
        columns: of the idea.
        options: how long and how many windows.
        generator: draws the windows.
        lead: frames that are given before each window; silence before the crop's beginning.

    Returns:
        dict of `idea` (mel, column), `num_frames` (), `start` (count,), `labels` (count, mel, lead + length); windows
        longer than the crop are filled with silence.
    """
    # (mel, frame)
    mel = log_mel_spectrogram(_focused(waveform, mel_config.hop_length, options, generator), mel_config)
    frames, length = mel.shape[-1], options.window_frames
    start = torch.randint(max(frames - length, 0) + 1, (options.windows_per_crop,), generator=generator)
    padded = torch.nn.functional.pad(mel, (lead, max(length - frames, 0)), value=mel_config.floor_value)
    labels = torch.stack([padded[:, begin : begin + lead + length] for begin in start.tolist()])
    return {
        "idea": resize_mel(mel, columns),
        "num_frames": torch.tensor(frames),
        "start": start,
        "labels": labels,
    }


def _focused(
    waveform: torch.Tensor, hop_length: int, options: ExpansionDataOptions, generator: torch.Generator
) -> torch.Tensor:
    # What happens inside columns of many frames is hard to know; lengths at which much can be learned come more often.
    if not options.focus_share:
        return waveform
    chosen, size, place = torch.rand(3, generator=generator).tolist()
    samples = int((0.75 + 0.5 * size) * options.focus_frames) * hop_length  # whole frames
    if chosen >= options.focus_share or samples >= len(waveform):
        return waveform
    start = int(place * ((len(waveform) - samples) // hop_length + 1)) * hop_length
    return waveform[start : start + samples]


def flatten_windows(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One row per window: the idea and length of a crop are repeated for each of its windows."""
    count = batch["start"].shape[1]
    return {
        "idea": batch["idea"].repeat_interleave(count, 0),  # (batch * window, mel, column)
        "num_frames": batch["num_frames"].repeat_interleave(count, 0),
        "start": batch["start"].flatten(),  # (batch * window,)
        "labels": batch["labels"].flatten(0, 1),  # (batch * window, mel, lead + length)
    }


def inside_mask(start: torch.Tensor, length: int, num_frames: torch.Tensor) -> torch.Tensor:
    """One for the frames of a window that belong to the crop: (batch,), (batch,) -> (batch, 1, length) float32."""
    frames = start[:, None] + torch.arange(length, device=start.device)  # (batch, length)
    return (frames < num_frames[:, None])[:, None].float()


class ExpansionValidator:
    """Free-running expansion of held-out music beside the re-interpolated idea.

    Args:
        recordings: the held-out ones.
        options: how many, how long.
        mel: the contract.
        columns: columns of an idea.
        fold_size: frames that the model makes at once, where it does; seams between them are measured.
        idea_mode: of `resize_mel`, by which ideas are made.
        draws: how often a model that samples is asked for every piece; one that does not is asked once.

    Attributes:
        speeds: of the last call, times real time by group.
    """

    def __init__(
        self,
        recordings: Recordings,
        options: ExpansionDataOptions,
        mel: MelConfig,
        columns: int,
        fold_size: int | None = None,
        idea_mode: str = "area",
        draws: int = 1,
    ) -> None:
        self.mel, self.fold_size, self.idea_mode, self.draws = mel, fold_size, idea_mode, draws
        with length_of("validation_crop_frames", options.validation_crop_frames):
            crops = recordings.fixed_crops(options.validation_crop_frames * mel.hop_length, options.validation_crops)
        pieces = recordings.whole(options.validation_max_frames * mel.hop_length, options.validation_pieces)
        self.targets = {
            "crops": [log_mel_spectrogram(item["waveform"], mel) for item in crops],
            "pieces": [log_mel_spectrogram(item["waveform"], mel) for item in pieces],
        }
        self.columns = columns
        self.speeds: dict[str, float] = {}

    def __call__(self, generate: Generate) -> Validation:
        """Measure `generate(ideas (batch, mel, column), num_frames (batch,), draw) -> (batch, mel, frame)`.

        `draw` counts the draws of one piece. Sharpness, seam and drift are those of the first, `mel_l1` is the mean
        of the single draws, and `ratio` the CRPS of all of them over the error of the re-interpolated idea.
        """
        metrics, pictures, seconds, frames = {}, {}, 0.0, 0
        for group, targets in self.targets.items():
            results, smooth, errors, scores, began = [], [], [], [], seconds
            for target in targets:
                idea, length = resize_mel(target, self.columns, mode=self.idea_mode), torch.tensor([target.shape[-1]])
                started = time.monotonic()
                draws = [generate(idea[None], length, draw)[0].float().cpu() for draw in range(self.draws)]
                seconds += time.monotonic() - started
                frames += target.shape[-1] * self.draws
                smooth.append(resize_mel(idea, target.shape[-1]))
                results.append(draws[0])
                scores.append(crps(torch.stack(draws), target).item())
                errors.append(sum(log_mel_l1(one[None], target[None]).item() for one in draws) / self.draws)
            shown = [mel[:, :1024] for mel in (targets[0], results[0], smooth[0])]
            pictures[f"{group}_true_generated_interpolated"] = stack_mels(shown)
            found = {"mel_l1": sum(errors) / len(errors), "crps": sum(scores) / len(scores)}
            length = sum(target.shape[-1] for target in targets) * self.draws / self.mel.frame_rate
            self.speeds[group] = length / max(seconds - began, 1e-9)
            for name, value in {**found, **self.measures(results, smooth, targets)}.items():
                metrics[f"{group}_{name}"] = value
            metrics[f"{group}_ratio"] = metrics[f"{group}_crps"] / metrics[f"{group}_baseline"]
        metrics["ratio"] = (metrics["crops_ratio"] + metrics["pieces_ratio"]) / 2
        metrics["times_real_time"] = frames / self.mel.frame_rate / max(seconds, 1e-9)
        summary = f"{metrics['ratio']:.2f}x of re-interpolation"
        counts = {group: len(targets) for group, targets in self.targets.items()}
        return Validation(metrics, pictures, summary=summary, counts=counts)

    def measures(
        self, results: list[torch.Tensor], smooth: list[torch.Tensor], targets: list[torch.Tensor]
    ) -> dict[str, float]:
        """What is told of the first draws, (mel, frame) each, beside the re-interpolated ideas and the truth."""
        baseline = sum(log_mel_l1(one[None], target[None]).item() for one, target in zip(smooth, targets, strict=True))
        seams = {"seam": seam(results, self.fold_size, targets)} if (self.fold_size or 0) > 1 else {}
        return {
            **seams,
            "baseline": baseline / len(targets),
            "sharpness": sharpness(results, targets, self.mel),
            "sharpness_frequency": sharpness(results, targets, self.mel, axis="frequency"),
            "sharpness_all_bins": sharpness(results, targets, audible_db=None),
            "drift": drift(results, targets),
        }


class ExpansionDataRecipe(AudioRecipe):
    """Items and validation of expansion and baseline; a subclass sets `mel` and `model_config`."""

    best_metric = "ratio"

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self._validator: ExpansionValidator | None = None

    def stream(self, rank: int, world_size: int) -> ItemStream:
        return self.crops("train", self.options.min_frames, self.options.max_frames, rank, world_size)

    def prepare_validation(self) -> None:
        if self._validator is None:
            held_out = self.recordings(self.validation_split)
            columns = self.model_config.idea_columns
            self._validator = ExpansionValidator(
                held_out, self.options, self.mel, columns, **self.validation_settings()
            )

    def validation_settings(self) -> dict:
        """What else `ExpansionValidator` is told."""
        return {}

    def validate(self, model: nn.Module) -> Validation:
        self.prepare_validation()
        device = next(model.parameters()).device
        return self._validator(lambda idea, frames, draw: model.generate(idea.to(device), frames.to(device)))


__all__ = [
    "ExpansionDataOptions",
    "ExpansionDataRecipe",
    "ExpansionValidator",
    "Generate",
    "flatten_windows",
    "idea_and_windows",
    "inside_mask",
]
