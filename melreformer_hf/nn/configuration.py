"""Configuration base that refuses what it does not know."""

import dataclasses
from typing import ClassVar, Self

from transformers import PreTrainedConfig

from melreformer_hf._text import suggest
from melreformer_hf.audio.mel import MelConfig


class StrictConfig(PreTrainedConfig):
    """`PreTrainedConfig` that raises on unknown keyword arguments, where the library would keep a typo silently.

    Subclasses decorate with `huggingface_hub.dataclasses.strict`, annotate every field, put their rules into
    `validate_<rule>(self)` methods and their named sizes into `_presets`.

    Raises:
        ValueError: a keyword is neither a field of the class nor one that the library writes itself.
    """

    _presets: ClassVar[dict[str, dict]] = {}

    @classmethod
    def preset(cls, name: str, **overrides: object) -> Self:
        """A published (or the package's own) size by name, with single fields replaced by `overrides`.

        Raises:
            ValueError: there is no such preset; the message names those that there are.
        """
        if name not in cls._presets:
            raise ValueError(f"{cls.__name__}.preset: name must be one of {sorted(cls._presets)}, got {name!r}.")
        return cls(**{**cls._presets[name], **overrides})

    def __post_init__(self, **kwargs):
        known = {field.name for field in dataclasses.fields(self)} | set(vars(PreTrainedConfig()))
        unknown = [key for key in kwargs if key not in known and not key.startswith("_")]
        allowed = {
            "model_type",
            "name_or_path",
            "transformers_version",
            "auto_map",
            "torch_dtype",
            "dtype",
            "attn_implementation",
            "output_attentions",
        }
        for key in unknown:
            if key in allowed:
                continue
            message = f"{type(self).__name__} has no field {key!r} (received {kwargs[key]!r})."
            raise ValueError(f"{message} {suggest(key, known)}".rstrip())
        super().__post_init__(**kwargs)


def mel_config_of(values: dict | None, **defaults: object) -> MelConfig:
    """The contract in a config's `mel` field; the package's own default when it is `None`.

    The default is the HiFi-GAN front end over the full range (magnitude, natural logarithm) with 128 bands.
    """
    if values is None:
        return MelConfig.preset("hifigan", **{"num_mel_bins": 128, "fmax": None, **defaults})
    return MelConfig.from_dict(values)


def waveform_preprocessor(sampling_rate: int, channels: int) -> dict:
    """What `preprocessor_config.json` of a model that hears waveforms says, for transformers' `AutoFeatureExtractor`.

    Args:
        sampling_rate: samples per second.
        channels: of the waveform; the extractor returns `input_values` (batch, channel, sample) and a `padding_mask`.
    """
    return {
        "chunk_length_s": None,
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": channels,
        "overlap": None,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": sampling_rate,
    }


class MelStrictConfig(StrictConfig):
    """`StrictConfig` of a model that takes or makes log-mel spectrograms; subclasses have a field `mel: dict | None`."""

    @property
    def mel_config(self) -> MelConfig:
        """The mel contract."""
        return mel_config_of(self.mel)

    @property
    def preprocessor_config(self) -> dict:
        """What `preprocessor_config.json` says: audio becomes this model's log-mels by the package's extractor."""
        mel = self.mel_config
        return {
            "feature_extractor_type": "MelFeatureExtractor",
            "feature_size": mel.num_mel_bins,
            "mel": mel.to_dict(),
            "padding_side": "right",
            "padding_value": mel.floor_value,
            "return_attention_mask": True,
            "sampling_rate": mel.sampling_rate,
        }

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms behind the mels."""
        return self.mel_config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.mel_config.hop_length

    @property
    def num_mel_bins(self) -> int:
        """Mel bands."""
        return self.mel_config.num_mel_bins


__all__ = ["MelStrictConfig", "StrictConfig", "mel_config_of", "waveform_preprocessor"]
