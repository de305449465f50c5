"""Makes the package's models known to transformers' Auto classes, without importing anything heavy for it.

`AutoConfig.register` and its kin need the classes themselves, and those need torch. When transformers' auto modules are
imported (before or after this package), tables that load a class at its first look-up are put where `register` would
put the class. Tests guard the names this relies on, the mappings' `_extra_content` and the tokenizers' table.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Iterable

# model type -> config class, model class, feature extractor class
FAMILIES: dict[str, tuple[str, str, str | None]] = {
    "melreformer_class_gpt": ("ClassGptConfig", "ClassGptModel", None),
    "melreformer_codec_lm": ("CodecLMConfig", "CodecLMModel", None),
    "melreformer_frame_transformer": ("FrameTransformerConfig", "FrameTransformerModel", None),
    "melreformer_gpt_vae": ("GptVaeConfig", "GptVaeModel", None),
    "melreformer_hifi_vocoder": ("HifiVocoderConfig", "HifiVocoderModel", "MelFeatureExtractor"),
    "melreformer_idea_stylegan2": ("IdeaStyleGan2Config", "IdeaStyleGan2Model", None),
    "melreformer_mel_reformer": ("MelReformerConfig", "MelReformerModel", "MelFeatureExtractor"),
    "melreformer_mel_vqvae": ("MelVqvaeConfig", "MelVqvaeModel", "MelFeatureExtractor"),
    "melreformer_melgan_vocoder": ("MelGanVocoderConfig", "MelGanVocoderModel", "MelFeatureExtractor"),
    "melreformer_rq_transformer": ("RQTransformerConfig", "RQTransformerModel", None),
    "melreformer_soundstream": ("SoundStreamConfig", "SoundStreamModel", None),
}

TOKENIZERS: tuple[str, ...] = ("MidiTokenizer",)

# families that AutoModelForAudioTokenization loads, too
AUDIO_TOKENIZERS = ("melreformer_soundstream",)


class _LazyConfigs(dict):
    """Model type -> config class, loaded when asked for."""

    def __init__(self, load: Callable[[str], type], known: dict) -> None:
        super().__init__(known)
        self._load = load

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in FAMILIES

    def __missing__(self, key: str) -> type:
        if key not in FAMILIES:
            raise KeyError(key)
        self[key] = self._load(FAMILIES[key][0])
        return self[key]

    def _fill(self) -> dict:
        return {**{key: self[key] for key in FAMILIES}, **dict(super().items())}

    def keys(self):
        return self._fill().keys()

    def values(self):
        return self._fill().values()

    def items(self):
        return self._fill().items()


class _LazyClasses(dict):
    """Config class -> model or extractor class, loaded when a config class of this package is asked for."""

    def __init__(
        self, load: Callable[[str], type], known: dict, position: int, model_types: Iterable[str] = FAMILIES
    ) -> None:
        super().__init__(known)
        self._load, self._position = load, position
        self._families = [FAMILIES[model_type] for model_type in model_types]

    def _name(self, key: object) -> str | None:
        for family in self._families:
            if getattr(key, "__name__", None) == family[0] and key.__module__.startswith("melreformer_hf."):
                return family[self._position]
        return None

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or self._name(key) is not None

    def __missing__(self, key: type) -> type:
        name = self._name(key)
        if name is None:
            raise KeyError(key)
        self[key] = self._load(name)
        return self[key]

    def _fill(self) -> dict:
        for family in self._families:
            if family[self._position] is not None:
                self[self._load(family[0])]
        return dict(super().items())

    def keys(self):
        return self._fill().keys()

    def values(self):
        return self._fill().values()

    def items(self):
        return self._fill().items()


class _LazyTokenizers(dict):
    """Class name, as saved tokenizers have it -> tokenizer class, loaded when asked for."""

    def __init__(self, load: Callable[[str], type], known: dict) -> None:
        super().__init__(known)
        self._load = load

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in TOKENIZERS

    def __missing__(self, key: str) -> type:
        if key not in TOKENIZERS:
            raise KeyError(key)
        self[key] = self._load(key)
        return self[key]


def _install_tokenizers(module, load: Callable[[str], type]) -> None:
    module.REGISTERED_TOKENIZER_CLASSES = _LazyTokenizers(load, module.REGISTERED_TOKENIZER_CLASSES)


def _install_configs(module, load: Callable[[str], type]) -> None:
    mapping = module.CONFIG_MAPPING
    mapping._extra_content = _LazyConfigs(load, mapping._extra_content)


def _install_models(module, load: Callable[[str], type]) -> None:
    mapping = module.MODEL_MAPPING
    mapping._extra_content = _LazyClasses(load, mapping._extra_content, 1)
    mapping = module.MODEL_FOR_AUDIO_TOKENIZATION_MAPPING
    mapping._extra_content = _LazyClasses(load, mapping._extra_content, 1, AUDIO_TOKENIZERS)


def _install_feature_extractors(module, load: Callable[[str], type]) -> None:
    mapping = module.FEATURE_EXTRACTOR_MAPPING
    mapping._extra_content = _LazyClasses(load, mapping._extra_content, 2)


_STEPS = {
    "transformers.models.auto.configuration_auto": _install_configs,
    "transformers.models.auto.modeling_auto": _install_models,
    "transformers.models.auto.feature_extraction_auto": _install_feature_extractors,
    "transformers.models.auto.tokenization_auto": _install_tokenizers,
}


class _InstallingLoader(importlib.abc.Loader):
    """Runs a module's own loader, then installs the table."""

    def __init__(self, loader: importlib.abc.Loader, install: Callable) -> None:
        self._loader, self._install = loader, install

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module) -> None:
        self._loader.exec_module(module)
        self._install(module)


class _InstallingFinder(importlib.abc.MetaPathFinder):
    """Finds only the auto modules, through the finders that come after it."""

    def __init__(self, load: Callable[[str], type], waiting: dict) -> None:
        self._load, self._waiting = load, waiting

    def find_spec(self, fullname, path=None, target=None):
        step = self._waiting.pop(fullname, None)
        if step is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _InstallingLoader(spec.loader, lambda module: step(module, self._load))
                return spec
        return None


def register_when_imported(load: Callable[[str], type]) -> None:
    """Install the tables into what transformers has already imported, and into the rest when it is imported."""
    waiting = dict(_STEPS)
    for name, step in _STEPS.items():
        if name in sys.modules:
            waiting.pop(name)
            step(sys.modules[name], load)
    if waiting:
        sys.meta_path.insert(0, _InstallingFinder(load, waiting))


__all__ = ["FAMILIES", "TOKENIZERS", "register_when_imported"]
