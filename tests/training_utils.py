"""Command lines of tiny trainings."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from melreformer_hf.training.recipes.base import Recipe, StepContext

VOCODER = """--batch_size 2 --save_every_minutes none --log_every_steps 1 --warmup_steps 2 --num_workers 2
--progress_bar false --cpu true --learning_rate 0.002
--model.hidden_size 16 --model.intermediate_size 24 --model.num_hidden_layers 1
--options.crop_frames 16 --options.validation_crops 1 --options.validation_frames 32""".split()
ADVERSARIAL = """--options.adversarial_weight 0.1 --options.discriminators mrd --options.discriminator_size 4
--options.adversarial_start 0.25""".split()

COLUMNS = """--options.preset columns_tiny --model.num_columns 32 --model.hidden_size 16 --model.num_layers 2
--model.num_attention_heads 2 --model.whitening_knots 3 --options.prediction_type v_prediction --options.max_snr 0
--options.min_frames 128 --options.max_frames 256 --options.whole_share 0.5 --options.whole_frames 1024
--options.silence_weight 0 --options.draws_per_idea 2 --options.fit_crops 6
--options.duration_quantiles 5 --options.gain_power 0.5 --options.sampling_steps 2 --options.validation_ideas 3
--options.validation_samples 2""".split()
GAN = """--model.num_columns 32 --model.channels [8,8,8] --model.style_size 8 --model.num_mapping_layers 2
--options.min_frames 128 --options.max_frames 512 --options.fit_crops 3 --options.r1_every 2 --options.path_every 3
--options.augmentation_share 0.8 --options.validation_ideas 3 --options.validation_samples 2""".split()


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


def assert_same_checkpoints(one, two, step: int) -> None:
    """Every tensor and every number of two checkpoints are equal to the bit."""
    folders = [folder / f"checkpoints/step-{step:08d}" for folder in (one, two)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        first, second = (folder / name for folder in folders)
        if name.endswith(".safetensors"):
            same(load_file(first), load_file(second), name)
        elif name.endswith(".pt"):
            same(torch.load(first, weights_only=True), torch.load(second, weights_only=True), name)
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    assert states[0]["stream"] == states[1]["stream"]
    for state in states:
        state["progress"].pop("minutes")
        state["progress"]["metrics"].pop("times_real_time", None)  # the clock's, too
    assert states[0]["progress"] == states[1]["progress"]


def same(one, two, where: str) -> None:
    assert type(one) is type(two) or isinstance(one, (list, tuple)), where
    if isinstance(one, torch.Tensor):
        assert one.equal(two), where
    elif isinstance(one, dict):
        assert list(one) == list(two), where
        for key in one:
            same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            same(*pair, f"{where}/{index}")
    else:
        assert one == two, where


def _process(function: Callable, rank: int, port: int, errors, arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        function(*arguments)
    except BaseException:
        errors.put(f"rank {rank}: {traceback.format_exc()}")
        errors.close()
        errors.join_thread()
        os._exit(1)
    os._exit(0)  # without the libraries' own endings: gloo sometimes aborts in them


def in_two_processes(function: Callable, *arguments) -> None:
    """Call a function in two processes of one process group; forked, because starting Python anew takes seconds."""
    context, port = multiprocessing.get_context("fork"), _free_port()
    errors = context.Queue()
    processes = [context.Process(target=_process, args=(function, rank, port, errors, arguments)) for rank in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons remark on forks of processes with threads
        for process in processes:
            process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0], errors.get(timeout=5) if 1 in codes else codes


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
