"""Two processes: resumed to the bit, stopped together, and the same gradients as one process at equal global batch."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toy_recipe import Network, ToyRecipe, Vectors, toy_config
from training_utils import assert_same_checkpoints, in_two_processes

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.metrics import log_mel_l1, multi_resolution_stft_distance
from melreformer_hf.training import wrapping
from melreformer_hf.training.discriminators.drawing import DiscriminatorDraw
from melreformer_hf.training.interruption import TrainingInterrupted
from melreformer_hf.training.loop import Trainer
from melreformer_hf.training.losses.balancer import LossBalancer
from melreformer_hf.training.optimizers import build_optimizer
from melreformer_hf.training.recipes.base import Phase
from melreformer_hf.training.reporting import read_metrics


def run(folder, recipe_class=ToyRecipe, **values) -> Trainer:
    config = toy_config(folder, **values)
    trainer = Trainer(recipe_class(config), config)
    trainer.run()
    return trainer


def whole_and_parts(folder, accumulation: int) -> None:
    more = {"gradient_accumulation_steps": accumulation, "validate_every_steps": 2, "log_every_steps": 4}
    run(folder / "whole", **more)
    with pytest.raises(TrainingInterrupted):
        run(folder / "parts", **more, options={"signal_at": 2})
    run(folder / "parts", **more, resume="latest")


def assert_resumed(folder) -> None:
    assert_same_checkpoints(folder / "whole", folder / "parts", 6)
    for kind in ("train", "validation"):
        lines = [[{**line, "minutes": 0} for line in read_metrics(folder / name, kind)] for name in ("whole", "parts")]
        assert lines[0] == lines[1] and lines[0]
    names = {path.name for path in (folder / "whole/checkpoints/step-00000006").iterdir()}
    assert {"process-0.pt", "process-1.pt"} <= names


def balanced_gradient(layer: nn.Linear, values: torch.Tensor, target: torch.Tensor, **settings) -> LossBalancer:
    """Two steps of the losses that codecs and vocoders are trained with; gradients as DDP leaves them."""
    mel = MelConfig.preset("hifigan", num_mel_bins=32, n_fft=256, win_length=256, hop_length=64)
    balancer = LossBalancer({"mel": 1.0, "stft": 3.0, "l1": 0.5}, ema_decay=0.9, **settings)
    for _ in range(2):
        layer.zero_grad()
        output = layer(values)
        losses = {"mel": log_mel_l1(output, target, mel), "stft": multi_resolution_stft_distance(output, target)}
        balancer({**losses, "l1": (output - target).abs().mean()}, output).backward()
    return balancer


def balancer_inputs() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4096)
    # Rows of very different loudness: norms per item differ.
    return layer, torch.randn(4, 8), torch.randn(4, 4096) * torch.tensor([[1.0], [0.1], [3.0], [0.5]])


def balance_halves(folder) -> None:
    layer, values, target = balancer_inputs()
    rank = distributed.get_rank()
    for per_item in (True, False):
        balancer = balanced_gradient(layer, values[rank::2], target[rank::2], per_batch_item=per_item)
        distributed.all_reduce(layer.weight.grad)
        layer.weight.grad /= 2
        torch.save((layer.weight.grad, balancer.norm_sums), folder / f"{per_item}-{rank}.pt")
    draw = DiscriminatorDraw(["a", "b"])
    draw.record("a", float(rank))
    assert draw.sums[0] / draw.counts[0] == 0.5


def everything(folder) -> None:
    whole_and_parts(folder, accumulation=1)
    balance_halves(folder)


def test_two_processes_resume_to_the_bit_and_balance_as_one(tmp_path):
    in_two_processes(everything, tmp_path)
    assert_resumed(tmp_path)
    layer, values, target = balancer_inputs()
    for per_item in (True, False):
        balancer = balanced_gradient(layer, values, target, per_batch_item=per_item)
        for rank in range(2):
            gradient, sums = torch.load(tmp_path / f"{per_item}-{rank}.pt", weights_only=True)
            torch.testing.assert_close(sums, balancer.norm_sums, rtol=1e-3, atol=0)
            # Not element by element: logarithms of bins near zero make much of the rounding of a product's rows.
            assert (gradient - layer.weight.grad).norm() < 1e-3 * layer.weight.grad.norm()


def test_accumulated_batches_are_balanced_as_one():
    layer, values, target = balancer_inputs()
    balancer = LossBalancer({"l1": 1.0, "l2": 1.0}, ema_decay=0.0)
    layer.zero_grad()
    same = values[:1].expand(2, -1), target[:1].expand(2, -1)

    def loss(values, target, micro_steps):
        output = layer(values)
        losses = {"l1": (output - target).abs().mean(), "l2": (output - target).square().mean()}
        return balancer(losses, output, micro_steps)

    loss(*same, 1).backward()
    whole = layer.weight.grad.clone()
    layer.zero_grad()
    for _ in range(2):
        (loss(values[:1], target[:1], 2) / 2).backward()
    torch.testing.assert_close(layer.weight.grad, whole)


@pytest.mark.slow
def test_two_processes_resume_to_the_bit_with_accumulation(tmp_path):
    in_two_processes(whole_and_parts, tmp_path, 3)
    assert_resumed(tmp_path)


class Additive(ToyRecipe):
    """Means over the batch alone: equal global batches give equal gradients however they are divided."""

    def phases(self, batch, context):
        if context.micro_index == 0:  # with accumulation DDP has not shared these
            yield Phase("critic", self.modules["critic"](batch["values"]).square().mean())
        loss = (self.modules["model"](batch["values"]) - batch["noise"]).abs().mean()
        yield Phase("model", loss, {"loss": loss})

    def after_step(self, kept, context):
        pass


def additive(folder, **values) -> None:
    run(folder, Additive, max_steps=3, adam_epsilon=1e-2, **values)


def test_gradients_of_early_micro_batches_are_shared_too(tmp_path):
    in_two_processes(
        lambda: additive(tmp_path / "two", gradient_accumulation_steps=2, batch_size=2, save_every_steps=2)
    )
    additive(tmp_path / "one", gradient_accumulation_steps=2, batch_size=4)
    for one, two in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        for name in ("loss", "gradient_norm/model", "gradient_norm/critic"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
    assert len(read_metrics(tmp_path / "two")) == 3
    # What two processes began goes on in one, at the next item of the sequence.
    first = os.fspath(tmp_path / "two/checkpoints/step-00000002")
    additive(tmp_path / "on", gradient_accumulation_steps=2, batch_size=4, resume=first)
    (one, on) = (read_metrics(tmp_path / name)[-1] for name in ("one", "on"))
    assert on["step"] == 3 and on["loss"] == pytest.approx(one["loss"], rel=1e-4)
    places = [
        json.loads((tmp_path / name / "checkpoints/step-00000003/state.json").read_text())["stream"]["position"]
        for name in ("one", "two", "on")
    ]
    assert places == [24, 24, 24]


def shard(accelerator, module, settings):
    """What `wrapping.prepare` does under FSDP2, by PyTorch's own means: Accelerate's plugin needs GPUs."""
    fully_shard(module.train(), mesh=init_device_mesh("cpu", (2,)))
    return module, build_optimizer(module, settings)


def sharded(folder, kind: str) -> None:
    wrapping.prepare = shard
    trainer = run(folder / "whole", Additive, max_steps=4, save_every_steps=2, optimizer=kind)
    assert isinstance(next(trainer.state.modules["model"].parameters()), DTensor)
    assert not isinstance(next(trainer.state.average.gathered().parameters()), DTensor)
    first = os.fspath(folder / "whole/checkpoints/step-00000002")
    run(folder / "parts", Additive, max_steps=4, save_every_steps=2, optimizer=kind, resume=first)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 shards modules on GPUs only")
@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_sharded_modules_are_clipped_averaged_saved_and_resumed(kind, tmp_path):
    in_two_processes(sharded, tmp_path, kind)
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "parts", 4)
    run(tmp_path / "one", Additive, max_steps=4, batch_size=4, optimizer=kind)
    for one, two in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "whole"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3), one["step"]
        assert two["gradient_norm/model"] == pytest.approx(one["gradient_norm/model"], rel=1e-3), one["step"]
    assert Vectors(0).item(0)["values"].shape == (next(Network().parameters()).shape[1],)
