"""What idea models of every kind draw: ideas, and how long the music is; and ideas that are given to be changed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


class IdeaSample(NamedTuple):
    """Ideas that were drawn.

    Args:
        ideas: (batch, mel, column) float32 log-mels, at least the value of silence.
        num_frames: (batch,) int64 durations in frames.
    """

    ideas: torch.Tensor
    num_frames: torch.Tensor


class IdeaEdit(NamedTuple):
    """Ideas that are given to an idea model, to be changed.

    Args:
        ideas: (batch, mel, column) log-mels.
        strength: how much of what is drawn anew is forgotten first, 0 (nothing: it stays) to 1 (all of it).
        drawn: (batch, column) bool, the columns that are drawn anew; the others stay to the last number. `None`: all.
    """

    ideas: torch.Tensor
    strength: float = 1.0
    drawn: torch.Tensor | None = None

    def checked(self, shape: tuple[int, int, int], device: torch.device) -> IdeaEdit:
        """In float32 on a device.

        Args:
            shape: (batch, mel, column) of what the model draws.
            device: of the result.

        Raises:
            ValueError: names the field that does not fit.
        """
        ideas, drawn = self.ideas, self.drawn
        if tuple(ideas.shape) != shape or not ideas.is_floating_point() or not ideas.isfinite().all():
            raise ValueError(
                f"edit.ideas must be finite floating point of shape {shape}, got {tuple(ideas.shape)} of {ideas.dtype}."
            )
        if not 0 <= self.strength <= 1:
            raise ValueError(f"edit.strength must be a number from 0 to 1, got {self.strength!r}.")
        if drawn is not None and (tuple(drawn.shape) != (shape[0], shape[2]) or drawn.dtype != torch.bool):
            raise ValueError(
                f"edit.drawn must be bool of shape {(shape[0], shape[2])}, got {tuple(drawn.shape)} of {drawn.dtype}."
            )
        return IdeaEdit(ideas.to(device).float(), self.strength, None if drawn is None else drawn.to(device))


class IdeaCourse:
    """Where a denoising of ideas begins, which time steps it takes, and what it keeps: of noise alone, or of given ideas.

    Source: Meng et al., SDEdit (arXiv 2108.01073), for the strength; for kept columns the replacement of known regions in
    Lugmayr et al., RePaint (arXiv 2201.09865), without its jumps back in time. A scheduler is asked for time steps and for
    noised ideas only, so that it does not matter what the network predicts.

    Args:
        noise: (batch, 1, mel, column) of unit variance; the kept columns get the same at every step.
        scheduler: whose time steps are set for a whole drawing; those of a lesser strength replace them.
        edit: what is given, on the device of `noise`; `None` draws from noise alone.
        given: (batch, 1, mel, column) its ideas in the model's own units.
    """

    def __init__(
        self,
        noise: torch.Tensor,
        scheduler: SchedulerMixin,
        edit: IdeaEdit | None = None,
        given: torch.Tensor | None = None,
    ) -> None:
        self.noise, self.scheduler, self.edit, self.given = noise, scheduler, edit, given
        self.strength = 1.0 if edit is None else edit.strength
        self.timesteps = scheduler.timesteps if self.strength == 1 else self._later_steps()

    def _later_steps(self) -> torch.Tensor:
        scheduler = self.scheduler
        first = round(self.strength * scheduler.config.num_train_timesteps) - 1
        later = scheduler.timesteps[scheduler.timesteps <= first]
        if first < 0 or not takes_timesteps(scheduler):
            return later
        # Without a step of its own the strength would be rounded to the few steps that a fast model takes.
        steps = sorted({first, *later.tolist()}, reverse=True)
        scheduler.set_timesteps(timesteps=steps, device=scheduler.timesteps.device)
        return scheduler.timesteps

    def _noised(self, timestep: torch.Tensor) -> torch.Tensor:
        # Schedulers of flows have the other name.
        add = getattr(self.scheduler, "add_noise", None) or self.scheduler.scale_noise
        arguments = {"timesteps" if "timesteps" in inspect.signature(add).parameters else "timestep": timestep[None]}
        return add(self.given, noise=self.noise, **arguments)

    def begin(self) -> torch.Tensor:
        """Latents before the first step: noise alone at full strength, given ideas alone where there are no steps."""
        if self.strength == 1:
            return self.noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        return self._noised(self.timesteps[0]) if len(self.timesteps) else self.given

    def keep(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Latents after a step, with the kept columns as noisy as those that are drawn."""
        if self.edit is None or self.edit.drawn is None:
            return latents
        last = step + 1 >= len(self.timesteps)
        kept = self.given if last else self._noised(self.timesteps[step + 1])
        return torch.where(self.edit.drawn[:, None, None], latents, kept)

    def finish(self, ideas: torch.Tensor) -> torch.Tensor:
        """(batch, mel, column) log-mels that were drawn, with what was kept to the last number."""
        if self.edit is None or (self.edit.drawn is None and len(self.timesteps)):
            return ideas
        if not len(self.timesteps):
            return self.edit.ideas
        return torch.where(self.edit.drawn[:, None], ideas, self.edit.ideas)


def takes_timesteps(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler can be told single time steps: DDIM cannot, nor DPM-Solver with a spacing of sigmas."""
    spaced = any(
        value is True for name, value in scheduler.config.items() if name.startswith("use_") and "_sigmas" in name
    )
    spaced = spaced or scheduler.config.get("use_lu_lambdas", False)
    return not spaced and "timesteps" in inspect.signature(scheduler.set_timesteps).parameters


def check_lengths(num_frames: int | torch.Tensor, batch_size: int, device: torch.device | str) -> torch.Tensor:
    """One length or (batch,) lengths in frames as (batch,) int64.

    Raises:
        ValueError: they are not whole, not positive, or of another number.
    """
    lengths = torch.as_tensor(num_frames, device=device)
    whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
    if not whole or lengths.ndim > 1 or lengths.numel() not in (1, batch_size) or lengths.min() < 1:
        raise ValueError(f"num_frames must be a positive whole number, or {batch_size} of them, got {num_frames!r}.")
    return lengths.long().expand(batch_size).clone()


def log2_of_lengths(num_frames: torch.Tensor) -> torch.Tensor:
    """Lengths as models are told them: float32 log2 of (batch,) frames. Never turned back: it would lose a frame."""
    return num_frames.cpu().double().log2().float().to(num_frames.device)


def row_generators_of(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> list:
    """A generator per row: a single one is used row after row.

    Raises:
        ValueError: a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * batch_size
    if len(generator) != batch_size:
        raise ValueError(f"generator must be one, or one per row: got {len(generator)} for batch_size={batch_size}.")
    return list(generator)


__all__ = [
    "IdeaCourse",
    "IdeaEdit",
    "IdeaSample",
    "check_lengths",
    "log2_of_lengths",
    "row_generators_of",
    "takes_timesteps",
]
