"""What is drawn is a score, repeatable, row by row its own, and does not go round in circles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from borders import check_borders

from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.models.note_transformer.sampling_note_transformer import (
    NoteSampler,
    PhraseMemory,
    SamplingOptions,
)


def model() -> NoteTransformerModel:
    torch.manual_seed(0)
    return NoteTransformerModel(NoteTransformerConfig.preset("test")).eval()


def compose(net, rows: int, count: int, generator, options=None) -> torch.Tensor:
    """(row, note, attribute) from a piece's beginning."""
    sampler = NoteSampler(net, rows, options, generator)
    mark = torch.zeros(rows, 1, dtype=torch.long)
    sampler.feed(mark, torch.zeros(rows, 1, 5, dtype=torch.long), torch.zeros(rows, 1), torch.zeros_like(mark).bool())
    made, now = [], torch.zeros(rows, 1)
    for _ in range(count):
        notes = sampler.next_notes(may_end=False)
        now = now + notes[:, :1] * 0.01
        sampler.feed(torch.full((rows, 1), 2), notes[:, None], now, torch.ones(rows, 1, dtype=torch.bool))
        made.append(notes)
    return torch.stack(made, dim=1)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_every_sample_is_a_score():
    net = model()
    with torch.no_grad():
        net.head.heads[0].classifier.bias[0] = 4.0  # many notes of one onset
    notes = compose(net, 4, 120, torch.Generator().manual_seed(1), SamplingOptions(top_p=1.0))
    for size, column in zip((109, *NoteTransformerConfig().vocab_sizes[1:]), notes.unbind(-1), strict=True):
        assert 0 <= column.min() and column.max() < size
    same_onset = notes[:, 1:, 0] == 0
    assert same_onset.any(), "the case must occur"
    assert (notes[:, 1:, 1] > notes[:, :-1, 1])[same_onset].all()
    assert (notes[:, 1:, 4] == notes[:, :-1, 4])[same_onset].all()
    assert (notes[:, 1:, 4] != notes[:, :-1, 4])[~same_onset].any()


def test_the_highest_pitch_is_followed_by_a_later_onset():
    sampler = NoteSampler(model(), 2, None, torch.Generator().manual_seed(0))
    sampler.feed(
        torch.tensor([[2], [2]]),
        torch.tensor([[[1, 127, 1, 1, 0]], [[1, 5, 1, 1, 0]]]),
        torch.zeros(2, 1),
        torch.ones(2, 1).bool(),
    )
    logits = torch.zeros(2, 110)
    sampler._follow_grammar(logits, 0, [], may_end=[False, True])
    assert logits[0, 0] == float("-inf") and logits[1, 0] == 0
    assert logits[0, 109] == float("-inf") and logits[1, 109] == 0
    assert (logits[:, 1:109] == 0).all()


def drawn_after(pitch: int, allowed: torch.Tensor, rows: int = 20) -> torch.Tensor:
    """What follows one note of `pitch`, 200 times."""
    net, made = model(), []
    for seed in range(200 // rows):
        sampler = NoteSampler(net, rows, SamplingOptions(top_p=1.0), torch.Generator().manual_seed(seed))
        note = torch.tensor([0, pitch, 5, 16, 0]).expand(rows, 1, 5)
        sampler.feed(torch.full((rows, 1), 2), note, torch.zeros(rows, 1), torch.ones(rows, 1, dtype=torch.bool))
        made.append(sampler.next_notes(False, allowed.expand(rows, -1, -1)))
    return torch.cat(made)


def test_only_allowed_pitches_are_struck_at_times_that_have_some():
    allowed = torch.zeros(109, 128, dtype=torch.bool)
    allowed[0, :61] = True  # none of them above 60, after which they would have to come
    allowed[3, [40, 50]] = True
    allowed[7, 90] = True
    notes = drawn_after(60, allowed)
    assert {(time, pitch) for time, pitch, *_ in notes.tolist()} == {(3, 40), (3, 50), (7, 90)}


def test_where_no_key_is_free_the_piece_ends():
    allowed = torch.zeros(109, 128, dtype=torch.bool)
    allowed[0] = True
    assert (drawn_after(127, allowed)[:, 0] == 109).all()
    assert (drawn_after(126, allowed)[:, :2] == torch.tensor([0, 127])).all()


def test_what_is_drawn_is_drawn_once():
    sampler = NoteSampler(model())
    with pytest.raises(ValueError, match="feed must come before"):
        sampler.next_notes()


def test_rows_with_generators_of_their_own_do_not_depend_on_their_batch():
    net = model()
    together = compose(net, 3, 40, generators(1, 2, 3))
    for row, seed in enumerate((1, 2, 3)):
        assert torch.equal(compose(net, 1, 40, generators(seed))[0], together[row])
    assert not torch.equal(together[0], together[1])


def test_generators_must_be_one_per_row():
    with pytest.raises(ValueError, match=r"one per row \(3\), got 2"):
        NoteSampler(model(), 3, None, generators(1, 2))


def test_phrases_that_came_often_enough_are_barred_until_they_are_forgotten():
    options = SamplingOptions(repeat_length=3, max_repeats=1, repeat_memory=12)
    memory = PhraseMemory(options)
    phrase = [(5, 60), (5, 62), (5, 64)]
    for time, pitch in phrase:
        memory.add(time, pitch)
    for time, pitch in phrase[:2]:
        memory.add(time, pitch)
    assert memory.barred(5) == []  # it came once: it may come again
    memory.add(*phrase[2])
    for time, pitch in phrase[:2]:
        memory.add(time, pitch)
    assert memory.barred(5) == [64] and memory.barred(6) == []
    for index in range(10):
        memory.add(9, index)
    for time, pitch in phrase[:2]:
        memory.add(time, pitch)
    assert memory.barred(5) == []
    assert PhraseMemory(SamplingOptions(max_repeats=None)).barred(0) == []


def test_repetition_control_ends_circles():
    net = model()
    with torch.no_grad():
        for head, value in zip(net.head.heads, (10, 60, 5, 16, 0), strict=True):
            head.classifier.weight.zero_()
            head.classifier.bias.copy_(
                torch.randn(head.classifier.bias.shape, generator=torch.Generator().manual_seed(value))
            )
            head.classifier.bias[value] = 30.0
    free = compose(net, 1, 30, generators(0), SamplingOptions(max_repeats=None))
    assert free[0, :, 1].unique().tolist() == [60]
    controlled = compose(net, 1, 30, generators(0), SamplingOptions(repeat_length=4, max_repeats=2))
    run = longest = 0
    for pitch in controlled[0, :, 1].tolist():
        run = run + 1 if pitch == 60 else 0
        longest = max(longest, run)
    assert longest == 4 + 2


def test_colder_is_less_surprising_per_attribute():
    net = model()
    cold = compose(
        net, 1, 60, generators(0), SamplingOptions(temperature=(1.0, 1e-3, 1.0, 1.0, 1.0), max_repeats=None)
    )
    warm = compose(net, 1, 60, generators(0), SamplingOptions(temperature=1.0, max_repeats=None))
    assert len(cold[0, :, 1].unique()) < len(warm[0, :, 1].unique()) - 10
    assert len(cold[0, :, 0].unique()) > 10


@pytest.mark.parametrize(
    "field, value",
    (("temperature", 0.0), ("temperature", (1.0, -1.0)), ("top_p", 0.0), ("repeat_length", 1), ("max_repeats", -1)),
)
def test_options_that_cannot_be_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingOptions(**{field: value})


def test_options_at_their_limits_are_taken():
    options = SamplingOptions(temperature=1, top_p=1, repeat_length=2, repeat_memory=2, max_repeats=0)
    made = compose(model(), 1, 20, generators(0), options)[0]
    pairs = list(zip(made[:-1, :2].tolist(), made[1:, :2].tolist(), strict=True))
    assert all(pair != after for pair, after in zip(pairs, pairs[1:], strict=False))


def test_temperatures_are_one_per_attribute():
    with pytest.raises(ValueError, match=r"one per attribute \(5\)"):
        compose(model(), 1, 1, None, SamplingOptions(temperature=(1.0, 1.0)))


def test_borders_of_the_options():
    inside = {
        "temperature": (1e-3, 2, (1e-3, 1.0)),
        "top_p": (1e-3, 1.0),
        "repeat_length": (2, {"repeat_length": 5, "repeat_memory": 5}),
        "max_repeats": (0, None),
    }
    outside = {
        "temperature": (0.0, (1.0, 0.0), (), float("inf")),
        "top_p": (0.0, 1.01),
        "repeat_length": (1, {"repeat_length": 5, "repeat_memory": 4}),
        "max_repeats": (-1,),
    }
    check_borders(SamplingOptions, inside, outside)


def remembering(length: int = 4) -> NoteTransformerModel:
    torch.manual_seed(0)
    config = NoteTransformerConfig.preset("test", phrase_filter_bytes=4096, phrase_length=length)
    return NoteTransformerModel(config).eval()


def steps(notes: torch.Tensor) -> np.ndarray:
    """(note, attribute) -> (note - 1, 2) steps in pitch and time."""
    rows = notes.numpy()
    return np.stack([np.diff(rows[:, 1]), rows[1:, 0]], axis=1)


def test_no_phrase_of_the_training_is_written_again_unless_it_is_allowed():
    net, free = remembering(), SamplingOptions(allow_quotes=True)
    first = compose(net, 2, 40, generators(3, 4))
    assert torch.equal(first, compose(net, 2, 40, generators(3, 4), free)), "an empty memory bars nothing"
    # The first row's music is what it was trained on; the same seeds would write it again.
    net.phrases.learn([steps(first[0])])
    again = compose(net, 2, 40, generators(3, 4))
    length = net.phrases.length
    differs = (again[0] != first[0]).any(-1)
    assert differs.nonzero()[0].item() == length, "four steps end with the fifth note"
    assert again[0, length, 0] == first[0, length, 0] and again[0, length, 1] != first[0, length, 1]
    windows = np.lib.stride_tricks.sliding_window_view
    old, new = (
        {tuple(row.ravel()) for row in windows(steps(notes), length, axis=0).swapaxes(1, 2)}
        for notes in (first[0], again[0])
    )
    assert len(old) == 36 and not old & new
    assert torch.equal(again[1], first[1])
    assert torch.equal(compose(net, 2, 40, generators(3, 4), free), first)


def test_a_quote_is_better_than_nothing_to_choose_from():
    net = remembering(2)
    sampler = NoteSampler(net, 1, SamplingOptions(), torch.Generator().manual_seed(0))
    notes = torch.tensor([[[5, 60, 1, 1, 0], [7, 62, 1, 1, 0]]])
    sampler.feed(torch.full((1, 2), 2), notes, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    net.phrases.learn([np.array([[2, 7], [step, 9]]) for step in range(-62, 66)])
    logits = torch.zeros(1, 128)
    sampler._vary(logits, [9])
    assert logits.isfinite().all()
    logits[0, 64:] = float("-inf")
    sampler._vary(logits, [8])  # another rhythm is no quote
    assert logits[0, :64].isfinite().all()
    # The end of a piece is no phrase.
    assert sampler._quoted(0, net.config.end_id) == []
