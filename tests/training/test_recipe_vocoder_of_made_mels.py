"""The vocoder's recipe with a performer: whose mels it is given, what is trained, how it is measured."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from performances_for_tests import build_performances
from testing_utils import assert_error
from training_utils import VOCODER, assert_same_checkpoints, context, same_tensors, started

from melreformer_hf.audio.griffin_lim import griffin_lim
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.collation import collate
from melreformer_hf.data.performances import NOTES_FILE
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance
from melreformer_hf.models.hifi_vocoder.configuration_hifi_vocoder import HifiVocoderConfig
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes.vocoder import VocoderRecipe
from melreformer_hf.training.reporting import read_metrics

HOP = 256


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return build_performances(tmp_path_factory.mktemp("performances"))


def save_performer(folder: Path, seed: int, **mel) -> Path:
    torch.manual_seed(seed)
    contract = dataclasses.replace(HifiVocoderConfig().mel_config, **mel).to_dict()
    model = NotePerformerModel(NotePerformerConfig.preset("test", mel=contract))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def performer(tmp_path_factory) -> Path:
    return save_performer(tmp_path_factory.mktemp("performer"), 0)


def words(dataset, performer, output, *more) -> list[str]:
    chosen = [] if performer is None else ["--options.performer", performer]
    values = [*VOCODER, "--num_workers", 1, "--dataset", dataset, "--output_dir", output, "--max_steps", 1]
    return [str(word) for word in (*values, *chosen, *more)]


def recipe(dataset, performer, *more) -> VocoderRecipe:
    config = TrainingConfig.from_command_line(VocoderRecipe, words(dataset, performer, "unused", *more))
    built = VocoderRecipe(config)
    started(built)
    for module in built.modules.values():
        module.eval()
    return built


def batch_of(built: VocoderRecipe, starts: list[int], frames: int = 16) -> dict[str, torch.Tensor]:
    """Crops of the first performance to train on, from certain frames."""
    store = built.store("train")
    items = [store.item_of(store.recordings[0], start * HOP, frames * HOP) for start in starts]
    return collate([built.prepare(item, torch.Generator().manual_seed(seed)) for seed, item in enumerate(items)])


@pytest.mark.parametrize("gain", [0, 30])
def test_made_mels_are_what_the_performer_plays_of_the_whole_piece(dataset, performer, gain):
    built = recipe(dataset, performer, "--options.made_share", 1, "--options.gain_augmentation_db", gain)
    store = built.store("train")
    notes = store.notes[store.recordings[0].name]
    whole = built.modules["performer"].perform(notes, 300)  # (1, mel, frame)
    starts = [0, 100, 203]
    batch = batch_of(built, starts)
    heard = built._heard(batch)
    for row, start in enumerate(starts):
        softer = batch["decibels"][row] * math.log(10) / 20
        expected = (whole[0, :, start : start + 16] + softer).clamp(min=built.mel.floor_value)
        torch.testing.assert_close(heard[row], expected, rtol=0, atol=2e-4)
        piece = store.item_of(store.recordings[0], start * HOP, 16 * HOP)["waveform"]
        torch.testing.assert_close(batch["waveform"][row], piece * 10 ** (batch["decibels"][row] / 20))
    assert (batch["decibels"] < -0.1).any() == (gain > 0)


def test_the_told_share_of_mels_is_made(dataset, performer):
    class Silent(torch.nn.Module):
        def forward(self, *_, **__):
            raise AssertionError("nothing is to be made")

    none = recipe(dataset, performer, "--options.made_share", 0)
    none.modules["performer"] = Silent()
    batch = batch_of(none, list(range(30)))
    assert none._heard(batch) is batch["mel"]
    torch.testing.assert_close(batch["mel"], log_mel_spectrogram(batch["waveform"], none.mel))

    some = recipe(dataset, performer, "--options.made_share", 0.3)
    batch = batch_of(some, [100] * 200)
    assert 40 <= batch["is_made"].sum() <= 80
    changed = (some._heard(batch) - batch["mel"]).abs().amax((1, 2)) > 1e-3
    assert changed.equal(batch["is_made"])
    assert recipe(dataset, performer).made_share == 0.5
    plain = recipe(dataset, None)
    item = plain.recordings("train").fixed_crops(16 * HOP, 1)[0]
    assert plain.prepare(item, torch.Generator()).keys() == {"waveform", "mel"}


def test_the_model_is_given_made_mels_and_judged_by_the_recording(dataset, performer):
    built = recipe(dataset, performer, "--options.made_share", 1)
    batch = batch_of(built, [10, 60])
    (phase,) = built.phases(batch, context())
    fake = built.modules["model"](built._heard(batch)).waveform
    assert phase.scalars["mel_l1"].item() == pytest.approx(log_mel_l1(fake, batch["waveform"], built.mel).item())
    phase.loss.backward()
    assert built.modules["model"].generator.head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in built.modules["performer"].parameters())


def test_both_kinds_of_mels_are_measured_and_weighed_as_they_are_mixed(dataset, performer):
    built = recipe(dataset, performer, "--options.made_share", 0.25, "--options.validation_frames", 40)
    model, store = built.modules["model"], built.store("validation")
    found = built.validate(model).metrics
    crop = store.fixed_crops(40 * HOP, 1)[0]
    real, notes = crop["waveform"][None], crop["notes"]
    assert torch.equal(crop["waveform"], built.recordings("validation").fixed_crops(40 * HOP, 1)[0]["waveform"])
    columns = [torch.as_tensor(np.asarray(c))[None] for c in (notes.onset, notes.release, notes.pitch, notes.velocity)]
    with torch.no_grad():
        made = built.modules["performer"](columns[0].float(), columns[1].float(), *columns[2:], num_frames=40).log_mel
    scores = []
    for kind, mel in (("", log_mel_spectrogram(real, built.mel)), ("made_", made)):
        with torch.no_grad():
            fake = model(mel).waveform
        simple = griffin_lim(mel, built.mel, generator=torch.Generator().manual_seed(0))
        ours = log_mel_l1(fake, real, built.mel).item(), multi_resolution_stft_distance(fake, real).item()
        theirs = log_mel_l1(simple, real, built.mel).item(), multi_resolution_stft_distance(simple, real).item()
        names = (f"{kind}mel_l1", f"{kind}mr_stft")
        assert [found[name] for name in names] == pytest.approx(ours, rel=1e-3)
        assert [found[f"griffin_lim_{name}"] for name in names] == pytest.approx(theirs, rel=1e-2)
        scores.append(sum(one / two for one, two in zip(ours, theirs, strict=True)))
    assert found["score"] == pytest.approx(0.75 * scores[0] + 0.25 * scores[1], rel=1e-2)
    assert scores[0] != pytest.approx(scores[1], rel=0.05)
    said = built.validate(model)
    assert "of performed mels" in said.summary and said.audio.keys() == {"true", "synthesized", "made_synthesized"}
    assert "performances" in built.describe_data()


def test_a_training_resumes_to_the_bit_and_leaves_the_performer_alone(dataset, performer, tmp_path):
    before = (performer / "model.safetensors").read_bytes()
    more = ["--max_steps", 4, "--save_every_steps", 2, "--options.made_share", 0.5]
    main(VocoderRecipe, words(dataset, performer, tmp_path / "whole", *more))
    resume = ["--resume", tmp_path / "whole/checkpoints/step-00000002"]
    main(VocoderRecipe, words(dataset, performer, tmp_path / "half", *more, *resume))
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "half", 4)
    lines = read_metrics(tmp_path / "whole", "validation")
    assert lines and math.isfinite(lines[-1]["made_mel_l1"]) and math.isfinite(lines[-1]["score"])
    # Neither in the checkpoints nor in what is published, and not changed.
    kept = {path.name for path in (tmp_path / "whole/checkpoints/step-00000004").iterdir()}
    assert not [name for name in kept if "performer" in name]
    assert HifiVocoderModel.from_pretrained(tmp_path / "whole").config.hidden_size == 16
    assert (performer / "model.safetensors").read_bytes() == before
    # Another performer, or none, makes another vocoder.
    other = save_performer(tmp_path / "other", 1)
    main(VocoderRecipe, words(dataset, other, tmp_path / "another", *more))
    main(VocoderRecipe, words(dataset, other, tmp_path / "true", *more, "--options.made_share", 0))
    main(VocoderRecipe, words(dataset, performer, tmp_path / "true_too", *more, "--options.made_share", 0))
    files = {name: tmp_path / name / "model.safetensors" for name in ("whole", "another", "true", "true_too")}
    assert not same_tensors(files["whole"], files["another"]) and not same_tensors(files["whole"], files["true"])
    assert same_tensors(files["true"], files["true_too"])


def test_a_performer_is_found_in_a_pipeline_too(dataset, performer, tmp_path):
    shutil.copytree(performer, tmp_path / "pipeline/performer")
    index = {"_class_name": "MidiGenerationPipeline", "performer": ["melreformer_hf", "NotePerformerModel"]}
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps(index))
    alone, inside = recipe(dataset, performer), recipe(dataset, tmp_path / "pipeline")
    for name, value in alone.modules["performer"].state_dict().items():
        assert value.equal(inside.modules["performer"].state_dict()[name]), name
    bundled = recipe(dataset, "piano-tiny").modules["performer"]
    same = NotePerformerModel.from_pretrained(BUNDLED / "piano-tiny/performer").state_dict()
    assert all(value.equal(same[name].float()) for name, value in bundled.state_dict().items())
    assert bundled.dtype == torch.float32 and recipe(dataset, performer).reads_performances
    assert not recipe(dataset, None).reads_performances


@pytest.mark.parametrize(
    ("more", "fragments"),
    [
        (["--options.made_share", 1.5], ["made_share", "[0, 1]", "1.5"]),
        (["--options.made_share", -0.1], ["made_share", "[0, 1]", "-0.1"]),
    ],
)
def test_shares_that_cannot_be(dataset, performer, more, fragments):
    with pytest.raises(ValueError) as error:
        recipe(dataset, performer, *more)
    assert_error(error, *fragments)


def test_what_does_not_belong_together_is_refused(dataset, performer, tmp_path):
    with pytest.raises(ValueError) as error:
        recipe(dataset, None, "--options.made_share", 0.5)
    assert_error(error, "made_share=0.5", "options.performer")
    other = save_performer(tmp_path / "other", 0, fmax=8000.0)
    with pytest.raises(ValueError) as error:
        recipe(dataset, other)
    assert_error(error, "options.performer", "fmax", "8000")
    with pytest.raises(ValueError) as error:
        recipe(dataset, BUNDLED / "piano-tiny/vocoder")
    assert_error(error, "options.performer", "melreformer_hifi_vocoder")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", "nowhere"):
        with pytest.raises(ValueError) as error:
            recipe(dataset, place)
        assert_error(error, "options.performer", str(place))
    (tmp_path / "empty/model_index.json").write_text("{}")
    with pytest.raises(ValueError) as error:
        recipe(dataset, tmp_path / "empty")
    assert_error(error, "options.performer", "has none", "empty")


def test_datasets_without_notes_and_crops_that_are_too_long_are_refused(dataset, performer, tmp_path, capsys):
    build_dataset(dataset.parent / "wav", tmp_path / "plain", BuildConfig(), progress=False)
    with pytest.raises(SystemExit):
        main("vocoder", words(tmp_path / "plain", performer, tmp_path / "run"))
    told = capsys.readouterr().err
    assert NOTES_FILE in told and "performances" in told and "plain" in told
    with pytest.raises(ValueError) as error:
        recipe(dataset, performer, "--options.crop_frames", 9000).stream(0, 1)
    assert_error(error, "options.crop_frames", "9000")
    with pytest.raises(ValueError) as error:
        recipe(dataset, performer, "--options.validation_frames", 9000).prepare_validation()
    assert_error(error, "options.validation_frames", "9000")
