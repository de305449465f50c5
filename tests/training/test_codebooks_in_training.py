"""Codebooks in a training: they learn once per step from all its batches, and never from a broken one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_recipe import toy_config
from training_utils import assert_same_checkpoints

from melreformer_hf.data.streams import ItemStream
from melreformer_hf.models.mel_vqvae.configuration_mel_vqvae import MelVqvaeConfig
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.training.interruption import TrainingInterrupted
from melreformer_hf.training.loop import Trainer
from melreformer_hf.training.recipes.base import Phase, Recipe, StepContext, Trainable, Validation
from melreformer_hf.training.wrapping import unwrapped

BROKEN = 5  # number of the item that holds a NaN, where one does


class Mels(ItemStream):
    """Item i is a mel drawn from (seed, i)."""

    def item(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return {"mel": torch.rand(80, 4, generator=generator), "index": index}


class TokensRecipe(Recipe):
    """Train a tiny mel VQ-VAE with running means."""

    name = "tokens"
    best_metric = "loss"
    broken = False

    def trainables(self) -> dict[str, Trainable]:
        sizes = {"base_channels": 4, "channel_multipliers": (1,), "num_residual_blocks": 1, "num_norm_groups": 2}
        sizes |= {"latent_channels": 4, "codebook_size": 8, "codebook_dim": 4, "attention_resolutions": ()}
        return {"model": Trainable(MelVqvaeModel(MelVqvaeConfig(codebook_update="ema", codebook_decay=0.8, **sizes)))}

    def stream(self, rank: int, world_size: int) -> Mels:
        return Mels(self.config.seed, rank, world_size)

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        broken = self.broken and item["index"] == BROKEN
        return {"mel": item["mel"] * torch.nan if broken else item["mel"]}

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        output = self.modules["model"](batch["mel"])
        yield Phase("model", output.loss, {"loss": output.loss}, kept=output.codebook_inputs)

    def after_step(self, kept: dict[str, list], context: StepContext) -> None:
        model = unwrapped(self.modules["model"])
        for inputs in kept["model"]:
            model.accumulate_codebooks(inputs)
        assert model.update_codebooks(context.generator)

    def validate(self, model: MelVqvaeModel) -> Validation:
        return Validation({"loss": model(torch.full((1, 80, 4), 0.5)).loss.item()})


class BrokenTokensRecipe(TokensRecipe):
    """The same, with one item that is not finite."""

    broken = True


class StoppedTokensRecipe(TokensRecipe):
    """The same, stopped in the third step."""

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        if context.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().phases(batch, context)


def codebook_after(folder: Path, recipe_class: type[Recipe] = TokensRecipe, **values) -> dict[str, torch.Tensor]:
    config = toy_config(folder, learning_rate=1e-3, **values)
    trainer = Trainer(recipe_class(config), config)
    trainer.run()
    return unwrapped(trainer.state.modules["model"]).quantizer.state_dict()


def test_accumulated_batches_move_the_codebook_once(tmp_path):
    whole = codebook_after(tmp_path / "whole", batch_size=6, max_steps=2)
    parts = codebook_after(tmp_path / "parts", batch_size=2, gradient_accumulation_steps=3, max_steps=2)
    # Two steps of 6 items with 320 vectors each, at a decay of 0.8, from 8 codewords that count once.
    assert whole["codebooks.0.cluster_size"].sum().item() == pytest.approx(0.64 * 8 + (0.16 + 0.2) * 6 * 320, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_broken_item_leaves_the_codebook_as_it_was(tmp_path):
    codebook = codebook_after(tmp_path, BrokenTokensRecipe, batch_size=2, max_steps=4)
    assert all(value.isfinite().all() for value in codebook.values())
    # Items 4 and 5 make the third step, which is skipped: three steps have moved the counts.
    expected = 0.8**3 * 8 + (1 - 0.8**3) * 2 * 320
    assert codebook["codebooks.0.cluster_size"].sum().item() == pytest.approx(expected, rel=1e-5)


def test_codebooks_resume_to_the_bit(tmp_path):
    codebook_after(tmp_path / "whole", max_steps=4)
    with pytest.raises(TrainingInterrupted):
        codebook_after(tmp_path / "parts", StoppedTokensRecipe, max_steps=4)
    codebook_after(tmp_path / "parts", max_steps=4, resume="latest")
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "parts", 4)
