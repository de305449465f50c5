"""The grammar of MIDI tokens: what may follow, by hand; samples of untrained models are music with it and are none without."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from melreformer_hf import MidiGrammar, MidiNote, MidiTokenizer
from melreformer_hf.processing.midi.grammar import PROGRESSES, first_violation
from melreformer_hf.processing.midi.notes import read_notes
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, INTERARRIVAL

DURATION, NOTE, REST, CONTROL, SEPARATOR = 10_000, 11_000, 27_512, 27_513, 55_025
AUTOREGRESS, ANTICIPATE = 55_026, 55_027
ON, OFF, BREAK = 1000, 1000 + 129 * 128, 1000 + 2 * 129 * 128
SCHEMES = ("arrival", "interarrival")
NOTES = [MidiNote(10 * index, 30, 40 + index % 7, 5 * (index % 3), 90) for index in range(40)]


def allowed(scheme, tokens, **options):
    progress = PROGRESSES[scheme](**options)
    for token in tokens:
        progress.push(token)
    return sorted(range_ for range_ in progress.allowed())


def test_arrival_slot_by_slot():
    assert allowed("arrival", []) == [(0, 10_000), (SEPARATOR, SEPARATOR + 1)]
    assert allowed("arrival", [], separators=False) == [(0, 10_000)]
    assert allowed("arrival", [AUTOREGRESS, 7]) == [(DURATION, NOTE)]
    assert allowed("arrival", [7, DURATION + 1]) == [(NOTE, REST)]
    assert allowed("arrival", [7, DURATION]) == [(NOTE, REST), (REST, REST + 1)]
    assert allowed("arrival", [SEPARATOR]) == allowed("arrival", [SEPARATOR] * 2) == [(SEPARATOR, SEPARATOR + 1)]


def test_arrival_times_do_not_fall_until_a_new_piece():
    event = [300, DURATION + 5, NOTE + 60]
    assert allowed("arrival", event, separators=False) == [(300, 10_000)]
    assert allowed("arrival", [*event, 400, DURATION, REST], separators=False) == [(400, 10_000)]
    assert allowed("arrival", event + [SEPARATOR] * 3, separators=False) == [(0, 10_000)]
    known = [CONTROL + 700, CONTROL + DURATION, CONTROL + NOTE]
    assert allowed("arrival", event + known, separators=False) == [(300, 10_000)]  # what is told ahead is not now


def test_controls_are_told_in_order_and_five_seconds_ahead():
    options = {"controls": True, "separators": False}
    assert allowed("arrival", [], **options)[1] == (CONTROL, CONTROL + 501)
    event, known = [300, DURATION, NOTE], [CONTROL + 700, CONTROL + DURATION + 3, CONTROL + NOTE + 2]
    assert allowed("arrival", event + known, **options)[1] == (CONTROL + 700, CONTROL + 801)
    assert allowed("arrival", event + known[:1], **options) == [(CONTROL + DURATION, CONTROL + NOTE)]
    assert allowed("arrival", event + known[:2], **options) == [(CONTROL + NOTE, CONTROL + REST)]
    late = [CONTROL + 900, CONTROL + DURATION, CONTROL + NOTE]
    assert len(allowed("arrival", event + late, **options)) == 1  # the next one is not in sight yet
    with pytest.raises(ValueError, match="controls must be False"):
        MidiGrammar("interarrival", controls=True)(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 34_025))


def test_interarrival_ends_what_sounds_and_waits_once():
    whole = (ON, OFF)
    assert allowed("interarrival", []) == [(1, 1000), whole, (BREAK, BREAK + 1)]
    assert allowed("interarrival", [5]) == [whole]
    assert allowed("interarrival", [ON + 60]) == [(1, 1000), whole, (OFF + 60, OFF + 61)]
    assert allowed("interarrival", [ON + 60, ON + 60, OFF + 60]) == [(1, 1000), whole, (OFF + 60, OFF + 61)]
    assert allowed("interarrival", [ON + 60, OFF + 60]) == allowed("interarrival", [])
    # an end of nothing changes nothing
    assert allowed("interarrival", [OFF + 60, ON + 60])[-1] == (OFF + 60, OFF + 61)
    assert allowed("interarrival", [ON + 60, BREAK]) == allowed("interarrival", [])


@pytest.mark.parametrize("scheme, block", [("arrival", NOTE), ("interarrival", ON)])
def test_sixteen_instruments_are_as_many_as_a_file_holds(scheme, block):
    tokens = []
    for instrument in [128, *range(20, 35)]:
        tokens += [0, DURATION + 1, NOTE + 128 * instrument] if scheme == "arrival" else [ON + 128 * instrument]
    ranges = allowed(scheme, [*tokens, 0, DURATION + 1] if scheme == "arrival" else [*tokens, 1])
    kinds = [first for first, _ in ranges if scheme == "arrival" or first < OFF]
    assert sorted(kinds) == [block + 128 * instrument for instrument in [*range(20, 35), 128]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_tokenizer_writes_is_in_order(scheme):
    ids = MidiTokenizer(scheme).encode_midi(NOTES)
    assert first_violation(ids, scheme) is None
    if scheme == "arrival":
        told = MidiTokenizer(scheme).encode_midi(NOTES, known_instruments=[5])
        assert first_violation([ANTICIPATE, *told], scheme) is None
        assert first_violation(told, scheme, controls=False) == 0
        assert first_violation([*ids[:6], *ids[:3]], scheme) == 6
    else:
        assert first_violation([OFF + 60], scheme) == 0 and first_violation([3, 3], scheme) == 1


def model_of(scheme: str, kind: str = "gpt2"):
    torch.manual_seed(0)
    size = (ARRIVAL if scheme == "arrival" else INTERARRIVAL).size
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=256, n_embd=16, n_layer=1, n_head=2)).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=256, **sizes)).eval()


def sample(scheme, model, prompt, processors, **options):
    end = (ARRIVAL if scheme == "arrival" else INTERARRIVAL).first["separator"]
    settings = {"do_sample": True, "eos_token_id": end, "pad_token_id": end, "max_new_tokens": 50, **options}
    mask = torch.ones_like(prompt) if "attention_mask" not in settings else settings.pop("attention_mask")
    return model.generate(prompt, logits_processor=processors, attention_mask=mask, top_k=0, **settings)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_samples_are_music_with_the_grammar_and_not_without(scheme, kind, tmp_path):
    model, tokenizer = model_of(scheme, kind), MidiTokenizer(scheme, pad_token="separator")
    prompt = torch.tensor([tokenizer.encode_midi(NOTES[:4])] * 4)
    torch.manual_seed(1)
    samples = sample(scheme, model, prompt, [MidiGrammar(scheme)])
    assert samples.shape[1] > prompt.shape[1]
    for row in samples:
        notes = tokenizer.decode_notes(row, partial=True)
        assert len(notes) >= 4 and all(note.duration is not None for note in notes)
        onsets = [note.onset for note in notes]
        assert onsets == sorted(onsets)
        tokenizer.decode_midi(row, tmp_path / "sample.mid", partial=True)
        assert len(read_notes(tmp_path / "sample.mid")) == len(notes)
    whole = [row.tolist() for row in samples]
    wrong = [row.tolist() for row in sample(scheme, model, prompt, [])]
    assert all(first_violation(cut(row, scheme), scheme, False) is None for row in whole)
    assert all(first_violation(cut(row, scheme), scheme, False) is not None for row in wrong)


def cut(row: list[int], scheme: str) -> list[int]:
    """Up to the first separator: padding follows."""
    end = (ARRIVAL if scheme == "arrival" else INTERARRIVAL).first["separator"]
    return row[: row.index(end) + 1] if end in row else row


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": False, "num_beams": 3}, {"num_beams": 2}])
def test_greedy_decoding_and_beams_keep_to_it(options):
    prompt = torch.tensor([MidiTokenizer().encode_midi(NOTES[:2])] * 2)
    torch.manual_seed(0)
    samples = sample("arrival", model_of("arrival"), prompt, [MidiGrammar("arrival")], max_new_tokens=20, **options)
    assert all(first_violation(cut(row, "arrival"), "arrival", False) is None for row in samples.tolist())


def test_controls_are_drawn_where_they_may_be():
    prompt = torch.tensor([[ANTICIPATE]])
    torch.manual_seed(0)
    model = model_of("arrival")
    plain = sample("arrival", model, prompt, [MidiGrammar("arrival", separators=False)])
    told = sample("arrival", model, prompt, [MidiGrammar("arrival", controls=True, separators=False)])
    kinds = [{row >= CONTROL for row in tokens[0, 1::3].tolist()} for tokens in (plain, told)]
    assert kinds[0] == {False} and True in kinds[1]
    assert first_violation(told[0].tolist(), "arrival") is None


def test_padding_on_the_left_is_passed_over():
    """Prompts of unequal length, one batch: each row is continued from where its own events stand."""
    long, short = (MidiTokenizer().encode_midi(NOTES[:count]) for count in (4, 2))
    short = short[:-1]  # within an event
    padded = [[SEPARATOR] * (len(long) - len(short)) + short, long]
    scores = torch.zeros(2, ARRIVAL.size)
    one, two = MidiGrammar("arrival", pad_token_id=SEPARATOR)(torch.tensor(padded), scores).isfinite()
    assert one.nonzero()[:, 0].min() == NOTE and not two[NOTE:REST].any()
    assert two.nonzero()[:, 0].min() == NOTES[3].onset


def test_one_object_serves_call_after_call():
    grammar, scores = MidiGrammar("arrival"), torch.zeros(1, ARRIVAL.size + 3)
    first = grammar(torch.tensor([[5, DURATION]]), scores)
    again = grammar(torch.tensor([[5, DURATION, NOTE, 9]]), scores)  # one more at once, as assisted decoding gives
    other = grammar(torch.tensor([[7]]), scores)
    assert torch.equal(first, MidiGrammar("arrival")(torch.tensor([[5, DURATION]]), scores))
    assert torch.equal(again, MidiGrammar("arrival")(torch.tensor([[5, DURATION, NOTE, 9]]), scores))
    assert torch.equal(other, again)
    assert not first[:, ARRIVAL.size :].isfinite().any()
    with pytest.raises(ValueError, match="55028 tokens.*got 100"):
        grammar(torch.tensor([[5]]), torch.zeros(1, 100))
    with pytest.raises(ValueError, match="scheme must be one of"):
        MidiGrammar("note_tuple")
