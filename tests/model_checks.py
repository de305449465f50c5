"""Checks of models that more than one family's tests make: captured graphs, recomputed activations, half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def assert_forward_compiles(model: nn.Module, inputs: dict, field: str) -> None:
    """The whole forward in training is one graph and gives what it gives without one."""
    model.train()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(**inputs)
        torch.manual_seed(0)
        actual = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
    torch.testing.assert_close(getattr(actual, field), getattr(expected, field), rtol=1e-4, atol=1e-5)
    model.eval()


def assert_forward_exports(model: nn.Module, inputs: dict, field: str) -> None:
    """`torch.export` takes the whole forward in evaluation, which so is one graph too."""
    model.eval()
    with torch.no_grad():
        program = torch.export.export(model, (), dict(inputs))
        actual, expected = program.module()(**inputs), model(**inputs)
    torch.testing.assert_close(getattr(actual, field), getattr(expected, field), rtol=1e-4, atol=1e-5)


def assert_step_compiles(step: Callable, *arguments: object) -> object:
    """One function, such as a step of a stream, is one graph; returns what it gives."""
    torch._dynamo.reset()
    with torch.no_grad():
        expected = step(*arguments)
        actual = torch.compile(step, backend="eager", fullgraph=True)(*arguments)
    for one, other in zip(_tensors(actual), _tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    return actual


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [tensor for item in vars(value).values() for tensor in _tensors(item)] if hasattr(value, "__dict__") else []


def assert_recomputing_changes_nothing(model: nn.Module, inputs: dict, loss: Callable[[object], torch.Tensor]) -> None:
    """With gradient checkpointing the gradients are those without, and blocks really run again in the backward."""
    recomputing = copy.deepcopy(model).train()
    # The newer name first: releases that have it warn about the other.
    enable = getattr(recomputing, "activation_checkpointing_enable", None) or recomputing.gradient_checkpointing_enable
    enable()
    blocks = [module for module in recomputing.modules() if getattr(module, "gradient_checkpointing", False)]
    assert len(blocks) > 1, "no block recomputes"
    runs = []
    inner = next(child for child in blocks[0].modules() if not list(child.children()))
    inner.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for one in (model.train(), recomputing):
        torch.manual_seed(0)
        loss(one(**inputs)).backward()
        gradients.append({name: parameter.grad for name, parameter in one.named_parameters()})
    assert len(runs) > 1, "the first block's activations were kept"
    for name, expected in gradients[0].items():
        if expected is not None:
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)


def assert_half_precision_survives_saving(model: nn.Module, inputs: dict, field: str, folder) -> nn.Module:
    """Saved, loaded in bfloat16 and run: finite and close; returns the loaded model."""
    model.eval().save_pretrained(folder)
    loaded = type(model).from_pretrained(folder, dtype=torch.bfloat16).eval()
    half = {
        key: value.bfloat16() if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    with torch.no_grad():
        expected, actual = getattr(model(**inputs), field), getattr(loaded(**half), field)
    assert actual.isfinite().all()
    scale = expected.abs().max().clamp(min=1e-3)
    assert (actual.float() - expected).abs().mean() / scale < 0.1
    return loaded
