"""What an ear hears of generated music beside real music: `python benchmarks/listening.py --help`.

    python benchmarks/listening.py --midi data/midi --count 64 --pictures pictures

Two tables, of which `--parts` chooses:

- `performed`: onset F1 of the ear on held-out excerpts that the performer and the vocoder play, beside its F1 on the same
  notes by the sampled piano. A performer that plays what it is given comes near it.
- `music`: note statistics, as the ear hears them, of music made by the composer (the default of `melreformer generate`), by
  the founding path (an idea of composed notes, or of noise, expanded), and of held-out excerpts by the sampled piano: means,
  and distances from the real excerpts beside those between halves of them. `composed, as written` shows what the ear itself
  changes. Below it are Frechet distances on what the ear reads notes from.

`--pictures` writes what was heard of the first of each as piano rolls above log-mels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ear as hearing
import numpy as np
import torch

from melreformer_hf import MelReformerPipeline, MidiGenerationPipeline
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.metrics import (
    NoteEarEmbedding,
    frechet_audio_distance,
    mean_scores,
    note_statistics,
    note_statistics_distance,
    transcription_scores,
)
from melreformer_hf.metrics.notes import STATISTICS
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.pipelines.outputs import at_peak
from melreformer_hf.plotting import save_roll_and_mel
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND, MidiNote
from melreformer_hf.training.recipes.ear_data import separated_notes

PARTS = ("performed", "music")
REAL, COMPOSED, WRITTEN = "held-out pieces", "composed", "composed, as written"
FOUNDING = {"notes": "founding path from notes", "noise": "founding path from noise"}
_BATCH, _PEAK_DB = 8, -1.0


class Excerpts(NamedTuple):
    """Music of one source: waveforms (sample,) and what is heard of them."""

    waveforms: list[torch.Tensor]
    notes: list[list[MidiNote]]


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", default="piano-tiny", help="folder, Hub id or bundled name (default: piano-tiny)"
    )
    parser.add_argument(
        "--midi", type=Path, required=True, help="folder of MIDI files with metadata.csv (file_name, split)"
    )
    parser.add_argument("--split", default="test", help="of the pieces (default: test)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="tables to compute (default: all)")
    parser.add_argument("--count", type=int, default=64, help="excerpts of each kind (default: 64)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each (default: 20)")
    parser.add_argument("--soundfont", help="of the sampled piano (default: the package's)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is generated (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the first excerpts")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser.parse_args(words)


def heard(pipe: MidiGenerationPipeline, waveforms: list[torch.Tensor]) -> Excerpts:
    """Excerpts as the ear hears them, each at the same peak level."""
    level = [at_peak(waveform, _PEAK_DB) for waveform in waveforms]
    return Excerpts(level, [list(pipe.transcribe(waveform, pipe.sampling_rate).notes) for waveform in level])


def performed(pipe: MidiGenerationPipeline, notes: SoundingNotes, samples: int) -> torch.Tensor:
    """(sample,) of notes by the performer and the vocoder."""
    mel = pipe.performer.perform(notes, -(-samples // pipe.mel_config.hop_length))
    return pipe.vocoder(mel).waveform[0, :samples]


def measure_performed(
    pipe: MidiGenerationPipeline, piano: SampledInstrument, pieces: list[SoundingNotes], seconds: float
):
    """Table `performed`."""
    sounds = {"sampled piano": [hearing.play(piano, notes, seconds) for notes in pieces]}
    sounds["performer and vocoder"] = [
        performed(pipe, notes, len(wave)) for notes, wave in zip(pieces, sounds["sampled piano"], strict=True)
    ]
    found, keys = {}, ("onset_f1", "onset_precision", "onset_recall", "offset_f1", "velocity_f1")
    for name, waveforms in sounds.items():
        pairs = zip(heard(pipe, waveforms).notes, pieces, strict=True)
        found[name] = mean_scores([transcription_scores(ours, separated_notes(notes)) for ours, notes in pairs])
    print("| played by | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
    for name, scores in found.items():
        print(f"| {name} | " + " | ".join(f"{scores[key]:.3f}" for key in keys) + " |")
    ratio = found["performer and vocoder"]["onset_f1"] / found["sampled piano"]["onset_f1"]
    print(f"\nonset F1 of what is performed: {ratio:.3f}x of that on the sampled piano\n", flush=True)
    return {**found, "ratio": ratio}


def compose(pipe: MidiGenerationPipeline, count: int, seconds: float, seed: int) -> tuple[list, list]:
    """Notes and waveforms of `count` pieces of the composer."""
    notes, waveforms = [], []
    for index in range(count):
        made = pipe(seconds, generator=torch.Generator().manual_seed(seed + index))
        notes += made.notes
        waveforms.append(made.audios[0, 0])
    return notes, waveforms


def expand(pipe: MelReformerPipeline, count: int, seconds: float, seed: int, idea_from: str) -> list[torch.Tensor]:
    """Waveforms of `count` pieces of the founding path."""
    waveforms: list[torch.Tensor] = []
    for start in range(0, count, _BATCH):
        seeds = range(seed + start, seed + min(start + _BATCH, count))
        generators = [torch.Generator().manual_seed(value) for value in seeds]
        waveforms += pipe(seconds, len(generators), idea_from=idea_from, generator=generators).audios[:, 0].unbind()
    return waveforms


def statistics_table(sources: dict[str, list[list[MidiNote]]], seconds: float, halvings: int = 8) -> dict:
    """Means of every statistic, and distances from the real excerpts; excerpts are pieces, so that halves share none."""
    told = {name: [note_statistics(notes, seconds) for notes in rows if notes] for name, rows in sources.items()}
    random, real, between = np.random.default_rng(0), told[REAL], []
    for _ in range(halvings):
        halves = np.array_split(random.permutation(len(real)), 2)
        between.append(note_statistics_distance(*([real[index] for index in half] for half in halves)))
    floor = {name: float(np.mean([item[name] for item in between])) for name in STATISTICS}
    found: dict[str, dict] = {"real to real": floor}
    print("| | heard | " + " | ".join(STATISTICS) + " |\n|" + "---|" * (len(STATISTICS) + 2))
    for name, rows in told.items():
        apart = note_statistics_distance(rows, real) if name != REAL else floor
        means = {key: float(np.nanmean([row[key] for row in rows])) for key in STATISTICS if key != "inter_onset"}
        found[name] = {"excerpts": len(rows), "means": means, "distances": apart}
        cells = [
            (f"{means[key]:.2f}; " if key in means else "")
            + f"{apart[key]:.3f} ({apart[key] / max(floor[key], 1e-9):.1f}x)"
            for key in STATISTICS
        ]
        print(f"| {name} | {len(rows)} of {len(sources[name])} | " + " | ".join(cells) + " |")
    print(
        "\nmean; distance from the held-out pieces (times real to real: a half of them from the other)\n", flush=True
    )
    return found


def measure_music(arguments: argparse.Namespace, pipe: MidiGenerationPipeline, real: Excerpts) -> dict:
    """Table `music`."""
    count, seconds, seed = arguments.count, arguments.seconds, arguments.seed
    started = time.perf_counter()
    written, waveforms = compose(pipe, count, seconds, seed)
    ideas = MelReformerPipeline.from_pretrained(arguments.checkpoint)
    ideas.set_progress_bar_config(disable=True)
    sources = {
        REAL: real,
        COMPOSED: heard(pipe, waveforms),
        **{name: heard(pipe, expand(ideas, count, seconds, seed, kind)) for kind, name in FOUNDING.items()},
    }
    print(f"{count} excerpts of {seconds:g} s of each kind, {time.perf_counter() - started:.0f} s\n")
    rows = {name: source.notes for name, source in sources.items()} | {WRITTEN: written}
    found = {"statistics": statistics_table(rows, seconds), "frechet": {}}
    for name in (COMPOSED, *FOUNDING.values()):
        told = frechet_audio_distance(
            sources[name].waveforms, real.waveforms, pipe.sampling_rate, NoteEarEmbedding(pipe.ear)
        )
        found["frechet"][name] = {"distance": told.distance, "floor": told.floor}
        print(f"{name}: {told}")
    if arguments.pictures:
        for name, source in sources.items():
            draw(pipe, name, source, arguments.pictures, seconds)
    return found


def draw(
    pipe: MidiGenerationPipeline, name: str, source: Excerpts, folder: Path, seconds: float, most: int = 3
) -> None:
    """Pictures of the first excerpts: what was heard above the log-mel."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (waveform, notes) in enumerate(zip(source.waveforms[:most], source.notes, strict=False)):
        scale = 1 / TICKS_PER_SECOND
        rows = [(note.onset * scale, (note.duration or 1) * scale, note.pitch, note.velocity) for note in notes]
        mel = log_mel_spectrogram(waveform[None], pipe.mel_config)[0]
        path = folder / f"{name.replace(' ', '-')}-{index}.png"
        save_roll_and_mel(rows, (), seconds, path, f"{name}, as the ear hears it", mel, pipe.mel_config)


@torch.inference_mode()
def main(words: Sequence[str] | None = None) -> dict:
    arguments = read_arguments(words)
    torch.set_num_threads(arguments.threads)
    pipe = MidiGenerationPipeline.from_pretrained(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    piano = SampledInstrument(arguments.soundfont, pipe.sampling_rate)
    pieces = hearing.excerpts(arguments.midi, arguments.split, arguments.count, arguments.seconds)
    print(
        f"{len(pieces)} pieces of split {arguments.split!r}, {arguments.threads} threads, torch {torch.__version__}\n"
    )
    results: dict = {
        "split": arguments.split,
        "pieces": len(pieces),
        "seconds": arguments.seconds,
        "seed": arguments.seed,
    }
    if "performed" in arguments.parts:
        results["performed"] = measure_performed(pipe, piano, pieces, arguments.seconds)
    if "music" in arguments.parts:
        length = round(arguments.seconds * pipe.sampling_rate)
        real = heard(pipe, [hearing.play(piano, notes, arguments.seconds)[:length] for notes in pieces])
        results["music"] = measure_music(arguments, pipe, real)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
