"""The package's families in one table, and how transformers and diffusers get to know them.

`import melreformer_hf` calls `register()`, which uses the libraries' `register` methods: afterwards `AutoModel` and its
kin load saved models, and `DiffusionPipeline` saved pipelines, whatever was imported before or will be after. Those
methods need the classes themselves, and with them torch, transformers and diffusers; whoever loads a pipeline imports
them anyway. Only the package's own commands leave it out at their start, so that `melreformer --help` is quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import PurePath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models.

    Args:
        config: configuration class.
        model: model class.
        feature_extractor: class that makes audio the model's input, of this package or of transformers.
        tokenizer: class that makes notes the model's input.
        auto_models: transformers' Auto classes that load the model, besides `AutoModel`.
        weights_license: of the weights that the original's authors published, where they stated one.
        has_original: whether checkpoints of another program load (`from_original`, `melreformer convert`).
    """

    config: str
    model: str
    feature_extractor: str | None = None
    tokenizer: str | None = None
    auto_models: tuple[str, ...] = ()
    weights_license: str = "unknown"
    has_original: bool = True


_MEL = "MelFeatureExtractor"
_WAVEFORM = "EncodecFeatureExtractor"
_CAUSAL = ("AutoModelForCausalLM",)

# name, as `melreformer convert --family` has it; the model type is melreformer_NAME
FAMILIES: dict[str, Family] = {
    "band_split_separator": Family(
        config="BandSplitSeparatorConfig",
        model="BandSplitSeparatorModel",
        feature_extractor=_WAVEFORM,
        has_original=False,
    ),
    "class_gpt": Family(config="ClassGptConfig", model="ClassGptModel", auto_models=_CAUSAL),
    "codec_lm": Family(config="CodecLMConfig", model="CodecLMModel"),
    "frame_transformer": Family(
        config="FrameTransformerConfig", model="FrameTransformerModel", feature_extractor=_WAVEFORM
    ),
    "gpt_vae": Family(config="GptVaeConfig", model="GptVaeModel", auto_models=_CAUSAL),
    "hifi_vocoder": Family(config="HifiVocoderConfig", model="HifiVocoderModel", feature_extractor=_MEL),
    "idea_stylegan2": Family(config="IdeaStyleGan2Config", model="IdeaStyleGan2Model", feature_extractor=_MEL),
    "mel_reformer": Family(config="MelReformerConfig", model="MelReformerModel", feature_extractor=_MEL),
    "mel_vqvae": Family(config="MelVqvaeConfig", model="MelVqvaeModel", feature_extractor=_MEL),
    "melgan_vocoder": Family(config="MelGanVocoderConfig", model="MelGanVocoderModel", feature_extractor=_MEL),
    "note_ear": Family(config="NoteEarConfig", model="NoteEarModel", feature_extractor=_MEL, has_original=False),
    "note_performer": Family(
        config="NotePerformerConfig", model="NotePerformerModel", feature_extractor=_MEL, has_original=False
    ),
    "note_transformer": Family(config="NoteTransformerConfig", model="NoteTransformerModel", has_original=False),
    "rq_transformer": Family(
        config="RQTransformerConfig",
        model="RQTransformerModel",
        tokenizer="MidiTokenizer",
        weights_license="cc-by-nc-sa-4.0",
    ),
    "soundstream": Family(
        config="SoundStreamConfig",
        model="SoundStreamModel",
        feature_extractor=_WAVEFORM,
        auto_models=("AutoModelForAudioTokenization",),
    ),
}

CONVERTIBLE = tuple(name for name, family in FAMILIES.items() if family.has_original)

PIPELINES = (
    "MelReformerPipeline",
    "MidiGenerationPipeline",
    "SeparationPipeline",
    "TokenGenerationPipeline",
)


def is_own_command() -> bool:
    """Whether this process is `melreformer ...` or `python -m melreformer_hf...`, or a worker that one of them spawned."""
    program, words = PurePath(sys.argv[0] if sys.argv else ""), sys.orig_argv
    if program.name in ("melreformer", "melreformer.exe", "melreformer-script.py"):
        return True
    if PurePath(__file__).parent in program.parents:
        return True
    return any(
        switch == "-m" and module.partition(".")[0] == "melreformer_hf"
        for switch, module in zip(words, words[1:], strict=False)
    )


def register() -> None:
    """Make all families known to transformers' Auto classes and all pipelines to diffusers; may be called again."""
    package = importlib.import_module("melreformer_hf")
    transformers = importlib.import_module("transformers")
    for name, family in FAMILIES.items():
        config, model = getattr(package, family.config), getattr(package, family.model)
        transformers.AutoConfig.register(f"melreformer_{name}", config, exist_ok=True)
        for auto in ("AutoModel", *family.auto_models):
            getattr(transformers, auto).register(config, model, exist_ok=True)
        if family.feature_extractor is not None:
            own = family.feature_extractor in package.__all__
            extractor = getattr(package if own else transformers, family.feature_extractor)
            transformers.AutoFeatureExtractor.register(config, extractor, exist_ok=True)
        if family.tokenizer is not None:
            tokenizer = getattr(package, family.tokenizer)
            transformers.AutoTokenizer.register(config, tokenizer_class=tokenizer, exist_ok=True)
    _register_pipelines(package)


def _register_pipelines(package) -> None:
    # diffusers has no `register`: DiffusionPipeline looks for the class that a saved pipeline names among its own
    # attributes, and takes components only from packages in this table. Tests guard both.
    diffusers = importlib.import_module("diffusers")
    loading = importlib.import_module("diffusers.pipelines.pipeline_loading_utils")
    methods = ["save_pretrained", "from_pretrained"]
    loading.LOADABLE_CLASSES.setdefault("melreformer_hf", {"PreTrainedModel": methods, "ModelMixin": methods})
    for name in PIPELINES:
        setattr(diffusers, name, getattr(package, name))


__all__ = ["CONVERTIBLE", "FAMILIES", "PIPELINES", "Family", "is_own_command", "register"]
