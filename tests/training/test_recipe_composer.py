"""The composer's recipe: what an item holds, what is moved and what is given, and what is measured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from borders import check_borders, from_one
from training_utils import assert_same_checkpoints

from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder
from melreformer_hf.metrics import note_events
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.nn.phrases import phrases_of
from melreformer_hf.processing.midi.attributes import END, VOCAB_SIZES
from melreformer_hf.processing.midi.notes import MidiNote, notes_to_midi, write_midi
from melreformer_hf.processing.midi.sequences import CONTROL, EVENT, MIDDLE, START
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.folders import notes_dataset_of
from melreformer_hf.training.loop import train
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.composer import (
    ComposerOptions,
    ComposerRecipe,
    NoteColumns,
    augmented,
    given_notes,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("midi")
    random = np.random.default_rng(0)
    for piece in range(6):
        onsets = np.cumsum(random.integers(0, 3, 50) * 15)
        notes = [MidiNote(int(onset), 20, 50 + int(random.integers(24)), 0, 64) for onset in onsets]
        write_midi(notes_to_midi(notes), folder / f"piece{piece}.mid")
    output = tmp_path_factory.mktemp("data") / "notes"
    tokenize_folder(folder, output, TokenizeConfig(scheme="notes"), progress=False)
    return output


def config(dataset, tmp_path, **changes) -> TrainingConfig:
    options = {"preset": "test", "num_positions": 24, "validation_pieces": 2, **changes.pop("options", {})}
    settings = {"max_steps": 2, "batch_size": 2, "num_workers": 0, "progress_bar": False, "cpu": True}
    return TrainingConfig(
        dataset=str(dataset), output_dir=str(tmp_path / "run"), options=options, **settings, **changes
    )


def stretch(onsets, pitches) -> NoteColumns:
    count = len(onsets)
    ones = np.ones(count, dtype=np.int64)
    return NoteColumns(np.array(onsets), 10 * ones, np.array(pitches), 64 * ones, 0 * ones)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_notes_are_written_by_onset_and_pitch_each_once():
    notes = stretch([5, 0, 5, 5], [60, 64, 55, 60]).in_order()
    assert notes.onset.tolist() == [0, 5, 5] and notes.pitch.tolist() == [64, 55, 60]


def test_pieces_are_moved_within_their_ranges_and_pedal_and_order_stay():
    options = ComposerOptions(transpose=3, tempo_range=0.2, velocity_range=5)
    keys, tempos, levels = set(), [], set()
    for seed in range(200):
        moved = augmented(stretch([0, 1000], [60, 67]), options, generator(seed))
        assert moved.pitch[1] - moved.pitch[0] == 7
        keys.add(int(moved.pitch[0]) - 60)
        tempos.append(moved.onset[1] / 1000)
        levels.add(int(moved.velocity[0]) - 64)
    assert keys == set(range(-3, 4)) and levels == set(range(-5, 6))
    assert 1 / 1.2 - 1e-3 <= min(tempos) < 0.86 and 1.17 < max(tempos) <= 1.2 + 1e-3


def test_nothing_leaves_the_piano():
    for seed in range(50):
        moved = augmented(stretch([0, 10], [22, 107]), ComposerOptions(transpose=12), generator(seed))
        assert moved.pitch.min() >= 21 and moved.pitch.max() <= 108
        beyond = augmented(stretch([0, 10], [5, 60]), ComposerOptions(transpose=12), generator(seed))
        assert beyond.pitch.tolist() == [5, 60]


def test_kinds_of_given_notes():
    notes = stretch([0, 0, 10, 20, 20, 90, 100], [50, 60, 62, 40, 64, 65, 62])
    assert not given_notes(notes, "none", generator()).any()
    assert given_notes(notes, "melody", generator()).tolist() == [False, True, True, False, True, True, True]
    after = given_notes(notes, "after", generator())
    assert after[-1] and not after[0] and (np.diff(after.astype(int)) >= 0).all()
    many = stretch(np.arange(400), 60 + np.zeros(400, dtype=int))
    some = [given_notes(many, "any", generator(seed)).mean() for seed in range(8)]
    assert 0.05 < min(some) and max(some) < 0.95 and max(some) - min(some) > 0.2


def test_what_is_played_ends_before_a_given_rest(dataset, tmp_path):
    recipe = ComposerRecipe(config(dataset, tmp_path, options={"given_after": 1.0, "given_melody": 0, "given_any": 0}))
    stream = recipe.stream(0, 1)
    for index in range(8):
        item = recipe.prepare(stream.item(index), generator(index))
        (last,) = (item["labels"][:, 0] == END).nonzero()[:, 0].tolist()
        assert CONTROL in item["roles"][: last + 1]  # the rest is in sight when the end is written


@pytest.mark.parametrize(
    "shares, given",
    (
        ({"given_after": 0.0, "given_melody": 0.0, "given_any": 0.0}, False),
        ({"given_after": 0.0, "given_melody": 1.0, "given_any": 0.0}, True),
    ),
)
def test_an_item_is_a_padded_sequence(dataset, tmp_path, shares, given):
    recipe = ComposerRecipe(config(dataset, tmp_path, options=shares))
    stream, ends, begins = recipe.stream(0, 1), 0, 0
    for index in range(40):
        item = recipe.prepare(stream.item(index), generator(index))
        assert item["roles"].shape == (24,) and item["labels"].shape == item["attributes"].shape == (24, 5)
        marks = item["roles"] <= MIDDLE
        assert marks.sum() == 1 and set(item["roles"][: int(marks.int().argmax())].tolist()) <= {CONTROL}
        assert bool((item["roles"] == CONTROL).any()) == given
        assert (item["seconds"].diff() >= 0).all() or given
        begins += int((item["roles"] == START).any())
        ends += int((item["labels"][:, 0] == END).sum())
        for column, size in enumerate(VOCAB_SIZES):
            assert item["attributes"][:, column].max() < size
    assert ends > 0 and begins > 0


def test_bits_are_those_of_the_model(dataset, tmp_path):
    recipe = ComposerRecipe(config(dataset, tmp_path))
    model = NoteTransformerModel(recipe.model_config).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        found = recipe.validate(model)
    uniform = sum(math.log2(size) for size in VOCAB_SIZES)
    pieces = recipe._held_out
    notes, ended = sum(len(piece) - 1 for piece in pieces), len(pieces)  # an end is a time more than there are notes
    expected = uniform + ended * math.log2(VOCAB_SIZES[0]) / notes
    assert found.metrics["bits_per_note"] == pytest.approx(expected, rel=1e-5)
    assert found.metrics["bits/pitch"] == pytest.approx(7.0, rel=1e-5)
    seconds = sum(float(piece.seconds[-1]) for piece in pieces)
    assert found.metrics["bits_per_second"] == pytest.approx(expected * notes / seconds, rel=1e-5)
    assert f"({uniform:.1f} bits per note)" in found.summary


@pytest.mark.parametrize(("wanted", "measured"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_held_out_pieces_are_spread_over_all_and_end_where_they_are_whole(dataset, tmp_path, wanted, measured):
    options = {"validation_split": "train", "validation_pieces": wanted}
    for length, whole in ((50, True), (49, False)):
        recipe = ComposerRecipe(config(dataset, tmp_path, options={**options, "validation_notes": length}))
        assert recipe.store("train").num_rows == 4
        recipe.prepare_validation()
        assert len(recipe._held_out) == len(measured)
        for row, piece in zip(measured, recipe._held_out, strict=True):
            notes = NoteColumns.read(recipe.store("train"), row, length)
            assert piece.attributes[1:, 1].tolist() == notes.pitch.tolist() and (piece.roles[1:] == EVENT).all()
            assert piece.roles[0] == START and (piece.labels[:, 0] == END).any() == whole


def test_training_publishes_a_model_that_loads(dataset, tmp_path):
    settings = config(dataset, tmp_path)
    metrics = train(ComposerRecipe(settings), settings)
    assert metrics["bits_per_note"] > 0
    model = NoteTransformerModel.from_pretrained(tmp_path / "run")
    assert model.config.hidden_size == 32


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_training_resumes_to_the_bit(dataset, tmp_path, accumulation):
    more = {"save_every_steps": 1, "gradient_accumulation_steps": accumulation, "log_every_steps": 1}
    whole = config(dataset, tmp_path / "whole", **more)
    train(ComposerRecipe(whole), whole)
    first = tmp_path / "whole/run/checkpoints/step-00000001"
    half = config(dataset, tmp_path / "half", **more, resume=str(first))
    train(ComposerRecipe(half), half)
    assert_same_checkpoints(tmp_path / "whole/run", tmp_path / "half/run", 2)


@pytest.mark.parametrize(
    "options, name",
    (
        ({"num_positions": 1}, "num_positions"),
        ({"tempo_range": 1.0}, "tempo_range"),
        ({"given_any": 0.9}, "given_any"),
        ({"validation_split": "test"}, "validation_split"),
    ),
)
def test_options_that_cannot_be_are_refused(options, name):
    with pytest.raises(ValueError, match=rf"options\.{name}"):
        ComposerOptions(**options)


def test_a_folder_of_midi_files_is_enough(tmp_path, capsys):
    (tmp_path / "midi").mkdir()
    for piece in range(4):
        notes = [MidiNote(10 * index, 20, 50 + index % 20 + piece, 0, 64) for index in range(40)]
        write_midi(notes_to_midi(notes), tmp_path / "midi" / f"piece{piece}.mid")
    words = [
        "--config",
        "tiny",
        "--dataset",
        tmp_path / "midi",
        "--output_dir",
        tmp_path / "runs/first",
        "--cpu",
        "true",
    ]
    words += ["--max_steps", 1, "--batch_size", 2, "--num_workers", 0, "--mixed_precision", "no"]
    words += ["--options.preset", "test", "--options.num_positions", 24]
    assert main("composer", words)["bits_per_note"] > 0
    (made,) = (tmp_path / "runs" / "datasets").iterdir()
    assert (made / "tokens.json").is_file() and "reading the notes of 4 MIDI files" in capsys.readouterr().err
    config = TrainingConfig(dataset=str(tmp_path / "midi"), output_dir=str(tmp_path / "runs/second"), max_steps=1)
    assert notes_dataset_of(config) == str(made)  # found again
    (tmp_path / "wav").mkdir()
    with pytest.raises(ValueError, match="folder of MIDI files"):
        notes_dataset_of(dataclasses.replace(config, dataset=str(tmp_path / "wav")))


def test_other_vocabularies_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"model\.vocab_sizes must be"):
        ComposerRecipe(config(dataset, tmp_path, model={"vocab_sizes": [10, 10]}))


def test_borders_of_the_settings():
    inside, outside = from_one("validation_pieces", "validation_notes")
    none = {"given_after": 0.0, "given_melody": 0.0, "given_any": 0.0}
    inside |= {
        "num_positions": (2,),
        "transpose": (0, 63),
        "tempo_range": (0.0, 0.99),
        "velocity_range": (0, 63),
        "given_after": (none, {**none, "given_after": 1.0}),
        "given_melody": ({**none, "given_melody": 1.0},),
        "given_any": ({**none, "given_any": 1.0}, {"given_after": 0.5, "given_melody": 0.25, "given_any": 0.25}),
    }
    outside |= {
        "num_positions": (1,),
        "transpose": (-1, 64),
        "tempo_range": (-0.01, 1.0),
        "velocity_range": (-1, 64),
        "given_after": (-0.01,),
        "given_melody": (-0.01,),
        "given_any": (
            -0.01,
            {**none, "given_any": 1.01},
            {"given_after": 0.5, "given_melody": 0.5, "given_any": 0.01},
        ),
    }
    check_borders(ComposerOptions, inside, outside)


def learn(settings: TrainingConfig) -> dict:
    return train(ComposerRecipe(settings), settings)


def test_the_model_remembers_the_phrases_of_the_training_pieces_and_no_others(dataset, tmp_path):
    settings = {"model": {"phrase_filter_bytes": 8192, "phrase_length": 6}}
    learn(config(dataset, tmp_path, **settings))
    model = NoteTransformerModel.from_pretrained(tmp_path / "run" / "best")
    recipe = ComposerRecipe(config(dataset, tmp_path))

    def known(split: str) -> list[float]:
        store = recipe.store(split)
        pieces = [note_events(NoteColumns.read(store, row).attributes()) for row in range(store.num_rows)]
        return [model.phrases.knows(phrases_of(events, 6)).mean() for events in pieces]

    assert known("train") and min(known("train")) == 1.0
    assert max(known("validation")) < 0.1


def test_a_memory_can_be_added_to_weights_without_one_and_grows(dataset, tmp_path):
    learn(config(dataset, tmp_path / "a"))
    former = str(tmp_path / "a" / "run" / "best")
    settings = {"model": {"phrase_filter_bytes": 8192, "phrase_length": 6}, "init_from": former}
    learn(config(dataset, tmp_path / "b", **settings))
    second = NoteTransformerModel.from_pretrained(tmp_path / "b" / "run" / "best")
    assert second.phrases.table.any()
    second.phrases.table.zero_()
    second.phrases.learn([np.arange(40).reshape(20, 2)])
    second.save_pretrained(tmp_path / "c")
    settings["init_from"] = str(tmp_path / "c")
    learn(config(dataset, tmp_path / "d", **settings))
    third = NoteTransformerModel.from_pretrained(tmp_path / "d" / "run" / "best")
    assert third.phrases.knows(phrases_of(np.arange(40).reshape(20, 2), 6)).all()
    assert third.phrases.table.count_nonzero() > second.phrases.table.count_nonzero()
