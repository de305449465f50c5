"""The ear's recipe: what its targets say, what is changed in a recording, and that a training hears more than before."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from borders import check_borders, from_one
from training_utils import assert_same_checkpoints, started

from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.data.building import BuildConfig, build_dataset
from melreformer_hf.data.performances import NOTES_FILE, write_notes
from melreformer_hf.data.streams import ItemStream
from melreformer_hf.models.note_ear.configuration_note_ear import NoteEarConfig
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.loop import train
from melreformer_hf.training.recipes.base import StepContext
from melreformer_hf.training.recipes.ear import EarOptions, EarRecipe, TurnStream
from melreformer_hf.training.recipes.ear_data import HearingOptions, changed_sound, note_targets, separated_notes

# 100 steps a second.
CONFIG = NoteEarConfig.preset("test", mel={"sampling_rate": 25600, "hop_length": 128}, num_keys=5, lowest_pitch=60)
RATE = 8000
PLAIN = {"level_range_db": 0.0, "tilt_db": 0.0, "room_share": 0.0, "noise_share": 0.0}


def notes(*rows: tuple[float, float, int, int]) -> SoundingNotes:
    onset, release, pitch, velocity = (np.array(column) for column in zip(*rows, strict=True))
    return SoundingNotes(onset.astype(float), release.astype(float), pitch, velocity)


def test_targets_are_triangles_around_the_true_places():
    targets = note_targets(notes((0.105, 0.2, 61, 127)), 30, CONFIG).numpy()
    assert targets.shape == (30, 5, 4) and not targets[:, [0, 2, 3, 4]].any()
    onset, sounding, offset, velocity = targets[:, 1].T
    # The onset lies at the middle of step 10, the end between the middles of 19 and 20.
    np.testing.assert_allclose(onset[8:13], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(offset[17:23], [0, 0.25, 0.75, 0.75, 0.25, 0][:6], atol=1e-6)
    assert sounding.nonzero()[0].tolist() == list(range(10, 20))
    assert velocity.nonzero()[0].tolist() == [9, 10, 11] and velocity.max() == 1
    assert onset.sum() == pytest.approx(2) and offset.sum() == pytest.approx(2)


def test_notes_that_began_before_or_never_end():
    targets = note_targets(notes((-5.0, 0.055, 60, 64), (0.2, math.inf, 62, 64), (9.0, 10.0, 63, 64)), 30, CONFIG)
    assert not targets[:, 0, 0].any() and targets[:, 0, 1].nonzero().flatten().tolist() == list(range(6))
    assert targets[5, 0, 2] == 1 and not targets[:, 2, 2].any()
    assert targets[:, 2, 1].nonzero().flatten().tolist() == list(range(20, 30))
    assert not targets[:, 3].any()


def test_keys_beyond_the_ear_s_are_left_out():
    assert not note_targets(notes((0.1, 0.2, 59, 64), (0.1, 0.2, 65, 64)), 30, CONFIG).any()


def test_a_note_ends_when_its_key_is_struck_again():
    given = notes((1.0, 5.0, 60, 1), (2.0, 3.0, 60, 2), (0.5, 9.0, 61, 3))
    assert separated_notes(given).release.tolist() == [2.0, 3.0, 9.0]
    assert len(separated_notes(SoundingNotes.none())) == 0
    targets = note_targets(notes((0.055, 0.5, 60, 127), (0.155, 0.2, 60, 64)), 30, CONFIG)
    assert targets[15, 0, 2] == 1 and targets[5, 0, 3] == 1
    assert targets[15, 0, 3] == pytest.approx(64 / 127)


def sound(samples: int = 4000) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(1)) * 0.1


def change(waveform: torch.Tensor, seed: int = 0, **options: float) -> torch.Tensor:
    settings = HearingOptions(**{**PLAIN, **options})
    return changed_sound(waveform, RATE, settings, torch.Generator().manual_seed(seed))


def test_what_is_switched_off_changes_nothing():
    assert torch.equal(change(sound()), sound())


def test_levels():
    ratios = torch.stack([change(sound(), seed, level_range_db=6.0)[0] / sound()[0] for seed in range(200)])
    db = 20 * torch.log10(ratios)
    assert -6 <= db.min() < -5 and 5 < db.max() <= 6


def test_tilts_are_decibels_per_octave():
    slopes = []
    for seed in range(60):
        before, after = torch.fft.rfft(sound(4096)).abs(), torch.fft.rfft(change(sound(4096), seed, tilt_db=3.0)).abs()
        db = 20 * torch.log10(after / before)
        low, high = (slice(round(hz * 4096 / RATE) - 20, round(hz * 4096 / RATE) + 20) for hz in (500, 2000))
        slopes.append(float(db[high].median() - db[low].median()) / 2)
    assert -3.1 < min(slopes) < -2.4 and 2.4 < max(slopes) < 3.1


def test_rooms_ring_on_and_do_not_move_what_is_heard():
    click = torch.zeros(16000)
    click[1000] = 1.0
    for seed in range(20):
        heard = change(click, seed, room_share=1.0, room_seconds=0.8, room_level_db=0.0)
        assert heard[:1000].abs().max() < 1e-5 and heard[1000] == pytest.approx(1, abs=1e-5)
        tail = heard[1001:]
        energy = float(tail.square().sum())
        assert 10**-2.01 < energy < 1.01
        # By 60 dB within 0.1 to 0.8 s.
        assert tail[round(0.8 * RATE) + 1 :].abs().max() < 1e-5 and tail[: round(0.1 * RATE)].abs().max() > 1e-4
    half = [bool(change(click, seed, room_share=0.5)[1100:].any()) for seed in range(100)]
    assert 30 < sum(half) < 70


def test_noise_is_so_much_softer():
    ratios = []
    for seed in range(100):
        noise = change(sound(), seed, noise_share=1.0, noise_db=-20.0) - sound()
        ratios.append(10 * math.log10(noise.square().mean() / sound().square().mean()))
    assert -60 < min(ratios) < -55 and -25 < max(ratios) < -20 + 1e-3


def test_a_seed_changes_a_recording_in_one_way():
    everything = {"level_range_db": 9.0, "tilt_db": 2.0, "room_share": 1.0, "noise_share": 1.0}
    assert torch.equal(change(sound(), 3, **everything), change(sound(), 3, **everything))
    assert not torch.equal(change(sound(), 3, **everything), change(sound(), 4, **everything))


@pytest.mark.parametrize(
    "field, value",
    (("level_range_db", -1.0), ("tilt_db", -1.0), ("room_seconds", -0.1), ("room_share", 1.1), ("noise_share", -0.1)),
)
def test_options_that_cannot_be_are_refused(field, value):
    with pytest.raises(ValueError, match=f"options.{field}"):
        HearingOptions(**{field: value})


def make_performances(folder, seed: int) -> str:
    """A dataset: two short performances to train on, one to validate."""
    instrument, random = SampledInstrument(), np.random.default_rng(seed)
    tables, splits = {}, {"one": "train", "two": "train", "three": "validation"}
    (folder / "wav").mkdir(parents=True)
    with open(folder / "wav" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "split"])
        for name, split in splits.items():
            onset = np.arange(12) * 0.25
            tables[name] = SoundingNotes(onset, onset + 0.4, random.integers(50, 80, 12), random.integers(40, 120, 12))
            waveform = instrument.render(tables[name], 0, 4 * 22050)[0].numpy()
            soundfile.write(folder / "wav" / f"{name}.wav", waveform, 22050)
            writer.writerow([f"{name}.wav", split])
    settings = BuildConfig(validation_fraction=0, test_fraction=0, silence_weight=1.0, workers=1)
    build_dataset(folder / "wav", folder / "data", settings, progress=False)
    write_notes(folder / "data" / NOTES_FILE, tables)
    return str(folder / "data")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return [make_performances(tmp_path_factory.mktemp("performances") / str(seed), seed) for seed in (0, 1)]


def config(datasets, tmp_path, **changes) -> TrainingConfig:
    options = {"preset": "test", "crop_steps": 40, "more_datasets": tuple(datasets[1:]), **changes.pop("options", {})}
    settings = {"max_steps": 2, "batch_size": 2, "num_workers": 0, "progress_bar": False, "cpu": True, **changes}
    return TrainingConfig(dataset=datasets[0], output_dir=str(tmp_path / "run"), options=options, **settings)


def test_items_are_changed_sound_and_the_targets_of_its_notes(datasets, tmp_path):
    recipe = EarRecipe(config(datasets, tmp_path, options=PLAIN))
    item = recipe.stream(0, 1).item(3)
    made = recipe.prepare(item, torch.Generator().manual_seed(0))
    assert torch.equal(made["waveform"], item["waveform"]) and made["waveform"].shape == (40 * 512,)
    assert torch.equal(made["labels"], note_targets(item["notes"], 40, recipe.model_config))
    loud = EarRecipe(config(datasets, tmp_path)).prepare(item, torch.Generator().manual_seed(0))
    assert not torch.equal(loud["waveform"], item["waveform"]) and torch.equal(loud["labels"], made["labels"])


def test_datasets_take_turns(datasets, tmp_path):
    recipe = EarRecipe(config(datasets, tmp_path))
    stream, alone = recipe.stream(0, 1), EarRecipe(config(datasets[:1], tmp_path)).stream(0, 1)
    assert [stream.item(2 * index)["notes"].pitch.tolist() for index in range(4)] == [
        alone.item(index)["notes"].pitch.tolist() for index in range(4)
    ]
    assert [stream.item(index)["index"] for index in range(3)] == [0, 1, 2]
    other = {tuple(stream.item(2 * index + 1)["notes"].pitch) for index in range(8)}
    assert len(other) == 2 and not other & {tuple(alone.item(index)["notes"].pitch) for index in range(8)}


def test_turns():
    class Counting(ItemStream):
        def item(self, index):
            return {"index": index, "who": self.seed}

    turns = TurnStream([Counting(seed) for seed in (7, 8, 9)], rank=1, world_size=2)
    taken = [item for item, _ in zip(turns, range(3), strict=False)]
    assert [(item["index"], item["who"]) for item in taken] == [(1, 8), (3, 7), (5, 9)]


def test_training_hears_more_than_before_and_publishes_a_model_that_loads(datasets, tmp_path):
    model = {"hidden_size": 48, "intermediate_size": 64, "lowest_pitch": 50, "num_keys": 30}
    settings = config(
        datasets[:1],
        tmp_path,
        max_steps=30,
        batch_size=4,
        learning_rate=0.01,
        warmup_steps=3,
        model=model,
        ema_decay=0,
        options={"validation_split": "train"},  # so few notes teach nothing about others
    )
    recipe = EarRecipe(settings)
    before = recipe.validate(started(recipe)["model"].eval())
    train(EarRecipe(settings), settings)
    told = json.loads((tmp_path / "run/training.json").read_text())["metrics"]
    assert told["loss"] < 0.7 * before.metrics["loss"]
    assert before.counts == {"recordings": 2} and {"onset_f1", "offset_f1", "velocity_f1"} <= set(told)
    assert isinstance(NoteEarModel.from_pretrained(tmp_path / "run"), NoteEarModel)


def test_what_is_measured_is_what_the_model_transcribes(datasets, tmp_path):
    recipe = EarRecipe(config(datasets, tmp_path, options={"validation_seconds": 2.0}))
    recipe.prepare_validation()
    played = [item["notes"] for item in recipe._held_out]
    assert len(played) == 2

    class Perfect(torch.nn.Module):
        """Plays back what it should hear."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.inner, self.told = NoteEarModel(recipe.model_config).eval(), iter(played)

        def forward(self, *arguments, **kwargs):
            return self.inner(*arguments, **kwargs)

        def transcribe(self, waveform, rate):
            notes = separated_notes(next(self.told))
            rows = np.stack([notes.onset, notes.release, notes.pitch, notes.velocity], axis=1)
            return rows[rows[:, 0] < len(waveform) / rate]

    with torch.no_grad():
        measured = recipe.validate(Perfect())
    assert measured.metrics["onset_f1"] == measured.metrics["offset_velocity_f1"] == 1.0
    assert measured.summary.startswith("100.0% of onsets")


class Pieces:
    """Recordings of 1, 2, 3 ... seconds, and what is asked for of them."""

    sampling_rate = 100

    def __init__(self, count: int) -> None:
        self.recordings = [
            SimpleNamespace(name=str(number), num_samples=100 * (number + 1)) for number in range(count)
        ]

    def item_of(self, recording, start: int, length: int) -> tuple:
        return recording.name, start, length


@pytest.mark.parametrize(
    ("wanted", "measured"),
    [(1, ["0"]), (3, ["0", "2", "4"]), (6, ["0", "1", "2", "3", "4", "5"]), (9, list("0123456"))],
)
def test_held_out_recordings_are_spread_over_all_and_cut(datasets, tmp_path, monkeypatch, wanted, measured):
    options = {"validation_recordings": wanted, "validation_seconds": 2.5}
    recipe = EarRecipe(config(datasets, tmp_path, options=options))
    monkeypatch.setattr(recipe, "stores", lambda split: [Pieces(7), Pieces(2)])
    recipe.prepare_validation()
    more = [(name, 0, min(100 * (int(name) + 1), 250)) for name in ("0", "1")[:wanted]]
    assert recipe._held_out == [(name, 0, min(100 * (int(name) + 1), 250)) for name in measured] + more


def test_losses_are_the_model_s(datasets, tmp_path):
    recipe = EarRecipe(config(datasets, tmp_path))
    started(recipe)
    items = [recipe.prepare(recipe.stream(0, 1).item(index), torch.Generator().manual_seed(index)) for index in (0, 1)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    (phase,) = recipe.phases(batch, StepContext(0, 0, 1, 0.0, torch.Generator()))
    parts = [phase.scalars[f"{name}_loss"] for name in ("onset", "frame", "offset", "velocity")]
    torch.testing.assert_close(sum(parts), phase.loss)


def test_a_training_resumes_to_the_bit(datasets, tmp_path):
    more = {"save_every_steps": 1, "log_every_steps": 1}
    whole = config(datasets, tmp_path / "whole", **more)
    train(EarRecipe(whole), whole)
    half = config(datasets, tmp_path / "half", **more, resume=str(tmp_path / "whole/run/checkpoints/step-00000001"))
    train(EarRecipe(half), half)
    assert_same_checkpoints(tmp_path / "whole/run", tmp_path / "half/run", 2)


@pytest.mark.parametrize(
    "options, name",
    (
        ({"crop_steps": 0}, "crop_steps"),
        ({"validation_recordings": 0}, "validation_recordings"),
        ({"validation_seconds": 0.0}, "validation_seconds"),
        ({"validation_split": "test"}, "validation_split"),
        ({"noise_share": 2.0}, "noise_share"),
    ),
)
def test_settings_that_cannot_be_are_refused(options, name):
    with pytest.raises(ValueError, match=f"options.{name}"):
        EarRecipe(TrainingConfig(dataset="none", output_dir="runs/ear", max_steps=1, options=options))


def test_borders_of_the_settings():
    inside, outside = from_one("crop_steps", "validation_recordings")
    not_negative, shares = ("level_range_db", "tilt_db", "room_seconds"), ("room_share", "noise_share")
    inside |= dict.fromkeys(not_negative, (0.0,)) | dict.fromkeys(shares, (0.0, 1.0)) | {"validation_seconds": (0.01,)}
    outside |= dict.fromkeys(not_negative, (-0.01,)) | dict.fromkeys(shares, (-0.01, 1.01))
    outside |= {"validation_seconds": (0.0,), "validation_split": ("test",)}
    check_borders(EarOptions, inside, outside)
