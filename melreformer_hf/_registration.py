"""Makes the package's models known to transformers' Auto classes, without importing transformers for it.

`AutoConfig.register` needs the classes themselves, and those need torch. Registration therefore waits until
`transformers.models.auto` is imported by somebody (or happens at once if it already is).
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable

# model type of the config class, config, model, further Auto classes beside AutoModel
_CONFIGS: list[str] = ["HifiVocoderConfig", "MelReformerConfig"]
_MODELS: list[tuple[str, str, tuple[str, ...]]] = [
    ("HifiVocoderConfig", "HifiVocoderModel", ()),
    ("MelReformerConfig", "MelReformerModel", ()),
]
_FEATURE_EXTRACTORS: list[tuple[str, str]] = [
    ("HifiVocoderConfig", "MelFeatureExtractor"),
    ("MelReformerConfig", "MelFeatureExtractor"),
]


def _register_configs(load: Callable[[str], type]) -> None:
    from transformers import AutoConfig

    for name in _CONFIGS:
        config = load(name)
        AutoConfig.register(config.model_type, config)


def _register_models(load: Callable[[str], type]) -> None:
    from transformers.models.auto import modeling_auto

    for config, model, more in _MODELS:
        for auto in ("AutoModel", *more):
            getattr(modeling_auto, auto).register(load(config), load(model))


def _register_feature_extractors(load: Callable[[str], type]) -> None:
    from transformers import AutoFeatureExtractor

    for config, extractor in _FEATURE_EXTRACTORS:
        AutoFeatureExtractor.register(load(config), load(extractor))


_STEPS = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractors,
}


class _RegisteringLoader(importlib.abc.Loader):
    """Runs a module's own loader, then registers."""

    def __init__(self, loader: importlib.abc.Loader, register: Callable[[], None]) -> None:
        self._loader = loader
        self._register = register

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        self._loader.exec_module(module)
        self._register()


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Finds only the Auto modules, through the finders that come after it."""

    def __init__(self, load: Callable[[str], type]) -> None:
        self._load = load
        self._waiting = dict(_STEPS)

    def find_spec(self, fullname, path=None, target=None):
        step = self._waiting.pop(fullname, None)
        if step is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _RegisteringLoader(spec.loader, lambda: step(self._load))
                return spec
        return None


def register_when_imported(load: Callable[[str], type]) -> None:
    """Register now what transformers has already imported, and the rest when it is imported."""
    finder = _RegisteringFinder(load)
    for name, step in _STEPS.items():
        if name in sys.modules:
            finder._waiting.pop(name)
            step(load)
    if finder._waiting:
        sys.meta_path.insert(0, finder)


__all__ = ["register_when_imported"]
