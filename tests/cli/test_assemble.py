"""Joining trained parts on the command line."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from diffusers import DiffusionPipeline
from midi_pipeline_for_tests import tiny_midi_parts
from pipeline_utils_for_tests import MEL, seeded, tiny_parts, tiny_pipeline
from safetensors.torch import load_file
from sounds_for_tests import tiny_sound_parts
from typer.testing import CliRunner

from melreformer_hf.cli.checkpoints import _prediction_type
from melreformer_hf.cli.main import app
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.pipelines.loading import parts_of
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline
from melreformer_hf.pipelines.pipeline_midi_generation import MidiGenerationPipeline
from melreformer_hf.pipelines.pipeline_token_generation import TokenGenerationPipeline


def test_assembled_parts_generate_what_the_parts_do(tmp_path):
    parts = tiny_parts()
    words = ["assemble", "--output", str(tmp_path / "pipe"), "--card", str(tmp_path / "card.json")]
    words += ["--prediction-type", "v_prediction"]
    for name in ("idea", "expansion", "vocoder"):
        parts[name].save_pretrained(tmp_path / name)
        words += [f"--{name}", str(tmp_path / name)]
    (tmp_path / "card.json").write_text(json.dumps({"title": "Tiny", "metrics": "none"}))
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "idea") not in (tmp_path / "pipe" / "idea" / "config.json").read_text()
    assert "# Tiny" in (tmp_path / "pipe" / "README.md").read_text()
    loaded = MelReformerPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "audio_length_in_s": 0.5}
    expected = tiny_pipeline()(generator=seeded(), **arguments).audios
    torch.testing.assert_close(loaded(generator=seeded(), **arguments).audios, expected, rtol=0, atol=1e-4)


def test_an_assembled_pipeline_tells_what_its_parts_tell_and_computes_in_full_precision(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)  # to `caplog`
    words = ["assemble", "--output", str(tmp_path / "pipe"), "--dtype", "float16"]
    for name, part in tiny_parts().items():
        if name == "scheduler":
            continue
        part.save_pretrained(tmp_path / name, card={"license": "cc-by-4.0", "data": f"Sounds of the {name}."})
        words += [f"--{name}", str(tmp_path / name)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "float32" not in caplog.text  # diffusers warns where nothing is amiss
    card = (tmp_path / "pipe" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "**vocoder**: Sounds of the vocoder." in card
    stored = load_file(tmp_path / "pipe" / "vocoder" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["vocoder"] == ["melreformer_hf", "HifiVocoderModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert loaded.vocoder.dtype == loaded.expansion.dtype == loaded.idea.dtype == torch.float32


def test_parts_of_both_pipelines_share_a_folder(tmp_path):
    torch.manual_seed(0)
    parts = {**tiny_parts(), **tiny_midi_parts(), "ear": NoteEarModel(NoteEarConfig.preset("test", mel=MEL))}
    words = ["assemble", "--output", str(tmp_path / "pipe"), "--dtype", "float16"]
    for name, part in parts.items():
        if name != "scheduler":
            part.save_pretrained(tmp_path / name, card={"data": f"Music of the {name}."})
            words += [f"--{name}", str(tmp_path / name)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert parts_of(tmp_path / "pipe") == set(parts)
    card = (tmp_path / "pipe" / "README.md").read_text()
    assert "**composer**: Music of the composer." in card and "**idea model**: Music of the idea." in card
    of_notes = MidiGenerationPipeline.from_pretrained(tmp_path / "pipe")
    assert of_notes.ear is not None and of_notes.composer.dtype == of_notes.performer.dtype == torch.float32
    arguments = {"audio_length_in_s": 1.0, "output_type": "notes"}
    assert of_notes(generator=seeded(), **arguments).notes[0]
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "pipe")) is MelReformerPipeline
    for name in ("composer", "performer", "ear", "vocoder"):
        stored = load_file(tmp_path / "pipe" / name / "model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.float16}


def test_the_composer_alone_may_be_stored_as_integers(tmp_path):
    torch.manual_seed(0)
    parts = tiny_midi_parts()
    words = ["assemble", "--output", str(tmp_path / "pipe"), "--dtype", "float16", "--int8", "composer"]
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
        words += [f"--{name}", str(tmp_path / name)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    kinds = {name: set() for name in parts}
    for name, found in kinds.items():
        found |= {value.dtype for value in load_file(tmp_path / "pipe" / name / "model.safetensors").values()}
    assert torch.int8 in kinds.pop("composer") and set.union(*kinds.values()) == {torch.float16}
    pipe = MidiGenerationPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.composer.dtype == torch.float32
    assert pipe(1.0, generator=seeded(), output_type="notes").notes[0]
    words = ["assemble", "--idea", "i", "--expansion", "e", "--vocoder", "v", "--output", "o", "--int8"]
    for part, message in (
        ("composer", "--int8 composer needs --composer"),
        ("ear", "--int8 must be one of composer, exp"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, [*words, part], catch_exceptions=False)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("idea", "--idea needs --expansion"),
        ("performer", "--performer needs --composer"),
        ("composer", "--composer needs --performer"),
        ("", "Give --idea and --expansion, or --composer and --performer"),
        ("idea expansion ear", "--ear needs --composer and --performer"),
    ],
)
def test_parts_that_make_no_pipeline_are_refused(given, match):
    words = [word for name in given.split() for word in (f"--{name}", "nowhere")]
    with pytest.raises(ValueError, match=match):
        CliRunner().invoke(app, ["assemble", "--vocoder", "v", "--output", "o", *words], catch_exceptions=False)


def test_prediction_type_is_what_the_training_wrote_down(tmp_path):
    assert (
        _prediction_type(None, tmp_path) == "sample" and _prediction_type("v_prediction", tmp_path) == "v_prediction"
    )
    for options, trained in (({}, "sample"), ({"prediction_type": "v_prediction"}, "v_prediction")):
        (tmp_path / "training.json").write_text(json.dumps({"config": {"options": options}}))
        assert _prediction_type(None, tmp_path) == _prediction_type(trained, tmp_path) == trained
        other = {"sample": "v_prediction", "v_prediction": "sample"}[trained]
        with pytest.raises(ValueError, match=f"trained for '{trained}'"):
            _prediction_type(other, tmp_path)


def test_parts_of_sounds_become_a_pipeline_of_sounds(tmp_path):
    parts = tiny_sound_parts()
    words = ["assemble", "--output", str(tmp_path / "pipe"), "--dtype", "float16", "--int8", "class_gpt"]
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name, card={"data": f"Sounds of the {name}."})
        words += [f"--{name.replace('_', '-')}", str(tmp_path / name)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    loaded = TokenGenerationPipeline.from_pretrained(tmp_path / "pipe")
    assert loaded.gpt_vae is not None and loaded.class_gpt.dtype == loaded.mel_vqvae.dtype == torch.float32
    assert "**mel_vqvae**: Sounds of the mel_vqvae." in (tmp_path / "pipe/README.md").read_text()
    stored = load_file(tmp_path / "pipe/class_gpt/model.safetensors")
    kinds = {value.dtype for value in stored.values()}
    assert kinds <= {torch.int8, torch.float16}
    assert loaded(0, generator=seeded()).codes.shape == (1, 16, 4)


@pytest.mark.parametrize("given", [("mel-vqvae",), ("class-gpt",), ("gpt-vae",), ("class-gpt", "gpt-vae")])
def test_parts_of_sounds_that_make_none_are_refused(given, tmp_path):
    words = [word for name in given for word in (f"--{name}", "x")]
    with pytest.raises(ValueError, match="--mel-vqvae needs --class-gpt or --gpt-vae"):
        CliRunner().invoke(
            app, ["assemble", "--vocoder", "v", "--output", str(tmp_path), *words], catch_exceptions=False
        )
