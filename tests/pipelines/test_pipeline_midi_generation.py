"""The pipeline of notes: seeds, rows, streams, files, modes, folders that it shares, refusals."""

from __future__ import annotations

import doctest
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from midi_pipeline_for_tests import piece, tiny_midi_parts, tiny_midi_pipeline
from pipeline_utils_for_tests import MEL, seeded, tiny_pipeline
from testing_utils import assert_error

from melreformer_hf.audio.mel import MelConfig, log_mel_spectrogram
from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.pipelines import pipeline_midi_generation
from melreformer_hf.pipelines.composing import Score, held_notes
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.processing.midi.notes import DRUMS, MidiNote, read_notes
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.scores import piece_to_midi
from melreformer_hf.processing.midi.sounding import sounding_notes

RATE, HOP = 22050, 256
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe():
    return tiny_midi_pipeline()


def generate(pipe, **arguments):
    return pipe(**{"audio_length_in_s": 1.5, "generator": seeded(), **arguments})


def test_length_notes_and_fields(pipe):
    output = generate(pipe)
    frames = round(1.5 * RATE / HOP)
    assert output.audios.shape == (1, 1, frames * HOP) and output.mels.shape == (1, 16, frames)
    assert output.sampling_rate == RATE and output.num_frames.tolist() == [frames] and output.peak_db == -1.0
    assert output.audios.isfinite().all() and output.audios.any()
    (notes,) = output.notes
    assert len(notes) > 2 and all(note.onset + note.duration <= 150 for note in notes)


def test_one_generator_drives_everything_and_rows_do_not_change_when_others_join(pipe):
    rows = [generate(pipe, generator=seeded(seed)) for seed in (0, 1)]
    assert rows[0].notes != rows[1].notes
    together = generate(pipe, num_waveforms_per_prompt=2, generator=[seeded(0), seeded(1)])
    assert together.notes == [rows[0].notes[0], rows[1].notes[0]]
    torch.testing.assert_close(together.audios, torch.cat([row.audios for row in rows]), **CLOSE)
    assert generate(pipe, num_waveforms_per_prompt=2).notes[0] == rows[0].notes[0]
    assert pipe.compose(1.5, generator=seeded()) == Score(rows[0].notes[0], rows[0].pedal[0])


@pytest.mark.parametrize("synth", ["performer", "sampled"])
@pytest.mark.parametrize("chunk", [0.1, None, 10.0])
def test_a_stream_equals_the_whole(pipe, chunk, synth):
    whole, told = generate(pipe, synth=synth, audio_length_in_s=3.0), []
    pieces = list(
        pipe.stream(3.0, generator=seeded(), chunk_length_in_s=chunk, synth=synth, callback_on_note=told.append)
    )
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole.audios, **CLOSE)
    assert sorted(held_notes(told)) == sorted(whole.notes[0])
    assert len(pieces) > 2 or chunk == 10.0


def test_a_stream_writes_no_further_than_it_plays(pipe):
    told: list = []
    stream = pipe.stream(600.0, generator=seeded(), callback_on_note=told.append)
    played = 0
    for _ in range(4):
        played += next(stream).shape[-1] / RATE
        assert played < told[-1].onset / 100 < played + 3.0


# A process of its own: tensors that other tests have left in caches and threads would be counted, too.
_HELD = """
import gc
import torch
from midi_pipeline_for_tests import tiny_midi_pipeline

def held():
    gc.collect()
    return sum(thing.numel() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

pipe = tiny_midi_pipeline()
weights = held()
stream = pipe.stream(120.0, generator=torch.Generator().manual_seed(0))
for number, _ in enumerate(stream):
    if number in (40, 80, 150):
        print(held() - weights)
"""


@pytest.mark.slow
def test_a_stream_holds_no_more_after_two_minutes_than_after_half_a_minute():
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    run = subprocess.run(
        [sys.executable, "-c", _HELD], env=environment, capture_output=True, text=True, check=True, timeout=900
    )
    sizes = [int(line) for line in run.stdout.split()]
    assert len(sizes) == 3 and max(sizes) <= 1.2 * sizes[0], sizes


def test_what_the_composer_ends_dies_away(pipe):
    score = Score([MidiNote(0, 50, 60, 0, 80)], [(0, 100)])
    assert pipe(midi=score).durations[0] == pytest.approx(2.0, abs=0.02)  # the pedal is lifted after a second
    assert pipe(midi=score, audio_length_in_s=0.5).durations[0] == pytest.approx(0.5, abs=0.02)


def test_a_file_is_played_as_it_is(pipe, tmp_path):
    score = piece()
    piece_to_midi(*score).save(tmp_path / "sketch.mid")
    content = (tmp_path / "sketch.mid").read_bytes()
    outputs = [pipe(midi=given) for given in (score, tmp_path / "sketch.mid", content, str(tmp_path / "sketch.mid"))]
    with open(tmp_path / "sketch.mid", "rb") as file:
        outputs.append(pipe(midi=file))
    for output in outputs:
        assert sorted(output.notes[0]) == sorted(score.notes) and output.pedal[0] == score.pedal
        assert torch.equal(output.audios, outputs[0].audios)
    heard = sounding_notes(score.notes, score.pedal)
    expected = pipe.performer.perform(heard, int(outputs[0].num_frames[0]))
    torch.testing.assert_close(outputs[0].mels, expected, **CLOSE)
    torch.testing.assert_close(pipe.vocoder(expected).waveform[:, None], outputs[0].audios, **CLOSE)
    assert not torch.equal(pipe(midi=score.notes).audios, outputs[0].audios)  # without the pedal
    streamed = torch.cat(list(pipe.stream(midi=content)), dim=-1)
    torch.testing.assert_close(streamed, outputs[0].audios, **CLOSE)


def test_the_sampled_piano_plays_the_same_notes(pipe):
    output = pipe(midi=piece(), synth="sampled")
    heard, samples = sounding_notes(*piece()), int(output.num_samples[0])
    expected = SampledInstrument().render(heard, 0, samples)[None]
    torch.testing.assert_close(output.audios, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.mels, log_mel_spectrogram(expected[:, 0], pipe.mel_config), **CLOSE)
    assert torch.equal(pipe(midi=piece(), synth="sampled", output_type="mel").audios, output.mels)


def test_output_types(pipe):
    whole = generate(pipe)
    mel = generate(pipe, output_type="mel")
    torch.testing.assert_close(mel.audios, whole.mels, **CLOSE)
    assert generate(pipe, output_type="notes").audios == whole.notes
    (content,) = generate(pipe, output_type="midi").audios
    assert sorted(read_notes(content)) == sorted(whole.notes[0]) and [content] == whole.midi
    assert read_pedal(content) == whole.pedal[0]
    assert isinstance(generate(pipe, output_type="np").audios, np.ndarray)
    assert generate(pipe, return_dict=False)[0].shape == whole.audios.shape


def test_saving_sound_and_notes(pipe, tmp_path):
    output = generate(pipe, num_waveforms_per_prompt=2)
    assert [path.name for path in output.save(tmp_path / "new" / "a.mid")] == ["a-0.mid", "a-1.mid"]
    assert sorted(read_notes(tmp_path / "new" / "a-1.mid")) == sorted(output.notes[1])
    assert [path.name for path in output.save(tmp_path / "a.flac")] == ["a-0.flac", "a-1.flac"]
    silent = generate(pipe, output_type="notes")
    silent.save(tmp_path / "b.mid")
    with pytest.raises(ValueError, match="save needs sound"):
        silent.save(tmp_path / "b.wav")


def test_continuing_keeps_the_beginning_and_streams(pipe):
    score = piece()
    output = pipe.continue_(score, 5.0, generator=seeded())
    (notes,) = output.notes
    new = [note for note in notes if note not in score.notes]
    assert set(score.notes) <= set(notes) and min(note.onset for note in new) >= 210 and len(new) > 3
    assert output.durations[0] == pytest.approx(5.0, abs=0.02)
    streamed = torch.cat(list(pipe.stream(5.0, prompt=score, generator=seeded())), dim=-1)
    torch.testing.assert_close(streamed, output.audios, **CLOSE)
    rows = pipe.continue_(
        score, 5.0, num_waveforms_per_prompt=2, generator=[seeded(1), seeded(0)], output_type="notes"
    )
    assert rows.notes[1] == notes != rows.notes[0]


def test_filling_keeps_both_sides_and_accompanying_keeps_the_melody(pipe):
    score = Score([*piece().notes, MidiNote(500, 50, 60, 0, 80), MidiNote(550, 50, 64, 0, 80)])
    (notes,) = pipe.fill(score, 2.2, 4.9, generator=seeded(3), output_type="notes").notes
    assert set(score.notes) <= set(notes)
    assert all(220 <= note.onset < 490 for note in notes if note not in score.notes) and len(notes) > len(score.notes)
    melody = [MidiNote(100 * index, 90, 72 + index, 0, 80) for index in range(5)]
    (notes,) = pipe.accompany(melody, generator=seeded(), output_type="notes").notes
    assert set(melody) <= set(notes) and len(notes) > 8
    assert max(note.onset + note.duration for note in notes) <= 490


def test_temperature_and_top_p_reach_the_composer(pipe):
    usual = generate(pipe, output_type="notes").notes
    assert generate(pipe, output_type="notes", temperature=1.0, top_p=0.98).notes == usual
    sure = [generate(pipe, output_type="notes", temperature=1e-4, generator=seeded(s)).notes for s in (0, 1)]
    assert sure[0] == sure[1] != usual
    assert generate(pipe, output_type="notes", top_p=1e-6, generator=seeded(5)).notes == sure[0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"audio_length_in_s": 0}, "audio_length_in_s"),
        ({"audio_length_in_s": float("nan")}, "audio_length_in_s"),
        ({"num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt.*got 0"),
        ({"output_type": "wav"}, "output_type.*wav"),
        ({"synth": "organ"}, "synth.*organ"),
        ({"generator": 7}, "torch.Generator.*got 7"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_p": 2.0}, "top_p must be in"),
        ({"midi": []}, "midi holds no notes: there is nothing to play"),
        ({"midi": [MidiNote(0, 5, 40, DRUMS, 90)]}, "only drums, which are not played"),
        ({"midi": [MidiNote(0, 5, 400, 0, 90)]}, r"notes\[0\].pitch"),
        ({"midi": b"no music"}, "not a readable MIDI file"),
        ({"midi": piece(), "num_waveforms_per_prompt": 2}, "must be 1 with midi, got 2"),
    ],
)
def test_wrong_arguments_are_refused(pipe, arguments, match):
    with pytest.raises(ValueError, match=match):
        generate(pipe, **arguments)


def test_wrong_streams_and_modes_are_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        next(pipe.stream(midi=piece(), prompt=piece()))
    with pytest.raises(ValueError, match="chunk_length_in_s"):
        next(pipe.stream(1.0, chunk_length_in_s=0))
    with pytest.raises(ValueError, match="has no ear"):
        pipe.transcribe(torch.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="seconds must be a number beyond 2.1 s"):
        pipe.continue_(piece(), 1.0)
    with pytest.raises(FileNotFoundError):
        pipe(midi=tmp_path / "nowhere.mid")
    piece_to_midi([]).save(tmp_path / "empty.mid")
    with pytest.raises(ValueError, match="empty.mid holds no notes"):
        pipe.continue_(tmp_path / "empty.mid")


def test_parts_of_different_contracts_are_refused():
    parts = tiny_midi_parts()
    other = MelConfig.from_dict({**MEL, "hop_length": 128}).to_dict()
    parts["performer"] = tiny_midi_parts(other)["performer"]
    with pytest.raises(ValueError) as error:
        MidiGenerationPipeline(**parts)
    assert_error(error, "hop_length: performer has 128, vocoder has 256")


def test_folder_round_trip(pipe, tmp_path):
    expected = generate(pipe).audios
    pipe.save_pretrained(tmp_path, card={"data": "sonatas"})
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["performer"] == ["melreformer_hf", "NotePerformerModel"] and index["ear"] == [None, None]
    card = (tmp_path / "README.md").read_text()
    assert "sonatas" in card and "- midi" in card and "MidiGenerationPipeline.from_pretrained" in card
    assert "writes them one after another" in card and "idea" not in card
    for kind in (MidiGenerationPipeline, DiffusionPipeline):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is MidiGenerationPipeline
        torch.testing.assert_close(generate(loaded).audios, expected, **CLOSE)


def test_two_pipelines_share_a_folder(pipe, tmp_path, caplog, monkeypatch):
    """The one saved last is the folder's own; both load, without a word about each other's parts."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)  # to `caplog`
    idea_pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    idea_pipe.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert names == {"composer", "performer", "vocoder", "idea", "expansion", "scheduler"}
    caplog.clear()
    found = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(found) is MelReformerPipeline and set(found.components) == {
        "idea",
        "scheduler",
        "composer",
        "expansion",
        "vocoder",
        "performer",
    }
    loaded = MidiGenerationPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(generate(loaded).audios, generate(pipe).audios, **CLOSE)
    again = MelReformerPipeline.from_pretrained(tmp_path)
    arguments = {"num_inference_steps": 2, "audio_length_in_s": 0.5}
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(
        again(generator=seeded(), **arguments).audios, idea_pipe(generator=seeded(), **arguments).audios, **CLOSE
    )
    assert "not expected" not in caplog.text
    again.save_pretrained(tmp_path / "alone")
    written = json.loads((tmp_path / "alone" / "model_index.json").read_text())
    assert {name for name in written if not name.startswith("_")} == set(found.components)


@pytest.mark.skipif(not (BUNDLED / "piano-tiny" / "composer").is_dir(), reason="no composer is bundled in this tree")
def test_docstring_example():
    results = doctest.testmod(pipeline_midi_generation)
    assert results.attempted and not results.failed


@pytest.mark.skipif(not (BUNDLED / "piano-tiny" / "composer").is_dir(), reason="no composer is bundled in this tree")
def test_the_bundled_checkpoint_plays_what_its_ear_hears_again():
    pipe = MidiGenerationPipeline.from_pretrained("piano-tiny")
    chord = [MidiNote(50 * index, 45, pitch, 0, 90) for index, pitch in enumerate((60, 64, 67, 72, 67, 64, 60, 55))]
    audio = pipe.perform([Score(chord)]).audios[0, 0]
    heard = {(round(note.onset / 50), note.pitch) for note in pipe.transcribe(audio.numpy(), RATE).notes}
    played = {(round(note.onset / 50), note.pitch) for note in chord}
    assert len(heard & played) >= 7 and len(heard - played) <= 2
