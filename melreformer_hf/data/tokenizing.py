"""From a folder of MIDI files to sharded rows of tokens, or to the notes themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from melreformer_hf._files import replacing_folder, write_json, write_text
from melreformer_hf.data.midi import RowCounts, arrival_rows, interarrival_piece, pack_rows
from melreformer_hf.data.rendering import MIDI_SUFFIXES
from melreformer_hf.data.sequences import TOKENS_FILE, SequenceWriter
from melreformer_hf.data.sources import Source, check_output, describe_sources, labels_of
from melreformer_hf.data.splits import assign_splits, name_hash
from melreformer_hf.processing.midi.columns import UNKNOWN_DURATION, change_columns, note_columns, pressed_intervals
from melreformer_hf.processing.midi.notes import UNKNOWN_DURATION_TICKS, MidiNote, read_notes
from melreformer_hf.processing.midi.parsing import read_events
from melreformer_hf.processing.midi.pedal import merge_intervals, pedal_at
from melreformer_hf.processing.midi.vocabulary import ARRIVAL, INTERARRIVAL

SCHEMES = ("arrival", "interarrival", "notes")
_VOCABULARY_SIZES = {"arrival": ARRIVAL.size, "interarrival": INTERARRIVAL.size, "notes": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """How a folder of MIDI files becomes a dataset of tokens.

    Args:
        scheme: `arrival` or `interarrival` (rows of up to 1024 tokens of `MidiTokenizer`), or `notes` (the notes of each
            piece: onset and duration in ticks of 10 ms, pitch, instrument, velocity, and whether the pedal is down).
        variants: of every training piece, of the scheme `arrival`: 1 as it is; 10 are the original's augmentation, in
            which known notes are told ahead.
        by_piece: a row holds tokens of one piece only and says of which; otherwise the pieces are written one after the
            other, as the originals do. Always so where pieces have labels.
        label: as of `BuildConfig`, like `license`, `metadata`, `validation_fraction`, `test_fraction`, `overwrite`.
        license: as there.
        metadata: as there.
        validation_fraction: as there.
        test_fraction: as there.
        overwrite: as there.
        seed: of the augmentation.
        rows_per_shard: rows (of `notes`: pieces) per file.

    Raises:
        ValueError: a field breaks its rule.
    """

    scheme: str = "arrival"
    variants: int = 1
    by_piece: bool = False
    label: str | None = None
    license: str = "unknown"
    metadata: Path | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    overwrite: bool = False
    seed: int = 0
    rows_per_shard: int = 10_000

    def __post_init__(self) -> None:
        held_out = self.validation_fraction + self.test_fraction
        rules = [
            ("scheme", self.scheme in SCHEMES, f"be one of {SCHEMES}"),
            ("variants", self.variants >= 1, "be at least 1"),
            ("variants", self.variants == 1 or self.scheme == "arrival", "be 1 but for the scheme arrival"),
            ("validation_fraction", 0 <= self.validation_fraction < 1, "be in [0, 1)"),
            (
                "test_fraction",
                0 <= self.test_fraction < 1 and held_out < 1,
                "be in [0, 1) and leave something to train on",
            ),
            ("rows_per_shard", self.rows_per_shard >= 1, "be at least 1"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}.")


def tokenize_folder(folder: Path, output: Path, config: TokenizeConfig, progress: bool = True) -> dict:
    """Tokenize a folder; the dataset, with splits by piece, appears at `output` complete or not at all.

    Args:
        folder: searched recursively for .mid and .midi.
        output: folder of the dataset; must be new or empty, or a dataset when `config.overwrite` is set.
        config: see `TokenizeConfig`.
        progress: show a bar.

    Returns:
        the report also written to `report.json`: pieces, rows and tokens per split, what was left out and why.

    Raises:
        ValueError: no MIDI file, none usable, or metadata, labels or `output` as of `build_dataset`.
    """
    folder, output = Path(folder), Path(output)
    check_output(output, config.overwrite, TOKENS_FILE)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)
    if not files:
        raise ValueError(f"MIDI_DIR must hold .mid or .midi files, found none in {folder}.")
    sources = describe_sources(files, folder, config.metadata, config.license, config.label)
    given = {source.recording: source.split for source in sources}
    splits, notes = assign_splits(given, config.validation_fraction, config.test_fraction)
    labels = labels_of(sources)
    counts, skipped, written = RowCounts(), [], {}
    with replacing_folder(output) as building, tqdm(total=len(files), desc="tokenizing", disable=not progress) as bar:
        (building / "data").mkdir()
        for split in sorted(set(splits.values())):
            chosen = [source for source in sources if splits[source.recording] == split]
            work = _SplitWork(config, folder, split, bool(labels) or config.by_piece, counts, skipped, bar.update)
            info = work.write(chosen, SequenceWriter(building / "data", split, config.rows_per_shard))
            written |= {split: info} if info["rows"] else {}
        notes += [f"{split} is missing: nothing of it is usable." for split in set(splits.values()) - written.keys()]
        if not written:
            raise ValueError(f"No piece in {folder} is usable: {dataclasses.asdict(counts)}, {skipped[:3]}.")
        report = {
            "scheme": config.scheme,
            "splits": written,
            "notes": notes,
            "counts": dataclasses.asdict(counts),
            "skipped": skipped,
        }
        info = {"format": 1, "scheme": config.scheme, "vocab_size": _VOCABULARY_SIZES[config.scheme], "labels": labels}
        write_json(building / TOKENS_FILE, {**info, "splits": written})
        write_json(building / "report.json", report)
        write_text(building / "README.md", _card(report, sources))
    return report


class _SplitWork:
    """Reads the pieces of one split and writes their rows."""

    def __init__(
        self,
        config: TokenizeConfig,
        folder: Path,
        split: str,
        by_piece: bool,
        counts: RowCounts,
        skipped: list[dict],
        done: Callable[[], object],
    ) -> None:
        self.config, self.folder, self.by_piece = config, folder, by_piece
        self.counts, self.skipped, self.done = counts, skipped, done
        self.variants = config.variants if split == "train" else 1
        self.pieces = 0

    def write(self, sources: Sequence[Source], writer: SequenceWriter) -> dict[str, int]:
        if self.config.scheme == "notes":
            for source, table in self._read(sources, _read_table):
                if len(table):
                    writer.add(table, source.row)
        elif self.by_piece:
            for source, piece in self._read(sources, self._piece()):
                for row in self._rows([piece], round(name_hash(source.recording) * 2**31), rest=True):
                    writer.add(np.array(row), source.row)
        else:
            pieces = (piece for _, piece in self._read(sources, self._piece()))
            for row in self._rows(pieces, 0, rest=False):
                writer.add(np.array(row), None)
        return {"pieces": self.pieces, **writer.close()}

    def _piece(self) -> Callable:
        if self.config.scheme == "interarrival":
            return functools.partial(interarrival_piece, counts=self.counts)
        return read_notes

    def _rows(self, pieces: Iterator | Sequence, seed: int, rest: bool) -> Iterator[list[int]]:
        if self.config.scheme == "interarrival":
            return pack_rows(pieces, self.counts, rest)
        return arrival_rows(pieces, self.variants, (seed + self.config.seed) % 2**32, self.counts, rest)

    def _read(self, sources: Sequence[Source], read: Callable) -> Iterator[tuple[Source, Sequence]]:
        for source in sources:
            self.done()
            try:
                piece = read(source.path)
            except (ValueError, OSError) as error:
                name = source.path.relative_to(self.folder).as_posix()
                self.skipped.append({"file": name, "reason": str(error).replace(f"{self.folder}/", "")})
                continue
            self.pieces += 1
            yield source, piece


def note_table(notes: Sequence[MidiNote], pedal: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """(note, field) int32 in the order of the onsets; the fields are `data.sequences.NOTE_FIELDS`.

    Onset and duration are in ticks of 10 ms; a note that never ends gets a quarter of a second, as in the scheme `arrival`.

    Args:
        notes: in any order.
        pedal: intervals (down, up) in ticks; a note's last field is 1 if it begins within one.
    """
    known = (note._replace(duration=UNKNOWN_DURATION_TICKS) if note.duration is None else note for note in notes)
    rows = list(known)
    return _table(np.array(rows, dtype=np.int64).reshape(-1, 5), pedal)


def _table(rows: np.ndarray, pedal: Sequence[tuple[int, int]]) -> np.ndarray:
    ordered = rows[np.lexsort(rows.T[::-1])]
    return np.concatenate(
        [ordered, pedal_at(ordered[:, 0], pedal)[:, None]], axis=1, dtype=np.int32, casting="same_kind"
    )


def _read_table(source: Path) -> np.ndarray:
    events = read_events(source)
    columns = note_columns(change_columns(events))
    columns[1][columns[1] == UNKNOWN_DURATION] = UNKNOWN_DURATION_TICKS
    return _table(columns.T, merge_intervals(pressed_intervals(events)))


def _card(report: dict, sources: Sequence[Source]) -> str:
    licenses = [source.row["license"] for source in sources]
    lines = ["---", "tags:", "- midi", "- music", "- melreformer_hf", "---", "", f"# MIDI, {report['scheme']}", ""]
    lines += ["| split | pieces | rows | tokens |", "|---|---|---|---|"]
    lines += [
        f"| {split} | {info['pieces']} | {info['rows']} | {info['values']} |"
        for split, info in report["splits"].items()
    ]
    lines += ["", "| licence | pieces |", "|---|---|"]
    lines += [f"| {name} | {licenses.count(name)} |" for name in sorted(set(licenses))]
    lines += ["", *report["notes"], "", "Made by `melreformer data tokenize` of"]
    return "\n".join([*lines, "`melreformer_hf`.", ""])


__all__ = ["SCHEMES", "TokenizeConfig", "note_table", "tokenize_folder"]
