"""What the composer's modes mean: what is given stays, new notes keep to their place, every result is a MIDI file."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from melreformer_hf._threads import using_threads
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.models.note_transformer.sampling_note_transformer import NoteSampler, SamplingOptions
from melreformer_hf.pipelines import composing
from melreformer_hf.pipelines.composing import (
    Score,
    accompany_notes,
    compose,
    compose_notes,
    continue_notes,
    fill_notes,
    held_notes,
)
from melreformer_hf.processing.midi.attributes import DURATION_TICKS, END, attributes_of_notes
from melreformer_hf.processing.midi.notes import (
    DRUMS,
    MidiNote,
    midi_bytes,
    notes_to_midi,
    read_notes,
    write_midi,
)
from melreformer_hf.processing.midi.sequences import CONTROL, EVENT, MIDDLE, START, note_sequence

OPTIONS = SamplingOptions(top_p=1.0, max_repeats=None)


def build(end: float = -5.0, **changes) -> NoteTransformerModel:
    """A model of chance whose notes are dense, in few keys, and of all lengths, so that keys get into each other's way."""
    torch.manual_seed(0)
    net = NoteTransformerModel(NoteTransformerConfig.preset("test", initializer_range=0.2, **changes)).eval()
    with torch.no_grad():
        times, pitches, *_ = (head.classifier.bias for head in net.head.heads)
        times[:30] += 6.0
        times[0] += 1.5
        times[40:END] -= 10.0
        times[END] = end
        pitches[60:72] += 4.0
    return net


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompt() -> Score:
    notes = [MidiNote(100 + 20 * index, 15, 60 + 5 * index % 12, 0, 60 + index) for index in range(20)]
    notes += [MidiNote(480, 300, 66, 0, 90), MidiNote(480, 5, 69, 0, 91)]
    return Score(sorted(notes, key=lambda note: (note.onset, note.pitch)), [(100, 200), (450, 900)])


def release(note: MidiNote) -> int:
    return note.onset + note.duration


def assert_a_midi_file(score: Score) -> None:
    """It is read as it was written, so no key is struck that is down, and notes and pedal are in range."""
    assert sorted(read_notes(midi_bytes(notes_to_midi(score.notes)))) == sorted(score.notes)
    assert list(score.notes) == sorted(score.notes, key=lambda note: (note.onset, note.pitch))
    for down, up in score.pedal:
        assert 0 <= down < up


def pressed(score: Score, tick: int) -> bool:
    return any(down <= tick < up for down, up in score.pedal)


def new_notes(score: Score, given: list[MidiNote]) -> list[MidiNote]:
    left = list(score.notes)
    for note in given:
        left.remove(note)
    return left


def test_a_piece_from_nothing_is_a_midi_file_of_the_length_asked_for(tmp_path):
    made = compose(build(), 12.3, options=OPTIONS, generator=seeded())
    assert len(made.notes) > 50 and made.pedal
    assert_a_midi_file(made)
    assert 1100 < max(map(release, made.notes)) <= 1230
    assert any(release(note) == 1230 for note in made.notes), "what rings is cut at the end"
    write_midi(notes_to_midi(made.notes), tmp_path / "made.mid")
    assert Score.read(tmp_path / "made.mid").notes == read_notes(tmp_path / "made.mid")
    with (tmp_path / "made.mid").open("rb") as file:
        assert len(Score.read(file).notes) == len(made.notes)


def test_notes_are_those_of_the_generator():
    net = build()
    first, again, other = (compose(net, 5, options=OPTIONS, generator=seeded(seed)) for seed in (1, 1, 2))
    assert first == again and first != other
    assert all(note.instrument == 3 for note in compose(net, 2, generator=seeded(), instrument=3).notes)


def test_the_model_ends_a_piece_but_not_long_before_the_length_asked_for():
    ending = build(end=9.0)
    free = compose(ending, options=OPTIONS, generator=seeded())
    assert len(free.notes) < 20
    asked = compose(ending, 20, options=OPTIONS, generator=seeded(4))
    assert 1800 <= max(note.onset for note in asked.notes) < 2000
    assert max(map(release, asked.notes)) < 1990, "it ended by itself"
    drawn = compose_notes(ending, seconds=20, earliest_end=5.0, options=OPTIONS, generator=seeded())
    assert 500 <= max(note.onset for note in drawn) < 900


def test_what_never_ends_ends_at_the_longest(monkeypatch):
    monkeypatch.setattr(composing, "LONGEST_SECONDS", 3.0)
    made = compose(build(end=-math.inf), options=OPTIONS, generator=seeded())
    assert 250 < max(map(release, made.notes)) <= 300


class Recorder(NoteSampler):
    """Keeps all that the model was fed."""

    fed: list[tuple[np.ndarray, ...]]

    def feed(self, roles, attributes, seconds, played, upcoming):
        if not hasattr(type(self), "last") or type(self).last is not self:
            type(self).last, self.fed = self, []
        told = torch.zeros(*roles.shape, 4, dtype=torch.long) if upcoming is None else upcoming
        self.fed.append(tuple(values[0].numpy() for values in (roles, attributes, seconds, played, told)))
        super().feed(roles, attributes, seconds, played, upcoming)

    @classmethod
    def positions(cls) -> list[np.ndarray]:
        return [np.concatenate(parts) for parts in zip(*cls.last.fed, strict=True)]


@pytest.mark.parametrize("mode", ("compose", "continue", "fill", "accompany"))
def test_the_model_sees_what_it_was_trained_on(mode, monkeypatch):
    monkeypatch.setattr(composing, "NoteSampler", Recorder)
    net, start = build(), prompt()
    settings = {"options": OPTIONS, "generator": seeded(3)}
    later = [note._replace(onset=note.onset + 1000, pitch=note.pitch - 12) for note in start.notes]
    long = [*later, *(note._replace(onset=note.onset + 1700) for note in later)]
    if mode == "compose":
        made, given, origin = compose(net, 12, **settings), [], 0
    elif mode == "continue":
        made, given, origin = continue_notes(net, start, 12, **settings), [], 100
    elif mode == "fill":
        both = Score([*start.notes, *long], start.pedal)
        made, given, origin = fill_notes(net, both, 5, 11, **settings), long, 100
    else:
        made, given, origin = accompany_notes(net, Score(long), **settings), long, 1100
    roles, rows, seconds, played, upcoming = Recorder.positions()
    onsets = np.array([note.onset for note in made.notes]) - origin
    flags = np.array([note in given for note in made.notes])
    expected = note_sequence(attributes_of_notes(made.notes, made.pedal), onsets, flags)
    # What comes into sight when the last note is drawn is fed together with the next one, which there is none of.
    count = len(roles) if mode in ("compose", "continue") else int(np.flatnonzero(played)[-1]) + 1
    assert count > 30 and (mode == "compose" or CONTROL in roles[:count] or mode == "continue")
    np.testing.assert_array_equal(roles[:count], expected.roles[:count])
    np.testing.assert_array_equal(seconds[:count], expected.seconds[:count])
    np.testing.assert_array_equal(upcoming[:count], expected.upcoming[:count])
    assert upcoming[:count].any() == (mode in ("fill", "accompany"))
    columns = [0, 1, 3, 4] if mode in ("compose", "continue") else [0, 1, 3]
    np.testing.assert_array_equal(rows[:count, columns], expected.attributes[:count, columns])
    # A key that is struck again was let go before, which was not known when the note was drawn.
    differs = rows[:count, 2] != expected.attributes[:count, 2]
    assert (rows[:count, 2] >= expected.attributes[:count, 2]).all() and differs.mean() < 0.5
    np.testing.assert_array_equal(played[:count], roles[:count] == EVENT)
    assert (roles == START).sum() == 1 and (mode in ("fill", "accompany")) == (roles[0] == CONTROL)


@pytest.mark.parametrize("seed", range(4))
def test_a_continued_piece_begins_with_the_given_notes(seed):
    start = prompt()
    made = continue_notes(build(), start, 12, options=OPTIONS, generator=seeded(seed))
    assert made.notes[: len(start.notes)] == start.notes
    assert len(made.notes) > len(start.notes) + 20
    assert_a_midi_file(made)
    new = made.notes[len(start.notes) :]
    assert not [note for note in new if note.pitch == 66 and note.onset < 780], "the key is held until 7.8 s"
    assert max(map(release, new)) <= 1200
    assert made.pedal[0] == (100, 200) and made.pedal[1][0] == 450


def test_new_notes_of_the_last_given_onset_are_above_it():
    chord = Score([MidiNote(0, 50, 60, 0, 64), MidiNote(0, 50, 64, 0, 64)])
    net, found = build(), 0
    with torch.no_grad():
        net.head.heads[0].classifier.bias[0] += 4.0
    for seed in range(20):
        new = continue_notes(net, chord, 2, options=OPTIONS, generator=seeded(seed)).notes[2:]
        within = [note for note in new if note.onset == 0]
        found += len(within)
        assert all(note.pitch > 64 for note in within)
    assert found > 5


def test_notes_come_after_the_prompt_even_where_its_time_was_rounded():
    # 19.37 s is rounded by 0.4 s: the model's clock runs behind the notes, or ahead of them.
    for gap in (1907, 1937, 1999, 2500):
        start = Score([MidiNote(0, 50, 60, 0, 64), MidiNote(gap, 50, 64, 0, 64)])
        for seed in range(10):
            made = continue_notes(build(), start, gap / 100 + 2, options=OPTIONS, generator=seeded(seed))
            assert made.notes[:2] == start.notes
            assert all((note.onset, note.pitch) > (gap, 64) for note in made.notes[2:])
            assert_a_midi_file(made)


def test_a_long_prompt_counts_as_far_as_the_model_sees():
    options = SamplingOptions(top_p=1.0, max_repeats=None, repeat_memory=8)
    notes = [MidiNote(20 * index, 10, 60 + 7 * index % 12, 0, 64) for index in range(200)]
    net, drawn = build(), []
    for first in (0, 100):
        rows = compose_notes(net, seconds=45, prompt=Score(notes[first:]), options=options, generator=seeded())
        drawn.append([(note.onset, *note.row.tolist()) for note in rows])
    assert drawn[0] == drawn[1] and len(drawn[0]) > 10


def test_both_sides_of_a_gap_stay_and_all_else_is_within():
    before = prompt()
    after = [note._replace(onset=note.onset + 900) for note in before.notes]
    lost = MidiNote(700, 10, 100, 0, 64)
    both = Score([*before.notes, lost, *after], [(100, 200), (450, 1100), (1200, 1300)])
    for seed in range(4):
        made = fill_notes(build(end=2.0), both, 5.0, 9.7, options=OPTIONS, generator=seeded(seed))
        assert lost not in made.notes
        new = new_notes(made, [*before.notes, *after])
        assert len(new) > 3 and all(500 <= note.onset < 970 for note in new)
        assert_a_midi_file(made)
        assert all(pressed(made, tick) for tick in (150, 499, 970, 1250))
        assert not pressed(made, 250) and not pressed(made, 1150)


@pytest.mark.parametrize("side", ("before", "after"))
def test_a_gap_may_have_one_side(side):
    notes = prompt().notes
    begin, end = (0.0, 1.0) if side == "after" else (30.0, 33.0)
    made = fill_notes(build(end=-math.inf), Score(notes), begin, end, options=OPTIONS, generator=seeded())
    new = new_notes(made, notes)
    assert new and all(100 * begin <= note.onset < 100 * end for note in new)


def test_a_melody_stays_and_is_accompanied_on_other_keys():
    melody = Score([MidiNote(200 + 100 * index, 100, 60 + index % 12, 0, 90) for index in range(12)], [(200, 250)])
    for seed in range(3):
        made = accompany_notes(build(end=9.0), melody, options=OPTIONS, generator=seeded(seed))
        new = new_notes(made, melody.notes)
        assert len(new) > 20 and new[0].onset >= 200 and max(map(release, new)) <= 1400
        assert max(note.onset for note in new) >= 800, "the end comes when the melody's is in sight"
        assert_a_midi_file(made)
        assert made.pedal[0][0] == 200
    longer = accompany_notes(build(), melody, 16, options=OPTIONS, generator=seeded())
    assert max(note.onset for note in longer.notes) > 1450


def test_where_all_keys_are_held_nothing_is_played():
    wall = Score([MidiNote(0, 25, pitch, 0, 64) for pitch in range(128)])
    made = accompany_notes(build(), wall, 2, options=OPTIONS, generator=seeded())
    new = new_notes(made, wall.notes)
    assert new and min(note.onset for note in new) >= 25


def test_drums_are_kept_and_not_followed():
    beat = [MidiNote(50 * index, 10, 36, DRUMS, 100) for index in range(10)]
    start = Score(sorted([*prompt().notes, *beat]))
    made = continue_notes(build(), start, 8, options=OPTIONS, generator=seeded())
    plain = continue_notes(build(), Score(prompt().notes), 8, options=OPTIONS, generator=seeded())
    assert [note for note in made.notes if note.instrument != DRUMS] == plain.notes
    assert [note for note in made.notes if note.instrument == DRUMS] == beat


def test_memory_does_not_grow():
    net = build()
    sampler = NoteSampler(net, 1, OPTIONS, seeded())
    empty = composing._Fixed(Score([]))
    writer = composing._Writer(sampler, empty, empty, 0, 10**9, 10**9)
    drawn = writer.notes(10**9)
    sizes = []
    for _ in range(3):
        list(itertools.islice(drawn, 150))
        sizes.append((sum(keys.numel() for keys in sampler.cache.keys), len(writer.positions), len(sampler._waiting)))
    assert sizes[0] == sizes[1] == sizes[2]


class Wrapper(torch.nn.Module):
    """Its model has weights only while it is called, as with offloading."""

    def __init__(self, net: NoteTransformerModel) -> None:
        super().__init__()
        self.net, self.calls = net, 0
        self.weights = [parameter.detach().clone() for parameter in net.parameters()]
        self.set(None)

    @torch.no_grad()
    def set(self, weights) -> None:
        for index, parameter in enumerate(self.net.parameters()):
            parameter.copy_(weights[index]) if weights else parameter.fill_(math.nan)

    def forward(self, *args, **kwargs):
        self.calls += 1
        self.set(self.weights)
        made = self.net(*args, **kwargs)
        self.set(None)
        return made


def test_only_calls_of_the_module_need_its_weights():
    expected = compose(build(), 3, options=OPTIONS, generator=seeded())
    net = build()
    wrapper = Wrapper(net)
    assert compose(net, 3, options=OPTIONS, generator=seeded(), module=wrapper) == expected
    assert wrapper.calls > 10


def row(pitch: int, duration: int, pedal: int = 0) -> np.ndarray:
    return np.array([1, pitch, int(np.searchsorted(DURATION_TICKS, duration)), 16, pedal])


def test_a_key_that_is_struck_again_was_let_go_before():
    drawn = [(0, row(60, 19)), (5, row(64, 2)), (12, row(60, 4)), (30, row(62, 0)), (2000, row(60, 1))]
    made = held_notes(iter(drawn), instrument=2)
    assert [(note.onset, note.duration, note.pitch) for note in made] == [
        (0, 12, 60),
        (5, 2, 64),
        (12, 4, 60),
        (30, 1, 62),
        (2000, 1, 60),
    ]


def test_notes_are_told_as_soon_as_their_end_is_known():
    told = held_notes(iter([(0, row(60, 10)), (5, row(64, 2)), (10, row(60, 4))]))
    consumed = []

    def drawn():
        for entry in [(0, row(60, 10)), (5, row(64, 2)), (10, row(60, 4)), (11, row(61, 4))]:
            consumed.append(entry[0])
            yield entry

    told = held_notes(drawn())
    assert next(told).onset == 0 and consumed == [0, 5, 10]


NOTES = Score([MidiNote(100, 10, 60, 0, 64)])


@pytest.mark.parametrize(
    "call, words",
    (
        (lambda net: compose(net, 0), ("seconds", "0")),
        (lambda net: compose(net, math.inf), ("seconds", "inf")),
        (lambda net: compose(net, "10"), ("seconds", "'10'")),
        (lambda net: continue_notes(net, Score([])), ("prompt", "none", "use compose")),
        (lambda net: continue_notes(net, Score([MidiNote(0, 1, 36, DRUMS, 1)])), ("prompt", "only drums")),
        (lambda net: continue_notes(net, NOTES, 1.0), ("seconds", "beyond 1 s", "1.0")),
        (lambda net: continue_notes(net, Score([MidiNote(0, 1, 200, 0, 1)])), ("notes[0].pitch", "200")),
        (lambda net: accompany_notes(net, Score([])), ("melody", "none")),
        (lambda net: fill_notes(net, Score([]), 1, 2), ("score", "none", "before or after")),
        (lambda net: fill_notes(net, NOTES, 2, 1), ("begin", "2", "1")),
        (lambda net: fill_notes(net, NOTES, 2, 2.004), ("begin", "10 ms", "2.004")),
        (lambda net: fill_notes(net, NOTES, None, 2), ("begin", "None")),
        (lambda net: compose_notes(net, span=(5, 5)), ("span", "(5, 5)")),
        (lambda net: compose_notes(net, prompt=NOTES, span=(50, 99)), ("prompt", "50 ticks", "100")),
    ),
)
def test_what_cannot_be_composed_is_said_before_anything_is(call, words):
    with pytest.raises(ValueError) as error:
        call(build())
    assert all(word in str(error.value) for word in words), error.value


def test_other_vocabularies_are_refused():
    torch.manual_seed(0)
    other = NoteTransformerModel(NoteTransformerConfig.preset("test", vocab_sizes=[10, 10]))
    with pytest.raises(ValueError, match="vocab_sizes"):
        compose_notes(other)


def test_a_sequence_that_was_cut_begins_in_the_middle(monkeypatch):
    monkeypatch.setattr(composing, "NoteSampler", Recorder)
    options = SamplingOptions(repeat_memory=8)
    notes = [MidiNote(20 * index, 10, 60, 0, 64) for index in range(100)]
    next(compose_notes(build(), prompt=Score(notes), options=options, generator=seeded()))
    roles, *_ = Recorder.positions()
    assert roles[0] == MIDDLE and len(roles) == 1 + 48


def test_single_notes_are_drawn_by_one_thread_long_beginnings_read_by_all():
    net, threads = build(), []

    class Counting(torch.nn.Module):
        def forward(self, *positions, **arguments):
            threads.append((positions[0].shape[1], torch.get_num_threads()))
            return net(*positions, **arguments)

    sketch = Score([MidiNote(10 * index, 5, 60 + index % 12, 0, 64) for index in range(40)])
    with using_threads(2):
        continue_notes(net, sketch, 8, options=OPTIONS, generator=seeded(), module=Counting())
        assert torch.get_num_threads() == 2
    assert threads[0] == (41, 2) and len(threads) > 3
    assert all(positions <= 16 and number == 1 for positions, number in threads[1:])
