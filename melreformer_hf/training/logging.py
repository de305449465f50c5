"""Where numbers, pictures and sounds of a training go: TensorBoard, and a file of JSON lines that programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from melreformer_hf.training.recipes.base import Validation

METRICS_FILE = "metrics.jsonl"


class TrainingLog:
    """Writer of one training; lines beyond the step at which a training resumes are dropped.

    Args:
        output_dir: folder of the training; events go to `logs`, numbers to `metrics.jsonl`.
        first_step: step at which this run starts.
        sampling_rate: of the sounds.
    """

    def __init__(self, output_dir: Path, first_step: int, sampling_rate: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.sampling_rate = output_dir / METRICS_FILE, sampling_rate
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= first_step]
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text("".join(line + "\n" for line in kept))
            os.replace(partial, self.path)
        self.writer = SummaryWriter(str(output_dir / "logs"), purge_step=first_step + 1)

    def scalars(self, values: dict[str, float], step: int, minutes: float, kind: str = "train") -> None:
        """Numbers of one step."""
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, "minutes": round(minutes, 3), **values}) + "\n")

    def validation(self, result: Validation, step: int, minutes: float) -> None:
        """Numbers, pictures and sounds of a validation."""
        self.scalars(result.metrics, step, minutes, "validation")
        for name, picture in result.pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")
        for name, waveform in result.audio.items():
            clipped = waveform.detach().float().cpu().reshape(1, -1).clamp(-1, 1)
            self.writer.add_audio(name, clipped, step, self.sampling_rate)
        self.writer.flush()

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


def read_metrics(output_dir: str | os.PathLike, kind: str = "train") -> list[dict]:
    """The recorded lines of one kind (`train` or `validation`), in order of steps."""
    lines = (Path(output_dir) / METRICS_FILE).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


__all__ = ["TrainingLog", "read_metrics"]
