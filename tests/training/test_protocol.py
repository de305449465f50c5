"""What the trainer promises to every recipe: steps, states, checkpoints, interruptions; shown with one that has it all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_recipe import Network, RunningMean, ToyRecipe, Vectors, toy_config
from training_utils import assert_same_checkpoints, context

from melreformer_hf._files import write_json
from melreformer_hf._text import duration_in_words
from melreformer_hf.data.batches import BatchStream
from melreformer_hf.models.melgan_vocoder.configuration_melgan_vocoder import MelGanVocoderConfig
from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel
from melreformer_hf.nn.conv import has_weight_norm
from melreformer_hf.training import checkpointing, wrapping
from melreformer_hf.training.checkpointing import list_checkpoints
from melreformer_hf.training.initialization import load_pretrained
from melreformer_hf.training.interruption import TrainingInterrupted
from melreformer_hf.training.loop import Trainer
from melreformer_hf.training.main import main
from melreformer_hf.training.recipes import RECIPES, find_recipe
from melreformer_hf.training.recipes.base import Phase, Recipe, Stateful
from melreformer_hf.training.reporting import read_metrics


def trainer_of(folder, recipe_class=ToyRecipe, **values) -> Trainer:
    config = toy_config(folder, **values)
    return Trainer(recipe_class(config), config)


def run(folder, recipe_class=ToyRecipe, **values) -> Trainer:
    trainer = trainer_of(folder, recipe_class, **values)
    trainer.run()
    return trainer


def lines(folder, kind: str = "train") -> list[dict]:
    return [{**line, "minutes": 0} for line in read_metrics(folder, kind)]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_interrupted_training_continues_to_the_bit(accumulation, tmp_path):
    more = {"gradient_accumulation_steps": accumulation, "validate_every_steps": 2, "log_every_steps": 4}
    whole = run(tmp_path / "whole", **more)
    with pytest.raises(TrainingInterrupted) as stopped:
        run(tmp_path / "parts", **more, options={"signal_at": 2})
    assert stopped.value.code == 128 + signal.SIGTERM and stopped.value.step == 3
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == ["step-00000002", "step-00000003"]
    parts = run(tmp_path / "parts", **more, resume="latest")
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert lines(tmp_path / "parts", "validation") == lines(tmp_path / "whole", "validation")
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "parts", 6)
    assert whole.state.progress.metrics == parts.state.progress.metrics
    assert whole.recipe.path.mean != 0 and whole.recipe.path.mean == parts.recipe.path.mean
    assert whole.recipe.balancer.shares == parts.recipe.balancer.shares


def test_what_is_asked_for_when_continuing_is_what_is_done(tmp_path, capsys):
    """An optimizer's state brings the settings that it was saved with; they must not win."""
    run(tmp_path / "run", max_steps=2)
    changed = {"learning_rate": 0.5, "weight_decay": 0.3, "adam_betas": (0.1, 0.2), "adam_epsilon": 1e-3}
    trainer = run(tmp_path / "run", max_steps=4, resume="latest", final_learning_rate_ratio=1.0, **changed)
    for name, expected in (("model", (0.5, (0.1, 0.2))), ("critic", (0.02, (0.5, 0.9)))):
        groups = trainer.state.optimizers[name].param_groups
        assert [(group["lr"], group["betas"], group["eps"]) for group in groups] == [(*expected, 1e-3)] * 2
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert lines(tmp_path / "run")[-1]["learning_rate"] == 0.5
    with pytest.raises(ValueError, match="optimizer state of 'model'.* of adamw, not muon. Resume with"):
        trainer_of(tmp_path / "run", max_steps=6, resume="latest", optimizer="muon")
    capsys.readouterr()


def test_a_training_that_was_continued_elsewhere_stays_as_it_was(tmp_path):
    more = {"max_steps": 4, "validate_every_steps": 2}
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path / "one", **more, options={"validation_fails": True})
    first = tmp_path / "one/checkpoints/step-00000002"
    before = (first / "state.json").read_text()
    assert json.loads(before)["progress"]["validation_due"]
    run(tmp_path / "two", **more, resume=str(first))
    assert (first / "state.json").read_text() == before
    assert [line["step"] for line in lines(tmp_path / "two", "validation")] == [2, 4]


def test_everything_that_changes_is_in_the_checkpoint_and_nothing_twice(tmp_path):
    run(tmp_path, max_steps=1)
    checkpoint = list_checkpoints(tmp_path)[-1]
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {
        *(f"{name}.safetensors" for name in ("model", "critic", "average")),
        *("optimizers.pt", "process-0.pt", "state.json"),
    }
    stateful = torch.load(checkpoint / "process-0.pt", weights_only=True)["stateful"]
    assert set(stateful) == {"balancer", "draw", "path"} and stateful["balancer"]["norm_counts"].sum() > 0


def test_items_that_processes_cannot_share_equally_are_refused(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.state.accelerator = SimpleNamespace(num_processes=2)
    assert trainer.state._own_position(8) == 4
    with pytest.raises(ValueError, match="after 7 items, which 2 processes cannot share equally"):
        trainer.state._own_position(7)
    trainer.log.close()


def test_companions_are_placed_and_frozen(tmp_path):
    trainer = trainer_of(tmp_path)
    codec = trainer.recipe.modules["codec"]
    assert not codec.training and not any(parameter.requires_grad for parameter in codec.parameters())
    assert set(trainer.recipe.modules) == {"model", "critic", "codec"}
    assert trainer.recipe.__getstate__()["modules"] == {}  # weights do not travel to worker processes
    trainer.log.close()


class Taught(ToyRecipe):
    """Plain losses, so that their gradients are known: the critic has a phase in the first micro batch alone."""

    def phases(self, batch, context):
        if context.micro_index == 0:
            yield Phase("critic", self.modules["critic"](batch["values"]).square().mean())
        through = self.modules["critic"](self.modules["model"](batch["values"])).mean()
        yield Phase("model", through, {"loss": through})

    def after_step(self, kept, context):
        self.kept = kept


def test_each_module_is_stepped_by_its_own_gradients_alone(tmp_path):
    """A phase in a first micro batch counts, and what another module's loss leaves behind does not."""
    trainer = trainer_of(tmp_path, Taught, gradient_accumulation_steps=2, adam_epsilon=1.0)
    model, critic = trainer.state.modules["model"], trainer.state.modules["critic"]
    for step in range(2):
        stream = trainer.state.stream
        first, second = (BatchStream(stream, trainer.recipe.prepare, 2).batch(i).tensors["values"] for i in range(2))
        wanted = torch.autograd.grad(critic(first).square().mean() / 2, critic.parameters(), allow_unused=True)
        norm = torch.stack([gradient.norm() for gradient in wanted if gradient is not None]).norm()
        through = critic(model(torch.cat([first, second]))).mean()
        wanted_model = torch.autograd.grad(through, model.parameters())
        norm_model = torch.stack([gradient.norm() for gradient in wanted_model]).norm()
        before = [parameter.clone() for parameter in critic.parameters()]
        scalars = trainer.updater.step(
            iter([BatchStream(stream, trainer.recipe.prepare, 2).batch(i) for i in range(2)])
        )
        torch.testing.assert_close(scalars["gradient_norm/critic"], norm, msg=f"step {step}")
        torch.testing.assert_close(scalars["gradient_norm/model"], norm_model, msg=f"step {step}")
        assert any(not old.equal(new) for old, new in zip(before, critic.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in [*model.parameters(), *critic.parameters()])
    assert trainer.state.stream.position == 8
    assert trainer.recipe.kept == {"critic": [None], "model": [None, None]}
    trainer.log.close()


def test_codebooks_learn_once_per_step_and_never_from_what_is_not_finite(tmp_path):
    trainer = run(
        tmp_path,
        max_steps=5,
        gradient_accumulation_steps=2,
        options={"infinite_from": 1, "infinite_until": 3},
    )
    assert trainer.recipe.codebook_updates == [(0, 2), (3, 2), (4, 2)]
    assert trainer.state.modules["model"].codebook.isfinite().all()
    assert trainer.state.average.model.codebook.equal(trainer.state.modules["model"].codebook)


def test_one_module_that_goes_on_does_not_hide_another_that_does_not(tmp_path):
    with pytest.raises(FloatingPointError, match="3 steps in a row .*'model' in step 3"):
        run(tmp_path, max_nonfinite_steps=3, options={"infinite_from": 0})


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (["model", "model"], "two phases for 'model'"),
        (["judge"], r"one of \['critic', 'model'\], got 'judge'"),
    ],
)
def test_phases_that_contradict_the_contract_are_refused(phases, message, tmp_path):
    class Wrong(ToyRecipe):
        def phases(self, batch, context):
            for name in phases:
                yield Phase(name, self.modules["model"](batch["values"]).mean())

    with pytest.raises(ValueError, match=message):
        run(tmp_path, Wrong)


def test_recipes_must_be_complete():
    with pytest.raises(TypeError, match="abstract"):
        Recipe(toy_config("unused"))
    assert isinstance(nn.Linear(1, 1), Stateful) and isinstance(RunningMean(), Stateful)

    class NoModel(ToyRecipe):
        def trainables(self):
            return {"net": super().trainables()["model"]}

    with pytest.raises(ValueError, match=r"must hold 'model', got \['net'\]"):
        trainer_of("unused", NoModel)


def test_shared_draws_depend_on_the_place_in_the_training_alone(tmp_path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=3)
    seeds = [trainer.updater._context(index).generator.initial_seed() for index in range(3)]
    trainer.state.progress.step = 1
    seeds += [trainer.updater._context(index).generator.initial_seed() for index in range(3)]
    assert len(set(seeds)) == 6
    assert [trainer.updater._context(index).is_last_micro_step for index in range(3)] == [False, False, True]
    assert context().generator.initial_seed() == 0
    trainer.log.close()


def test_scalars_leave_the_device_only_for_the_log(tmp_path, monkeypatch):
    trainer, reduced = trainer_of(tmp_path, max_steps=6, log_every_steps=3), []
    reduce = trainer.accelerator.reduce
    monkeypatch.setattr(
        trainer.accelerator, "reduce", lambda tensor, **more: reduced.append(tensor.shape) or reduce(tensor, **more)
    )
    trainer.run()
    assert len(reduced) == 2 and [line["step"] for line in lines(tmp_path)] == [3, 6]
    every = run(tmp_path / "every", max_steps=6, log_every_steps=1)
    means = [sum(line["loss"] for line in lines(tmp_path / "every")[i : i + 3]) / 3 for i in (0, 3)]
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(means)
    assert every.state.progress.step == 6


def test_what_was_learned_is_safe_before_a_validation(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path / "run", max_steps=4, validate_every_steps=2, options={"validation_fails": True})
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    run(tmp_path / "run", max_steps=4, validate_every_steps=2, resume="latest")
    whole = run(tmp_path / "whole", max_steps=4, validate_every_steps=2)
    assert lines(tmp_path / "run", "validation") == lines(tmp_path / "whole", "validation")
    assert [line["step"] for line in lines(tmp_path / "run", "validation")] == [2, 4]
    best = max(line["score"] for line in lines(tmp_path / "whole", "validation"))  # greater_is_better
    assert whole.state.progress.best == best
    assert json.loads((tmp_path / "run/best/training.json").read_text())["metrics"]["score"] == best
    # A finished training is not measured twice.
    again = run(tmp_path / "run", max_steps=4, validate_every_steps=2, resume="latest")
    assert len(lines(tmp_path / "run", "validation")) == 2 and again.state.progress.metrics["score"] is not None
    assert "continuing" in capsys.readouterr().err


def test_the_terminal_tells_what_happens_in_words(tmp_path, capsys):
    run(tmp_path / "run", resume="latest", max_steps=5, progress_bar=True)
    told = capsys.readouterr().err
    assert f"resume: {tmp_path}/run has no checkpoint yet, the training starts at step 0" in told
    assert "toy: model 0.00 M parameters, critic 0.00 M parameters; 5 steps, 2 items a step" in told
    assert "about 0 s left" in told and "5/5" in told
    assert "x of nothing (score" in told
    words = [duration_in_words(minutes) for minutes in (0.5, 12.3, 150.0)]
    assert words == ["30 s", "12 min", "2.5 h"]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    run(tmp_path, max_steps=2, save_every_steps=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "kin')
    run(tmp_path, max_steps=3, resume="latest")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    run(tmp_path, max_steps=1)
    save, before = checkpointing.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(*arguments, **keywords):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # larger files cannot be written
        try:
            return save(*arguments, **keywords)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(checkpointing, "save_checkpoint", on_a_full_disk)
    words = f"--dataset none --output_dir {tmp_path} --max_steps 2 --resume latest --num_workers 0 --cpu true".split()
    with pytest.raises(SystemExit) as end:
        main(ToyRecipe, words)
    assert end.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and "step-00000002" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    assert run(tmp_path, max_steps=2, resume="latest").state.progress.step == 2


def test_training_without_something_held_out_is_refused_before_the_first_step(dataset, tmp_path, capsys):
    built = tmp_path / "built"
    shutil.copytree(dataset, built)
    info = json.loads((built / "dataset.json").read_text())
    del info["splits"]["validation"]
    write_json(built / "dataset.json", info)
    words = ["--dataset", str(built), "--output_dir", str(tmp_path / "run"), "--max_steps", "3"]
    with pytest.raises(SystemExit):
        main("vocoder", words)
    assert "validation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weight_normed_modules_start_from_plain_weights(tmp_path):
    config = MelGanVocoderConfig.preset("tiny")
    torch.manual_seed(0)
    published = MelGanVocoderModel(config).eval()
    published.save_pretrained(tmp_path)
    model = MelGanVocoderModel(config)
    model.apply_weight_norm()
    recipe = ToyRecipe(toy_config("unused"))
    load_pretrained(model, str(tmp_path), recipe)
    assert has_weight_norm(model)
    mel = torch.randn(1, config.mel_config.num_mel_bins, 12)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(mel).waveform, published(mel).waveform, rtol=1e-4, atol=1e-5)
    wider = MelGanVocoderModel(MelGanVocoderConfig.preset("tiny", base_channels=2 * config.base_channels))
    with pytest.raises(ValueError, match="do not fit this configuration"):
        load_pretrained(wider, str(tmp_path), recipe)


def test_gradients_of_others_stay_as_they_were():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two(torch.ones(1, 2)).sum().backward()
    before = [parameter.grad.clone() for parameter in two.parameters()]
    with wrapping.gradients_of_others_kept([two]):
        two(one(torch.ones(1, 2))).sum().backward()
    assert all(grad.equal(parameter.grad) for grad, parameter in zip(before, two.parameters(), strict=True))
    assert one.weight.grad.any()


def test_every_recipe_is_found_by_its_name():
    for name in RECIPES:
        assert find_recipe(name).name == name
    with pytest.raises(ValueError, match="conv_upsampler.*got 'vocodr'"):
        find_recipe("vocodr")


def test_the_toy_stream_is_shared_among_processes():
    parts = [Vectors(0, rank, 2) for rank in range(2)]
    firsts = [next(iter(part))["index"] for part in parts]
    assert firsts == [0, 1]
    assert isinstance(Network(), nn.Module)


def test_workers_outlive_signals_of_the_training_and_end_with_it(tmp_path):
    trainer = trainer_of(tmp_path, num_workers=1)
    batches = iter(trainer._loader())
    next(batches)
    (worker,) = batches._workers
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, signum)
    for _ in range(12):  # more than were prepared ahead
        next(batches)
    assert worker.is_alive()
    trainer._workers.close()
    worker.terminate()  # what Python does when it exits while somebody still holds the iterator
    worker.join(20)
    assert not worker.is_alive() and worker.exitcode == 0
    trainer.log.close()


def test_a_training_with_workers_is_stopped_and_goes_on(tmp_path):
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, num_workers=2, options={"signal_at": 1})
    assert run(tmp_path, num_workers=2, resume="latest").state.progress.step == 6
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
