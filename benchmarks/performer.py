"""The performer on held-out pieces, and its speed beside a vocoder's: `python benchmarks/performer.py --help`.

The table shows log-mel L1, its ratio to that of a re-interpolated idea (256 columns in 24 s), and the sharpness over time
and over frequency (energy of the change over audible bins, real music 1): of the whole model, of the sum of notes in the
room without the correction, and of the sum alone. Below it are the speeds in times of real time, of pieces of a minute,
of a stream that learns of half a second of notes at a time, and of both together with `--vocoder`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.recipes.performer import PerformerRecipe

COLUMNS = ("mel_l1", "ratio", "sharpness", "sharpness_frequency")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained NotePerformerModel")
    parser.add_argument("--dataset", required=True, help="dataset of performances")
    parser.add_argument("--split", default="test", help="held-out split (default: test)")
    parser.add_argument("--pieces", type=int, default=64, help="pieces, at most (default: 64)")
    parser.add_argument("--frames", type=int, default=2584, help="frames of each (default: 2584, 30 s)")
    parser.add_argument("--vocoder", type=Path, help="folder of a vocoder, for the speed of both")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats, the fastest counts (default: 3)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser.parse_args()


@contextlib.contextmanager
def without(model: NotePerformerModel, *parts: str) -> Iterator[NotePerformerModel]:
    """The model with its correction or its room taken out."""
    changed = {"correction": [model.correction.head.weight, model.correction.head.bias], "room": [model.room.level]}
    tensors = [tensor for part in parts for tensor in changed[part]]
    kept = [tensor.detach().clone() for tensor in tensors]
    for tensor in tensors:
        tensor.data.fill_(-80.0 if tensor is model.room.level else 0.0)  # the room's are logarithms
    try:
        yield model
    finally:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.data.copy_(value)


def quality(recipe: PerformerRecipe, model: NotePerformerModel) -> dict[str, dict[str, float]]:
    variants = {"performer": (), "without correction": ("correction",), "notes alone": ("correction", "room")}
    found = {}
    for name, parts in variants.items():
        with without(model, *parts) as changed:
            found[name] = recipe.validate(changed).metrics
    return found


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs after one that warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def snapshots(notes: SoundingNotes, frames: int, step: int = 43) -> Iterator[tuple[SoundingNotes, int]]:
    """All notes again and again, half a second further each time."""
    for until in [*range(step, frames, step), frames]:
        yield notes, until


def speeds(arguments: argparse.Namespace, recipe: PerformerRecipe, model: NotePerformerModel) -> dict[str, float]:
    """Times of real time, means over four pieces of a minute."""
    store, mel = recipe.store(arguments.split), recipe.mel
    frames = round(60 * mel.frame_rate)
    chosen = [item for item in store.recordings if item.num_samples >= frames * mel.hop_length][:4]
    pieces = [store.notes[item.name] for item in chosen]
    runs: dict[str, Callable[[SoundingNotes], object]] = {
        "performer": lambda notes: model.perform(notes, frames),
        "performer, streamed": lambda notes: list(model.stream(snapshots(notes, frames))),
    }
    if arguments.vocoder:
        vocoder = HifiVocoderModel.from_pretrained(arguments.vocoder, dtype=torch.float32).eval()
        performed = {id(notes): model.perform(notes, frames) for notes in pieces}
        runs["vocoder"] = lambda notes: vocoder(performed[id(notes)])
        runs["both"] = lambda notes: vocoder(model.perform(notes, frames))
        runs["both, streamed"] = lambda notes: list(vocoder.stream(model.stream(snapshots(notes, frames))))
    seconds = {
        name: sum(fastest(lambda run=run, notes=notes: run(notes), arguments.repeats) for notes in pieces)
        for name, run in runs.items()
    }
    return {name: len(pieces) * frames / mel.frame_rate / taken for name, taken in seconds.items()}


@torch.inference_mode()
def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    model = NotePerformerModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    options = {"validation_pieces": arguments.pieces, "validation_frames": arguments.frames}
    recipe = PerformerRecipe(
        TrainingConfig(dataset=arguments.dataset, output_dir="unused", max_steps=1, options=options)
    )
    recipe.model_config, recipe.mel, recipe.validation_split = model.config, model.config.mel_config, arguments.split
    found = quality(recipe, model)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{count / 1e6:.2f} M parameters, {len(recipe._held_out)} pieces of split {arguments.split!r}, the first "
        f"{arguments.frames} frames, {arguments.threads} threads, torch {torch.__version__}\n"
    )
    print("| | log-mel L1 | of the re-interpolated idea's | sharpness, time | frequency |\n|---|---|---|---|---|")
    for name, metrics in found.items():
        print("| " + " | ".join([name, *(f"{metrics[key]:.3f}" for key in COLUMNS)]) + " |")
    times = speeds(arguments, recipe, model)
    print("\n| | times real time |\n|---|---|")
    for name, speed in times.items():
        print(f"| {name} | {speed:.0f} |")
    if arguments.output:
        arguments.output.write_text(json.dumps({"quality": found, "speed": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
