"""What a model must do to draw ideas for a pipeline."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.nn.ideas import IdeaEdit, IdeaSample


@runtime_checkable
class IdeaModel(Protocol):
    """Draws ideas: `IdeaUNetModel` by diffusion, `IdeaStyleGan2Model` in one step, or a model of your own.

    `config.num_columns` says how wide its ideas are. Keyword arguments of `sample` beyond those below are settings of
    the model, which the pipeline passes on by name: `num_inference_steps`, `truncation_psi`, `latents`; `scheduler`
    (the pipeline's component of that name) and `on_step` (see `AudioPipeline.telling`) make it a sampler of many steps,
    whose default number is that of the argument or, where this is `None`, what a method `steps_of(edit)` says.
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


def steps_of(model: IdeaModel, given: int | None, edit: IdeaEdit | None = None) -> int | None:
    """Denoising steps that a model takes: those given or its own number; `None` for a model without steps."""
    setting = settings_of(model).get("num_inference_steps")
    if setting is None or given is not None:
        return None if setting is None else given
    return model.steps_of(edit) if setting.default is None else setting.default


__all__ = ["IdeaModel", "check_settings", "settings_of", "steps_of"]
