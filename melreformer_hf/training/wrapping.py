"""Modules as the accelerator hands them back: plain, wrapped (DDP), or sharded among processes (FSDP2).

Everything that saves, loads or clips goes through here, so that no other file has to know which of the three it is.
A sharded module's weights are `DTensor`s; gathering them is a joint work of all processes, so every process calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from melreformer_hf.training.optimizers import OptimizerSettings, build_optimizer

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def prepare(
    accelerator: Accelerator, module: nn.Module, settings: OptimizerSettings
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Module and optimizer on the accelerator's devices.

    Together, because sharding replaces the parameters that an optimizer holds. The optimizer comes back bare: gradient
    scaling and its skipped steps are the updater's work, which steps several modules under one scale.
    """
    module = module.train().to(accelerator.device)
    module, optimizer = accelerator.prepare(module, build_optimizer(module, settings))
    return module, getattr(optimizer, "optimizer", optimizer)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside a wrapper; a sharded module has none and is returned as it is."""
    return extract_model_from_parallel(module)


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, gathered if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_like(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        # Each process keeps its part of what all of them have.
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    target.copy_(source)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Whole weights under the names of the bare module; of sharded ones on the CPU of the first process only."""
    if is_sharded(module):
        return get_model_state_dict(module, options=_WHOLE)
    return unwrapped(module).state_dict()


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `weights_of`, with the whole weights in every process.

    Raises:
        RuntimeError: names or shapes differ.
    """
    if is_sharded(module):
        set_model_state_dict(module, dict(weights), options=_WHOLE)
    else:
        unwrapped(module).load_state_dict(weights)


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state, whole as in `weights_of`."""
    # Of an optimizer without a state PyTorch would make one by a step, and so change the training that it saves.
    if is_sharded(module) and optimizer.state:
        return get_optimizer_state_dict(module, optimizer, options=_WHOLE)
    return optimizer.state_dict()


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """The inverse of `optimizer_state`; rates, decay and betas stay as they are set now.

    Raises:
        ValueError: the state belongs to another kind of optimizer.
    """
    chosen = [{key: group[key] for key in group.keys() - {"params", "lr"}} for group in optimizer.param_groups]
    kinds = [{group.get("kind") for group in groups} - {None} for groups in (state["param_groups"], chosen)]
    if kinds[0] and kinds[0] != kinds[1]:
        raise ValueError(f"it is of {' and '.join(kinds[0])}, not {' and '.join(kinds[1])}")
    if is_sharded(module) and state["state"]:
        set_optimizer_state_dict(module, optimizer, state, options=_WHOLE)
    else:
        optimizer.load_state_dict(state)
    # A state brings its own settings with it: who continues with another learning rate means the new one.
    for group, settings in zip(optimizer.param_groups, chosen, strict=True):
        group.update(settings)


def clip_gradients(module: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale a module's gradients down to a norm; the norm before that, over all processes' parts, scalar."""
    return whole(torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm)).detach()


@contextlib.contextmanager
def unsynchronized(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let wrapped modules keep their gradients to themselves until the last batch of a step.

    Sharded modules go on sharing theirs: holding whole gradients back would cost the memory that sharding saves.
    """
    with contextlib.ExitStack() as stack:
        for module in modules:
            if hasattr(module, "no_sync"):
                stack.enter_context(module.no_sync())
        yield


def average_gradients(module: nn.Module) -> None:
    """Average over processes what `unsynchronized` kept apart."""
    if not hasattr(module, "no_sync"):
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


@contextlib.contextmanager
def gradients_of_others_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the gradients of modules aside within a block, so that a loss which passes through them adds nothing."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    # Pointers are swapped, nothing is computed or copied.
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


__all__ = [
    "average_gradients",
    "clip_gradients",
    "copy_like",
    "gradients_of_others_kept",
    "is_sharded",
    "load_optimizer_state",
    "load_weights",
    "optimizer_state",
    "prepare",
    "unsynchronized",
    "unwrapped",
    "weights_of",
    "whole",
]
