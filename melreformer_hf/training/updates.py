"""One step of a training: batches in, gradients accumulated, clipped and applied, losses out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from melreformer_hf.training.optimizers import learning_rate_factor, set_learning_rate
from melreformer_hf.training.state import TrainingState

Batch = dict[str, torch.Tensor]


class Updater:
    """Makes the optimizer steps of a training.

    Args:
        state: the training.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state, self.config, self.accelerator = state, state.config, state.accelerator

    def step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """Train on the next `gradient_accumulation_steps` batches.

        Returns:
            scalars: losses, averaged over the batches, and `gradient_norm/<module>` before clipping.

        Raises:
            FloatingPointError: gradients were not finite `max_nonfinite_steps` times in a row.
        """
        state, accumulation = self.state, self.config.gradient_accumulation_steps
        factor = learning_rate_factor(state.progress.step, state.share, self.config)
        scalars: dict[str, torch.Tensor] = {}
        for index in range(accumulation):
            self._micro_step(next(batches), index == accumulation - 1, factor, scalars)
        state.progress.step += 1
        state.average.update(state.plain["model"], state.progress.step)
        state.stream.position += accumulation * self.config.batch_size
        return scalars

    def _micro_step(self, batch: Batch, last: bool, factor: float, scalars: dict[str, torch.Tensor]) -> None:
        """Add the gradients and losses of one batch; after the last one the optimizers step."""
        accelerator, accumulation = self.accelerator, self.config.gradient_accumulation_steps
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        with contextlib.ExitStack() as stack:
            for module in [] if last else self.state.modules.values():
                stack.enter_context(accelerator.no_sync(module))
            for phase in self.state.recipe.phases(self.state.modules, batch, self.state.share):
                accelerator.backward(phase.loss / accumulation)
                if last:
                    scalars[f"gradient_norm/{phase.module}"] = self._update(phase.module, factor)
                for name, value in phase.scalars.items():
                    scalars[name] = scalars.get(name, 0.0) + value.detach().float() / accumulation

    def _update(self, name: str, factor: float) -> torch.Tensor:
        optimizer, progress = self.state.optimizers[name], self.state.progress
        # Only this module's: those of another may still be growing, and unscaling them halfway would spoil them.
        self.accelerator.unscale_gradients(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.state.plain[name].parameters(), self.config.max_grad_norm)
        finite = math.isfinite(norm.item())
        if finite:
            set_learning_rate(optimizer.optimizer, factor)
        if finite or self.accelerator.scaler is not None:
            optimizer.step()  # the scaler of fp16 skips by itself what is not finite, and scales less from then on
        if finite:
            progress.bad_updates = 0
        else:
            progress.bad_updates += 1
            self._check_patience(name)
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _check_patience(self, name: str) -> None:
        progress = self.state.progress
        if progress.bad_updates >= self.config.max_nonfinite_steps:
            raise FloatingPointError(
                f"{progress.bad_updates} updates in a row had gradients that are not finite (the last of "
                f"{name!r} after step {progress.step}). Lower learning_rate or max_grad_norm, train with "
                "mixed_precision=no, or look at the data; the last checkpoint is untouched."
            )


__all__ = ["Updater"]
