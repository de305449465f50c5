"""Command lines of tiny trainings."""

from __future__ import annotations

from safetensors.torch import load_file

VOCODER = """--batch_size 2 --save_every_minutes none --log_every_steps 1 --warmup_steps 2 --num_workers 2
--progress_bar false --cpu true --learning_rate 0.002
--model.hidden_size 16 --model.intermediate_size 24 --model.num_hidden_layers 1
--options.crop_frames 16 --options.validation_crops 1 --options.validation_frames 32""".split()
ADVERSARIAL = """--options.adversarial_weight 0.1 --options.discriminators mrd --options.discriminator_size 4
--options.adversarial_start 0.25""".split()


def arguments(dataset: str, output_dir, *more: str) -> list[str]:
    """Words for `main(VocoderRecipe, ...)` or `examples/train_vocoder.py`; later words win."""
    return [*VOCODER, "--dataset", dataset, "--output_dir", str(output_dir), *map(str, more)]


def same_tensors(first, second) -> bool:
    """Whether two safetensors files hold the same bits."""
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
