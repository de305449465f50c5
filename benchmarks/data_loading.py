"""Speed of the first epoch of a dataset beside later ones: `python benchmarks/data_loading.py --dataset data/mine`.

An epoch is as many random crops as fill the hours of the training split. Before the first one nothing is open, nothing is decoded, and
the system is told to forget the files; the libraries are loaded. Seconds are those of the wall, and in brackets those
of the processor, which other programs on the machine do not lengthen. Four readers are measured, in one process:

- crops without a cache, as of a split larger than it: every crop decodes what it needs, in every epoch;
- crops with the cache that trainings use (`cache_minutes`);
- the same with what the vocoder's recipe makes of them: batches of 8 crops with their mels, as a training's worker does;
- the peer: Hugging Face `datasets` streaming the same Parquet files, decoding one 30-second segment after another.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.data.batches import BatchStream
from melreformer_hf.data.built import BuiltRecordings
from melreformer_hf.data.shards import resolve_dataset
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.recipes.vocoder import VocoderRecipe

SPLIT = "train"


def read_arguments() -> argparse.Namespace:
    default = TrainingConfig.__dataclass_fields__["cache_minutes"].default
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder made by `melreformer data build`, or a Hub id")
    parser.add_argument("--crop-seconds", type=float, default=3.0, help="length of a crop (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs per reader, at least 2 (default: 3)")
    parser.add_argument("--cache-minutes", type=float, default=default, help=f"of the cache (default: {default:g})")
    parser.add_argument("--seed", type=int, default=0, help="of the order of crops (default: 0)")
    arguments = parser.parse_args()
    if arguments.epochs < 2 or arguments.crop_seconds <= 0 or arguments.cache_minutes < 0:
        parser.error("--epochs must be at least 2, --crop-seconds positive, --cache-minutes not negative")
    return arguments


def forget_files(folder: Path) -> bool:
    """Drop the files of a dataset from the system's page cache; False where that cannot be asked for."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*.parquet"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def crop_epochs(arguments: argparse.Namespace, cache_minutes: float) -> Iterator[Callable[[], int]]:
    """Epochs of random crops; calling one reads it and gives the samples that were read."""
    store = BuiltRecordings(arguments.dataset, SPLIT, cache_minutes)
    samples = int(arguments.crop_seconds * store.sampling_rate)
    stream = store.crops(samples, samples, seed=arguments.seed)
    count = max(1, round(store.hours * 3600 / arguments.crop_seconds))
    for epoch in range(arguments.epochs):
        indices = range(epoch * count, (epoch + 1) * count)
        yield lambda indices=indices: sum(stream.item(index)["num_samples"] for index in indices)


def batch_epochs(arguments: argparse.Namespace) -> Iterator[Callable[[], int]]:
    """Epochs of batches that a training of the vocoder would get."""
    rate = BuiltRecordings(arguments.dataset, SPLIT).sampling_rate
    mel = MelConfig.preset("hifigan", sampling_rate=rate, num_mel_bins=128, fmax=None)
    config = TrainingConfig(
        dataset=arguments.dataset,
        output_dir=os.devnull,  # nothing is trained, nothing is written
        max_steps=1,
        seed=arguments.seed,
        cache_minutes=arguments.cache_minutes,
        model={"mel": mel.to_dict()},
        options={"crop_frames": max(1, round(arguments.crop_seconds * mel.frame_rate))},
    )
    recipe = VocoderRecipe(config)
    batches = BatchStream(recipe.stream(0, 1), recipe.prepare, 8)
    count = max(1, round(recipe.recordings("train").hours * 3600 / arguments.crop_seconds / 8))
    for epoch in range(arguments.epochs):
        numbers = range(epoch * count, (epoch + 1) * count)
        yield lambda numbers=numbers: sum(batches.batch(number).tensors["waveform"].numel() for number in numbers)


def peer_epochs(arguments: argparse.Namespace, folder: Path) -> Iterator[Callable[[], int]]:
    """Epochs of whole segments through `datasets`."""
    import datasets
    import soundfile

    files = sorted(str(path) for path in (folder / "data").glob(f"{SPLIT}-*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    rows = rows.cast_column("audio", datasets.Audio(decode=False))

    def epoch() -> int:
        decoded = (soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0] for row in rows)
        return sum(torch.from_numpy(samples).numel() for samples in decoded)

    for _ in range(arguments.epochs):
        yield epoch


def measure(epochs: Iterator[Callable[[], int]], sampling_rate: int) -> list[tuple[float, float, float]]:
    """(seconds, seconds of the processor, seconds of audio) per epoch; opening the dataset is part of the first."""
    results, started = [], (time.perf_counter(), time.process_time())
    for epoch in epochs:
        samples = epoch()
        now = time.perf_counter(), time.process_time()
        results.append((now[0] - started[0], now[1] - started[1], samples / sampling_rate))
        started = now
    return results


def table_row(name: str, results: list[tuple[float, float, float]]) -> str:
    """One line of the table."""
    wall, processor, audio = zip(*results, strict=True)
    later = [sum(seconds[1:]) / len(seconds[1:]) for seconds in (wall, processor)]
    ratios = f"{wall[0] / later[0]:.3g} ({processor[0] / max(later[1], 1e-9):.3g})"
    cells = [
        *(f"{a:.3g} ({b:.3g})" for a, b in zip(wall, processor, strict=True)),
        f"{audio[0] / wall[0]:.0f}",
        ratios,
    ]
    return "| " + " | ".join([name, *cells]) + " |"


def load_libraries() -> None:
    """Import what the readers use, so that no epoch pays for it."""
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import soundfile  # noqa: F401


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(1)
    load_libraries()
    folder = resolve_dataset(arguments.dataset)
    store = BuiltRecordings(folder, SPLIT)
    print(
        f"{platform.processor() or platform.machine()}, one process; split {SPLIT}: {len(store.recordings)} "
        f"recordings, {store.hours:.2f} hours; crops of {arguments.crop_seconds:g} s"
    )
    readers = {
        "random crops, no cache": lambda: crop_epochs(arguments, 0.0),
        f"random crops, cache of {arguments.cache_minutes:g} minutes": lambda: crop_epochs(
            arguments, arguments.cache_minutes
        ),
        "vocoder batches with mels, same cache": lambda: batch_epochs(arguments),
        "datasets, streamed segments (peer)": lambda: peer_epochs(arguments, folder),
    }
    heads = ["reader", *(f"epoch {index + 1}, s" for index in range(arguments.epochs))]
    heads += ["first epoch, x real time", "first / mean of later"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, make in readers.items():
        forgotten = forget_files(folder)
        print(table_row(name, measure(make(), store.sampling_rate)), flush=True)
    if not forgotten:
        print("This system cannot be told to forget files: the first epochs may have read from memory.")


if __name__ == "__main__":
    main()
