"""Sketches in notes: played by the pipeline's performer or by the sampled piano, shrunk to an idea, expanded."""

from __future__ import annotations

import pytest
import torch
from midi_pipeline_for_tests import piece, tiny_midi_parts, tiny_midi_pipeline
from pipeline_utils_for_tests import seeded, tiny_parts, tiny_pipeline
from testing_utils import assert_error

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.processing.midi.notes import write_midi
from melreformer_hf.processing.midi.scores import piece_to_midi
from melreformer_hf.processing.midi.sounding import sounding_notes

CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(performer=tiny_midi_parts()["performer"])


def test_the_performer_s_mel_is_shrunk_and_expanded(pipe, tmp_path):
    score = piece()
    drawn = pipe.idea_of_midi(score)
    frames = int(drawn.num_frames[0])
    mel = pipe.performer.perform(sounding_notes(*score), frames)
    torch.testing.assert_close(drawn.ideas, resize_mel(mel, 32), **CLOSE)
    # As long, and with the mel, that the pipeline of notes plays.
    played = tiny_midi_pipeline()(midi=score)
    assert played.num_frames.tolist() == [frames]
    torch.testing.assert_close(pipe.sound_of_midi(score), played.audios[0, 0], **CLOSE)
    write_midi(piece_to_midi(*score), tmp_path / "sketch.mid")
    whole = pipe(midi=tmp_path / "sketch.mid", generator=seeded())
    torch.testing.assert_close(whole.audios, pipe.render_idea(*drawn).audios, **CLOSE)
    assert torch.equal(whole.audios, pipe(midi=score, generator=seeded()).audios)
    streamed = torch.cat(list(pipe.stream(midi=score, generator=seeded())), dim=-1)
    torch.testing.assert_close(streamed, whole.audios, **CLOSE)
    assert pipe(1.3, midi=score, output_type="idea").num_frames.tolist() == [112]
    assert pipe(audio_end_in_s=1.3, midi=score, output_type="idea").num_frames.tolist() == [112]
    assert next(pipe.stream(audio_end_in_s=0.01, midi=score)).shape == (1, 1, 256)


def test_the_sampled_piano_plays_where_it_is_asked_to_or_alone(pipe):
    score, alone = piece(), tiny_pipeline()
    sampled, performed = pipe.idea_of_midi(score, synth="sampled"), pipe.idea_of_midi(score, synth="performer")
    assert torch.equal(sampled.ideas, alone.idea_of_midi(score).ideas)
    assert torch.equal(performed.ideas, pipe.idea_of_midi(score).ideas)
    assert not torch.allclose(sampled.ideas, performed.ideas, atol=0.5)
    for asked, synth in ((pipe, "organ"), (alone, "performer"), (alone, 1)):
        with pytest.raises(ValueError) as error:
            asked.idea_of_midi(score, synth=synth)
        assert_error(error, "synth must be one of", repr(synth))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_inference_steps": 3}, "num_inference_steps"),
        ({"num_waveforms_per_prompt": 2}, "num_waveforms_per_prompt"),
        ({"latents": torch.zeros(1, 1, 16, 32)}, "latents"),
        ({"truncation_psi": 0.5}, "truncation_psi"),
        ({"callback_on_step_end": print}, "callback_on_step_end"),
    ],
)
def test_what_draws_an_idea_does_not_go_with_a_sketch(pipe, arguments, name):
    for call in (lambda: pipe(midi=piece(), **arguments), lambda: next(pipe.stream(midi=piece(), **arguments))):
        with pytest.raises(ValueError, match=f"{name} does not go with midi.*call vary"):
            call()


@pytest.fixture(scope="module")
def writing():
    parts = tiny_midi_parts()
    return tiny_pipeline(performer=parts["performer"], composer=parts["composer"])


def test_an_idea_of_composed_notes_is_that_of_the_piece_which_the_composer_writes(writing):
    drawn = writing.compose_idea(2.0, 2, generator=[seeded(3), seeded(4)])
    for row, seed in enumerate((3, 4)):
        mel = tiny_midi_pipeline()(2.0, generator=seeded(seed), output_type="mel").audios
        torch.testing.assert_close(drawn.ideas[row : row + 1], resize_mel(mel, drawn.ideas.shape[-1]), **CLOSE)
    assert drawn.num_frames.tolist() == [writing.frames_of(2.0)] * 2
    assert not torch.equal(writing.compose_idea(2.0, generator=seeded(3), temperature=0.3).ideas, drawn.ideas[:1])
    assert not torch.equal(writing.compose_idea(2.0, generator=seeded(3), top_p=0.1).ideas, drawn.ideas[:1])


def test_music_grows_from_composed_notes_on_request(writing):
    whole = writing(2.0, idea_from="notes", generator=seeded(3))
    generator = [seeded(3)]
    made = writing.render_idea(*writing.compose_idea(2.0, generator=generator), generator=generator)
    assert torch.equal(whole.audios, made.audios) and torch.equal(whole.ideas, made.ideas)
    streamed = torch.cat(list(writing.stream(2.0, idea_from="notes", generator=seeded(3))), dim=-1)
    torch.testing.assert_close(streamed, whole.audios, **CLOSE)
    assert not torch.equal(whole.ideas, writing(2.0, num_inference_steps=1, generator=seeded(3)).ideas)
    ended = writing.compose_idea(generator=seeded(3))  # the composer's own length
    assert ended.num_frames.item() != writing.frames_of(2.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"idea_from": "nothing"}, ["idea_from", "('noise', 'notes')", "'nothing'"]),
        ({"idea_from": "notes", "num_inference_steps": 3}, ["num_inference_steps", 'idea_from="notes"', "3"]),
        ({"idea_from": "notes", "latents": torch.zeros(1, 1, 16, 32)}, ["latents", "Tensor"]),
        ({"idea_from": "notes", "midi": piece()}, ["idea_from", "midi", "'notes'"]),
    ],
)
def test_what_does_not_go_with_composed_ideas_is_refused(writing, arguments, words):
    for call in (lambda: writing(1.0, **arguments), lambda: next(writing.stream(1.0, **arguments))):
        with pytest.raises(ValueError) as error:
            call()
        assert_error(error, *words)


def test_ideas_of_notes_need_a_composer_and_a_performer(pipe):
    with pytest.raises(ValueError, match="need a composer.*saved without one"):
        pipe(1.0, idea_from="notes")
    with pytest.raises(ValueError, match="need a performer"):
        tiny_pipeline(composer=tiny_midi_parts()["composer"]).compose_idea(1.0)


def test_a_performer_is_saved_loaded_and_checked(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "with")
    tiny_pipeline().save_pretrained(tmp_path / "without")
    loaded = MelReformerPipeline.from_pretrained(tmp_path / "with")
    assert torch.equal(loaded.idea_of_midi(piece()).ideas, pipe.idea_of_midi(piece()).ideas)
    assert MelReformerPipeline.from_pretrained(tmp_path / "without").performer is None
    # A folder that is shared keeps the performer of the other pipeline.
    tiny_midi_pipeline().save_pretrained(tmp_path / "both")
    tiny_pipeline().save_pretrained(tmp_path / "both")
    both = MelReformerPipeline.from_pretrained(tmp_path / "both")
    assert both.performer is not None and both.compose_idea(1.0, generator=seeded(3)).ideas.isfinite().all()
    other = NotePerformerModel(NotePerformerConfig.preset("test", mel={"num_mel_bins": 20}, num_voices=32))
    with pytest.raises(ValueError, match="performer has 20, expansion has 16"):
        MelReformerPipeline(**tiny_parts(), performer=other)
