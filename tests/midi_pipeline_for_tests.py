"""A tiny pipeline of notes with random weights, and pieces for its tests."""

from __future__ import annotations

import torch
from pipeline_utils_for_tests import MEL, tiny_parts

from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.pipelines.composing import Score
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.processing.midi.attributes import END
from melreformer_hf.processing.midi.notes import MidiNote


def tiny_composer() -> NoteTransformerModel:
    """Chance, but with five notes or so a second, in a few octaves."""
    torch.manual_seed(0)
    net = NoteTransformerModel(NoteTransformerConfig.preset("test", initializer_range=0.2)).eval()
    with torch.no_grad():
        times, pitches, *_ = (head.classifier.bias for head in net.head.heads)
        times[:40] += 4.0
        times[0] += 2.0
        times[END] = -5.0
        pitches[40:90] += 6.0
    return net


def tiny_midi_parts(mel: dict = MEL) -> dict:
    vocoder = tiny_parts(mel)["vocoder"]
    torch.manual_seed(0)
    performer = NotePerformerModel(NotePerformerConfig.preset("test", mel=mel, num_voices=32)).eval()
    return {"composer": tiny_composer(), "performer": performer, "vocoder": vocoder}


def tiny_midi_pipeline() -> MidiGenerationPipeline:
    pipe = MidiGenerationPipeline(**tiny_midi_parts())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def piece() -> Score:
    """Two seconds of thirds under the pedal, and a long note at the end."""
    notes = [
        MidiNote(20 * index, 15, 60 + 2 * (index % 5) + third, 0, 60 + index)
        for index in range(10)
        for third in (0, 4)
    ]
    return Score([*notes, MidiNote(210, 60, 48, 0, 90)], [(0, 45), (100, 190)])
