"""MIDI tokens: both directions in every scheme, saving, padding, refusals, a machine without mido."""

from __future__ import annotations

import doctest
import io
import json
import subprocess
import sys

import pytest
import torch
from testing_utils import assert_error
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel

from melreformer_hf import MidiNote, MidiTokenizer
from melreformer_hf.processing import tokenization_midi
from melreformer_hf.processing.midi import notes as midi_notes
from melreformer_hf.processing.midi.vocabulary import VOCABULARIES

mido = pytest.importorskip("mido")

SCHEMES = sorted(VOCABULARIES)
# piano, drums and a violin; a repeated note whose end and next start fall together
NOTES = [
    MidiNote(0, 50, 60, 0, 90),
    MidiNote(0, 200, 36, 128, 100),
    MidiNote(50, 50, 60, 0, 80),
    MidiNote(120, 30, 76, 40, 70),
    MidiNote(450, 25, 64, 0, 60),
]


def without_velocity(notes):
    return sorted(note[:4] for note in notes)


def midi_file(*tracks, ticks_per_beat=50, kind=1):
    midi = mido.MidiFile(type=kind, ticks_per_beat=ticks_per_beat)
    midi.tracks.extend(mido.MidiTrack(track) for track in tracks)
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_directions(scheme, tmp_path):
    tokenizer = MidiTokenizer(scheme)
    ids = tokenizer.encode_midi(NOTES)
    assert all(0 <= number < tokenizer.vocab_size for number in ids)
    assert without_velocity(tokenizer.decode_notes(ids)) == without_velocity(NOTES)
    content = tokenizer.decode_midi(torch.tensor(ids), tmp_path / "music.mid")
    assert (tmp_path / "music.mid").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["music.mid"]
    for source in (tmp_path / "music.mid", str(tmp_path / "music.mid"), content, io.BytesIO(content)):
        assert without_velocity(tokenizer.decode_notes(tokenizer.encode_midi(source))) == without_velocity(NOTES)


def test_note_tuples_keep_velocities_and_unknown_ends():
    tokenizer = MidiTokenizer("note_tuple")
    notes = [MidiNote(0, None, 60, 0, 1), MidiNote(3, 2500, 127, 128, 127)]
    assert tokenizer.decode_notes(tokenizer.encode_midi(notes)) == notes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text(scheme):
    tokenizer = MidiTokenizer(scheme)
    ids = tokenizer.encode_midi(NOTES)
    assert tokenizer(tokenizer.decode(ids)).input_ids == ids
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == len(tokenizer) == tokenizer.vocab_size + 1
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
    with pytest.raises(ValueError) as error:
        tokenizer("tiem_0")
    assert_error(error, "tiem_0", scheme)
    with pytest.raises(ValueError, match=f"got {len(tokenizer)}"):
        tokenizer.decode([len(tokenizer)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saving_and_loading(scheme, tmp_path):
    tokenizer = MidiTokenizer(scheme, pad_token="separator")
    tokenizer.save_pretrained(tmp_path)
    for loaded in (MidiTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is MidiTokenizer and loaded.scheme == scheme
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert (
            loaded.pad_token_id == tokenizer.pad_token_id == tokenizer.vocab_size - (3 if scheme == "arrival" else 1)
        )
        assert loaded.encode_midi(NOTES) == tokenizer.encode_midi(NOTES)


def test_auto_tokenizer_beside_a_language_model(tmp_path):
    GPT2Config(vocab_size=9).save_pretrained(tmp_path)
    MidiTokenizer("note_tuple").save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode_midi(NOTES) == MidiTokenizer("note_tuple").encode_midi(NOTES)


def test_auto_tokenizer_in_a_fresh_process(tmp_path):
    MidiTokenizer("interarrival").save_pretrained(tmp_path)
    code = """
import sys
import melreformer_hf
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(type(tokenizer).__name__, tokenizer.scheme, "mido" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["MidiTokenizer", "interarrival", "False"], result.stderr[-2000:]


def test_batches():
    tokenizer = MidiTokenizer("arrival")
    batch = tokenizer.batch_encode_midi([NOTES[:2], NOTES], return_tensors="pt")
    lengths = [3 * 2, 3 * len(NOTES)]
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, max(lengths))
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert (batch.input_ids[0, lengths[0] :] == tokenizer.pad_token_id).all()
    for ids, notes in zip(batch.input_ids, (NOTES[:2], NOTES), strict=True):
        assert without_velocity(tokenizer.decode_notes(ids)) == without_velocity(notes)
    longer = tokenizer.batch_encode_midi([NOTES], padding="max_length", max_length=20, pad_to_multiple_of=8)
    assert len(longer.input_ids[0]) == 24


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_language_model_takes_the_batches(scheme):
    """Padding, labels and generation as for any tokenizer of transformers."""
    tokenizer = MidiTokenizer(scheme)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collator([{"input_ids": tokenizer.encode_midi(notes)} for notes in (NOTES[:2], NOTES)])
    padded = batch["attention_mask"] == 0
    assert padded.any() and torch.equal(batch["labels"] == -100, padded)
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ids)).eval()
    assert model(**batch).loss.isfinite()
    prompt = batch["input_ids"][1:]
    out = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert torch.equal(out[:, : prompt.shape[1]], prompt)
    assert without_velocity(tokenizer.decode_notes(out[0, : prompt.shape[1]])) == without_velocity(NOTES)


def test_windows():
    tokenizer = MidiTokenizer("arrival")
    long = [note._replace(onset=note.onset + 15_000) for note in NOTES]
    with pytest.raises(ValueError) as error:
        tokenizer.encode_midi(NOTES + long)
    assert_error(error, "100 s", "154.5 s", "start and end")
    expected = [*NOTES[:1], NOTES[1]._replace(duration=130), NOTES[2], NOTES[3]._replace(duration=10)]
    for scheme in SCHEMES:
        ids = MidiTokenizer(scheme).encode_midi(NOTES + long, start=150, end=151.3)
        assert without_velocity(MidiTokenizer(scheme).decode_notes(ids)) == without_velocity(expected)
    with pytest.raises(ValueError, match="start must be"):
        tokenizer.encode_midi(NOTES, start=2, end=2)


def test_known_instruments_come_ahead():
    tokenizer = MidiTokenizer("arrival")
    notes = [MidiNote(100 * second, 50, 60, second % 2, 90) for second in range(12)]
    ids = tokenizer.encode_midi(notes, known_instruments=[1])
    kinds = [tokenizer.convert_ids_to_tokens(number).split("_")[0] for number in ids[::3]]
    assert kinds.count("control") == 6 and kinds[:3] == ["control"] * 3
    assert without_velocity(tokenizer.decode_notes(ids)) == without_velocity(notes)
    with pytest.raises(ValueError, match="interarrival"):
        MidiTokenizer("interarrival").encode_midi(notes, known_instruments=[1])


def test_pieces_one_after_the_other_and_flags():
    tokenizer = MidiTokenizer("arrival")
    separator, flag = (tokenizer.convert_tokens_to_ids(name) for name in ("separator", "anticipate"))
    piece = tokenizer.encode_midi(NOTES[:1])
    notes = tokenizer.decode_notes([flag, *[separator] * 3, *piece, *[separator] * 3, *piece])
    assert [note.onset for note in notes] == [0, NOTES[0].duration]


def test_reading_follows_tempo_and_channels():
    tempo = [
        mido.MetaMessage("set_tempo", tempo=500_000, time=0),
        mido.MetaMessage("set_tempo", tempo=1_000_000, time=100),
    ]
    music = [
        mido.Message("program_change", channel=3, program=40, time=0),
        mido.Message("note_on", channel=3, note=60, velocity=9, time=50),
        mido.Message("note_on", channel=3, note=60, velocity=0, time=100),
        mido.Message("note_on", channel=9, note=35, velocity=8, time=0),
    ]
    assert midi_notes.read_notes(midi_file(tempo, music)) == [
        MidiNote(50, 150, 60, 40, 9),
        MidiNote(200, None, 35, 128, 8),
    ]


def test_repeated_notes_are_not_cut():
    """The end of a note comes before the next start of the same note, so that synthesizers play both in full."""
    messages = mido.MidiFile(file=io.BytesIO(MidiTokenizer().decode_midi(MidiTokenizer().encode_midi(NOTES)))).tracks[
        0
    ]
    kinds = [message.type for message in messages if getattr(message, "note", None) == 60]
    assert kinds == ["note_on", "note_off", "note_on", "note_off"]


def test_fifteen_melodic_instruments_and_drums_fit_and_no_more():
    band = [MidiNote(index, 10, 60, index, 64) for index in range(15)] + [MidiNote(20, 10, 36, 128, 64)]
    again = midi_notes.read_notes(MidiTokenizer().decode_midi(MidiTokenizer().encode_midi(band)))
    assert sorted(note.instrument for note in again) == [*range(15), 128]
    tokenizer = MidiTokenizer()
    with pytest.raises(ValueError, match="more instruments"):
        tokenizer.decode_midi(tokenizer.encode_midi([*band, MidiNote(30, 10, 60, 15, 64)]))


@pytest.mark.parametrize(
    ("notes", "fragments"),
    [
        ([], ("at least one note",)),
        ([(0, 1, 128, 0, 64)], ("notes[0].pitch", "0..127", "128")),
        ([(0, 1, 60, 129, 64)], ("notes[0].instrument", "129")),
        ([(-1, 1, 60, 0, 64)], ("notes[0].onset", "-1")),
        ([(0, -1, 60, 0, 64)], ("notes[0].duration", "-1", "None")),
        ([(0, 1, 60, 0, 0)], ("notes[0].velocity", "1..127")),
        ([(0, 1, 60)], ("notes[0]", "velocity")),
        ([(5, 1, 60, 0, 64), (0, 1, 60, 0, 64)], ("order of their onsets",)),
    ],
)
@pytest.mark.parametrize("scheme", ["arrival", "note_tuple"])
def test_bad_notes(scheme, notes, fragments):
    with pytest.raises(ValueError) as error:
        MidiTokenizer(scheme).encode_midi(notes)
    assert_error(error, *fragments)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "not a readable MIDI file"),
        (b"RIFF0000WAVE", "not a readable MIDI file"),
        (midi_file([mido.Message("note_on", note=60, time=1)])[:-3], "not a readable MIDI file"),
        (midi_file([mido.Message("note_on", note=60, time=1)], kind=2), "type 2"),
        (midi_file([])[:12] + b"\xe8\x28" + midi_file([])[14:], "SMPTE|ticks per quarter"),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bad_files(scheme, content, fragment):
    with pytest.raises(ValueError, match=fragment):
        MidiTokenizer(scheme).encode_midi(content)


def test_bad_tokens():
    arrival, tuples = MidiTokenizer("arrival"), MidiTokenizer("note_tuple")
    ids = arrival.encode_midi(NOTES)
    for broken in (ids[:-1], ids[1:], [*ids[:3], ids[4], ids[3], ids[5]]):
        with pytest.raises(ValueError, match=r"ids\[\d+:\d+\].*must be a time, a duration and a note"):
            arrival.decode_notes(broken)
    with pytest.raises(ValueError, match=f"Cut ids after the last whole event, at {len(ids) - 3}"):
        arrival.decode_notes(ids[:-1])
    with pytest.raises(ValueError, match="velocity"):
        tuples.decode_notes(tuples.encode_midi(NOTES)[:-1])
    with pytest.raises(ValueError, match="0..34024"):
        MidiTokenizer("interarrival").decode_notes([-1])
    with pytest.raises(ValueError) as error:
        MidiTokenizer("remi")
    assert_error(error, "scheme", "arrival", "note_tuple", "'remi'")
    for batch in ([ids], torch.tensor([ids]), [0.5]):
        with pytest.raises(ValueError, match="row by row"):
            arrival.decode_notes(batch)
    with pytest.raises(FileNotFoundError):
        arrival.encode_midi("no such file.mid")
    with pytest.raises(TypeError, match="'int'|int"):
        arrival.encode_midi(3)


def test_without_mido(monkeypatch):
    """Only writing needs it."""
    tokenizer = MidiTokenizer()
    ids = tokenizer.encode_midi(NOTES)
    content = tokenizer.decode_midi(ids)
    monkeypatch.setitem(sys.modules, "mido", None)
    assert tokenizer.decode_notes(tokenizer.encode_midi(content)) == tokenizer.decode_notes(ids)
    with pytest.raises(ImportError, match=r"pip install melreformer_hf\[midi\]"):
        tokenizer.decode_midi(ids)


def test_configuration_is_small(tmp_path):
    MidiTokenizer("note_tuple").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["scheme"] == "note_tuple"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2000


def test_docstrings_run():
    results = doctest.testmod(tokenization_midi)
    assert results.failed == 0 and results.attempted > 3
