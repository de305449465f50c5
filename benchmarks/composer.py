"""The composer beside its baselines on held-out music: `python benchmarks/composer.py --help`.

Four tables, of which `--parts` chooses:

- `bits`: bits per note and per second of the composer, of n-gram models that were trained on the same split, and of a uniform
  model. All predict the same notes, from the beginning of each piece; a piece's end does not count.
- `given`: bits of the same notes when what follows a gap, or the melody, is given, and left to right, with the same notes
  before them. Stretches of 384 notes; the gap is what begins in the third fifth of a stretch; the melody is
  `processing.midi.melody`.
- `copies`: the share of generated excerpts that repeat 12 or more consecutive events (step in pitch, time in the model's steps)
  of a training piece, beside that of held-out excerpts; that of 10 and of 8; and of 12 steps in pitch alone, whatever their
  rhythm.
- `statistics`: distances of note statistics (`metrics.notes`) between generated and real excerpts, beside those between
  halves of the real pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import composer_ngrams as ngrams
import numpy as np
import torch

from melreformer_hf.data.sequences import SequenceStore, open_sequences
from melreformer_hf.metrics.note_copies import EventIndex, note_events
from melreformer_hf.metrics.notes import STATISTICS, note_statistics, note_statistics_distance
from melreformer_hf.models.note_transformer.blocks_note_transformer import NoteCache
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.models.note_transformer.sampling_note_transformer import NoteSampler, SamplingOptions
from melreformer_hf.pipelines.composing import held_notes
from melreformer_hf.processing.midi.attributes import ATTRIBUTES, END, TIME_TICKS, attributes_of_notes
from melreformer_hf.processing.midi.melody import melody_notes
from melreformer_hf.processing.midi.notes import (
    TICKS_PER_SECOND,
    MidiNote,
    midi_bytes,
    notes_to_midi,
    read_notes,
)
from melreformer_hf.processing.midi.sequences import EVENT, IGNORED, START, NoteSequence, note_sequence
from melreformer_hf.training.recipes.composer import NoteColumns

PARTS = ("bits", "given", "copies", "statistics")
_STRETCH, _CHUNK = 384, 512
_STRETCHES_PER_PIECE = 3


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained NoteTransformerModel")
    parser.add_argument(
        "--dataset", required=True, help="made by `melreformer data tokenize --scheme notes`, or a Hub id"
    )
    parser.add_argument(
        "--split", default="validation", help="held-out split (default: validation; test is read once)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="tables (default: all)")
    parser.add_argument("--pieces", type=int, help="at most so many held-out pieces (default: all)")
    parser.add_argument("--max-notes", type=int, help="of each, from its beginning (default: all)")
    parser.add_argument("--samples", type=int, default=500, help="generated excerpts (default: 500)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of excerpts (default: 30)")
    parser.add_argument("--batch", type=int, default=100, help="excerpts that are drawn at once (default: 100)")
    parser.add_argument("--temperature", type=float, help="of the drawing (default: the package's)")
    parser.add_argument("--top-p", type=float, help="of the drawing (default: the package's)")
    parser.add_argument(
        "--allow-quotes", action="store_true", help="draw without the model's memory of its training's phrases"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    return parser.parse_args(words)


def read_pieces(store: SequenceStore, count: int | None = None, max_notes: int | None = None) -> list[NoteColumns]:
    """Pieces of a split, spread over it where `count` is less than there are."""
    step = max(1, store.num_rows // count) if count else 1
    return [NoteColumns.read(store, row, max_notes) for row in range(0, store.num_rows, step)][:count]


def played(notes: NoteColumns) -> NoteSequence:
    """The positions of a piece of which nothing is given, without its end."""
    nothing = np.zeros(len(notes.onset), dtype=bool)
    return note_sequence(notes.attributes(), notes.onset, nothing, ends=False)


@torch.no_grad()
def sequence_bits(model: NoteTransformerModel, piece: NoteSequence) -> np.ndarray:
    """Bits of every played note, (note, attribute), in the order in which they are written."""
    arrays = (piece.roles, piece.attributes, piece.seconds, piece.upcoming, piece.labels)
    tensors = [torch.from_numpy(array)[None].to(model.device) for array in arrays]
    cache, found = NoteCache(model.config), []
    for *chunk, labels in zip(*(values.split(_CHUNK, dim=1) for values in tensors), strict=True):
        output = model(*chunk, cache=cache)
        found.append(-model.note_log_probabilities(output, labels)[0].double().cpu().numpy() / math.log(2))
    return np.concatenate(found)[piece.labels[:, 1] != IGNORED]


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def stretched(notes: NoteColumns, factor: float) -> NoteColumns:
    """The piece at another tempo."""
    onset, duration = (np.rint(values * factor).astype(np.int64) for values in (notes.onset, notes.duration))
    return NoteColumns(onset, np.maximum(duration, 1), notes.pitch, notes.velocity, notes.pedal).in_order()


def ngram_tables(dataset: str, held_out: Sequence[NoteColumns]) -> dict[str, np.ndarray]:
    """(note, attribute) bits of every baseline, by name."""
    train = read_pieces(open_sequences(dataset, "train"))
    copies = [stretched(piece, factor) for factor in (1 / 1.12, 1.12) for piece in train]
    rows, more = ([piece.attributes() for piece in part] for part in (train, copies))
    asked = [piece.attributes() for piece in held_out]
    uniform = np.tile(ngrams.uniform_bits(), (sum(map(len, asked)), 1))
    found = {"uniform": uniform}
    for order in (2, 5):
        table, told = ngrams.features(rows, order - 1), ngrams.features(asked, order - 1)
        found[f"order-{order} n-gram of attributes"] = ngrams.bits_of_flat(order, table, told)
        slower = ngrams.features([*rows, *more], order - 1)
        found[f"order-{order} n-gram of notes"] = ngrams.bits_of_notes(order, table, slower, told)
    return found


def measure_bits(model: NoteTransformerModel, dataset: str, held_out: Sequence[NoteColumns]) -> dict:
    """Table `bits`."""
    tables = ngram_tables(dataset, held_out)
    tables["composer"] = np.concatenate([sequence_bits(model, played(piece)) for piece in held_out])
    seconds = sum(float(piece.onset[-1]) for piece in held_out) / TICKS_PER_SECOND
    results = {}
    for name, bits in tables.items():
        notes = bits.sum(1)
        results[name] = {
            "bits_per_note": float(notes.mean()),
            "bits_per_second": float(notes.sum() / seconds),
            **{attribute: float(value) for attribute, value in zip(ATTRIBUTES, bits.mean(0), strict=True)},
        }
    best = min(values["bits_per_note"] for name, values in results.items() if name != "composer")
    for values in results.values():
        values["below_best_ngram"] = 1 - values["bits_per_note"] / best
    print(f"{len(tables['composer']):,} notes of {len(held_out)} pieces, {seconds / 60:.0f} minutes\n")
    rows = [
        [name, *(f"{values[key]:.2f}" for key in ("bits_per_note", "bits_per_second", *ATTRIBUTES))]
        + [f"{100 * values['below_best_ngram']:.1f} %"]
        for name, values in results.items()
    ]
    print_table(["model", "bits per note", "bits per second", *ATTRIBUTES, "below the best n-gram"], rows)
    return results


def stretches(pieces: Sequence[NoteColumns]) -> list[tuple[NoteColumns, bool]]:
    """Stretches of pieces, each from tick 0, and whether the piece begins there."""
    found = []
    for piece in pieces:
        for start in range(0, len(piece.onset) - _STRETCH + 1, _STRETCH)[:_STRETCHES_PER_PIECE]:
            columns = [values[start : start + _STRETCH] for values in vars(piece).values()]
            found.append((NoteColumns(columns[0] - columns[0][0], *columns[1:]), start == 0))
    return found


def given_bits(
    model: NoteTransformerModel, notes: NoteColumns, begins: bool, given: np.ndarray, wanted: np.ndarray
) -> tuple[float, float]:
    """Bits of the `wanted` notes left to right, and with the `given` ones in sight."""
    rows, nothing = notes.attributes(), np.zeros(len(given), dtype=bool)
    plain = sequence_bits(model, note_sequence(rows, notes.onset, nothing, begins, ends=False))
    told = sequence_bits(model, note_sequence(rows, notes.onset, given, begins, ends=False))
    return float(plain[wanted].sum()), float(told[wanted[~given]].sum())


def measure_given(model: NoteTransformerModel, held_out: Sequence[NoteColumns]) -> dict:
    """Table `given`."""
    results, rows = {}, []
    for name in ("fill", "accompany"):
        sums, count = np.zeros(2), 0
        for notes, begins in stretches(held_out):
            if name == "fill":
                begin, end = (notes.onset[-1] * share for share in (0.4, 0.6))
                given, wanted = notes.onset >= end, (notes.onset >= begin) & (notes.onset < end)
            else:
                given = melody_notes(notes.onset, notes.pitch, notes.duration)
                wanted = ~given
            sums += given_bits(model, notes, begins, given, wanted)
            count += int(wanted.sum())
        plain, told = sums / max(count, 1)
        results[name] = {"left_to_right": plain, "given": told, "saved": 1 - told / plain, "notes": count}
        rows.append([name, f"{count:,}", f"{plain:.2f}", f"{told:.2f}", f"{100 * (1 - told / plain):.1f} %"])
    print_table(["task", "notes", "bits per note, left to right", "with what is given", "saved"], rows)
    return results


@torch.no_grad()
def draw_pieces(
    model: NoteTransformerModel, count: int, seconds: float, options: SamplingOptions, generator: torch.Generator
) -> list[list[MidiNote]]:
    """Beginnings of `count` pieces, drawn in step."""
    sampler = NoteSampler(model, count, options, generator)
    attributes, ends = torch.zeros(count, 1, len(ATTRIBUTES), dtype=torch.long), round(seconds * TICKS_PER_SECOND)
    roles, now = torch.full((count, 1), START), np.zeros(count, dtype=np.int64)
    drawn: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(count)]
    open_rows = np.ones(count, dtype=bool)
    while open_rows.any():
        sampler.feed(roles, attributes, torch.from_numpy(now[:, None] / TICKS_PER_SECOND).float(), roles == EVENT)
        notes = sampler.next_notes((now > 0.9 * ends).tolist())
        rows = notes.numpy()
        # What has ended goes on unheard, until the last row has.
        open_rows &= rows[:, 0] != END
        now = now + TIME_TICKS[np.minimum(rows[:, 0], END - 1)]
        open_rows &= now < ends
        for index in np.flatnonzero(open_rows):
            drawn[index].append((int(now[index]), rows[index].copy()))
        attributes, roles = notes[:, None], torch.full((count, 1), EVENT)
    return [list(held_notes(piece)) for piece in drawn]


def excerpts(notes: NoteColumns, seconds: float, most: int = 4) -> list[list[MidiNote]]:
    """The first `most` stretches of a piece of this length that lie within it, from tick 0 each."""
    length, found = round(seconds * TICKS_PER_SECOND), []
    for start in range(0, int(notes.onset[-1]) - length + 1, length)[:most]:
        inside = np.flatnonzero((notes.onset >= start) & (notes.onset < start + length))
        found.append(
            [
                MidiNote(
                    int(notes.onset[i]) - start, int(notes.duration[i]), int(notes.pitch[i]), 0, int(notes.velocity[i])
                )
                for i in inside
            ]
        )
    return [notes for notes in found if len(notes) > 1]


def is_valid(notes: Sequence[MidiNote]) -> bool:
    """Whether a MIDI file of the notes is read as it was written."""
    return sorted(read_notes(midi_bytes(notes_to_midi(notes)))) == sorted(notes)


def measure_copies(dataset: str, made: Sequence[Sequence[MidiNote]], real: Sequence[Sequence[MidiNote]]) -> dict:
    """Table `copies`."""
    train = [note_events(piece.attributes()) for piece in read_pieces(open_sequences(dataset, "train"))]
    results = {"valid": sum(map(is_valid, made)), "generated": len(made), "real": len(real)}
    rows = []
    kinds = [(f"{length}, interval and rhythm", slice(None), length) for length in (12, 10, 8)]
    for name, events, length in (*kinds, ("12, interval alone", slice(0, 1), 12)):
        index = EventIndex((piece[:, events] for piece in train), length)
        shares = []
        for part in (made, real):
            found = [index.copied(note_events(attributes_of_notes(notes))[:, events]).any() for notes in part]
            shares.append(float(np.mean(found)))
        results[name] = {"generated": shares[0], "real": shares[1]}
        rows.append([name, *(f"{100 * share:.1f} %" for share in shares)])
    print(f"{results['valid']} of {len(made)} samples are valid MIDI\n")
    print_table(["events of a training piece", "generated excerpts", "held-out excerpts"], rows)
    return results


def measure_statistics(
    made: Sequence[Sequence[MidiNote]], real: Sequence[Sequence[Sequence[MidiNote]]], seconds: float, halvings: int = 8
) -> dict:
    """Table `statistics`; real excerpts are grouped by piece, so that halves share none."""
    random = np.random.default_rng(0)
    ours = [note_statistics(notes, seconds) for notes in made if len(notes) > 1]
    theirs = [[note_statistics(notes, seconds) for notes in piece] for piece in real]
    apart: list[dict[str, float]] = []
    between: list[dict[str, float]] = []
    for _ in range(halvings):
        order = random.permutation(len(theirs))
        halves = [[item for place in part for item in theirs[place]] for part in np.array_split(order, 2)]
        between.append(note_statistics_distance(*halves))
        apart += [note_statistics_distance(ours, half) for half in halves]
    results = {}
    for name in STATISTICS:
        distances = [float(np.mean([item[name] for item in part])) for part in (apart, between)]
        results[name] = {
            "generated_real": distances[0],
            "real_real": distances[1],
            "ratio": distances[0] / distances[1],
        }
        if name != "inter_onset":
            means = [
                np.nanmean([item[name] for item in part]) for part in (ours, [i for piece in theirs for i in piece])
            ]
            results[name] |= {"generated_mean": float(means[0]), "real_mean": float(means[1])}
    cells = [
        [name]
        + [f"{values[key]:.3f}" if key in values else "" for key in ("generated_mean", "real_mean", "generated_real")]
        + [f"{values['real_real']:.3f}", f"{values['ratio']:.2f}"]
        for name, values in results.items()
    ]
    heads = ["statistic", "mean, generated", "mean, real", "distance to real", "real to real", "ratio"]
    print_table(heads, cells)
    return results


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    given = {"temperature": arguments.temperature, "top_p": arguments.top_p, "allow_quotes": arguments.allow_quotes}
    return SamplingOptions(**{name: value for name, value in given.items() if value is not None})


def main(words: Sequence[str] | None = None) -> dict:
    arguments = read_arguments(words)
    torch.set_num_threads(arguments.threads)
    model = NoteTransformerModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    store = open_sequences(arguments.dataset, arguments.split)
    held_out = read_pieces(store, arguments.pieces, arguments.max_notes)
    print(f"split {arguments.split!r}, {arguments.threads} threads, torch {torch.__version__}\n")
    results: dict = {"split": arguments.split, "pieces": len(held_out)}
    if "bits" in arguments.parts:
        results["bits"] = measure_bits(model, arguments.dataset, held_out)
    if "given" in arguments.parts:
        results["given"] = measure_given(model, held_out)
    if {"copies", "statistics"} & set(arguments.parts):
        generator, made, started = torch.Generator().manual_seed(arguments.seed), [], time.perf_counter()
        while len(made) < arguments.samples:
            count = min(arguments.batch, arguments.samples - len(made))
            made += draw_pieces(model, count, arguments.seconds, sampling_options(arguments), generator)
        notes, spent = sum(map(len, made)), time.perf_counter() - started
        print(f"{len(made)} samples of {arguments.seconds:g} s, {notes:,} notes, {spent:.0f} s\n", flush=True)
        real = [part for piece in held_out if (part := excerpts(piece, arguments.seconds))]
        if "copies" in arguments.parts:
            results["copies"] = measure_copies(arguments.dataset, made, [notes for piece in real for notes in piece])
        if "statistics" in arguments.parts:
            results["statistics"] = measure_statistics(made, real, arguments.seconds)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
