"""One step of a training: batches in, gradients accumulated, clipped and applied, losses out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from melreformer_hf.data.batches import Batch
from melreformer_hf.training import wrapping
from melreformer_hf.training.optimizers import learning_rate_factor, set_learning_rate
from melreformer_hf.training.recipes.base import Phase, StepContext
from melreformer_hf.training.state import TrainingState


@dataclasses.dataclass
class _Step:
    """What one optimizer step gathers.

    Args:
        factor: share of the peak learning rates.
        scalars: losses, averaged over the batches.
        kept: what the recipe wants to see after the step, by module.
        waiting: modules that have gradients but were not stepped; whether those are averaged over processes.
        updated: modules that were stepped; whether their gradients were finite.
    """

    factor: float
    scalars: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    kept: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    waiting: dict[str, bool] = dataclasses.field(default_factory=dict)
    updated: dict[str, bool] = dataclasses.field(default_factory=dict)


class Updater:
    """Makes the optimizer steps of a training.

    Args:
        state: the training.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state, self.config, self.accelerator = state, state.config, state.accelerator

    def step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """Train on the next `gradient_accumulation_steps` batches.

        A module is stepped after its phase of the last batch; one that has none there is stepped at the end. All
        gradients are zeroed together.

        Returns:
            scalars: losses, averaged over the batches, and `gradient_norm/<module>` before clipping; on the device.

        Raises:
            FloatingPointError: gradients were not finite in `max_nonfinite_steps` steps in a row.
            ValueError: the recipe names a module that it does not train, or one twice for a batch.
        """
        state, config = self.state, self.config
        step = _Step(learning_rate_factor(state.progress.step, state.share, config))
        anchor = None
        for index in range(config.gradient_accumulation_steps):
            batch, context = next(batches), self._context(index)
            anchor = batch.anchor
            self._micro_step(batch.to(self.accelerator.device, non_blocking=True), context, step)
        # Modules without a phase in the last batch: DDP has not shared their gradients.
        for name, averaged in list(step.waiting.items()):
            if not averaged:
                wrapping.average_gradients(state.modules[name])
            self._update(name, step)
        if self.accelerator.scaler is not None and step.updated:
            self.accelerator.scaler.update()  # once: all gradients of a step have one scale
        for optimizer in state.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        state.progress.step += 1
        self._after(step, context)
        state.average.update(state.modules["model"], state.progress.step)
        state.stream.advance(config.gradient_accumulation_steps * config.batch_size, anchor)
        return step.scalars

    def _context(self, index: int) -> StepContext:
        step, count = self.state.progress.step, self.config.gradient_accumulation_steps
        # Odd constants spread neighboring steps over the seeds, as for items (data.batches).
        seed = (self.config.seed * 0x9E3779B97F4A7C15 + (step * count + index + 1) * 0xD6E8FEB86659FD93) % 2**63
        return StepContext(step, index, count, self.state.share, torch.Generator().manual_seed(seed))

    def _micro_step(self, batch: Batch, context: StepContext, step: _Step) -> None:
        """Add the gradients and losses of one batch."""
        count, seen = context.num_micro_steps, set()
        modules = self.state.modules
        quiet = contextlib.nullcontext() if context.is_last_micro_step else wrapping.unsynchronized(modules.values())
        with quiet:  # around the forward passes too: DDP decides there whether it will share gradients
            for phase in self.state.recipe.phases(batch.tensors, context):
                self._check(phase, seen)
                seen.add(phase.module)
                others = [module for name, module in modules.items() if name != phase.module]
                with wrapping.gradients_of_others_kept(others):
                    self.accelerator.backward(phase.loss / count)
                step.waiting[phase.module] = context.is_last_micro_step
                step.kept.setdefault(phase.module, []).append(phase.kept)
                for name, value in phase.scalars.items():
                    step.scalars[name] = step.scalars.get(name, 0.0) + value.detach().float() / count
                if context.is_last_micro_step:  # now, not at the end: the next phase sees what this module has learned
                    self._update(phase.module, step)

    def _check(self, phase: Phase, seen: set[str]) -> None:
        recipe = self.state.recipe.name
        if phase.module not in self.state.modules:
            raise ValueError(
                f"A phase of the {recipe} recipe must train one of {sorted(self.state.modules)}, got {phase.module!r}."
            )
        if phase.module in seen:
            raise ValueError(
                f"The {recipe} recipe has two phases for {phase.module!r} in one batch; add their losses instead."
            )

    def _update(self, name: str, step: _Step) -> None:
        """Clip and apply the gradients of one module, unless they are not finite."""
        optimizer, scaler = self.state.optimizers[name], self.accelerator.scaler
        if scaler is not None:
            # Only this module's: those of another may still be growing, and unscaling them halfway would spoil them.
            scaler.unscale_(optimizer)
        norm = wrapping.clip_gradients(self.state.modules[name], self.state.max_grad_norms[name])
        finite = math.isfinite(norm.item())
        if finite:
            set_learning_rate(optimizer, step.factor)
        if scaler is not None:
            scaler.step(optimizer)  # skips by itself what is not finite; `update` then scales less
        elif finite:
            optimizer.step()
        step.updated[name] = finite
        step.scalars[f"gradient_norm/{name}"] = norm
        del step.waiting[name]

    def _after(self, step: _Step, context: StepContext) -> None:
        """Count skipped updates, and let the recipe do what follows a step."""
        progress = self.state.progress
        skipped = [name for name, finite in step.updated.items() if not finite]
        progress.bad_steps = progress.bad_steps + 1 if skipped else 0
        if progress.bad_steps >= self.config.max_nonfinite_steps:
            raise FloatingPointError(
                f"{progress.bad_steps} steps in a row had gradients that are not finite (the last of "
                f"{', '.join(map(repr, skipped))} in step {progress.step}). Lower learning_rate or max_grad_norm, train "
                "with mixed_precision=no, or look at the data; the last checkpoint is untouched."
            )
        kept = {name: values for name, values in step.kept.items() if step.updated[name]}
        if kept:
            with torch.no_grad():
                self.state.recipe.after_step(kept, context)


__all__ = ["Updater"]
