"""The performer's recipe: what an item holds, what calibration finds, what losses and validation mean."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audio_files import write_music
from borders import check_borders, from_one
from performances_for_tests import build_performances, performance
from testing_utils import assert_error
from training_utils import assert_same_checkpoints, context, started

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.performances import NOTES_FILE
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.training import folders
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.folders import performances_of
from melreformer_hf.training.loop import train
from melreformer_hf.training.recipes.performer import PerformerOptions, PerformerRecipe, calibrate, padded_notes

RATE = 22050


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_performances(tmp_path_factory.mktemp("performances"))


def config(dataset, tmp_path, **changes) -> TrainingConfig:
    options = {"preset": "test", "crop_frames": 40, "validation_frames": 120, **changes.pop("options", {})}
    settings = {"max_steps": 2, "batch_size": 2, "num_workers": 0, "progress_bar": False, "cpu": True}
    return TrainingConfig(
        dataset=str(dataset), output_dir=str(tmp_path / "run"), options=options, **{**settings, **changes}
    )


def test_items_are_a_mel_and_the_notes_that_are_heard_in_it(dataset, tmp_path):
    recipe = PerformerRecipe(config(dataset, tmp_path))
    started(recipe)
    item = recipe.stream(0, 1).item(3)
    made = recipe.prepare(dict(item), torch.Generator())
    assert made["labels"].shape == (128, 40)
    whole = log_mel_spectrogram(item["waveform"], recipe.mel)
    torch.testing.assert_close(made["labels"], whole[:, 2:-2])
    memory, end = recipe._memory, 44 * 256 / RATE
    heard = (item["notes"].release > -memory) & (item["notes"].onset < end)
    assert made["onset"].shape == (int(heard.sum()) + 1,)
    assert made["velocity"][-1] == 0 and (made["velocity"][:-1] > 0).all()
    np.testing.assert_allclose(made["onset"][:-1], item["notes"].onset[heard], rtol=1e-6)
    batch = {name: value[None] for name, value in made.items()}
    (phase,) = recipe.phases(batch, context())
    assert phase.loss.item() == pytest.approx(phase.scalars["mel_l1"].item()) and phase.loss < 4


def test_calibration_knows_single_keys_before_any_step(dataset, tmp_path):
    recipe = PerformerRecipe(config(dataset, tmp_path))
    model = recipe.trainables()["model"].module.eval()
    with torch.no_grad():
        model.correction.head.weight.zero_()
        model.correction.head.bias.zero_()
        model.room.level.fill_(-80.0)
    for pitch, velocity in ((52, 100), (60, 64), (71, 96)):
        note = SoundingNotes(np.array([0.3]), np.array([1.5]), np.array([pitch]), np.array([velocity]))
        real = log_mel_spectrogram(torch.from_numpy(performance(note, 2.0)).float(), recipe.mel)[:, 4:110]
        made = model.perform(note, 172)[0][:, 4:110]
        loud = real > real.max() - 3
        assert (made - real)[loud].abs().mean() < 0.1, pitch
    plain = PerformerRecipe(config(dataset, tmp_path, options={"calibrate": False})).trainables()["model"].module
    assert (plain.sounds.level - model.sounds.level).abs().mean() > 0.3
    started_from = PerformerRecipe(config(dataset, tmp_path, init_from="somewhere")).trainables()["model"].module
    assert torch.equal(started_from.sounds.level, plain.sounds.level)


def test_calibration_leaves_keys_and_ages_that_it_does_not_hear(dataset, tmp_path):
    changes = {"lowest_key": 36, "num_keys": 48, "last_age_in_s": 30.0}
    recipe = PerformerRecipe(config(dataset, tmp_path, model=changes))
    model = NotePerformerModel(recipe.model_config)
    before = model.sounds.level.detach().clone().view(48, 24, 128)
    calibrate(model.sounds, recipe.store("train"), recipe.mel)
    changed = (model.sounds.level.detach().view(48, 24, 128) != before).any(-1)  # (key, age)
    assert not changed[:12].any() and not changed[36:].any()
    # Every key is held for 1.3 s; each moment stands for what is halfway to its neighbors.
    ages = model.sounds.ages()
    begins = torch.cat([ages[:1], (ages[1:] + ages[:-1]) / 2])
    assert changed[12:36, begins < 1.29].all() and not changed[:, begins > 1.31].any()


def test_losses_of_changes(dataset, tmp_path):
    options = {"change_weight": 0.5, "sharpness_weight": 0.25}
    recipe = PerformerRecipe(config(dataset, tmp_path, options=options))
    mel = torch.zeros(1, 128, 3)
    mel[..., 1] = 1.0

    class Output:
        log_mel = torch.zeros(1, 128, 3)

    Output.log_mel[..., 2] = 2.0
    recipe.modules = {"model": lambda **_: Output}
    batch = {**{name: value[None] for name, value in padded_notes(SoundingNotes.none()).items()}, "labels": mel}
    (phase,) = recipe.phases(batch, context())
    # Changes made: 0, 2; true: 1, -1. Frames: errors 0, 1, 2.
    assert phase.scalars["mel_l1"].item() == pytest.approx(1.0)
    assert phase.scalars["change_l1"].item() == pytest.approx((1 + 3) / 2)
    assert phase.scalars["sharpness_distance"].item() == pytest.approx(math.log(2.0), abs=1e-3)
    assert phase.loss.item() == pytest.approx(1.0 + 0.5 * 2.0 + 0.25 * math.log(2.0), abs=1e-3)


def test_validation_is_what_the_performer_plays_of_held_out_pieces(dataset, tmp_path):
    recipe = PerformerRecipe(config(dataset, tmp_path))
    model = recipe.trainables()["model"].module.eval()
    found = recipe.validate(model)
    store = recipe.store("validation")
    item = store.item_of(store.recordings[0], 0, 120 * 256)
    mel = log_mel_spectrogram(item["waveform"], recipe.mel)
    made = model.perform(item["notes"], 120)[0]
    assert found.metrics["mel_l1"] == pytest.approx((made - mel).abs().mean().item(), rel=1e-4)
    blurred = resize_mel(resize_mel(mel, 15), 120)  # 256 columns in 24 s, of 86 frames each second
    assert found.metrics["baseline"] == pytest.approx((blurred - mel).abs().mean().item(), rel=1e-4)
    assert found.metrics["ratio"] == pytest.approx(found.metrics["mel_l1"] / found.metrics["baseline"])
    assert found.counts == {"pieces": 1} and f"{found.metrics['mel_l1']:.3f} nats" in found.summary
    assert "performances" in recipe.describe_data()


class Pieces:
    """Held-out pieces of 1, 2, 3 ... frames, and what is asked for of them."""

    def __init__(self, count: int) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.recordings = [SimpleNamespace(name=str(n), num_samples=256 * (n + 1) + 255) for n in range(count)]

    def item_of(self, recording, start: int, length: int) -> dict:
        self.asked.append((recording.name, start, length // 256))
        assert length % 256 == 0
        return {"notes": SoundingNotes.none(), "waveform": torch.zeros(max(length, 1024))}


@pytest.mark.parametrize(
    ("wanted", "measured"),
    [
        (1, [("0", 0, 1)]),
        (3, [("0", 0, 1), ("2", 0, 3), ("4", 0, 4)]),
        (9, [(str(n), 0, min(n + 1, 4)) for n in range(7)]),
    ],
)
def test_held_out_pieces_are_spread_over_all_and_cut(dataset, tmp_path, wanted, measured):
    recipe = PerformerRecipe(config(dataset, tmp_path, options={"validation_pieces": wanted, "validation_frames": 4}))
    store = recipe._stores["validation"] = Pieces(7)
    recipe.prepare_validation()
    assert store.asked == measured
    recipe.prepare_validation()  # once
    assert len(store.asked) == len(recipe._held_out) == len(measured)


def test_a_training_learns_resumes_and_is_loaded(dataset, tmp_path):
    steps = {"max_steps": 4, "save_every_steps": 2, "learning_rate": 5e-3, "warmup_steps": 1}
    metrics = train(
        PerformerRecipe(config(dataset, tmp_path / "whole", **steps)), config(dataset, tmp_path / "whole", **steps)
    )
    before = PerformerRecipe(config(dataset, tmp_path))
    assert metrics["mel_l1"] < before.validate(before.trainables()["model"].module.eval()).metrics["mel_l1"]
    resumed = config(dataset, tmp_path / "half", **steps, resume=str(tmp_path / "whole/run/checkpoints/step-00000002"))
    train(PerformerRecipe(resumed), resumed)
    assert_same_checkpoints(tmp_path / "whole/run", tmp_path / "half/run", 4)
    loaded = NotePerformerModel.from_pretrained(tmp_path / "whole/run")
    assert loaded.config.num_keys == 24


def test_settings_that_cannot_be_are_refused(dataset, tmp_path):
    for field, value in (
        ("crop_frames", 1),
        ("change_weight", -1.0),
        ("sharpness_weight", -0.1),
        ("validation_pieces", 0),
        ("validation_frames", 1),
    ):
        with pytest.raises(ValueError) as error:
            PerformerOptions(**{field: value})
        assert_error(error, field, str(value))
    with pytest.raises(ValueError, match="test"):
        PerformerOptions(validation_split="test")


def test_a_dataset_of_performances_is_taken_as_it_is_and_a_folder_without_scores_refused(dataset, tmp_path):
    assert performances_of(config(dataset, tmp_path), RATE) == str(dataset)
    assert performances_of(config("user/name", tmp_path), RATE) == "user/name"
    write_music(tmp_path / "music", count=1)
    with pytest.raises(ValueError) as error:
        performances_of(config(tmp_path / "music", tmp_path), RATE)
    assert_error(error, NOTES_FILE, ".mid", "music")


def test_a_folder_of_scores_is_played_once(tmp_path, monkeypatch):
    played = []

    def build(folder, output, soundfont, settings):
        played.append((folder, soundfont, settings))
        output.mkdir(parents=True)
        (output / NOTES_FILE).touch()
        return {"skipped": [{"file": "bad.mid", "reason": "damaged"}]}

    monkeypatch.setattr(folders, "build_performances", build)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a.mid").write_bytes(b"MThd")
    (tmp_path / "font.sf2").write_bytes(b"RIFF")
    settings = config(tmp_path / "scores", tmp_path, soundfont=str(tmp_path / "font.sf2"))
    first, second = performances_of(settings, 16000), performances_of(settings, 16000)
    assert first == second and len(played) == 1 and "performances" in first
    folder, font, how = played[0]
    assert folder == tmp_path / "scores" and font == tmp_path / "font.sf2" and how.sampling_rate == 16000
    assert performances_of(settings, 22050) != first and len(played) == 2


def test_borders_of_the_settings():
    inside, outside = from_one("validation_pieces")
    inside |= {"crop_frames": (2,), "validation_frames": (2,), "change_weight": (0.0,), "sharpness_weight": (0.0,)}
    outside |= {
        "crop_frames": (1,),
        "validation_frames": (1,),
        "change_weight": (-0.01,),
        "sharpness_weight": (-0.01,),
    }
    check_borders(PerformerOptions, inside, outside)
