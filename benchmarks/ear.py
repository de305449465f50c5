"""What an ear hears of held-out pieces, piano by piano, and whether it tells damage: `python benchmarks/ear.py --help`.

    python benchmarks/ear.py --model runs/ear_tiny --midi data/midi --soundfont fluid=fluidr3_piano.sf2 other=other.sf2

Excerpts of the pieces of one split are played by every sound font (the package's sampled piano: dry, FluidSynth's envelopes)
and transcribed; scores are means over pieces. Then the first font's recordings are damaged in known ways, more and more:
blurred in time, drowned in noise, stretched, or played with wrong notes. A judge's scores have to fall in that order.
`--dataset NAME=FOLDER` scores datasets of performances, such as FluidSynth's renderings with their room.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.audio.sampler import SampledInstrument
from melreformer_hf.data.metadata import default_metadata, find_row, read_metadata
from melreformer_hf.data.performances import PerformanceStore
from melreformer_hf.metrics import (
    NoteEarEmbedding,
    frechet_audio_distance,
    mean_scores,
    note_rows,
    transcription_scores,
)
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.nn.sounding import SoundingNotes
from melreformer_hf.processing.midi.notes import TICKS_PER_SECOND, read_notes
from melreformer_hf.processing.midi.pedal import read_pedal
from melreformer_hf.processing.midi.sounding import sounding_notes
from melreformer_hf.training.recipes.ear_data import separated_notes

_TAIL_IN_S = 1.0
REGISTERS = {"A0 to B2": (21, 47), "C3 to B5": (48, 83), "C6 to C8": (84, 108)}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a NoteEarModel")
    parser.add_argument("--midi", type=Path, help="folder of MIDI files with metadata.csv (file_name, split)")
    parser.add_argument("--split", default="test", help="of the pieces (default: test)")
    parser.add_argument("--soundfont", nargs="*", default=[], help="NAME=FILE.sf2, one or more")
    parser.add_argument("--dataset", nargs="*", default=[], help="NAME=FOLDER of performances, one or more")
    parser.add_argument("--pieces", type=int, default=40, help="excerpts (default: 40)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each (default: 20)")
    parser.add_argument("--damage", type=int, default=12, help="excerpts that are damaged (default: 12; 0: none)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    if not arguments.dataset and not (arguments.midi and arguments.soundfont):
        parser.error("give --midi with --soundfont, or --dataset")
    return arguments


def named(values: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE pairs."""
    return dict(value.split("=", 1) for value in values)


def excerpts(folder: Path, split: str, count: int, seconds: float) -> list[SoundingNotes]:
    """The middle `seconds` of pieces of a split, spread over all of them."""
    rows = read_metadata(default_metadata(folder))
    files = [path for path in sorted(folder.rglob("*.mid")) if find_row(rows, path, folder).get("split") == split]
    made = []
    for path in files[:: max(1, len(files) // count)][:count]:
        notes = sounding_notes(read_notes(path), read_pedal(path))
        start = max(0.0, (notes.onset.max() - seconds) / 2)
        # Notes that begin in the excerpt; their times count from its beginning.
        notes = notes.where((notes.onset >= start) & (notes.onset < start + seconds))
        made.append(SoundingNotes(notes.onset - start, notes.release - start, notes.pitch, notes.velocity))
    return [notes for notes in made if len(notes)]


def play(instrument: SampledInstrument, notes: SoundingNotes, seconds: float) -> torch.Tensor:
    """(sample,) of an excerpt and its tail."""
    return instrument.render(notes, 0, round((seconds + _TAIL_IN_S) * instrument.sampling_rate))[0].clamp(-1, 1)


def register_recall(heard: list, played: SoundingNotes) -> dict[str, tuple[float, int]]:
    """Share of the notes of each register whose onset is heard, and how many there are."""
    rows, found = note_rows(played), {}
    for name, (low, high) in REGISTERS.items():
        inside = rows[(rows[:, 2] >= low) & (rows[:, 2] <= high)]
        if len(inside):
            ours = [note for note in heard if low <= note.pitch <= high]
            found[name] = (transcription_scores(ours, inside)["onset_recall"], len(inside))
    return found


def score(ear: NoteEarModel, pairs: list[tuple[torch.Tensor, SoundingNotes]], rate: int) -> dict:
    """Mean scores of recordings, recall by register, and times real time."""
    scores, recalls, spent, length = [], [], 0.0, 0.0
    for waveform, played in pairs:
        played = separated_notes(played)
        started = time.process_time()
        heard = ear.transcribe(waveform, rate)
        spent += time.process_time() - started
        length += len(waveform) / rate
        scores.append(transcription_scores(heard, played))
        recalls.append(register_recall(heard, played))
    result = {"pieces": len(pairs), **mean_scores(scores), "times real time (processor)": length / spent}
    for name in REGISTERS:
        values = [recall[name] for recall in recalls if name in recall]
        notes = sum(count for _, count in values)
        result[f"onset recall {name}"] = sum(share * count for share, count in values) / max(1, notes)
    return result


def wrong_notes(notes: SoundingNotes, share: float, seed: int = 0) -> SoundingNotes:
    """A share of the notes on other keys, one to six semitones away."""
    random = np.random.default_rng(seed)
    moved = random.random(len(notes)) < share
    away = random.integers(1, 7, len(notes)) * random.choice([-1, 1], len(notes))
    pitch = np.where(moved, np.clip(notes.pitch + away, 21, 108), notes.pitch)
    return SoundingNotes(notes.onset, notes.release, pitch, notes.velocity)


def blurred(log_mel: torch.Tensor, frames: int) -> torch.Tensor:
    """Mean over so many frames around each, as a model that is not sure of the time makes it."""
    padded = torch.nn.functional.pad(log_mel, (frames // 2, frames // 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, frames, 1)


def stretched(log_mel: torch.Tensor, factor: float) -> torch.Tensor:
    """Slower by a factor."""
    return resize_mel(log_mel, round(log_mel.shape[-1] * factor))


def damages(ear: NoteEarModel) -> dict[str, list[tuple[str, Callable, Callable]]]:
    """Kinds of damage, from none to much: (label, notes -> notes, waveform -> log-mel)."""
    mel = ear.config.mel_config

    def features(waveform: torch.Tensor, noise_db: float | None = None) -> torch.Tensor:
        if noise_db is not None:
            noise = torch.randn(len(waveform), generator=torch.Generator().manual_seed(0))
            waveform = waveform + noise * waveform.square().mean().sqrt() * 10 ** (noise_db / 20)
        return log_mel_spectrogram(waveform[None], mel)

    def same(notes: SoundingNotes) -> SoundingNotes:
        return notes

    none = ("none", same, features)
    frames, noises, shares, factors = (5, 15, 45), (-30.0, -15.0, 0.0), (0.1, 0.3, 0.6), (1.01, 1.03, 1.1)
    return {
        "blur": [none, *((f"{n} frames", same, lambda w, n=n: blurred(features(w), n)) for n in frames)],
        "noise": [none, *((f"{db:+.0f} dB", same, lambda w, db=db: features(w, db)) for db in noises)],
        "wrong notes": [none, *((f"{s:.0%}", lambda notes, s=s: wrong_notes(notes, s), features) for s in shares)],
        "stretch": [none, *((f"x {f:g}", same, lambda w, f=f: stretched(features(w), f)) for f in factors)],
    }


def rank_damage(
    ear: NoteEarModel, instrument: SampledInstrument, pieces: list[SoundingNotes], seconds: float
) -> dict[str, dict[str, float]]:
    """Onset F1 of damaged recordings against what was meant to be played, by kind and degree."""
    found: dict[str, dict[str, float]] = {}
    for kind, degrees in damages(ear).items():
        found[kind] = {}
        for label, change_notes, make_mel in degrees:
            scores = []
            for notes in pieces:
                log_mel = make_mel(play(instrument, change_notes(notes), seconds))
                scores.append(transcription_scores(ear.transcribe_mel(log_mel), separated_notes(notes)))
            found[kind][label] = mean_scores(scores)["onset_f1"]
        values = list(found[kind].values())
        ranked = all(later < earlier for earlier, later in zip(values, values[1:], strict=False))
        print(f"{kind:12}", "  ".join(f"{label} {value:.3f}" for label, value in found[kind].items()), end="  ")
        print("in order" if ranked else "NOT in order")
    return found


def distances(
    ear: NoteEarModel, instrument: SampledInstrument, pieces: list[SoundingNotes], seconds: float
) -> dict[str, float]:
    """Frechet distances of damaged from other true recordings, on what the ear reads notes from."""
    rate, half = instrument.sampling_rate, len(pieces) // 2
    true = [play(instrument, notes, seconds) for notes in pieces]
    generator = torch.Generator().manual_seed(0)
    sets = {
        "true": true[:half],
        "30 % wrong notes": [play(instrument, wrong_notes(notes, 0.3), seconds) for notes in pieces[:half]],
        "noise at 0 dB": [
            wave + torch.randn(len(wave), generator=generator) * wave.square().mean().sqrt() for wave in true[:half]
        ],
    }
    found = {}
    for name, waves in sets.items():
        result = frechet_audio_distance(waves, true[half:], rate, NoteEarEmbedding(ear))
        found[name] = result.distance
        print(f"{name}: {result}")
    return found


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    ear = NoteEarModel.from_pretrained(arguments.model).eval()
    rate, result = ear.config.sampling_rate, {"split": arguments.split, "scores": {}}
    fonts = named(arguments.soundfont)
    pieces = excerpts(arguments.midi, arguments.split, arguments.pieces, arguments.seconds) if fonts else []
    sets = {
        name: (lambda path=path: font_pairs(path, pieces, arguments.seconds, rate)) for name, path in fonts.items()
    }
    for name, path in named(arguments.dataset).items():
        sets[name] = lambda path=path: dataset_pairs(path, arguments, rate)
    for name, pairs in sets.items():
        result["scores"][name] = score(ear, pairs(), rate)
        print(name, json.dumps({key: round(value, 4) for key, value in result["scores"][name].items()}, indent=1))
    if fonts and arguments.damage:
        instrument = SampledInstrument(next(iter(fonts.values())), rate)
        damaged = pieces[:: max(1, len(pieces) // arguments.damage)][: arguments.damage]
        result["damage"] = rank_damage(ear, instrument, damaged, arguments.seconds)
        result["frechet"] = distances(ear, instrument, pieces, arguments.seconds)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def font_pairs(font: str, pieces: list[SoundingNotes], seconds: float, rate: int) -> list:
    """The excerpts as a sound font plays them."""
    instrument = SampledInstrument(font, rate)
    return [(play(instrument, notes, seconds), notes) for notes in pieces]


def dataset_pairs(folder: str, arguments: argparse.Namespace, rate: int) -> list:
    """Recordings of a dataset of performances, from their beginnings."""
    store = PerformanceStore(folder, arguments.split, rate)
    pairs, wanted = [], arguments.pieces
    for recording in store.recordings[:: max(1, math.ceil(len(store.recordings) / wanted))]:
        length = min(recording.num_samples, round(arguments.seconds * rate))
        item = store.item_of(recording, 0, length)
        # The last onsets need a moment to be heard.
        pairs.append(
            (item["waveform"], item["notes"].where(item["notes"].onset < length / rate - 1 / TICKS_PER_SECOND))
        )
    return pairs


if __name__ == "__main__":
    main()
