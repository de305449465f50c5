"""The recipe of MIDI tokens: what an item is, what is measured, and a folder that transformers loads."""

from __future__ import annotations

import math

import pytest
import torch
from borders import check_borders, from_one
from training_utils import assert_same_checkpoints
from transformers import AutoModelForCausalLM, AutoTokenizer

from melreformer_hf import MidiGrammar, MidiTokenizer
from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder
from melreformer_hf.processing.midi.notes import MidiNote, notes_to_midi, write_midi
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.loop import train
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.midi_lm import MidiLMOptions, MidiLMRecipe, midi_lm_config, token_stretch

DURATION, NOTE, REST, SEPARATOR, AUTOREGRESS = 10_000, 11_000, 27_512, 55_025, 55_026


def write_pieces(folder):
    for piece in range(6):
        notes = [MidiNote(20 * index, 15, 40 + (index * (piece + 3)) % 40, 0, 64) for index in range(500)]
        write_midi(notes_to_midi(notes), folder / f"piece{piece}.mid")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("midi"), {}
    write_pieces(folder)
    for scheme in ("arrival", "interarrival"):
        made[scheme] = tmp_path_factory.mktemp("data") / scheme
        tokenize_folder(folder, made[scheme], TokenizeConfig(scheme=scheme), progress=False)
    return made


def config(dataset, tmp_path, **changes) -> TrainingConfig:
    options = {"preset": "test", "num_tokens": 64, "validation_rows": 2, **changes.pop("options", {})}
    settings = {"max_steps": 2, "batch_size": 2, "num_workers": 0, "progress_bar": False, "cpu": True}
    return TrainingConfig(
        dataset=str(dataset), output_dir=str(tmp_path / "run"), options=options, **{**settings, **changes}
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stretches_of_events_begin_at_zero_and_keep_the_flag():
    row = torch.tensor([AUTOREGRESS, *(token for i in range(20) for token in (7 + 5 * i, DURATION + i, NOTE + i))])
    starts = set()
    for seed in range(60):
        stretch = token_stretch(row, 11, "arrival", generator(seed))
        assert stretch[0] == AUTOREGRESS and stretch[1::3].tolist() == [0, 5, 10]
        first = int(stretch[2]) - DURATION
        assert stretch[2::3].tolist() == [DURATION + first + i for i in range(3)]
        assert stretch[3::3].tolist() == [NOTE + first + i for i in range(3)]
        starts.add(first)
    assert min(starts) == 0 and max(starts) == 17
    assert token_stretch(row, 61, "arrival", generator()) is row
    starts = {int(token_stretch(torch.arange(20), 8, "interarrival", generator(seed))[0]) for seed in range(80)}
    assert starts == set(range(13))


def test_an_item_is_padded_and_padding_teaches_nothing(datasets, tmp_path):
    recipe = MidiLMRecipe(config(datasets["arrival"], tmp_path, options={"num_tokens": 1100}))
    item = recipe.stream(0, 1).item(0)
    made = recipe.prepare(item, generator())
    assert made["input_ids"].shape == made["labels"].shape == (1100,)
    assert torch.equal(made["input_ids"][:1024], item["input_ids"]) and (made["input_ids"][1024:] == SEPARATOR).all()
    assert torch.equal(made["labels"][:1024], item["input_ids"]) and (made["labels"][1024:] == -100).all()
    recipe = MidiLMRecipe(config(datasets["arrival"], tmp_path))
    assert recipe.prepare(item, generator())["input_ids"].shape == (64,)


@pytest.mark.parametrize("scheme, size", [("arrival", 55_028), ("interarrival", 34_025)])
def test_bits_are_those_of_the_model(datasets, tmp_path, scheme, size):
    recipe = MidiLMRecipe(config(datasets[scheme], tmp_path, options={"scheme": scheme}, model={"n_positions": 64}))
    model = recipe.trainables()["model"].module.eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        found = recipe.validate(model)
        assert found.metrics["bits_per_token"] == pytest.approx(math.log2(size), rel=1e-5)
        assert f"1.00x of guessing ({math.log2(size):.1f} bits" in found.summary and found.counts["rows"] >= 1
        if scheme == "interarrival":
            assert set(found.metrics) == {"bits_per_token"}
            return
        # A model that knows nothing but the slots' blocks, by the position of the prediction.
        model.forward = slots_known(model.config.vocab_size)
        metrics = recipe.validate(model).metrics
    for name, choices in (("time", 10_000), ("duration", 1000), ("note", 16_511)):
        assert metrics[f"bits/{name}"] == pytest.approx(math.log2(choices + 2), rel=1e-6), name


@pytest.mark.parametrize("wanted", [1, 2, 3, 10_000])
def test_measured_rows_are_spread_over_all(datasets, tmp_path, monkeypatch, wanted):
    options = {"scheme": "interarrival", "validation_split": "train", "validation_rows": wanted}
    recipe = MidiLMRecipe(config(datasets["interarrival"], tmp_path, options=options))
    model, store, read = recipe.trainables()["model"].module.eval(), recipe.store("train"), []
    values = store.values
    monkeypatch.setattr(store, "values", lambda row: read.append(row) or values(row)[:8])
    with torch.no_grad():
        found = recipe.validate(model)
    count = min(wanted, store.num_rows)
    assert read == [index * max(1, store.num_rows // wanted) for index in range(count)]
    assert found.counts == {"rows": count} and store.num_rows > 3


def slots_known(size: int):
    blocks = ((0, DURATION), (DURATION, NOTE), (NOTE, NOTE + 16_511))

    def forward(tokens):
        logits = torch.full((1, tokens.shape[1], size), -100.0)
        for place in range(tokens.shape[1]):
            first, behind = blocks[place % 3]
            logits[0, place, first:behind] = 0.0
            logits[0, place, [REST, SEPARATOR]] = 0.0  # a row begins with separators
        return type("Output", (), {"logits": logits})

    return forward


def test_training_makes_a_folder_that_transformers_loads(datasets, tmp_path):
    settings = config(datasets["arrival"], tmp_path)
    metrics = train(MidiLMRecipe(settings), settings)
    assert metrics["bits_per_token"] > 0 and {"bits/time", "bits/duration", "bits/note"} <= metrics.keys()
    for folder in (tmp_path / "run", tmp_path / "run/best"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert type(tokenizer) is MidiTokenizer and tokenizer.pad_token_id == model.config.eos_token_id == SEPARATOR
        card = (folder / "README.md").read_text()
        assert "bits_per_token" in card and 'MidiGrammar("arrival")' in card and "tokens in" in card
    prompt = torch.tensor([tokenizer.encode_midi([MidiNote(0, 10, 60, 0, 64)])])
    sample = model.generate(prompt, max_new_tokens=7, do_sample=True, logits_processor=[MidiGrammar("arrival")])
    assert tokenizer.decode_midi(sample[0], partial=True)[:4] == b"MThd"


def test_a_training_resumes_to_the_bit(datasets, tmp_path):
    more = {"save_every_steps": 1, "log_every_steps": 1, "options": {"dropout": 0.1}}
    whole = config(datasets["arrival"], tmp_path / "whole", **more)
    train(MidiLMRecipe(whole), whole)
    first = tmp_path / "whole/run/checkpoints/step-00000001"
    half = config(datasets["arrival"], tmp_path / "half", **more, resume=str(first))
    train(MidiLMRecipe(half), half)
    assert_same_checkpoints(tmp_path / "whole/run", tmp_path / "half/run", 2)


def test_a_folder_of_midi_files_is_enough(tmp_path):
    (tmp_path / "midi").mkdir()
    write_pieces(tmp_path / "midi")
    words = ["--config", "tiny", "--dataset", tmp_path / "midi", "--output_dir", tmp_path / "runs/first"]
    words += ["--max_steps", 1, "--batch_size", 2, "--num_workers", 0, "--mixed_precision", "no", "--cpu", "true"]
    words += ["--options.preset", "test", "--options.num_tokens", 32, "--options.scheme", "interarrival"]
    words += ["--options.architecture", "llama"]
    assert main("midi_lm", words)["bits_per_token"] > 0
    (made,) = (tmp_path / "runs" / "datasets").iterdir()
    assert made.name.startswith("midi-interarrival-")


def test_options_become_the_configuration():
    made = midi_lm_config(MidiLMOptions(preset="tiny", dropout=0.3, num_tokens=2000), n_layer=5)
    assert (made.n_layer, made.n_embd, made.n_head, made.n_positions, made.n_inner) == (5, 128, 4, 2000, 512)
    assert made.resid_pdrop == made.embd_pdrop == made.attn_pdrop == 0.3 and made.vocab_size == 55_028
    llama = midi_lm_config(MidiLMOptions(architecture="llama", scheme="interarrival", dropout=0.2))
    assert (llama.num_hidden_layers, llama.hidden_size, llama.intermediate_size) == (4, 128, 512)
    assert (llama.num_attention_heads, llama.max_position_embeddings, llama.vocab_size) == (4, 1024, 34_025)
    assert llama.attention_dropout == 0.2 and llama.eos_token_id == 34_024
    with pytest.raises(ValueError, match=r"model\.n_layers is no field of the configuration of gpt2"):
        midi_lm_config(MidiLMOptions(), n_layers=3)


@pytest.mark.parametrize(
    "options, name",
    (
        ({"scheme": "note_tuple"}, "scheme"),
        ({"architecture": "bert"}, "architecture"),
        ({"preset": "huge"}, "preset"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_tokens": 3}, "num_tokens"),
        ({"validation_rows": 0}, "validation_rows"),
        ({"validation_split": "test"}, "validation_split"),
    ),
)
def test_options_that_cannot_be_are_refused(options, name):
    with pytest.raises(ValueError, match=rf"options\.{name}"):
        MidiLMOptions(**options)


def test_tokens_of_another_scheme_are_refused(datasets, tmp_path):
    recipe = MidiLMRecipe(config(datasets["interarrival"], tmp_path))
    with pytest.raises(
        ValueError, match=r"options\.scheme must be that of the dataset, 'interarrival', got 'arrival'"
    ):
        recipe.stream(0, 1)


def test_borders_of_the_settings():
    inside, outside = from_one("validation_rows")
    check_borders(
        MidiLMOptions,
        inside | {"num_tokens": (4,), "dropout": (0.0, 0.99)},
        outside | {"num_tokens": (3,), "dropout": (-0.01, 1.0)},
    )
