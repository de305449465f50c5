"""From a folder of MIDI files to rows of tokens and stretches of notes: splits, labels, order, exact positions."""

from __future__ import annotations

import itertools
import json

import mido
import numpy as np
import pytest
import torch
from borders import check_borders, from_one
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from melreformer_hf.cli.main import app
from melreformer_hf.data.batches import BatchStream
from melreformer_hf.data.midi import arrival_rows, interarrival_rows
from melreformer_hf.data.sequences import NoteStream, TokenStream, open_sequences
from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder
from melreformer_hf.processing.midi.notes import MidiNote, midi_bytes, notes_to_midi, read_notes
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, INTERARRIVAL
from melreformer_hf.processing.tokenization_midi import MidiTokenizer

GENRES = ("fugue", "waltz")


def piece(number: int, count: int = 500) -> list[MidiNote]:
    random = np.random.default_rng(number)
    pitches = random.integers(40, 80, count)
    return [MidiNote(11 * i, 10, int(pitches[i]), number % 3, 64) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("midi")
    for number in range(8):
        path = root / GENRES[number % 2] / f"piece{number}.mid"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(midi_bytes(notes_to_midi(piece(number))))
    (root / "fugue" / "tiny.mid").write_bytes(midi_bytes(notes_to_midi(piece(9, 20))))
    (root / "broken.mid").write_bytes(b"no music")
    rows = [f"{GENRES[n % 2]}/piece{n}.mid,{split},{n}" for n, split in enumerate(["train"] * 5 + ["validation"] * 2)]
    rows += ["waltz/piece7.mid,test,7", "fugue/tiny.mid,train,9", "broken.mid,train,10"]
    (root / "metadata.csv").write_text("\n".join(["file_name,split,opus", *rows]))
    return root


def tokenize(folder, output, **settings):
    report = tokenize_folder(folder, output, TokenizeConfig(**settings), progress=False)
    return report, {split: open_sequences(output, split) for split in report["splits"]}


def rows_of(store):
    return [store.values(row).tolist() for row in range(store.num_rows)]


def test_rows_are_those_of_the_original_and_splits_share_no_piece(folder, tmp_path):
    report, stores = tokenize(folder, tmp_path / "out", variants=3, seed=4)
    files = sorted(folder.rglob("*.mid"))
    notes = {path.stem: read_notes(path) for path in files if path.stem not in ("tiny", "broken")}
    train = [notes[path.stem] for path in files if path.stem in {f"piece{n}" for n in range(5)}]
    assert rows_of(stores["train"]) == list(arrival_rows(train, 3, 4)) and stores["train"].num_rows > 10
    assert rows_of(stores["test"]) == list(arrival_rows([notes["piece7"]], 1, 4))  # held-out pieces as they are
    assert stores["train"].vocab_size == ARRIVAL.size and stores["train"].scheme == "arrival"
    assert report["counts"]["short"] == 1 and [item["file"] for item in report["skipped"]] == ["broken.mid"]
    assert str(folder) not in json.dumps(report)
    assert report["splits"]["train"]["pieces"] == 6 and report["splits"]["train"]["rows"] == stores["train"].num_rows


def test_interarrival_rows_are_the_originals(folder, tmp_path):
    _, stores = tokenize(folder, tmp_path / "out", scheme="interarrival")
    files = [path for path in sorted(folder.rglob("piece*.mid")) if int(path.stem[-1]) in range(5)]
    assert rows_of(stores["train"]) == list(interarrival_rows(files))
    assert stores["train"].vocab_size == INTERARRIVAL.size


@pytest.mark.parametrize("scheme", ["arrival", "interarrival"])
def test_rows_of_one_piece_carry_its_label_and_metadata(folder, tmp_path, scheme):
    _, stores = tokenize(folder, tmp_path / "out", scheme=scheme, label="folder", rows_per_shard=2)
    store = stores["train"]
    assert store.labels == GENRES and len(list((tmp_path / "out/data").glob("train-0*.safetensors"))) > 2
    seen = {}
    for item in itertools.islice(store.tokens(seed=1), store.num_rows):
        number = int(item["recording"][-1])
        assert item["label"] == GENRES[number % 2] and item["opus"] == str(number)
        seen.setdefault(number, []).append(item["input_ids"])
    assert sorted(seen) == [0, 1, 2, 3, 4]
    for rows in seen.values():
        assert all(len(row) <= 1024 for row in rows) and sum(len(row) < 1024 for row in rows) <= 1
    if scheme == "arrival":
        decoded = MidiTokenizer("arrival").decode_notes(torch.cat([row[1:] for row in seen[2]][:1]))
        assert len(decoded) > 100  # and its pitches are the piece's
        assert {note.pitch for note in decoded} <= {note.pitch for note in piece(2)}
        assert sum((len(row) - 1) // 3 for row in seen[2]) >= 500  # nothing is dropped at the end


def test_a_stretch_of_one_note(folder, tmp_path):
    _, stores = tokenize(folder, tmp_path / "out", scheme="notes")
    one = stores["train"].notes(1, transpose=63).item(0)["notes"]
    assert one.shape == (6, 1) and one[0, 0] == 0 and 0 <= one[2, 0] < 128
    for wrong in ({"num_notes": 0}, {"num_notes": 1, "transpose": 64}, {"num_notes": 1, "transpose": -1}):
        with pytest.raises(ValueError, match="num_notes must be at least 1 and transpose in 0..63"):
            stores["train"].notes(**wrong)


def test_every_epoch_holds_every_row_once_in_a_new_order(folder, tmp_path):
    _, stores = tokenize(folder, tmp_path / "out", variants=3)
    store = stores["train"]
    count = store.num_rows
    items = [item["input_ids"].tolist() for item in itertools.islice(store.tokens(seed=2), 2 * count)]
    first, second = items[:count], items[count:]
    for told in (store.tokens(), TokenStream(store)):
        assert (told.seed, told.rank, told.world_size) == (0, 0, 1)
    assert sorted(first) == sorted(second) == sorted(rows_of(store)) and first != second
    assert [i["input_ids"].tolist() for i in itertools.islice(store.tokens(seed=3), count)] != first


def prepare(item, generator):
    key = "input_ids" if "input_ids" in item else "notes"
    return {"values": item[key], "index": item["index"]}


@pytest.mark.parametrize("scheme", ["arrival", "notes"])
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_resume_to_the_item_in_two_processes(folder, tmp_path, scheme, workers):
    _, stores = tokenize(folder, tmp_path / "out", scheme=scheme)

    def make(rank, world_size):
        place = {"seed": 7, "rank": rank, "world_size": world_size}
        store = stores["train"]
        return store.tokens(**place) if scheme == "arrival" else store.notes(100, transpose=5, **place)

    alone = [make(0, 1).item(index) for index in range(24)]
    key = "input_ids" if scheme == "arrival" else "notes"
    for rank in range(2):
        stream = make(rank, 2)
        stream.advance(4)
        resumed = make(rank, 2)
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        loader = DataLoader(BatchStream(resumed, prepare, 2), batch_size=None, num_workers=workers)
        for batch in itertools.islice(loader, 3):
            for index, values in zip(batch.tensors["index"].tolist(), batch.tensors["values"], strict=True):
                expected = alone[index][key]
                assert index % 2 == rank and torch.equal(values[..., : expected.shape[-1]], expected)


def test_stretches_of_notes(folder, tmp_path):
    report, stores = tokenize(folder, tmp_path / "out", scheme="notes", label="folder")
    assert report["splits"]["train"]["pieces"] == 6  # short ones too
    originals = {f"piece{number}": piece(number) for number in range(5)} | {"tiny": piece(9, 20)}
    shifts = set()
    for item in itertools.islice(stores["train"].notes(50, transpose=2, seed=3), 60):
        original = torch.tensor(originals[item["recording"].split("/")[1]]).T
        notes = item["notes"]
        assert notes.shape == (6, min(50, original.shape[1])) and notes[0, 0] == 0
        assert item["piece_notes"] == original.shape[1] and not notes[5].any()
        found = [
            start
            for start in range(original.shape[1] - notes.shape[1] + 1)
            if (notes[2] - original[2, start : start + notes.shape[1]]).unique().numel() == 1
        ]
        assert item["start"] in found
        window = original[:, found[0] : found[0] + notes.shape[1]]
        shifts.add((notes[2] - window[2])[0].item())
        assert torch.equal(notes[0], window[0] - window[0, 0]) and torch.equal(notes[1], window[1])
        assert torch.equal(notes[3:5], window[3:]) and item["label"] == item["recording"].split("/")[0]
    assert shifts == {-2, -1, 0, 1, 2}


def test_stretches_are_weighted_by_notes_and_begin_anywhere(folder, tmp_path):
    _, stores = tokenize(folder, tmp_path / "out", scheme="notes")
    items = list(itertools.islice(stores["train"].notes(499, seed=3), 400))
    tiny = [item["start"] for item in items if item["piece_notes"] == 20]
    assert len(tiny) < 20 and set(tiny) == {0}  # 20 of 2520 notes, in one of six pieces
    assert {item["start"] for item in items} == {0, 1}
    for told in (stores["train"].notes(10), NoteStream(stores["train"], 10)):
        assert (told.seed, told.rank, told.world_size, told.transpose) == (0, 0, 1, 0)


def test_notes_know_whether_the_pedal_is_down(tmp_path):
    (tmp_path / "in").mkdir()
    midi = notes_to_midi([MidiNote(tick, 5, 60, 0, 64) for tick in (0, 20, 40)])
    placed, now = [], 0
    for message in midi.tracks[0]:
        now += message.time
        placed.append((now, message))
    for tick, value in ((15, 127), (25, 0), (38, 0)):  # in ticks of 10 ms, as the notes
        placed.append((tick, mido.Message("control_change", control=64, value=value)))
    placed.sort(key=lambda entry: entry[0])
    times = [0, *(tick for tick, _ in placed)]
    midi.tracks[0] = mido.MidiTrack(
        message.copy(time=tick - before) for (tick, message), before in zip(placed, times, strict=False)
    )
    (tmp_path / "in" / "a.mid").write_bytes(midi_bytes(midi))
    _, stores = tokenize(tmp_path / "in", tmp_path / "out", scheme="notes")
    assert stores["train"].values(0)[:, 5].tolist() == [0, 1, 0]


def test_transposition_spares_drums_and_stays_on_the_keyboard(tmp_path):
    (tmp_path / "in").mkdir()
    notes = [MidiNote(10 * i, 5, 1 if i % 2 else 126, 128 if i % 3 == 0 else 0, 64) for i in range(30)]
    (tmp_path / "in" / "a.mid").write_bytes(midi_bytes(notes_to_midi(notes)))
    _, stores = tokenize(tmp_path / "in", tmp_path / "out", scheme="notes")
    for item in itertools.islice(stores["train"].notes(30, transpose=11), 20):
        _, _, pitch, instrument, _, _ = item["notes"]
        assert 0 <= pitch.min() and pitch.max() <= 127
        assert set(pitch[instrument == 128].tolist()) == {1, 126}
        moved = pitch[instrument == 0]
        wanted = torch.tensor([note.pitch for note in notes if note.instrument == 0])
        assert ((moved - wanted) % 12).unique().numel() == 1  # one interval, octaves apart


def test_the_command(folder, tmp_path):
    words = ["data", "tokenize", str(folder), "--output", str(tmp_path / "out"), "--label", "opus"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for line in ("train: 6 pieces", "left out: 1 too short", "skipped 1 files", f"wrote {tmp_path / 'out'}"):
        assert line in result.output
    assert open_sequences(tmp_path / "out").labels == ("0", "1", "10", "2", "3", "4", "5", "6", "7", "9")
    again = CliRunner().invoke(app, words)
    assert again.exit_code != 0 and "--overwrite" in str(again.exception)
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0


def test_bad_requests(folder, tmp_path, monkeypatch):
    tokenize(folder, tmp_path / "rows")
    tokenize(folder, tmp_path / "notes", scheme="notes")
    with pytest.raises(ValueError, match="holds notes, not tokens"):
        open_sequences(tmp_path / "notes").tokens()
    with pytest.raises(ValueError, match="holds tokens .arrival., not notes"):
        open_sequences(tmp_path / "rows").notes(10)
    with pytest.raises(ValueError, match="num_notes must be at least 1"):
        open_sequences(tmp_path / "notes").notes(0)
    with pytest.raises(ValueError, match="split must be one of"):
        open_sequences(tmp_path / "rows", "other")
    with pytest.raises(ValueError, match="melreformer data tokenize"):
        open_sequences(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="neither: there is no such folder. Did you mean 'rows'"):
        open_sequences("./rovs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none in"):
        tokenize_folder(tmp_path / "empty", tmp_path / "new", TokenizeConfig())
    (tmp_path / "empty" / "broken.mid").write_bytes(b"no music")
    with pytest.raises(ValueError, match="No piece in .* is usable"):
        tokenize_folder(tmp_path / "empty", tmp_path / "new", TokenizeConfig(), progress=False)
    assert not (tmp_path / "new").exists()
    for wrong in ({"scheme": "abc"}, {"variants": 0}, {"variants": 2, "scheme": "notes"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            TokenizeConfig(**wrong)
    with pytest.raises(ValueError, match="variants must be 1 but for the scheme arrival"):
        TokenizeConfig(scheme="notes", variants=2)


def test_borders_of_the_settings():
    inside, outside = from_one("variants", "rows_per_shard")
    none = {"validation_fraction": 0.0, "test_fraction": 0.0}
    inside |= {"validation_fraction": (0.0, {**none, "validation_fraction": 0.99})}
    inside |= {"test_fraction": (0.0, {**none, "test_fraction": 0.99})}
    outside |= {
        "validation_fraction": (-0.01, {**none, "validation_fraction": 1.0}),
        "test_fraction": (-0.01, {**none, "test_fraction": 1.0}, {"validation_fraction": 0.5, "test_fraction": 0.5}),
        "variants": (0, {"variants": 2, "scheme": "interarrival"}),
        "scheme": ("words",),
    }
    check_borders(TokenizeConfig, inside, outside)
