"""Cards: every model and pipeline writes one, says what is known, and keeps what a person wrote."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import ModelCard
from pipeline_utils_for_tests import tiny_parts, tiny_pipeline

import melreformer_hf
from melreformer_hf.hub.cards import DETAILS, write_card
from melreformer_hf.hub.mixin import HubMixin

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
    assert card.data.library_name == "melreformer_hf" and card.data.license == "apache-2.0"
    assert (
        card.data.pipeline_tag in ("text-to-audio", "audio-to-audio", "text-generation") and "music" in card.data.tags
    )
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
    tiny_parts()["unet"].save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "IdeaUNetModel.from_pretrained" in card.text and "AutoModel" not in card.text
    assert not list(tmp_path.glob(".*"))


def test_processes_that_do_not_save_write_no_card(vocoder, tmp_path):
    vocoder.save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()
