"""Losses that need no network of their own, or a second network. Names are imported when they are first used."""

from __future__ import annotations

import importlib

_EXPORTS: dict[str, str] = {
    "LossBalancer": "balancer",
    "adaptive_weight": "balancer",
    "channel_average_loss": "codec",
    "diffusion_loss": "diffusion",
    "discriminator_loss": "adversarial",
    "feature_matching_loss": "adversarial",
    "generator_loss": "adversarial",
    "hinge_discriminator_loss": "hinge",
    "hinge_generator_loss": "hinge",
    "logistic_discriminator_loss": "stylegan2",
    "multi_window_mel_distance": "codec",
    "nonsaturating_generator_loss": "stylegan2",
    "path_length_penalty": "stylegan2",
    "r1_penalty": "stylegan2",
    "separation_term": "hinge",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
