"""The expansion's benchmark: every row is measured, samplers several times, and what the ear says of the truth is perfect."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.modeling_mel_reformer import MelReformerModel
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.training.recipes.upsampler_model import ConvUpsamplerConfig, ConvUpsamplerModel

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "expansion.py"
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_encoder_layers": 1, "num_attention_heads": 2}
SIZES |= {"band_channels": (4, 6), "num_bases": 3, "postnet_size": 8, "postnet_layers": 1, "idea_columns": 32}
SAMPLER = {"head": "energy", "num_decoder_layers": 0, "head_size": 8, "head_layers": 1, "fold_size": 4}


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("benchmark_expansion", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A dataset of four test recordings, an ear, an upsampler, and an expansion of each kind of head."""
    root, random = tmp_path_factory.mktemp("expansion"), np.random.default_rng(0)
    ear = NoteEarModel(NoteEarConfig.preset("test"))
    mel = ear.config.mel_config
    (root / "wav").mkdir()
    rows = ["file_name,split"]
    for split, name in (
        ("train", "a"),
        ("validation", "b"),
        ("test", "c"),
        ("test", "d"),
        ("test", "e"),
        ("test", "f"),
    ):
        soundfile.write(
            root / "wav" / f"{name}.wav", 0.1 * random.standard_normal(2 * mel.sampling_rate), mel.sampling_rate
        )
        rows.append(f"{name}.wav,{split}")
    (root / "wav" / "metadata.csv").write_text("\n".join(rows) + "\n")
    build_dataset(
        root / "wav", root / "built", BuildConfig(workers=1, sampling_rate=mel.sampling_rate), progress=False
    )
    ear.save_pretrained(root / "ear")
    ConvUpsamplerModel(
        ConvUpsamplerConfig(mel=mel.to_dict(), idea_columns=32, hidden_size=8, intermediate_size=8)
    ).save_pretrained(root / "upsampler")
    for name, more in (("plain", {"num_decoder_layers": 1}), ("sampler", SAMPLER)):
        torch.manual_seed(0)
        model = MelReformerModel(MelReformerConfig(mel=mel.to_dict(), **SIZES, **more))
        if model.samples:
            torch.nn.init.normal_(model.expansion.sampler.net.out.weight)
        model.save_pretrained(root / name)
    return root


def test_every_row_is_measured(script, parts, capsys):
    words = ["--model", parts / "plain", f"draws={parts / 'sampler'}", "--upsampler", parts / "upsampler", "--ear"]
    words += [parts / "ear", "--dataset", parts / "built", "--crops", 2, "--crop-frames", 64, "--pieces", 4]
    words += ["--draws", 3, "--stretch", 0.3, "--threads", 1, "--output", parts / "numbers.json"]
    script.main([str(word) for word in words])
    told, found = capsys.readouterr().out, json.loads((parts / "numbers.json").read_text())
    rows = ["re-interpolated idea", "convolutional upsampler", "plain: encoder alone", "plain"]
    rows += ["draws: encoder alone", "draws"]
    for row in rows:
        assert told.count(f"\n| {row} | ") == 2
        for group in ("crops", "pieces"):
            values = {key: found[row].get(f"{group}_{name}") for key, name in script.COLUMNS.items()}
            # Seams are those of what is made at once.
            assert {key for key, value in values.items() if value is None} == (
                {"seam"} if row not in rows[3::2] else set()
            )
            assert 0 <= values["note F1"] <= 1 and values["ms/s"] > 0
            assert (values["CRPS"] < values["L1"] - 1e-3) == (row == "draws")
    assert found["re-interpolated idea"]["crops_ratio"] == pytest.approx(1.0)
    assert set(found["floors"]) == {"crops", "pieces"}


def test_the_ear_finds_no_fault_with_the_truth(script, parts):
    ear = NoteEarModel.from_pretrained(parts / "ear").eval()
    store = script.open_recordings(str(parts / "built"), "test")
    options = script.ExpansionDataOptions(
        validation_crops=2, validation_crop_frames=64, validation_pieces=4, min_frames=8
    )
    validator = script.ListeningValidator(store, options, ear.config.mel_config, 32)
    with torch.no_grad():
        validator.listen(script.Listener(ear, 0.3))
        targets = validator.targets["pieces"]
        smooth = [resize_mel(resize_mel(target, 32), target.shape[-1]) for target in targets]
        perfect = validator.measures(targets, smooth, targets)
        blurred = validator.measures(smooth, smooth, targets)
    assert perfect["note_f1"] == 1 and perfect["frechet"] == pytest.approx(0, abs=1e-3) and perfect["sharpness"] == 1
    assert blurred["frechet"] > 10 * perfect["frechet"] and blurred["sharpness"] < 0.5
