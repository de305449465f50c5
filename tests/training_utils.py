"""Command lines of tiny trainings."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from melreformer_hf.training.recipes.base import Recipe, StepContext

VOCODER = """--batch_size 2 --save_every_minutes none --log_every_steps 1 --warmup_steps 2 --num_workers 2
--progress_bar false --cpu true --learning_rate 0.002
--model.hidden_size 16 --model.intermediate_size 24 --model.num_hidden_layers 1
--options.crop_frames 16 --options.validation_crops 1 --options.validation_frames 32""".split()
ADVERSARIAL = """--options.adversarial_weight 0.1 --options.discriminators mrd --options.discriminator_size 4
--options.adversarial_start 0.25""".split()


def arguments(dataset: str, output_dir, *more: str) -> list[str]:
    """Words for `main(VocoderRecipe, ...)` or `examples/train_vocoder.py`; later words win."""
    return [*VOCODER, "--dataset", dataset, "--output_dir", str(output_dir), *map(str, more)]


def started(recipe: Recipe) -> dict[str, torch.nn.Module]:
    """The recipe's modules, as a training on one plain device would set them."""
    recipe.modules = {name: trainable.module for name, trainable in recipe.trainables().items()} | recipe.frozen()
    return recipe.modules


def context(progress: float = 0.0, step: int = 0, micro_index: int = 0, num_micro_steps: int = 1) -> StepContext:
    """Where in a training a batch comes."""
    return StepContext(step, micro_index, num_micro_steps, progress, torch.Generator().manual_seed(step))


def same_tensors(first, second) -> bool:
    """Whether two safetensors files hold the same bits."""
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
