"""Weight norms of whole state dicts: folding what checkpoints hold, and what a module in training holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

_NEWER_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def fold_weight_norm(magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The weight `g * v / |v|` of a weight-normalized layer; the norm is over every axis but the first."""
    return torch._weight_norm(direction, magnitude, 0)


def split_weight_norm(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(magnitude, direction) of a weight: the inverse of `fold_weight_norm`."""
    norm = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    return norm, weight.clone()


def fold_weight_norms(state_dict: Mapping[str, torch.Tensor], origin: str) -> dict[str, torch.Tensor]:
    """Replace every pair `weight_g`, `weight_v` (or their newer names) by the plain weight.

    Args:
        state_dict: tensors by name.
        origin: what the checkpoint is, for messages.

    Raises:
        ValueError: one half of a pair is missing, or the halves' shapes do not belong together.
    """
    names = {}
    for key in state_dict:
        ending = next((newer for newer in _NEWER_NAMES if key.endswith("." + newer)), None)
        names[key.removesuffix(ending) + _NEWER_NAMES[ending] if ending else key] = key
    plain = {}
    for name, key in names.items():
        stem, _, ending = name.rpartition(".")
        if ending not in ("weight_g", "weight_v"):
            plain[name] = state_dict[key]
            continue
        other = f"{stem}.{'weight_v' if ending == 'weight_g' else 'weight_g'}"
        if other not in names:
            raise ValueError(f"The {origin} checkpoint does not fit: it has {key!r} but not its other half {other!r}.")
        if ending == "weight_g":
            magnitude, direction = state_dict[key], state_dict[names[other]]
            expected = (*direction.shape[:1], *[1] * (direction.ndim - 1))
            if tuple(magnitude.shape) != expected:
                raise ValueError(
                    f"The {origin} checkpoint does not fit: key {key!r} has shape {tuple(magnitude.shape)}, its "
                    f"direction of shape {tuple(direction.shape)} asks for {expected}."
                )
            plain[f"{stem}.weight"] = fold_weight_norm(magnitude, direction)
    return plain


def split_weight_norms(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `fold_weight_norms`: every `weight` as `weight_g` and `weight_v`, everything else copied."""
    result = {}
    for key, value in state_dict.items():
        if key.endswith(".weight"):
            result[f"{key}_g"], result[f"{key}_v"] = split_weight_norm(value)
        else:
            result[key] = value.clone()
    return result


def plain_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """State dict of a module whose weight norms (if any) are folded, under the names it has without them."""
    # Spectral norms are parametrizations too, but of one tensor (`original`): those layers stay as they are.
    direction = ".parametrizations.weight.original1"
    state = module.state_dict()
    plain = {key: value for key, value in state.items() if not key.endswith(tuple(_NEWER_NAMES))}
    for name in [key.removesuffix(direction) for key in state if key.endswith(direction)]:
        plain[f"{name}.weight"] = module.get_submodule(name).weight.detach().contiguous()
    return plain


__all__ = ["fold_weight_norm", "fold_weight_norms", "plain_state_dict", "split_weight_norm", "split_weight_norms"]
