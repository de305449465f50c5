"""The recipe of the language model of codes: what it learns from, what is measured, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from borders import check_borders, from_one
from training_utils import context, started

from melreformer_hf.models.codec_lm.modeling_codec_lm import CodecLMModel
from melreformer_hf.models.soundstream.configuration_soundstream import SoundStreamConfig
from melreformer_hf.models.soundstream.modeling_soundstream import SoundStreamModel
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.loop import train
from melreformer_hf.training.recipes.codec_lm import CodecLMOptions, CodecLMRecipe

SMALL = {"frame_size": 16, "frame_intermediate_size": 24, "num_frame_layers": 1, "hidden_size": 16}
LM = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LM |= {"frame_code_size": 4, "num_context_frames": 8}


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    SoundStreamModel(SoundStreamConfig.preset("small", **SMALL, codebook_size=32, num_quantizers=4)).save_pretrained(
        folder
    )
    return str(folder)


def config(codec, dataset="unused", folder="unused", options=None, model=LM, **changes) -> TrainingConfig:
    options = {"codec": codec, "crop_frames": 8, "validation_crops": 2, "validation_frames": 20, **(options or {})}
    settings = {"max_steps": 3, "batch_size": 2, "num_workers": 0, "progress_bar": False, "cpu": True}
    return TrainingConfig(
        dataset=str(dataset), output_dir=str(folder), model=model, options=options, **{**settings, **changes}
    )


def ready(codec, **options) -> CodecLMRecipe:
    torch.manual_seed(0)
    recipe = CodecLMRecipe(config(codec, options=options))
    started(recipe)
    recipe.modules |= recipe.frozen()
    return recipe


def batch() -> dict[str, torch.Tensor]:
    return {"waveform": 0.1 * torch.randn(2, 1, 441 * 8, generator=torch.Generator().manual_seed(1))}


def test_the_loss_is_that_of_the_codec_s_codes(codec):
    recipe = ready(codec, whole_share=1.0)
    (phase,) = recipe.phases(batch(), context())
    codes = recipe.modules["codec"].encode(batch()["waveform"]).audio_codes
    asked = {}
    model = recipe.modules["model"]
    recipe.modules["model"] = lambda **named: asked.update(named) or model(**named)
    (again,) = recipe.phases(batch(), context())
    assert torch.equal(asked["labels"], codes) and codes.shape == (2, 4, 8)
    assert asked["position_offset"].shape == (2,) and len(set(asked["position_offset"].tolist())) == 2
    expected = model(labels=codes, position_offset=asked["position_offset"]).loss
    torch.testing.assert_close(phase.loss, expected)
    torch.testing.assert_close(again.scalars["bits_per_code"], expected / math.log(2))
    phase.loss.backward()
    assert all(parameter.grad is None for parameter in recipe.modules["codec"].parameters())


def test_levels_are_drawn(codec):
    recipe, seen = ready(codec, whole_share=0.0), set()
    model = recipe.modules["model"]
    recipe.modules["model"] = lambda **named: seen.add(named["labels"].shape[1]) or model(**named)
    for seed in range(30):
        where = context(step=seed)
        where.generator.manual_seed(seed)
        list(recipe.phases(batch(), where))
    assert seen == {1, 2, 3, 4}


def test_it_trains_and_measures_bits(codec, dataset, tmp_path):
    settings = config(codec, dataset, tmp_path / "run", {"validation_kbps": (0.25, 1.0)})
    recipe = CodecLMRecipe(settings)
    found = train(recipe, settings)
    assert set(found) == {"kbps/0.25_kbps", "kbps/1_kbps", "share"}
    assert found["share"] == pytest.approx((found["kbps/0.25_kbps"] / 0.25 + found["kbps/1_kbps"]) / 2)
    model = CodecLMModel.from_pretrained(tmp_path / "run" / "best").eval()
    whole = recipe.modules["codec"]
    nats = [model(labels=whole.encode(waveform).audio_codes).loss.item() for waveform in recipe._waveforms]
    assert found["kbps/1_kbps"] == pytest.approx(sum(nats) / 2 / math.log(2) * 4 * 50 / 1000, rel=1e-3)
    assert not (tmp_path / "run" / "codec").exists()


def test_what_does_not_fit_is_refused(codec, tmp_path):
    with pytest.raises(ValueError, match="model.codebook_size must be the codec's, 32, got 64"):
        CodecLMRecipe(config(codec, model={**LM, "codebook_size": 64}))
    mixed = SoundStreamConfig.preset("small", **SMALL, num_quantizers=2, codebook_size=[32, 16])
    SoundStreamModel(mixed).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"options.codec must have codebooks of one size, got \[16, 32\]"):
        CodecLMRecipe(config(str(tmp_path)))


def test_borders_of_the_options():
    inside, outside = from_one("crop_frames", "validation_crops", "validation_frames")
    inside |= {"whole_share": (0.0, 1.0), "gain_augmentation_db": (0.0,)}
    outside |= {"whole_share": (-0.01, 1.01), "gain_augmentation_db": (-0.01,)}
    check_borders(CodecLMOptions, inside, outside)
