"""Music from models of arrival tokens, longer than their context: equal to a plain rewriting of the original's sampler."""

from __future__ import annotations

import json
import random
import zlib
from types import SimpleNamespace

import pytest
import torch
from testing_utils import assert_error
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from melreformer_hf import MidiNote, generate_arrival
from melreformer_hf.pipelines.arrival_generation import _Window
from melreformer_hf.training.recipes.midi_lm import MidiLMOptions, midi_lm_config

DURATION, NOTE, REST, CONTROL, SIZE = 10_000, 11_000, 27_512, 27_513, 55_028
AUTOREGRESS, ANTICIPATE = 55_026, 55_027
CONTEXT = 40  # eleven events
MELODY = [MidiNote(150 * index, 100, 60 + index, 0, 90) for index in range(8)]

# What the repositories of the published checkpoints have as config.json, but for the sizes.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 16,
    "n_head": 2,
    "n_inner": None,
    "n_layer": 1,
    "n_positions": CONTEXT,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": True,
    "scale_attn_weights": True,
    "torch_dtype": "float32",
    "vocab_size": SIZE,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as a repository holds it."""
    folder = tmp_path_factory.mktemp("music-small")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{key: PUBLISHED[key] for key in PUBLISHED if key != "torch_dtype"}))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_the_published_layout_loads_and_has_its_sizes(folder, model):
    assert type(model) is GPT2LMHeadModel and model.config.vocab_size == SIZE
    assert model.config.scale_attn_by_inverse_layer_idx
    with torch.device("meta"):
        small = AutoModelForCausalLM.from_config(midi_lm_config(MidiLMOptions(preset="small")))
    assert sum(parameter.numel() for parameter in small.parameters()) == 128_103_936  # "128 M"
    assert (small.config.n_positions, small.config.n_head, small.config.vocab_size) == (1024, 12, SIZE)


class Improviser:
    """Stands for a model: what it likes best follows from every token that it has seen, and time goes on.

    Args:
        steps: shortest and longest time from the latest event to the next, in ticks.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(vocab_size=SIZE, max_position_embeddings=CONTEXT)

    def __init__(self, steps=(20, 400)):
        self.steps = steps

    def __call__(self, tokens, past_key_values=None, use_cache=True):
        seen = [*(past_key_values or []), *tokens[0].tolist()]
        assert len(seen) <= CONTEXT and all(0 <= token < SIZE for token in seen)
        draw = random.Random(zlib.crc32(repr(seen).encode()))
        latest = max((token for token in seen[1::3] if token < DURATION), default=0)
        logits = torch.zeros(1, len(tokens[0]), SIZE)
        note = REST if seen[-1] == DURATION and draw.random() < 0.5 else NOTE + draw.randrange(128 * 10)
        for token in (min(latest + draw.randint(*self.steps), DURATION - 1), DURATION + draw.randrange(3), note):
            logits[0, -1, token] = 50.0
        return SimpleNamespace(logits=logits, past_key_values=seen)


def plainly(model, end, start=0, events=(), waiting=()):
    """The original's loop: every token from the whole window anew, the likeliest one taken; ticks."""
    events, waiting = list(events), list(waiting)
    flag, now = [ANTICIPATE if waiting else AUTOREGRESS], max((event[0] for event in events), default=0)
    while True:
        while waiting and now >= waiting[0][0] - 500:
            time, duration, note = waiting.pop(0)
            events.append((CONTROL + time, CONTROL + duration, CONTROL + note))
        window = events[-((CONTEXT - 7) // 3) :]

        def times(window):
            return [time - CONTROL if note >= CONTROL else time for time, _, note in window]

        while window and max(times(window)) - min(times(window)) > 8000:
            window = window[1:]
        offset, drawn = min(times(window), default=0), []
        history = [number for time, *rest in window for number in (time - offset, *rest)]
        for slot in range(3):
            logits = model(torch.tensor([flag + history + drawn])).logits[0, -1]
            first = (max(now, start) - offset, DURATION, NOTE)[slot]
            behind = (DURATION, NOTE, CONTROL - 1 + (drawn[1:] == [DURATION]))[slot]
            drawn.append(first + int(logits[first:behind].argmax()))
        if drawn[0] + offset >= end:
            return events
        events.append((drawn[0] + offset, *drawn[1:]))
        now = drawn[0] + offset


def as_notes(events):
    notes = []
    for event in events:
        time, duration, note = (number - CONTROL for number in event) if event[2] >= CONTROL else event
        if note < CONTROL - 1:
            notes.append(MidiNote(time, duration - DURATION, (note - NOTE) % 128, (note - NOTE) // 128, 72))
    return sorted(notes)


def test_it_is_the_original_loop():
    model = Improviser()
    notes = generate_arrival(model, 200, stride=1)
    assert len(notes) > 60 and notes[-1].onset > 10_000, "longer than the context and than the block of times"
    assert notes == as_notes(plainly(model, 20_000))
    slow = Improviser((900, 1900))  # eleven events span more time than there are tokens for
    assert generate_arrival(slow, 700, stride=1) == as_notes(plainly(slow, 70_000))


def test_known_notes_are_told_as_the_original_tells_them():
    waiting = [(note.onset, DURATION + note.duration, NOTE + note.pitch) for note in MELODY]
    model, late = Improviser(), MidiNote(9000, 10, 50, 0, 64)
    notes = generate_arrival(model, 30, known=[*MELODY, late], stride=1)
    told = as_notes(plainly(model, 3000, waiting=waiting))
    assert notes == sorted([*told, late._replace(velocity=72)]) and len(told) > len(MELODY)


def test_a_model_that_stays_at_one_moment_ends():
    notes = generate_arrival(Improviser((0, 0)), 0.03)
    assert 60 < sum(note.onset == 0 for note in notes) <= 128  # and rests


@pytest.mark.parametrize("stride", [1, 4, 10])
def test_given_music_goes_on_and_what_comes_later_stays(stride):
    model, generator = Improviser(), torch.Generator().manual_seed(3)
    notes = generate_arrival(model, 20, start=6, given=MELODY, temperature=5.0, stride=stride, generator=generator)
    kept = [note._replace(velocity=72) for note in MELODY]
    assert all(note in notes for note in kept)
    drawn = [note for note in notes if note not in kept]
    assert drawn and all(600 <= note.onset < 2000 for note in drawn)
    again = generate_arrival(
        model,
        20,
        start=6,
        given=MELODY[::-1],
        temperature=5.0,
        stride=stride,
        generator=torch.Generator().manual_seed(3),
    )
    assert notes == again
    assert notes == sorted(notes, key=lambda note: note.onset)


def test_silence_before_the_start_is_heard(model):
    """By a true model with its own cache, in steps as few as its context allows."""
    notes = generate_arrival(model, 40, start=30, generator=torch.Generator().manual_seed(0))
    again = generate_arrival(model, 40, start=30, generator=torch.Generator().manual_seed(0))
    assert notes == again and all(3000 <= note.onset < 4000 for note in notes)


def test_what_a_true_model_has_cached_is_what_it_would_see_anew(model):
    kept, anew = (_Window(model, AUTOREGRESS, 1) for _ in range(2))
    tokens = [token for index in range(9) for token in (50 * index, DURATION + index, NOTE + index)]
    for count in (1, 3, 4, 12, 27):
        anew.cache = None
        torch.testing.assert_close(kept.logits(tokens[:count]), anew.logits(tokens[:count]), atol=1e-5, rtol=1e-5)
    changed = [1, *tokens[1:]]
    anew.cache = None
    torch.testing.assert_close(kept.logits(changed), anew.logits(changed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"end": 0}, ("start", "before end", "end=0")),
        ({"end": 5, "start": 5}, ("start=5",)),
        ({"end": 5, "start": -1}, ("at least 0", "-1")),
        ({"end": 5, "stride": 0}, ("stride", "1..10", "0")),
        ({"end": 5, "stride": 11}, ("1..10", "11")),
        ({"end": 5, "top_p": 2.0}, ("top_p", "2.0")),
        ({"end": 5, "given": [(0, 1, 200, 0, 64)]}, ("pitch", "200")),
    ],
)
def test_what_cannot_be(model, arguments, fragments):
    with pytest.raises(ValueError) as error:
        generate_arrival(model, **arguments)
    assert_error(error, *fragments)


def test_other_vocabularies_are_refused():
    small = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="55028 tokens.*100"):
        generate_arrival(small, 1)
