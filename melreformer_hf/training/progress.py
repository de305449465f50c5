"""How far a training is: the counters that are saved with it, and what they say is due."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from melreformer_hf.training.config import TrainingConfig

_COUNT = "count of "


@dataclasses.dataclass
class Progress:
    """Counters of a training; saved with it.

    Args:
        step: optimizer steps done.
        minutes: time used, resumed parts included.
        best: lowest value of the recipe's metric so far.
        bad_updates: updates in a row that were skipped because gradients were not finite.
        sums: running sums of the losses since the last line of the log, and how many values each has.
    """

    step: int = 0
    minutes: float = 0.0
    best: float | None = None
    bad_updates: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

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

    def add(self, scalars: Mapping[str, float]) -> None:
        """Add one step's losses to the running sums."""
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.sums[f"{_COUNT}{name}"] = self.sums.get(f"{_COUNT}{name}", 0) + 1

    def take_means(self) -> dict[str, float]:
        """Means since the last call."""
        counts = {name: self.sums[f"{_COUNT}{name}"] for name in self.sums if not name.startswith(_COUNT)}
        means = {name: self.sums[name] / count for name, count in counts.items()}
        self.sums = {}
        return means

    def improve(self, value: float) -> bool:
        """Whether a validation's metric is the lowest so far; remembers it if so."""
        improved = math.isfinite(value) and (self.best is None or value < self.best)
        if improved:
            self.best = value
        return improved


def is_timed(config: TrainingConfig) -> bool:
    """Whether anything in a training depends on the clock."""
    return any(
        minutes is not None
        for minutes in (config.max_minutes, config.validate_every_minutes, config.save_every_minutes)
    )


__all__ = ["Progress", "is_timed"]
