"""Long music from small ideas, Hugging Face style.

Public names are imported when they are first used. Importing the package makes its models known to transformers' Auto
classes and its pipelines to `diffusers.DiffusionPipeline`, see `_registration`.
"""

from __future__ import annotations

import importlib

from melreformer_hf import _registration

__version__ = "0.1.0"

_EXPORTS: dict[str, str] = {
    "MelConfig": "audio.mel",
    "log_mel_spectrogram": "audio.mel",
    "resize_mel": "audio.resize",
    "MelFeatureExtractor": "processing.feature_extraction_mel",
    "MidiGrammar": "processing.midi.grammar",
    "MidiNote": "processing.midi.notes",
    "MidiTokenizer": "processing.tokenization_midi",
    "HifiVocoderConfig": "models.hifi_vocoder.configuration_hifi_vocoder",
    "HifiVocoderModel": "models.hifi_vocoder.modeling_hifi_vocoder",
    "MelGanVocoderConfig": "models.melgan_vocoder.configuration_melgan_vocoder",
    "MelGanVocoderModel": "models.melgan_vocoder.modeling_melgan_vocoder",
    "MelReformerConfig": "models.mel_reformer.configuration_mel_reformer",
    "MelReformerModel": "models.mel_reformer.modeling_mel_reformer",
    "MelVqvaeConfig": "models.mel_vqvae.configuration_mel_vqvae",
    "MelVqvaeModel": "models.mel_vqvae.modeling_mel_vqvae",
    "ClassGptConfig": "models.class_gpt.configuration_class_gpt",
    "ClassGptModel": "models.class_gpt.modeling_class_gpt",
    "CodecLMConfig": "models.codec_lm.configuration_codec_lm",
    "CodecLMModel": "models.codec_lm.modeling_codec_lm",
    "GptVaeConfig": "models.gpt_vae.configuration_gpt_vae",
    "GptVaeModel": "models.gpt_vae.modeling_gpt_vae",
    "NoteEarConfig": "models.note_ear.configuration_note_ear",
    "NoteEarModel": "models.note_ear.modeling_note_ear",
    "NotePerformerConfig": "models.note_performer.configuration_note_performer",
    "NotePerformerModel": "models.note_performer.modeling_note_performer",
    "SoundingNotes": "nn.sounding",
    "sounding_notes": "processing.midi.sounding",
    "NoteTransformerConfig": "models.note_transformer.configuration_note_transformer",
    "NoteTransformerModel": "models.note_transformer.modeling_note_transformer",
    "BandSplitSeparatorConfig": "models.band_split_separator.configuration_band_split_separator",
    "BandSplitSeparatorModel": "models.band_split_separator.modeling_band_split_separator",
    "FrameTransformerConfig": "models.frame_transformer.configuration_frame_transformer",
    "FrameTransformerModel": "models.frame_transformer.modeling_frame_transformer",
    "RQTransformerConfig": "models.rq_transformer.configuration_rq_transformer",
    "RQTransformerModel": "models.rq_transformer.modeling_rq_transformer",
    "SoundStreamConfig": "models.soundstream.configuration_soundstream",
    "SoundStreamModel": "models.soundstream.modeling_soundstream",
    "IdeaUNetModel": "models.idea_unet.unet_idea",
    "IdeaStyleGan2Config": "models.idea_stylegan2.configuration_idea_stylegan2",
    "IdeaStyleGan2Model": "models.idea_stylegan2.modeling_idea_stylegan2",
    "MelReformerPipeline": "pipelines.pipeline_mel_reformer",
    "generate_arrival": "pipelines.arrival_generation",
    "MidiGenerationPipeline": "pipelines.pipeline_midi_generation",
    "TokenGenerationPipeline": "pipelines.pipeline_token_generation",
    "TokenSampling": "nn.token_drawing",
    "SeparationPipeline": "pipelines.pipeline_separation",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


# Bases by which diffusers tells how a component of this package is saved and loaded.
_BASES = {"PreTrainedModel": "transformers", "ModelMixin": "diffusers"}


def __getattr__(name: str):
    if name in _BASES:
        return getattr(importlib.import_module(_BASES[name]), name)
    if name not in _EXPORTS:
        raise AttributeError(f"module 'melreformer_hf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"melreformer_hf.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))


if not _registration.is_own_command():
    _registration.register()
