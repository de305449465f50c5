"""How codebooks learn: the arguments that all quantizers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class CodebookOptions:
    """Learning of a codebook.

    Args:
        update: "ema": codewords are running means of their vectors (arXiv 1711.00937, appendix); "gradient": they are
            parameters that follow the codebook loss.
        decay: share of the old statistics that a step keeps.
        epsilon: Laplace smoothing of the counts.
        smoothing: "division": counts are smoothed where they divide; "running": the smoothed counts replace the running
            ones (Kohonen-VAE); "none": no smoothing, and a codeword without vectors keeps its statistics.
        normalize: search by the cosine (Descript Audio Codec); codewords and losses keep their lengths.
        kmeans_iterations: the first vectors place the codewords by so many iterations (see `initialize_codebooks` of the
            quantizers); 0: random start.
        restart_threshold: codewords used less are replaced by vectors of the batch; 0: never. Unit: `restart_rule`.
        restart_rule: "share": fraction of the mean use of a codeword, whatever the batch size (Mimi); a restarted
            codeword gets the mean use. "count": running number of vectors per step; it gets the threshold's.
        restart_noise: noise on copies where a batch has fewer vectors than the codebook codewords.
    """

    update: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    epsilon: float = 1e-5
    smoothing: Literal["division", "running", "none"] = "division"
    normalize: bool = False
    kmeans_iterations: int = 10
    restart_threshold: float = 0.1
    restart_rule: Literal["share", "count"] = "share"
    restart_noise: float = 1e-2

    def __post_init__(self) -> None:
        # Nothing is repaired silently: a decay of 1, for instance, would be a codebook that never learns.
        check_choice("update", self.update, ("ema", "gradient"))
        check_choice("smoothing", self.smoothing, ("division", "running", "none"))
        check_choice("restart_rule", self.restart_rule, ("share", "count"))
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}.")
        if not self.epsilon > 0.0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon}.")
        if self.kmeans_iterations < 0:
            raise ValueError(f"kmeans_iterations must be 0 or more, got {self.kmeans_iterations}.")
        # A share of 1 would replace every codeword below the mean, about half of them at every step.
        if self.restart_threshold < 0.0 or (self.restart_rule == "share" and self.restart_threshold >= 1.0):
            raise ValueError(
                f"restart_threshold must be 0 or more, and under 1 with restart_rule='share', got "
                f"{self.restart_threshold}."
            )
        if self.restart_noise < 0.0:
            raise ValueError(f"restart_noise must be 0 or more, got {self.restart_noise}.")


__all__ = ["CodebookOptions", "check_choice"]
