"""What the sampler forbids, and not one value more."""

from __future__ import annotations

import math

import torch

from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.models.note_transformer.sampling_note_transformer import NoteSampler


def test_within_an_onset_the_next_pitch_is_at_least_a_semitone_higher():
    torch.manual_seed(0)
    sampler = NoteSampler(NoteTransformerModel(NoteTransformerConfig.preset("test")).eval(), 2, None, None)
    played = torch.tensor([[[1, 60, 1, 1, 0]], [[1, 60, 1, 1, 0]]])
    sampler.feed(torch.full((2, 1), 2), played, torch.zeros(2, 1), torch.ones(2, 1).bool())
    logits = torch.zeros(2, 128)
    sampler._follow_grammar(logits, 1, [0, 1], may_end=False)
    assert (logits[0, :61] == -math.inf).all() and not logits[0, 61:].any() and not logits[1].any()
