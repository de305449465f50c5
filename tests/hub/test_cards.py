"""Cards: every model and pipeline writes one, says what is known, and keeps what a person wrote."""

from __future__ import annotations

import json
import tomllib

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from pipeline_utils_for_tests import tiny_parts, tiny_pipeline

import melreformer_hf
from melreformer_hf._files import write_json
from melreformer_hf._registration import FAMILIES
from melreformer_hf.hub.cards import DETAILS, details_of, joined_details, write_card
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.hub.push import push_folder
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.training.checkpointing import save_model

MODELS = sorted(name for name in melreformer_hf.__all__ if name.endswith(("Model", "Pipeline")))


@pytest.mark.parametrize("name", MODELS)
def test_every_family_brings_its_card(name, tmp_path):
    cls = getattr(melreformer_hf, name)
    assert issubclass(cls, HubMixin), f"{name}: list melreformer_hf.hub.mixin.HubMixin as its first base"
    if name.endswith("Pipeline"):
        return
    with torch.device("meta"):
        model = cls(cls.config_class()) if hasattr(cls, "config_class") else cls()
    card = ModelCard.load(model.write_card(tmp_path, repo_id="user/name"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert card.data.library_name == "melreformer_hf" and card.data.license == "unknown"
    tags = ("text-to-audio", "audio-to-audio", "audio-classification", "text-generation", "other")
    assert card.data.pipeline_tag in tags and "music" in card.data.tags
    assert f"| parameters | {count:,} |" in card.text
    assert f'from melreformer_hf import {name}\n\nmodel = {name}.from_pretrained("user/name")' in card.text
    source = card.text.split("## Source")[1].split("The package's code")[0]
    assert len(source) > 100, f"{name}: the module's docstring is the card's source; name paper and original there"
    assert "None" not in card.text


@pytest.fixture(scope="module")
def vocoder():
    return tiny_parts()["vocoder"]


def test_texts_fill_the_card_and_a_written_card_is_kept(vocoder, tmp_path):
    texts = {"title": "Bells", "license": "cc-by-4.0", "tags": ["bells"], "data": "Bells of Ghent."}
    vocoder.save_pretrained(tmp_path, card=texts)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.tags == ["music", "mel-spectrogram", "vocoder", "bells"]
    assert "# Bells" in card.text and "Bells of Ghent." in card.text and str(DETAILS["metrics"]) in card.text
    assert "sampling_rate 22050" in card.text and "AutoModel.from_pretrained" in card.text
    (tmp_path / "README.md").write_text("written by hand")
    vocoder.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "written by hand"
    vocoder.save_pretrained(tmp_path, card={"metrics": "loud"})
    assert "loud" in (tmp_path / "README.md").read_text()


def test_unknown_texts_are_refused_before_anything_is_written(vocoder, tmp_path):
    with pytest.raises(ValueError, match="no text 'licence'.*Did you mean 'license'"):
        vocoder.save_pretrained(tmp_path / "model", card={"licence": "mit"})
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="Known: .*'title'"):
        write_card(tmp_path, tmp_path / "none.md", "X", {"zzz": 1})


def test_parts_of_a_pipeline_have_no_cards_of_their_own(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, variant="small", card={"recipe": "None at all."})
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")] == ["README.md"]
    assert "None at all." in (tmp_path / "README.md").read_text()
    names = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert names == {"model.small.safetensors", "diffusion_pytorch_model.small.safetensors"}
    loaded = type(pipe).from_pretrained(tmp_path, variant="small")
    assert torch.equal(next(loaded.vocoder.parameters()), next(pipe.vocoder.parameters()))


def test_a_part_saved_alone_has_one(tmp_path):
    tiny_parts()["idea"].save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "IdeaUNetModel.from_pretrained" in card.text and "AutoModel" not in card.text
    assert not list(tmp_path.glob(".*"))


def test_processes_that_do_not_save_write_no_card(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()


CARD = {
    "license": "cc-by-4.0",
    "data": "Bells of Ghent.",
    "recipe": "Ten steps.\n\n| setting | value |\n|---|---|\n| seed | 0 |",
    "metrics": "| metric | value |\n|---|---|\n| mel_l1 | 0.1 |",
}


def test_what_is_loaded_and_saved_again_keeps_its_card(vocoder, tmp_path):
    """Data, licence, recipe and metrics, and what a person added; the example loads the new place."""
    vocoder.save_pretrained(tmp_path / "first", card=CARD)
    path = tmp_path / "first" / "README.md"
    path.write_text(path.read_text() + "\n## What it cannot do\n\nSwing.\n")
    loaded = type(vocoder).from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    card = ModelCard.load(tmp_path / "second" / "README.md")
    assert card.data.license == "cc-by-4.0" and "Swing." in card.text
    assert details_of(str(card)) == CARD
    assert 'HifiVocoderModel.from_pretrained("second")' in card.text and '"first"' not in card.text
    loaded.save_pretrained(tmp_path / "third", card={"license": "mit"})
    card = ModelCard.load(tmp_path / "third" / "README.md")
    assert card.data.license == "mit" and "Bells" not in card.text


def test_a_pipeline_keeps_its_card_and_gives_its_parts_data_licence_and_metrics(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "first", card=CARD)
    loaded = type(pipe).from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    assert details_of((tmp_path / "second" / "README.md").read_text()) == CARD
    loaded.idea.save_pretrained(tmp_path / "idea")
    loaded.vocoder.save_pretrained(tmp_path / "vocoder")
    for part in ("idea", "vocoder"):
        assert details_of((tmp_path / part / "README.md").read_text()) == CARD
    for saved in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in saved.read_text(), "where a folder lies is nobody's business"


def test_the_parts_cards_make_the_pipelines(tmp_path):
    parts = tiny_parts()
    parts["idea"].save_pretrained(tmp_path / "idea", card={**CARD, "data": "Ideas."})
    parts["vocoder"].save_pretrained(tmp_path / "vocoder", card={"license": "cc-by-4.0", "metrics": "loud"})
    joined = joined_details({"idea model": str(tmp_path / "idea"), "vocoder": str(tmp_path / "vocoder")})
    assert joined["data"] == "**idea model**: Ideas." and joined["license"] == "cc-by-4.0"
    assert joined["metrics"] == f"**idea model**: {CARD['metrics']}\n\n**vocoder**: loud"
    unlike = joined_details({"idea model": str(tmp_path / "idea"), "expansion": str(tmp_path / "nowhere")})
    assert unlike["license"] == "unknown"


def test_the_bundled_card_says_what_holds():
    folder = BUNDLED / "piano-tiny"
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-sa-4.0" and "PATH_OR_HUB_ID" not in card.text
    assert 'MelReformerPipeline.from_pretrained("piano-tiny")' in card.text
    for text in (card.text, (folder / "LICENSE").read_text()):
        assert "Krueger" in text and "CC BY-SA 3.0" in text and "GiantMIDI" in text and "FluidR3" in text
    project = tomllib.loads((BUNDLED.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND CC-BY-SA-4.0 AND MIT"
    assert "melreformer_hf/checkpoints/*/LICENSE" in project["license-files"]
    assert "CC BY-SA 4.0" in (BUNDLED.parents[1] / "README.md").read_text()
    details = details_of((folder / "README.md").read_text())
    assert set(details) == {"license", "data", "recipe", "metrics"}


@pytest.mark.parametrize("name", ["hifi_vocoder", "frame_transformer", "soundstream"])
def test_models_that_hear_audio_bring_their_feature_extractor(name, tmp_path):
    family = FAMILIES[name]
    config = getattr(melreformer_hf, family.config)()
    with torch.device("meta"):
        model = getattr(melreformer_hf, family.model)(config)
    write_json(tmp_path / "preprocessor_config.json", model.config.preprocessor_config)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor).__name__ == family.feature_extractor
    assert extractor.to_dict() == model.config.preprocessor_config
    channels = extractor.feature_size if extractor.feature_size < 3 else 1
    shape = (channels, 4096) if channels > 1 else (4096,)
    found = extractor(torch.zeros(shape).numpy(), sampling_rate=config.sampling_rate)
    key = model.main_input_name if "mel" in extractor.to_dict() else "input_values"
    assert len(found[key]) == 1


def test_saving_writes_the_feature_extractor(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path / "model")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    assert extractor.mel_config == vocoder.config.mel_config
    extractor.save_pretrained(tmp_path / "extractor")
    written = [
        json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("model", "extractor")
    ]
    assert written[0] == written[1]
    tiny_parts()["idea"].save_pretrained(tmp_path / "idea")
    assert not (tmp_path / "idea" / "preprocessor_config.json").exists()


def test_what_a_training_publishes_names_its_place_and_its_feature_extractor(vocoder, tmp_path):
    save_model(vocoder, tmp_path / "best", {"training.json": {}}, {"data": "Bells."})
    card = (tmp_path / "best" / "README.md").read_text()
    assert 'HifiVocoderModel.from_pretrained("best")' in card and "Bells." in card and "license: unknown" in card
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "best")
    assert extractor.mel_config == vocoder.config.mel_config


def test_a_pushed_folder_s_card_names_the_repository(vocoder, tmp_path, monkeypatch):
    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Created", (), {"repo_id": repo_id})

        def upload_folder(self, **kwargs):
            return type("Info", (), {"pr_url": None, "commit_url": "somewhere"})

    vocoder.save_pretrained(tmp_path / "mine")
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_folder(tmp_path / "mine", "user/bells") == "somewhere"
    assert 'HifiVocoderModel.from_pretrained("user/bells")' in (tmp_path / "mine" / "README.md").read_text()
    push_folder(tmp_path / "mine", "user/other")  # a name that a person may have chosen stays
    assert 'HifiVocoderModel.from_pretrained("user/bells")' in (tmp_path / "mine" / "README.md").read_text()
