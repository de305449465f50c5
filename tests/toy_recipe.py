"""A small recipe that uses everything a recipe can: two trained modules, a companion, what is stateful, a codebook."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from melreformer_hf.data.streams import ItemStream
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.discriminators.drawing import DiscriminatorDraw
from melreformer_hf.training.losses.balancer import LossBalancer
from melreformer_hf.training.losses.stylegan2 import path_length_penalty
from melreformer_hf.training.optimizers import OptimizerSettings
from melreformer_hf.training.recipes.base import Phase, Recipe, StepContext, Trainable, Validation
from melreformer_hf.training.wrapping import unwrapped

WIDTH = 6


class Network(nn.Module):
    """A model of two layers that saves itself as models of the Hub do."""

    def __init__(self, width: int = WIDTH, outputs: int = WIDTH) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 16), nn.Linear(16, outputs)
        self.register_buffer("codebook", torch.zeros(4, outputs))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(values).tanh())

    def save_pretrained(self, folder: Path, card: dict | None = None, repo_id: str | None = None) -> None:
        (Path(folder) / "weights.json").write_text(json.dumps(self.first.weight.tolist()))


class Vectors(ItemStream):
    """Item i is a vector drawn from (seed, i)."""

    def item(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return {"values": torch.randn(WIDTH, generator=generator), "index": index}


class RunningMean:
    """Something stateful that is no module, such as the mean of path lengths."""

    def __init__(self) -> None:
        self.mean = torch.zeros(())

    def state_dict(self) -> dict:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict) -> None:
        self.mean = state["mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """What goes wrong on purpose, and when."""

    critic_every: int = option(1, "micro batches between two phases of the critic")
    infinite_from: int = option(10**6, "step from which on the model's loss is infinite")
    infinite_until: int = option(10**6, "step from which on it is finite again")
    signal_at: int = option(-1, "step in which the process gets SIGTERM")
    validation_fails: bool = option(False, "whether the validation raises")


class ToyRecipe(Recipe):
    """Train a small network against a critic, with a balancer, a draw, a running mean and a codebook."""

    name = "toy"
    best_metric = "score"
    greater_is_better = True
    Options = ToyOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.balancer = LossBalancer({"near": 1.0, "judged": 2.0}, ema_decay=0.9)
        self.draw = DiscriminatorDraw(["first", "second"], decay=0.8, temperature=0.1)
        self.path = RunningMean()
        self.codebook_updates: list[tuple[int, int]] = []

    def trainables(self) -> dict[str, Trainable]:
        critic = OptimizerSettings(learning_rate=0.02, betas=(0.5, 0.9), max_grad_norm=5.0)
        return {"model": Trainable(Network()), "critic": Trainable(Network(outputs=2), critic)}

    def frozen(self) -> dict[str, nn.Module]:
        return {"codec": Network()}

    def stateful(self) -> dict:
        return {"balancer": self.balancer, "draw": self.draw, "path": self.path}

    def stream(self, rank: int, world_size: int) -> Vectors:
        self.rank = rank
        return Vectors(self.config.seed, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"values": item["values"], "noise": torch.randn(WIDTH, generator=generator)}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        options, model, critic = self.options, self.modules["model"], self.modules["critic"]
        last = self.rank == int(os.environ.get("WORLD_SIZE", "1")) - 1  # one process gets the signal, all stop
        if context.step == options.signal_at and context.micro_index == 0 and last:
            os.kill(os.getpid(), signal.SIGTERM)
        output = model(batch["values"])
        side = 0 if self.draw.draw(context.generator) == "first" else 1
        if context.micro_index % options.critic_every == 0:
            logits = critic(torch.cat([batch["noise"], output.detach()]))[:, side]
            real, fake = logits.chunk(2)
            loss = (1 - real).relu().mean() + (1 + fake).relu().mean()
            yield Phase("critic", loss, {"critic_loss": loss})
        bare = unwrapped(critic)
        judged = -bare(output)[:, side].mean()  # not frozen: the trainer has to drop what this leaves in the critic
        self.draw.record(self.draw.names[side], judged)
        lengths = (output - batch["values"]).square().mean(1)
        penalty, self.path.mean = path_length_penalty(lengths, self.path.mean.to(lengths))
        losses = {"near": (output - batch["values"]).abs().mean(), "judged": judged}
        loss = self.balancer(losses, output, context.num_micro_steps) + 0.1 * penalty
        loss = loss + 1e-3 * torch.rand(()) * output.mean()  # the process's own generator
        if options.infinite_from <= context.step < options.infinite_until:
            loss = loss * torch.inf
        yield Phase("model", loss, {"loss": loss, "near": losses["near"]}, kept=output.detach())

    def after_step(self, kept: dict[str, list], context: StepContext) -> None:
        assert context.is_last_micro_step
        if "model" in kept:
            self.codebook_updates.append((context.step, len(kept["model"])))
            codebook = unwrapped(self.modules["model"]).codebook
            codebook.lerp_(torch.cat(kept["model"]).mean(0).expand_as(codebook), 0.1)

    def validate(self, model: nn.Module) -> Validation:
        if self.options.validation_fails:
            raise RuntimeError("the validation fails on purpose")
        values = torch.stack([Vectors(99).item(index)["values"] for index in range(8)])
        error = (model(values) - values).abs().mean().item()
        return Validation({"score": -error, "draw": torch.rand(()).item()}, summary=f"{error:.2f}x of nothing")


def toy_config(output_dir: Path | str, **values) -> TrainingConfig:
    """Settings of a training that takes a second or less."""
    common = {"dataset": "none", "batch_size": 2, "max_steps": 6, "warmup_steps": 2, "log_every_steps": 1}
    common |= {"num_workers": 0, "save_every_minutes": None, "progress_bar": False, "cpu": True, "ema_decay": 0.8}
    return TrainingConfig(**{**common, "output_dir": str(output_dir), **values})
