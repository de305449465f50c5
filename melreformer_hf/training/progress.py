"""How far a training is: the counters that are saved with it, and what they say is due."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from melreformer_hf.training.config import TrainingConfig


@dataclasses.dataclass
class Progress:
    """Counters of a training; saved with it, the same in every process.

    Args:
        step: optimizer steps done.
        minutes: time used, resumed parts included.
        best: best value of the recipe's metric so far.
        bad_steps: steps in a row with an update that was skipped because gradients were not finite.
        validation_due: a validation of this step was begun and is not finished.
        validated_step: step of the last validation.
        metrics: of that validation.
    """

    step: int = 0
    minutes: float = 0.0
    best: float | None = None
    bad_steps: int = 0
    validation_due: bool = False
    validated_step: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def share(self, config: TrainingConfig) -> float:
        """Share of the training that is done, 0..1, in steps or minutes, whichever ends it first."""
        by_steps = self.step / config.max_steps if config.max_steps else 0.0
        by_minutes = self.minutes / config.max_minutes if config.max_minutes else 0.0
        return min(1.0, max(by_steps, by_minutes))

    def due(self, what: str, config: TrainingConfig, marks: dict[str, float]) -> bool:
        """Whether to `validate` or `save` after this step.

        Args:
            what: names the settings `<what>_every_steps` and `<what>_every_minutes`.
            config: the settings.
            marks: the minute at which each was done last; moved when it is due.
        """
        every_steps = getattr(config, f"{what}_every_steps")
        every_minutes = getattr(config, f"{what}_every_minutes")
        by_steps = every_steps is not None and self.step % every_steps == 0
        by_minutes = every_minutes is not None and self.minutes - marks[what] >= every_minutes
        if by_steps or by_minutes:
            marks[what] = self.minutes
        return by_steps or by_minutes

    def improve(self, value: float, greater_is_better: bool = False) -> bool:
        """Whether a validation's metric is the best so far; remembers it if so."""
        if not math.isfinite(value):
            return False
        improved = self.best is None or (value > self.best if greater_is_better else value < self.best)
        if improved:
            self.best = value
        return improved


class RunningMeans:
    """Means of named numbers over the steps since the last line of the log.

    Sums stay on the device and in their own process until somebody asks: neither transfers nor messages at each step.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: dict[str, torch.Tensor]) -> None:
        """Add one step's numbers, scalars without a graph."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, reduce) -> dict[str, float]:
        """Means since the last call.

        Args:
            reduce: averages a tensor over processes, `accelerator.reduce` with "mean".
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        # One tensor: one message between processes and one transfer, however many numbers there are.
        means = torch.stack([self._sums[name].float() / self._counts[name] for name in names])
        values = reduce(means).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(names, values, strict=True))

    def state_dict(self) -> dict:
        """Sums and counts, for a checkpoint."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict, device: torch.device | str = "cpu") -> None:
        """The inverse of `state_dict`."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class Clock:
    """Minutes of a training, and what is left of it.

    Args:
        progress: where it starts.
        config: how long it is.
    """

    _FIRST_STEPS = 3  # allocating, compiling and filling queues take longer than what follows

    def __init__(self, progress: Progress, config: TrainingConfig) -> None:
        self.progress, self.config = progress, config
        self._before, self._started = progress.minutes, time.monotonic()
        self._first_step = progress.step
        self._mark: tuple[float, float] | None = None

    def minutes(self) -> float:
        """Minutes used so far, resumed parts included."""
        return self._before + (time.monotonic() - self._started) / 60

    def minutes_left(self) -> float | None:
        """Estimate of what is left, `None` in the first steps."""
        done, now = self.progress.share(self.config), self.progress.minutes
        if done >= 1.0:
            return 0.0
        if self.progress.step - self._first_step < self._FIRST_STEPS:
            return None
        if self._mark is None:
            self._mark = (done, now)
            if self.config.max_steps:  # it may end the training long before the minutes do; the next step tells
                return None
        share, minutes = self._mark
        # Whichever budget ends first.
        by_minutes = self.config.max_minutes - now if self.config.max_minutes else math.inf
        by_share = (now - minutes) / (done - share) * (1 - done) if done > share else math.inf
        left = min(by_minutes, by_share)
        return max(0.0, left) if math.isfinite(left) else None


__all__ = ["Clock", "Progress", "RunningMeans"]
