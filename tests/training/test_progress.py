"""What a training counts, and what it says of itself in its model's card."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from melreformer_hf.training import progress as progress_module
from melreformer_hf.training.cards import told_settings, training_card
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.progress import Clock, Progress, RunningMeans


def settings(**values) -> TrainingConfig:
    return TrainingConfig(**{"dataset": "d", "output_dir": "o", "max_steps": 10, **values})


def test_the_larger_share_of_steps_and_minutes_counts():
    progress = Progress(step=3, minutes=4.0)
    assert progress.share(settings()) == pytest.approx(0.3)
    assert progress.share(settings(max_minutes=5.0)) == pytest.approx(0.8)
    assert progress.share(settings(max_minutes=1.0)) == 1.0


def test_things_are_due_by_steps_or_by_minutes():
    config, marks = settings(validate_every_steps=2, save_every_minutes=5.0), {"validate": 0.0, "save": 0.0}
    due = []
    for step in range(1, 7):
        progress = Progress(step=step, minutes=2.0 * step)
        due.append((progress.due("validate", config, marks), progress.due("save", config, marks)))
    assert [validate for validate, _ in due] == [False, True, False, True, False, True]
    assert [save for _, save in due] == [False, False, True, False, False, True]
    assert marks == {"validate": 12.0, "save": 12.0}


def test_means_are_over_the_steps_that_had_the_loss_and_survive_saving():
    means, reduced = RunningMeans(), []
    means.add({"loss": torch.tensor(1.0), "discriminator_loss": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(4.0)})
    restored = RunningMeans()
    restored.load_state_dict(means.state_dict())

    def reduce(values):
        reduced.append(values)
        return values

    assert restored.take(reduce) == {"loss": 2.5, "discriminator_loss": 5.0}
    assert len(reduced) == 1  # all numbers in one message between processes
    assert restored.take(reduce) == {} and len(reduced) == 1


def test_only_finite_improvements_count():
    progress = Progress()
    assert [progress.improve(value) for value in (math.nan, 2.0, 2.0, math.inf, 1.5)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert progress.best == 1.5
    rising = Progress()
    assert [rising.improve(value, True) for value in (1.0, 0.5, math.nan, 2.0)] == [True, False, False, True]
    assert rising.best == 2.0


def test_what_is_left_follows_the_budget_that_ends_first():
    def told(**values) -> list[float | None]:
        progress, left = Progress(), []
        clock = Clock(progress, settings(**{"max_steps": 100, **values}))
        for step in range(1, 6):  # two minutes a step
            progress.step, progress.minutes = step, 2.0 * step
            left.append(clock.minutes_left())
        return left

    assert told()[:3] == [None] * 3 and told()[3:] == pytest.approx([192.0, 190.0])
    # Not the whole budget of minutes, where the steps end first.
    assert told(max_minutes=1000.0)[:3] == [None] * 3 and told(max_minutes=1000.0)[3:] == pytest.approx([192.0, 190.0])
    assert told(max_minutes=50.0)[3:] == pytest.approx([42.0, 40.0])
    assert told(max_steps=None, max_minutes=50.0)[2:] == pytest.approx([44.0, 42.0, 40.0])


def test_the_card_tells_data_recipe_and_metrics_but_no_folders(tmp_path):
    dataset = tmp_path / "secret" / "pianos"
    dataset.mkdir(parents=True)
    config = settings(dataset=str(dataset), output_dir=str(tmp_path / "runs"), batch_size=3, model={"hidden_size": 8})
    config = dataclasses.replace(config, soundfont=str(tmp_path / "piano.sf2"))
    config = dataclasses.replace(config, init_from=str(tmp_path / "former"), gradient_accumulation_steps=2)
    summary = {"recipe": "vocoder", "step": 7, "minutes": 1.25, "processes": 2, "metrics": {"mel_l1": 0.123456}}
    card = training_card({**summary, "config": told_settings(config)}, "1.5 h of audio")
    assert "`pianos`, 1.5 h of audio" in card["data"]
    assert "7 steps of 12 items in 1.25 minutes, started from `former`" in card["recipe"]
    assert "| model | {'hidden_size': 8} |" in card["recipe"] and "| learning_rate | 0.001 |" in card["recipe"]
    assert card["metrics"].endswith("| mel_l1 | 0.1235 |")
    assert str(tmp_path) not in "".join(card.values())
    remote = settings(dataset="hf://datasets/user/pianos").to_dict()
    assert "`hf://datasets/user/pianos`" in training_card({**summary, "config": remote})["data"]


@pytest.mark.parametrize(
    ("max_minutes", "expected"),
    # Steps: (9 - 4) / (23 - 13) * 17 minutes; 9 of the minutes are used.
    [(None, [None, None, None, 8.5]), (100.0, [None, None, None, 8.5]), (15.0, [None, None, None, 6.0])],
)
def test_what_is_left_is_told_by_steps_or_by_minutes(max_minutes, expected, monkeypatch):
    """The first three steps of a resumed training do not count: they are slow."""
    now = 500.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    progress, left = Progress(step=10, minutes=2.0), []
    clock = Clock(progress, settings(max_steps=40, max_minutes=max_minutes))
    for step, minutes in ((11, 2.5), (12, 3.5), (13, 4.0), (23, 9.0)):
        now = 500.0 + 60 * (minutes - 2.0)
        assert clock.minutes() == pytest.approx(minutes)
        progress.step, progress.minutes = step, minutes
        left.append(clock.minutes_left())
    assert left == [value if value is None else pytest.approx(value) for value in expected]
