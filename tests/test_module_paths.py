"""Module paths are part of the on-disk format: saved pipelines name them, so that a published one never moves."""

from __future__ import annotations

import importlib

import pytest

import melreformer_hf
from melreformer_hf._registration import CONVERTIBLE, FAMILIES

PUBLISHED = {
    "melreformer_hf.models.band_split_separator.modeling_band_split_separator": "BandSplitSeparatorModel",
    "melreformer_hf.models.class_gpt.modeling_class_gpt": "ClassGptModel",
    "melreformer_hf.models.codec_lm.modeling_codec_lm": "CodecLMModel",
    "melreformer_hf.models.frame_transformer.modeling_frame_transformer": "FrameTransformerModel",
    "melreformer_hf.models.gpt_vae.modeling_gpt_vae": "GptVaeModel",
    "melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder": "HifiVocoderModel",
    "melreformer_hf.models.idea_unet.unet_idea": "IdeaUNetModel",
    "melreformer_hf.models.idea_stylegan2.modeling_idea_stylegan2": "IdeaStyleGan2Model",
    "melreformer_hf.models.mel_reformer.modeling_mel_reformer": "MelReformerModel",
    "melreformer_hf.models.mel_vqvae.modeling_mel_vqvae": "MelVqvaeModel",
    "melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder": "MelGanVocoderModel",
    "melreformer_hf.models.note_ear.modeling_note_ear": "NoteEarModel",
    "melreformer_hf.models.note_performer.modeling_note_performer": "NotePerformerModel",
    "melreformer_hf.models.note_transformer.modeling_note_transformer": "NoteTransformerModel",
    "melreformer_hf.models.rq_transformer.modeling_rq_transformer": "RQTransformerModel",
    "melreformer_hf.models.soundstream.modeling_soundstream": "SoundStreamModel",
    "melreformer_hf.pipelines.pipeline_mel_reformer": "MelReformerPipeline",
    "melreformer_hf.pipelines.pipeline_midi_generation": "MidiGenerationPipeline",
    "melreformer_hf.pipelines.pipeline_token_generation": "TokenGenerationPipeline",
    "melreformer_hf.pipelines.pipeline_separation": "SeparationPipeline",
    "melreformer_hf.processing.feature_extraction_mel": "MelFeatureExtractor",
    "melreformer_hf.processing.tokenization_midi": "MidiTokenizer",
}


@pytest.mark.parametrize("path", sorted(PUBLISHED))
def test_published_modules_stay_where_they_are(path):
    module = importlib.import_module(path)
    published = getattr(module, PUBLISHED[path])
    assert published.__module__ == path
    # diffusers finds a component's loader by one of these names inside the component's own module.
    if ".models." in path:
        assert hasattr(module, "PreTrainedModel") or hasattr(module, "ModelMixin")


@pytest.mark.parametrize("family", sorted(CONVERTIBLE))
def test_every_family_that_converts_has_both_directions(family):
    model = getattr(melreformer_hf, FAMILIES[family].model)
    assert callable(model.from_original) and callable(model.to_original_state_dict)
