"""What a model must do to draw ideas for a pipeline."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.ideas import IdeaSample


@runtime_checkable
class IdeaModel(Protocol):
    """Draws ideas: `IdeaUNetModel` by diffusion, `IdeaStyleGan2Model` in one step, or a model of your own.

    `config.num_columns` says how wide its ideas are. Keyword arguments of `sample` beyond those below are settings of
    the model, which the pipeline passes on by name: `num_inference_steps`, `truncation_psi`, `latents`; `scheduler`
    (the pipeline's component of that name) and `on_step` (see `AudioPipeline.telling`) make it a sampler of many steps.
    """

    config: Any

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract of ideas."""
        ...

    def sample(
        self,
        batch_size: int,
        generator: list[torch.Generator | None],
        num_frames: torch.Tensor | None,
        *,
        device: torch.device,
        module: nn.Module,
    ) -> IdeaSample:
        """Draw ideas (batch, mel, column) and durations (batch,) in frames.

        Args:
            batch_size: ideas.
            generator: one per row.
            num_frames: (batch,) durations; `None` draws them.
            device: where the model runs.
            module: to be called in place of the model's own `forward`: the model in its wrapper.
        """
        ...


def settings_of(model: IdeaModel) -> dict[str, inspect.Parameter]:
    """Parameters of a model's `sample` by name."""
    return dict(inspect.signature(model.sample).parameters)


def check_settings(model: IdeaModel, settings: dict[str, object]) -> dict[str, object]:
    """The settings that were given (not `None`).

    Raises:
        ValueError: one that the model does not have.
    """
    known = settings_of(model)
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name} is no setting of {type(model).__name__}, leave it out; got {value!r}.")
    return given


__all__ = ["IdeaModel", "check_settings", "settings_of"]
