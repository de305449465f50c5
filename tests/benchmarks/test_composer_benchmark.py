"""The composer's benchmark: its n-grams see what they say, its comparisons compare the same notes, its tables are whole."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.models.note_transformer.sampling_note_transformer import SamplingOptions
from melreformer_hf.processing.midi.attributes import VOCAB_SIZES
from melreformer_hf.processing.midi.notes import MidiNote, notes_to_midi, write_midi
from melreformer_hf.training.recipes.composer import NoteColumns

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        specification = importlib.util.spec_from_file_location("benchmark_composer", BENCHMARKS / "composer.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def ngrams(script):
    return script.ngrams


def piece(count: int, seed: int = 0) -> NoteColumns:
    random = np.random.default_rng(seed)
    onsets = np.cumsum(random.choice([0, 10, 25], count))
    pitches = random.integers(50, 80, count)
    ones = np.ones(count, dtype=np.int64)
    return NoteColumns(onsets - onsets[0], 8 * ones, pitches, 64 * ones, 0 * ones).in_order()


def build() -> NoteTransformerModel:
    torch.manual_seed(0)
    return NoteTransformerModel(NoteTransformerConfig.preset("test")).eval()


def test_features_look_back_within_their_piece(ngrams):
    first = np.array([[0, 60, 1, 2, 0], [50, 64, 3, 4, 1], [0, 67, 5, 6, 1]])
    table = ngrams.features([first, first[:2]], 2)
    past = ngrams._FAR_PAST
    assert table["pitch"].tolist() == [60, 64, 67, 60, 64]
    assert table["pitch-1"].tolist() == [past, 60, 64, past, 60]
    assert table["pitch-2"].tolist() == [past, past, 60, past, past]
    assert (table["step"] - 127).tolist() == [0, 4, 3, 0, 4]
    assert table["gap"].tolist() == [0, 3, 0, 0, 3] and table["class"].tolist() == [0, 4, 7, 0, 4]


def test_an_order_bounds_what_is_seen(ngrams):
    assert ngrams.flat_chain(0, 5) == ("pedal-1", "velocity-1", "duration-1", "pitch-1")
    assert ngrams.flat_chain(2, 5) == ("pitch", "time", "pedal-1", "velocity-1") and ngrams.flat_chain(3, 2) == (
        "duration",
    )
    for order, chains in ngrams.CHAINS.items():
        assert set(chains) == set(ngrams.SYMBOLS)
        for symbol, chain in chains.items():
            assert set(chain) <= set(ngrams.candidates(symbol, order)), (order, symbol)
    assert "velocity" not in ngrams.candidates("duration", 5) and "step-4" not in ngrams.candidates("time", 5)
    assert "time-1" in ngrams.candidates("time", 2) and "time-2" not in ngrams.candidates("time", 2)


def test_copies_in_other_keys_move_all_that_has_a_key(ngrams):
    table = ngrams.features([np.array([[0, 60, 1, 2, 0], [5, 127, 3, 4, 1]])], 1)
    moved = ngrams.transposed(table, ["time", "pitch", "pitch-1", "class-1", "step"], (0, 2))
    assert moved["pitch"].tolist() == [60, 127, 62]  # 129 is no key
    assert moved["pitch-1"].tolist() == [ngrams._FAR_PAST, 60, ngrams._FAR_PAST] and moved["time"].tolist() == [
        0,
        5,
        0,
    ]
    assert moved["class-1"].tolist() == [ngrams._FAR_PAST, 0, ngrams._FAR_PAST]


def test_ngrams_of_notes_learn_what_repeats(ngrams):
    rows = piece(400).attributes()
    other = piece(400, seed=1).attributes()
    for order in (2, 5):
        train, told = ngrams.features([rows], order - 1), ngrams.features([rows, other], order - 1)
        bits = ngrams.bits_of_notes(order, train, train, told)
        assert bits.shape == (len(rows) + len(other), 5) and (bits > 0).all()
        assert bits[: len(rows)].sum() < bits[len(rows) :].sum() < len(other) * sum(ngrams.uniform_bits())
        flat = ngrams.bits_of_flat(order, train, told)
        assert flat.shape == bits.shape and flat[: len(rows)].sum() < flat[len(rows) :].sum()


def test_bits_are_those_of_the_notes_in_any_chunks(script, monkeypatch):
    notes, net = piece(70), build()
    whole = script.sequence_bits(net, script.played(notes))
    assert whole.shape == (len(notes.onset), 5)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.zero_()
    uniform = script.sequence_bits(net, script.played(notes))
    np.testing.assert_allclose(uniform, np.tile(np.log2(VOCAB_SIZES), (len(whole), 1)), rtol=1e-5)
    monkeypatch.setattr(script, "_CHUNK", 16)
    np.testing.assert_allclose(script.sequence_bits(build(), script.played(notes)), whole, atol=2e-4)


def test_the_same_notes_are_compared_with_and_without_what_is_given(script, monkeypatch):
    notes, seen = piece(60), []

    def record(model, sequence):
        labels = sequence.labels[sequence.labels[:, 1] != -100]
        seen.append(labels)
        return labels.astype(float)

    monkeypatch.setattr(script, "sequence_bits", record)
    given = notes.onset >= 500
    wanted = (notes.onset >= 300) & ~given
    plain, told = script.given_bits(None, notes, True, given, wanted)
    assert plain == told == seen[0][wanted].sum() > 0
    assert len(seen[0]) == len(notes.onset) and len(seen[1]) == (~given).sum()


def test_stretches_begin_at_zero_and_know_beginnings(script):
    long = piece(script._STRETCH * 2 + 60)
    (first, begins), (second, begins_later) = script.stretches([long, piece(script._STRETCH // 2)])
    assert begins and not begins_later
    assert second.onset[0] == 0 and len(second.onset) == script._STRETCH
    assert (second.pitch == long.pitch[script._STRETCH : 2 * script._STRETCH]).all()


def test_excerpts_are_whole_stretches(script):
    notes = piece(400)
    found = script.excerpts(notes, 5.0, most=2)
    assert len(found) == 2
    assert [note.pitch for note in found[1]] == notes.pitch[(notes.onset >= 500) & (notes.onset < 1000)].tolist()
    assert all(0 <= note.onset < 500 for note in found[1])
    assert script.excerpts(notes, float(notes.onset[-1]), 4) == []


def test_drawn_pieces_are_midi_of_their_length(script):
    made = script.draw_pieces(build(), 3, 20.0, SamplingOptions(), torch.Generator().manual_seed(0))
    assert len(made) == 3 and all(map(script.is_valid, made))
    assert max(note.onset for notes in made for note in notes) < 2000
    assert not script.is_valid([MidiNote(0, 50, 60, 0, 64), MidiNote(10, 20, 60, 0, 64)])


def test_real_music_is_as_far_from_itself_as_its_halves_are(script, capsys):
    groups = [script.excerpts(piece(300, seed), 5.0, 4) for seed in range(6)]
    flat = [notes for group in groups for notes in group]
    results = script.measure_statistics(flat, groups, 5.0)
    assert all(0 < values["ratio"] < 1.2 for values in results.values())
    fast = [[note._replace(onset=note.onset // 3) for note in notes] for notes in flat]
    assert script.measure_statistics(fast, groups, 5.0)["inter_onset"]["ratio"] > 2
    assert "| density |" in capsys.readouterr().out


def test_all_tables_of_a_model(script, tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(0)
    (tmp_path / "midi").mkdir()
    for number in range(8):
        onsets = np.cumsum(random.integers(0, 3, 120) * 15)
        notes = [MidiNote(int(onset), 20, 50 + int(random.integers(24)), 0, 64) for onset in onsets]
        write_midi(notes_to_midi(notes), tmp_path / "midi" / f"piece{number}.mid")
    config = TokenizeConfig(scheme="notes", validation_fraction=0.3)
    tokenize_folder(tmp_path / "midi", tmp_path / "notes", config, progress=False)
    build().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(script, "_STRETCH", 48)
    words = ["--model", tmp_path / "model", "--dataset", tmp_path / "notes", "--samples", 3, "--seconds", 4]
    words += ["--batch", 2, "--threads", 1, "--temperature", 0.9, "--output", tmp_path / "numbers.json"]
    results = script.main([str(word) for word in words])
    assert json.loads((tmp_path / "numbers.json").read_text()) == results
    assert results["split"] == "validation" and results["copies"]["valid"] == 3
    bits = results["bits"]
    assert bits["uniform"]["bits_per_note"] == pytest.approx(sum(map(math.log2, VOCAB_SIZES)))
    assert len(bits) == 6 and results["given"]["accompany"]["notes"] > 0
    best = min(values["bits_per_note"] for name, values in bits.items() if name != "composer")
    assert bits["composer"]["below_best_ngram"] == pytest.approx(1 - bits["composer"]["bits_per_note"] / best)
    told = capsys.readouterr().out
    assert told.count("|---|") >= 4 and "3 samples of 4 s" in told
