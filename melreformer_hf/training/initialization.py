"""How a model starts: weights of a pretrained one, and what saves memory."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.utils import parametrize

from melreformer_hf.originals.weight_norm import plain_state_dict
from melreformer_hf.training.recipes.base import Recipe


def load_pretrained(model: nn.Module, source: str, recipe: Recipe) -> None:
    """Fill a model with the weights of a published one (`init_from`).

    Published models have plain weights; layers that are weight-normed for training take them apart again.

    Args:
        model: what is trained, unwrapped.
        source: folder or Hub id.
        recipe: says whether the two belong together, and which parts may be new: those keep their initial values.

    Raises:
        ValueError: the weights belong to another contract or have other names or shapes.
    """
    # The same class: a base model of another family would fill half of the names.
    start = type(model).from_pretrained(source)
    recipe.check_start(start)
    weights, own = plain_state_dict(start), plain_state_dict(model)
    # What the model says may be missing keeps its first value.
    optional = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    missing = {name for name in own if name not in weights and not any(one.search(name) for one in optional)}
    other = {name for name, value in weights.items() if name in own and value.shape != own[name].shape}
    wrong = [name for name in missing | other | (weights.keys() - own.keys()) if not recipe.may_differ(name)]
    if wrong:
        told = ", ".join(
            f"{name} {tuple(weights[name].shape) if name in weights else 'missing'} instead of "
            f"{tuple(own[name].shape) if name in own else 'nothing'}"
            for name in sorted(wrong)[:4]
        )
        raise ValueError(f"The weights of init_from={source} do not fit this configuration: {told}.")
    weights = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict({name: value for name, value in weights.items() if name in model.state_dict()}, strict=False)
    for path, layer in model.named_modules():
        for name in getattr(layer, "parametrizations", {}) if parametrize.is_parametrized(layer) else ():
            given = weights.get(f"{path}.{name}" if path else name)
            if given is not None:
                setattr(layer, name, given)  # the norm's inverse: g = |v|, v = weight


def checkpoint_gradients(model: nn.Module) -> None:
    """Compute activations twice instead of keeping them.

    Raises:
        ValueError: the model cannot.
    """
    supported = ("supports_gradient_checkpointing", "_supports_gradient_checkpointing")
    if not any(getattr(model, name, False) for name in supported):
        raise ValueError(f"gradient_checkpointing must be false for {type(model).__name__}, which has none; got True.")
    # transformers' name, its name before, diffusers' name.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "enable_gradient_checkpointing")
    next(getattr(model, name) for name in names if hasattr(model, name))()


__all__ = ["checkpoint_gradients", "load_pretrained"]
