"""Music from generated ideas beside music from real ones and real music: `python benchmarks/idea_music.py --help`.

    python benchmarks/idea_music.py --dataset data/mine --split validation --steps 4 20

Rows: held-out recordings; their own ideas, expanded; generated ideas, expanded, once per number of steps; and, with
`--composed`, the ideas of what composer and performer play. Every piece has the same length.

- Five figures of the sound (`metrics.figures`): means, and distances from the recordings (Wasserstein). The distance that
  the expanded real ideas keep is what an idea model can reach.
- Frechet distance on what the ear reads notes from: from the recordings, and from the expanded real ideas, which the
  expansion's own faults do not enter. Beside both the distance between halves of the same set.
- Durations that the model draws, against those of held-out ideas (Kolmogorov-Smirnov).
- Memorization: distance of every idea to the nearest of many training ideas, relative to that of held-out ideas, and the share
  that lies nearer than nine in ten of the held-out ones do.
- Seconds per idea.

`--idea NAME=FOLDER` measures other idea models in place of the checkpoint's: folders with `idea` and, for one that denoises,
`scheduler` in them, as in a pipeline.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from melreformer_hf import IdeaStyleGan2Model, IdeaUNetModel, MelReformerPipeline, MidiGenerationPipeline
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.data.opening import open_recordings
from melreformer_hf.data.recordings import Recordings
from melreformer_hf.metrics import (
    NoteEarEmbedding,
    duration_ks,
    frechet_distance,
    frechet_floor,
    nearest_neighbor_distance,
    sound_figures,
    sound_figures_distance,
)
from melreformer_hf.metrics.figures import FIGURES
from melreformer_hf.pipelines.ideas import settings_of
from melreformer_hf.pipelines.pipeline_utils import bare

REAL, EXPANDED = "held-out recordings", "their ideas, expanded"


class Row(NamedTuple):
    """One source of pieces.

    Args:
        waveforms: (sample,) each.
        ideas: (piece, mel, column) log-mels.
        seconds_per_idea: of the processor's clock on the wall; `None` where nothing was generated.
        durations: (idea,) frames that the model drew where none were asked for.
    """

    waveforms: list[torch.Tensor]
    ideas: torch.Tensor
    seconds_per_idea: float | None = None
    durations: torch.Tensor | None = None


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", default="piano-tiny", help="pipeline: bundled name, folder, Hub id (piano-tiny)"
    )
    parser.add_argument("--dataset", required=True, help="folder made by `melreformer data build`")
    parser.add_argument("--split", default="validation", help="of the held-out pieces (default: validation)")
    parser.add_argument("--idea", nargs="*", default=[], help="NAME=FOLDER with idea [and scheduler], one or more")
    parser.add_argument("--steps", type=int, nargs="+", default=[20], help="numbers of denoising steps (default: 20)")
    parser.add_argument("--truncation-psi", type=float, help="of models that have it (default: their own)")
    parser.add_argument("--composed", action="store_true", help="also ideas of what composer and performer play")
    parser.add_argument("--count", type=int, default=12, help="pieces of each kind (default: 12)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each (default: 20)")
    parser.add_argument(
        "--training-ideas", type=int, default=1024, help="that copies are looked for in (default: 1024)"
    )
    parser.add_argument("--durations", type=int, default=256, help="durations that are drawn (default: 256)")
    parser.add_argument("--min-frames", type=int, default=512, help="shortest held-out idea (default: 512)")
    parser.add_argument("--max-frames", type=int, default=16384, help="longest (default: 16384)")
    parser.add_argument(
        "--whole-share", type=float, default=0.0, help="share of whole recordings among them (default: 0)"
    )
    parser.add_argument("--whole-frames", type=int, default=32768, help="longest of those (default: 32768)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args(words)
    if arguments.count < 4:
        parser.error("--count must be at least 4: the recordings are halved")
    return arguments


def real_row(pipe: MelReformerPipeline, recordings: Recordings, samples: int, count: int, seed: int) -> Row:
    waveforms = [crop["waveform"] for crop in recordings.fixed_crops(samples, count, seed)]
    return Row(waveforms, torch.cat([pipe.idea_of(waveform, pipe.sampling_rate).ideas for waveform in waveforms]))


def rendered(pipe: MelReformerPipeline, ideas: torch.Tensor, frames: int) -> list[torch.Tensor]:
    """Waveforms (sample,) of ideas, one after another."""
    return [pipe.render_idea(idea[None], torch.tensor([frames])).audios[0, 0] for idea in ideas]


def generated_row(pipe: MelReformerPipeline, steps: int | None, arguments: argparse.Namespace, frames: int) -> Row:
    settings: dict = {} if steps is None else {"num_inference_steps": steps}
    if arguments.truncation_psi is not None:
        settings["truncation_psi"] = arguments.truncation_psi
    ideas, spent = [], 0.0
    seconds = frames / pipe.mel_config.frame_rate
    for index in range(arguments.count):
        generator = torch.Generator().manual_seed(arguments.seed + index)
        started = time.perf_counter()
        ideas.append(pipe.sample_idea(seconds, generator=generator, **settings).ideas)
        spent += time.perf_counter() - started
    generator, durations = torch.Generator().manual_seed(arguments.seed + arguments.count), []
    for start in range(0, arguments.durations, 16):
        batch = min(16, arguments.durations - start)
        drawn = pipe.sample_idea(num_waveforms_per_prompt=batch, generator=generator, **settings)
        durations.append(drawn.num_frames.cpu())
    drawn = torch.cat(ideas)
    return Row(rendered(pipe, drawn, frames), drawn, spent / arguments.count, torch.cat(durations))


def composed_row(pipe: MelReformerPipeline, arguments: argparse.Namespace, frames: int) -> Row:
    """Ideas of what composer and performer play: notes in place of noise."""
    ideas, spent = [], 0.0
    for index in range(arguments.count):
        generator = torch.Generator().manual_seed(arguments.seed + index)
        started = time.perf_counter()
        ideas.append(pipe.compose_idea(frames / pipe.mel_config.frame_rate, generator=generator).ideas)
        spent += time.perf_counter() - started
    drawn = torch.cat(ideas)
    return Row(rendered(pipe, drawn, frames), drawn, spent / arguments.count)


def small(ideas: torch.Tensor) -> torch.Tensor:
    """(idea, mel, column) -> vectors in which a copy is near whatever its details: means of 4 bands by 4 columns."""
    return torch.nn.functional.avg_pool2d(ideas[:, None], 4).flatten(1)


def training_ideas(pipe: MelReformerPipeline, arguments: argparse.Namespace, samples: int) -> torch.Tensor:
    """Ideas of training crops of the same length, (idea, feature) of `small`."""
    recordings = open_recordings(arguments.dataset, "train", sampling_rate=pipe.sampling_rate, channels=1)
    columns, rows = bare(pipe.idea).config.num_columns, []
    for crop in recordings.fixed_crops(samples, arguments.training_ideas, arguments.seed):
        mel = log_mel_spectrogram(crop["waveform"], pipe.mel_config)
        rows.append(small(resize_mel(mel, columns)[None]))
    return torch.cat(rows)


def held_out_durations(arguments: argparse.Namespace, recordings: Recordings, hop: int) -> torch.Tensor:
    """(idea,) frames of held-out ideas, as trainings take them."""
    stream = recordings.crops(
        arguments.min_frames * hop,
        arguments.max_frames * hop,
        seed=arguments.seed,
        multiple=hop,
        whole_share=arguments.whole_share,
        whole_samples=arguments.whole_frames * hop,
    )
    return torch.tensor([len(stream.item(index)["waveform"]) // hop for index in range(arguments.durations)])


class Judge:
    """What rows are compared with: real music, its expanded ideas, held-out durations, training ideas."""

    def __init__(self, pipe, real: Row, expanded: Row, durations: torch.Tensor, training: torch.Tensor, ear) -> None:
        self.rate, self.ear, self.durations, self.training = pipe.sampling_rate, ear, durations, training
        self.real, self.expanded = (
            [sound_figures(wave, self.rate) for wave in row.waveforms] for row in (real, expanded)
        )
        self.vectors = {REAL: ear(real.waveforms, self.rate), EXPANDED: ear(expanded.waveforms, self.rate)}
        self.floors = {name: frechet_floor(vectors) for name, vectors in self.vectors.items()}
        self.near = nearest_neighbor_distance(small(real.ideas), training)

    def __call__(self, row: Row) -> dict:
        figures = [sound_figures(waveform, self.rate) for waveform in row.waveforms]
        vectors = self.ear(row.waveforms, self.rate)
        near = nearest_neighbor_distance(small(row.ideas), self.training)
        found: dict = {
            "means": {name: sum(item[name] for item in figures) / len(figures) for name in FIGURES},
            "distances": sound_figures_distance(figures, self.real),
            "frechet": {name: frechet_distance(vectors, wanted) for name, wanted in self.vectors.items()},
            "nearest": (near.mean() / self.near.mean()).item(),
            "nearer_than_held_out": (near < self.near.quantile(0.1)).float().mean().item(),
            "seconds_per_idea": row.seconds_per_idea,
        }
        if row.durations is not None:
            found["duration_ks"] = duration_ks(row.durations.float(), self.durations.float())
        return found


def told(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else f"{value:{form}}"


def print_tables(found: dict[str, dict], judge: Judge) -> None:
    print("| | " + " | ".join(FIGURES) + " |\n|" + "---|" * (len(FIGURES) + 1))
    for name, row in found.items():
        cells = [f"{row['means'][key]:.3g} ({row['distances'][key]:.3g})" for key in FIGURES]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nmeans (distance from the recordings); dB, correlation, bits, share, dB\n")
    heads = ["Frechet from recordings", "times halves", "Frechet from expanded", "times halves", "duration KS"]
    heads += ["nearest training idea", "nearer than 9 in 10", "s per idea"]
    print("| | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    for name, row in found.items():
        cells = []
        for key, distance in row["frechet"].items():
            cells += [f"{distance:.2f}", f"{distance / judge.floors[key]:.2f}"]
        cells += [told(row.get("duration_ks")), f"{row['nearest']:.3f}", f"{row['nearer_than_held_out']:.2f}"]
        print(f"| {name} | " + " | ".join([*cells, told(row["seconds_per_idea"])]) + " |")
    floors = ", ".join(f"{name} {value:.2f}" for name, value in judge.floors.items())
    print(f"\nbetween halves of the same set: {floors}; nearest training idea relative to held-out ideas", flush=True)


def read_idea(folder: Path) -> dict:
    """Idea model and scheduler (`None` where it has none) of a folder."""
    if "_class_name" not in json.loads((folder / "idea" / "config.json").read_text(encoding="utf-8")):
        return {"idea": IdeaStyleGan2Model.from_pretrained(folder / "idea").eval(), "scheduler": None}
    told = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
    kinds = {kind.__name__: kind for kind in (DDIMScheduler, DPMSolverMultistepScheduler)}
    scheduler = kinds[told].from_pretrained(folder / "scheduler")
    return {"idea": IdeaUNetModel.from_pretrained(folder / "idea").eval(), "scheduler": scheduler}


def models_of(pipe: MelReformerPipeline, named: Sequence[str]) -> dict[str, MelReformerPipeline]:
    """Pipelines by name: the checkpoint's own, or the same with other idea models."""
    found = {}
    for name, folder in (value.split("=", 1) for value in named):
        found[name] = MelReformerPipeline(expansion=pipe.expansion, vocoder=pipe.vocoder, **read_idea(Path(folder)))
        found[name].set_progress_bar_config(disable=True)
    return found or {"generated": pipe}


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> dict:
    arguments = read_arguments(words)
    torch.set_num_threads(arguments.threads)
    pipe = MelReformerPipeline.from_pretrained(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    ear = NoteEarEmbedding(MidiGenerationPipeline.from_pretrained(arguments.checkpoint).ear)
    frames, hop = pipe.frames_of(arguments.seconds), pipe.mel_config.hop_length
    recordings = open_recordings(arguments.dataset, arguments.split, sampling_rate=pipe.sampling_rate, channels=1)
    real = real_row(pipe, recordings, frames * hop, arguments.count, arguments.seed)
    expanded = real._replace(waveforms=rendered(pipe, real.ideas, frames))
    durations = held_out_durations(arguments, recordings, hop)
    judge = Judge(pipe, real, expanded, durations, training_ideas(pipe, arguments, frames * hop), ear)
    found = {REAL: judge(real), EXPANDED: judge(expanded)}
    for name, other in models_of(pipe, arguments.idea).items():
        steps = arguments.steps if "num_inference_steps" in settings_of(bare(other.idea)) else [None]
        for number in steps:
            label = name if number is None else f"{name}, {number} steps"
            found[label] = judge(generated_row(other, number, arguments, frames))
    if arguments.composed:
        found["composed, as an idea, expanded"] = judge(composed_row(pipe, arguments, frames))
    print(
        f"{arguments.count} pieces of {arguments.seconds:g} s of each kind, split {arguments.split!r}, seed "
        f"{arguments.seed}, {arguments.threads} threads, torch {torch.__version__}\n"
    )
    print_tables(found, judge)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    results = {"settings": settings, "floors": judge.floors, "rows": found}
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
