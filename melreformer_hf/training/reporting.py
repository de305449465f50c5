"""Where numbers, pictures and sounds of a training go: the terminal, TensorBoard, and a file of JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from melreformer_hf._files import write_text
from melreformer_hf._text import duration_in_words
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.progress import Progress
from melreformer_hf.training.recipes.base import Validation

METRICS_FILE = "metrics.jsonl"


class TrainingLog:
    """Writer of one training; lines beyond the point at which a training resumes are dropped.

    Args:
        output_dir: folder of the training; events go to `logs`, numbers to `metrics.jsonl`.
        progress: where this run starts.
    """

    def __init__(self, output_dir: Path, progress: Progress) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = output_dir / METRICS_FILE
        if self.path.is_file():
            kept = [line for line in _lines(self.path) if _is_kept(line, progress)]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.writer = SummaryWriter(str(output_dir / "logs"), purge_step=progress.step + 1)

    def scalars(self, values: dict[str, float], step: int, minutes: float, kind: str = "train") -> None:
        """Numbers of one step."""
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, "minutes": round(minutes, 3), **values}) + "\n")

    def validation(self, result: Validation, step: int, minutes: float) -> None:
        """Numbers, pictures and sounds of a validation.

        Raises:
            ValueError: there are sounds without their sampling rate.
        """
        if result.audio and result.sampling_rate is None:
            raise ValueError("A Validation with audio must give its sampling_rate, got None.")
        self.scalars(result.metrics, step, minutes, "validation")
        for name, picture in result.pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        for name, waveform in result.audio.items():
            # TensorBoard would wrap what exceeds full scale around.
            clipped = waveform.detach().float().cpu().reshape(1, -1).clamp(-1, 1)
            self.writer.add_audio(name, clipped, step, result.sampling_rate)
        self.writer.flush()

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


def _lines(path: Path) -> Iterator[dict]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut short when the process was killed
            continue


def _is_kept(line: dict, progress: Progress) -> bool:
    repeated = line["kind"] == "validation" and line["step"] == progress.step and progress.validation_due
    return line["step"] <= progress.step and not repeated


def read_metrics(output_dir: str | os.PathLike, kind: str = "train") -> list[dict]:
    """The recorded lines of one kind (`train` or `validation`), in order of steps."""
    return [entry for entry in _lines(Path(output_dir) / METRICS_FILE) if entry["kind"] == kind]


class Display:
    """What the terminal shows of a training: a bar of steps, what is left, the last loss, the last validation in words.

    Args:
        name: of the recipe.
        config: of the training.
        progress: where this run starts.
        shown: whether this process shows anything.
    """

    def __init__(self, name: str, config: TrainingConfig, progress: Progress, shown: bool) -> None:
        self.progress, self.shown = progress, shown
        self.summary, self._losses, self._left_was_told = "", "", False
        hidden = not (shown and config.progress_bar)
        self.bar = tqdm(total=config.max_steps, initial=progress.step, desc=name, unit="step", disable=hidden)

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self.shown:
            tqdm.write(line, file=sys.stderr)

    def step(self, minutes_left: float | None) -> None:
        """One step is done."""
        self.bar.update()
        if minutes_left and not self._left_was_told:
            self.say(f"about {duration_in_words(minutes_left)} left at this speed, without validations")
            self._left_was_told = True
        if not self.bar.disable:
            left = "" if minutes_left is None else f"{duration_in_words(minutes_left)} left"
            told = [text for text in (left, self._losses, self.summary) if text]
            self.bar.set_postfix_str(", ".join(told), refresh=False)

    def losses(self, means: dict[str, float]) -> None:
        """The means of a line of the log."""
        self._losses = ", ".join(f"{name} {value:.4g}" for name, value in means.items() if "/" not in name)

    def validation(self, result: Validation) -> None:
        """The numbers of a validation, in words first."""
        self.summary = result.summary
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        told = f"{result.summary} ({numbers})" if result.summary else numbers
        self.say(f"step {self.progress.step}, {self.progress.minutes:.1f} min: {told}")

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


__all__ = ["Display", "TrainingLog", "read_metrics"]
