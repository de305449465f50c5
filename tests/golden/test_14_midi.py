"""MIDI tokens equal jthickstun/anticipation, refusals included (fixture 14, JSON and MIDI files)."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from golden_utils import fixture

from melreformer_hf.data.midi import (
    RowCounts,
    arrival_rows,
    interarrival_rows,
    split_random,
    split_spans,
    why_unsuitable,
)
from melreformer_hf.processing.midi.arrival import (
    anticipate,
    clip_events,
    count_instruments,
    earliest_tick,
    events_to_notes,
    latest_tick,
    longest_gap,
    merge_controls,
    notes_to_events,
    pad_events,
    shift_events,
    split_events,
    split_instruments,
)
from melreformer_hf.processing.midi.interarrival import decode_changes, read_changes
from melreformer_hf.processing.midi.notes import MidiNote, changes_to_midi, midi_bytes, notes_to_midi, read_notes
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, INTERARRIVAL, MAX_TIME_TICKS
from melreformer_hf.processing.tokenization_midi import MidiTokenizer

pytest.importorskip("mido")

STATUS = {None: 0, "short": 1, "long": 2, "crowded": 3}
# The case that keeps durations was cut from 1 s to 3 s; all others carry their arguments in their names.
KEPT_DURATIONS_TICKS = (100, 300)
TICKS = 100


@pytest.fixture(scope="module")
def golden():
    return fixture("14_anticipation")


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden.folder / "cases.json").read_text())


def numbers(notes):
    return [-1 if value is None else value for note in notes for value in note]


def to_notes(values):
    rows = [values[index : index + 5] for index in range(0, len(values), 5)]
    return [MidiNote(onset, None if duration == -1 else duration, *rest) for onset, duration, *rest in rows]


def described(midi):
    tracks = []
    for track in midi.tracks:
        messages = [message for message in track if message.type != "end_of_track"]
        tracks.append(
            [
                [message.type, message.channel, message.program, None, message.time]
                if message.type == "program_change"
                else [message.type, message.channel, message.note, message.velocity, message.time]
                for message in messages
            ]
        )
    return {"ticks_per_beat": midi.ticks_per_beat, "type": midi.type, "tracks": tracks}


def equal_or_refused(expected, make):
    """The stored result, or a ValueError where the original raised."""
    if isinstance(expected, dict) and "error" in expected:
        with pytest.raises(ValueError):
            make()
    else:
        assert make() == expected


def test_vocabulary(golden):
    stored = golden.config["vocab"]
    first = ARRIVAL.first
    ours = {
        "TIME_OFFSET": first["time"],
        "DUR_OFFSET": first["duration"],
        "NOTE_OFFSET": first["note"],
        "REST": first["rest"],
        "CONTROL_OFFSET": first["control_time"],
        "ATIME_OFFSET": first["control_time"],
        "ADUR_OFFSET": first["control_duration"],
        "ANOTE_OFFSET": first["control_note"],
        "SPECIAL_OFFSET": first["separator"],
        "SEPARATOR": first["separator"],
        "AUTOREGRESS": first["autoregress"],
        "ANTICIPATE": first["anticipate"],
        "VOCAB_SIZE": ARRIVAL.size,
        "MIDI_TIME_OFFSET": INTERARRIVAL.first["wait"],
        "MIDI_START_OFFSET": INTERARRIVAL.first["on"],
        "MIDI_END_OFFSET": INTERARRIVAL.first["off"],
        "MIDI_SEPARATOR": INTERARRIVAL.first["separator"],
        "MIDI_VOCAB_SIZE": INTERARRIVAL.size,
    }
    assert ours == stored


def test_files_to_notes_and_tokens(golden, cases):
    for name, case in cases.items():
        path = golden.folder / "midi" / f"{name}.mid"
        equal_or_refused(case["compound"], lambda path=path: numbers(read_notes(path)))
        if isinstance(case["compound"], dict):
            continue
        notes = read_notes(path)
        assert read_changes(path) == (case["interarrival"], case["interarrival_truncations"]), name
        assert STATUS[why_unsuitable(notes)] == case["maybe_tokenize_status"], name
        equal_or_refused(case["events"], lambda notes=notes: notes_to_events(notes)[0])
        if "duration_truncations" in case:
            assert notes_to_events(notes)[1] == case["duration_truncations"], name


def test_the_tokenizer_gives_the_same_numbers(golden, cases):
    arrival, interarrival = MidiTokenizer("arrival"), MidiTokenizer("interarrival")
    for name, case in cases.items():
        path = golden.folder / "midi" / f"{name}.mid"
        assert interarrival.encode_midi(path) == case["interarrival"], name
        if isinstance(case["events"], dict) or case["max_time_ticks"] >= MAX_TIME_TICKS:
            with pytest.raises(ValueError):
                arrival.encode_midi(path)
            continue
        assert arrival.encode_midi(path) == case["events"], name
        if "anticipate_instrument" in case:
            stored = case["anticipate_instrument"]
            ids = arrival.encode_midi(path, known_instruments=[stored["instrument"]])
            assert ids == stored["tokens"] + stored["unconsumed"], name


def test_back_to_midi(cases):
    for case in cases.values():
        equal_or_refused(
            case["interarrival_to_midi"],
            lambda case=case: described(changes_to_midi(decode_changes(case["interarrival"]), like_original=True)),
        )
        if isinstance(case["events"], dict):
            continue
        assert numbers(events_to_notes(case["events"])) == case["events_to_compound"]
        for key, notes in (
            ("events_to_midi", events_to_notes(case["events"])),
            ("compound_to_midi", to_notes(case["compound"])),
        ):
            equal_or_refused(case[key], lambda notes=notes: described(notes_to_midi(notes, like_original=True)))


def starts_and_ends(notes):
    starts = sorted((note.onset, note.pitch, note.instrument) for note in notes)
    return starts, sorted((note.onset + note.duration, note.pitch, note.instrument) for note in notes)


def test_written_files_are_read_back(cases):
    """What the package writes in its own order of messages holds the same starts and ends."""
    for case in cases.values():
        if isinstance(case["events"], dict) or "error" in case["events_to_midi"]:
            continue
        notes = [note for note in events_to_notes(case["events"]) if note.duration]
        again = read_notes(midi_bytes(notes_to_midi(notes)))
        assert starts_and_ends(again) == starts_and_ends(notes)


def test_measures_and_moves(cases):
    for case in cases.values():
        if isinstance(case["events"], dict):
            continue
        events = case["events"]
        assert earliest_tick(events) == case["min_time_ticks"]
        assert latest_tick(events) == case["max_time_ticks"]
        assert {str(key): count for key, count in count_instruments(events).items()} == case["instruments"]
        assert longest_gap(events) == case["sparsity"]
        assert pad_events(events) == case["padded"]
        for key, expected in case.items():
            if seconds := re.fullmatch(r"clip_(\d+)s_(\d+)s", key):
                assert clip_events(events, *(int(value) * TICKS for value in seconds.groups())) == expected
            elif ticks := re.fullmatch(r"translate_\+(\d+)", key):
                assert shift_events(events, int(ticks[1])) == expected
        assert clip_events(events, *KEPT_DURATIONS_TICKS, cut_durations=False) == case["clip_noclipdur"]


def test_anticipation(cases):
    for case in cases.values():
        if isinstance(case["events"], dict):
            continue
        events = case["events"]
        remaining, controls = split_events(events, [index % 3 == 1 for index in range(len(events) // 3)])
        padded = pad_events(remaining, latest_tick(events))
        assert merge_controls(remaining, controls) == case["combine_split"]
        for key, stored in case.items():
            if not key.startswith("anticipate_every3rd"):
                continue
            delta = re.search(r"_delta(\d+)", key)
            result = anticipate(padded, controls, *([int(delta[1])] if delta else []))
            assert result == (stored["tokens"], stored["unconsumed"])
            assert padded == stored.get("events_padded", padded)
            assert controls == stored.get("controls", controls)
        if "anticipate_instrument" in case:
            stored = case["anticipate_instrument"]
            remaining, controls = split_instruments(events, {stored["instrument"]})
            result = anticipate(pad_events(remaining, latest_tick(events)), controls)
            assert result == (stored["tokens"], stored["unconsumed"])


def test_random_splits(cases):
    compared = 0
    for case in cases.values():
        for key, stored in case.items():
            if rate := re.fullmatch(r"extract_random_rate(\d+)", key):
                random = np.random.RandomState(stored["np_seed"])
                result = split_random(case["events"], int(rate[1]) / 10.0, random)
            elif rate := re.fullmatch(r"extract_spans_(.+)", key):
                result = split_spans(case["events"], float(rate[1]), np.random.RandomState(stored["np_seed"]))
            else:
                continue
            assert result == (stored["events"], stored["controls"])
            compared += 1
    assert compared


def test_training_rows(golden):
    stored = json.loads((golden.folder / "training_rows.json").read_text())
    files = next(entry["files"] for entry in stored.values() if "files" in entry)
    for key, entry in stored.items():
        names = [name.removesuffix(".compound.txt") for name in entry.get("files", files)]
        paths, counts = [golden.folder / "midi" / name for name in names], RowCounts()
        if variants := re.fullmatch(r"augment(\d+)", key):
            rows = arrival_rows([read_notes(path) for path in paths], int(variants[1]), counts=counts)
        else:
            rows = interarrival_rows(paths, counts)
        assert list(rows) == entry["rows"], key
        assert list(dataclasses.astuple(counts)) == entry["returned"], key
