"""Recipe `composer`: a language model of notes, from the notes of MIDI files.

Each item is a stretch of a piece, moved in pitch, tempo and loudness. In a share of them some notes are given rather than
to be written (all after a moment, the melody, or any), so that one model composes, continues, fills gaps and accompanies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from melreformer_hf.data.sequences import NOTE_FIELDS, NoteStream, SequenceStore, open_sequences
from melreformer_hf.metrics import note_events
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.processing.midi.attributes import ATTRIBUTES, VOCAB_SIZES, note_attributes
from melreformer_hf.processing.midi.melody import melody_notes
from melreformer_hf.processing.midi.sequences import NoteSequence, note_sequence
from melreformer_hf.training.config import TrainingConfig, option
from melreformer_hf.training.recipes.base import (
    Phase,
    Recipe,
    StepContext,
    Trainable,
    Validation,
    check_validation_split,
)

_LOWEST, _HIGHEST = 21, 108  # of a piano; pieces beyond it are not transposed
_KINDS = ("none", "after", "melody", "any")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComposerOptions:
    """Settings of the composer's recipe.

    Raises:
        ValueError: a field breaks its rule.
    """

    preset: str = option("tiny", "preset of NoteTransformerConfig that --model.NAME values change")
    num_positions: int = option(512, "positions of a training item: notes, and the mark before them")
    transpose: int = option(6, "pieces are moved up or down by up to this many semitones")
    tempo_range: float = option(0.15, "pieces are played faster or slower by up to this share")
    velocity_range: int = option(10, "pieces are played louder or softer by up to this many MIDI steps")
    given_after: float = option(0.25, "share of the items in which all notes after a moment are given: filling gaps")
    given_melody: float = option(0.25, "share of the items in which the melody is given: accompanying")
    given_any: float = option(0.1, "share of the items in which any notes are given")
    validation_pieces: int = option(24, "held-out pieces that are measured")
    validation_notes: int = option(1024, "notes of each, from its beginning")
    validation_split: str = option("validation", "split that measures the model and chooses the best")

    def __post_init__(self) -> None:
        check_validation_split(self.validation_split)
        rules = [
            ("num_positions", self.num_positions >= 2, "be at least 2"),
            ("transpose", 0 <= self.transpose < 64, "be in 0..63"),
            ("tempo_range", 0 <= self.tempo_range < 1, "be in [0, 1)"),
            ("velocity_range", 0 <= self.velocity_range < 64, "be in 0..63"),
            ("validation_pieces", self.validation_pieces >= 1, "be at least 1"),
            ("validation_notes", self.validation_notes >= 1, "be at least 1"),
        ]
        shares = [getattr(self, f"given_{kind}") for kind in _KINDS[1:]]
        rules += [
            (f"given_{kind}", share >= 0, "not be negative") for kind, share in zip(_KINDS[1:], shares, strict=True)
        ]
        rules += [("given_any", sum(shares) <= 1, "leave the shares' sum at most 1")]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"options.{name} must {rule}, got {getattr(self, name)!r}.")


@dataclasses.dataclass
class NoteColumns:
    """Columns of a stretch: (note,) each, onsets and durations in ticks."""

    onset: np.ndarray
    duration: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    pedal: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray) -> NoteColumns:
        """From (field, note)."""
        columns = dict(zip(NOTE_FIELDS, table, strict=True))
        return cls(*(columns[field.name] for field in dataclasses.fields(cls)))

    @classmethod
    def read(cls, store: SequenceStore, row: int, length: int | None = None) -> NoteColumns:
        """The beginning of a piece of a store, at most `length` notes; it begins at tick 0."""
        table = store.values(row, 0, length).numpy().T.copy()
        table[0] -= table[0, 0]
        return cls.of(table).in_order()

    def in_order(self) -> NoteColumns:
        """By onset and pitch, each pitch once per onset: the order in which notes are written."""
        order = np.lexsort((self.pitch, self.onset))
        onset, pitch = self.onset[order], self.pitch[order]
        # A change of tempo can round two notes of a pitch onto one onset.
        first = np.append(True, (np.diff(onset) != 0) | (np.diff(pitch) != 0))
        return NoteColumns(*(getattr(self, field.name)[order][first] for field in dataclasses.fields(self)))

    def attributes(self) -> np.ndarray:
        """Rows of `processing.midi.attributes`, (note, 5)."""
        return note_attributes(self.onset, self.pitch, self.duration, self.velocity, self.pedal)


def augmented(notes: NoteColumns, options: ComposerOptions, generator: torch.Generator) -> NoteColumns:
    """The notes in another key, tempo and loudness."""
    tempo, key, loudness = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    stretch = math.exp((2 * tempo - 1) * math.log1p(options.tempo_range))
    shift = int(key * (2 * options.transpose + 1)) - options.transpose
    if notes.pitch.min() < _LOWEST or notes.pitch.max() > _HIGHEST:
        shift = 0
    # A piece that touches the end of the keyboard moves less far.
    shift = int(np.clip(shift, _LOWEST - notes.pitch.min(), _HIGHEST - notes.pitch.max())) if shift else 0
    louder = int(loudness * (2 * options.velocity_range + 1)) - options.velocity_range
    return NoteColumns(
        np.rint(notes.onset * stretch).astype(np.int64),
        np.maximum(np.rint(notes.duration * stretch).astype(np.int64), 1),
        notes.pitch + shift,
        np.clip(notes.velocity + louder, 1, 127),
        notes.pedal,
    )


def given_notes(notes: NoteColumns, kind: str, generator: torch.Generator) -> np.ndarray:
    """Which notes are given, (note,) bool; the notes are in the order of (onset, pitch)."""
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    if kind == "after":
        return notes.onset >= notes.onset[-1] * (0.1 + 0.8 * share)
    if kind == "melody":
        return melody_notes(notes.onset, notes.pitch, notes.duration)
    if kind == "any":
        return torch.rand(len(notes.onset), generator=generator).numpy() < 0.1 + 0.8 * share
    return np.zeros(len(notes.onset), dtype=bool)


class ComposerRecipe(Recipe):
    """Train the composer (NoteTransformerModel): notes of MIDI files, one after another."""

    name = "composer"
    best_metric = "bits_per_note"
    reads_notes = True
    Options = ComposerOptions

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.model_config = NoteTransformerConfig.preset(self.options.preset, **config.model)
        if tuple(self.model_config.vocab_sizes) != VOCAB_SIZES:
            raise ValueError(
                f"model.vocab_sizes must be {VOCAB_SIZES}, those of {', '.join(ATTRIBUTES)} "
                f"(processing.midi.attributes), got {tuple(self.model_config.vocab_sizes)}."
            )
        self._stores: dict[str, SequenceStore] = {}
        self._held_out: list[NoteSequence] = []

    def store(self, split: str) -> SequenceStore:
        """The pieces of a split, opened once."""
        if split not in self._stores:
            self._stores[split] = open_sequences(self.config.dataset, split)
        return self._stores[split]

    def trainables(self) -> dict[str, Trainable]:
        return {"model": Trainable(NoteTransformerModel(self.model_config))}

    def begin(self, model: NoteTransformerModel) -> None:
        if model.phrases is not None:
            train = self.store("train")
            model.phrases.learn(
                note_events(NoteColumns.read(train, row).attributes()) for row in range(train.num_rows)
            )

    def stream(self, rank: int, world_size: int) -> NoteStream:
        # One note less than there are positions: the first position is the mark.
        return self.store("train").notes(
            self.options.num_positions - 1, seed=self.config.seed, rank=rank, world_size=world_size
        )

    def prepare(self, item: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        options = self.options
        notes = augmented(NoteColumns.of(item["notes"].numpy()), options, generator).in_order()
        drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
        # One draw decides the kind: shares are stretches of [0, 1), and what is left of it is "none".
        limits = np.cumsum([options.given_after, options.given_melody, options.given_any])
        kind = (*_KINDS[1:], _KINDS[0])[int(np.searchsorted(limits, drawn, side="right"))]
        given = given_notes(notes, kind, generator)
        # Before a given rest, too, the end is what comes next: a gap that is filled must not be crowded up to its edge.
        ends = kind == "after" or item["start"] + item["notes"].shape[1] >= item["piece_notes"]
        made = note_sequence(notes.attributes(), notes.onset, given, item["start"] == 0, ends)
        return padded(made, options.num_positions)

    def phases(self, batch: dict[str, torch.Tensor], context: StepContext) -> Iterator[Phase]:
        output = self.modules["model"](**batch)
        bits = output.attribute_losses / math.log(2)
        scalars = {f"bits/{name}": bits[index] for index, name in enumerate(ATTRIBUTES)}
        yield Phase("model", output.loss, {"loss": output.loss, "bits_per_note": bits.sum(), **scalars})

    def prepare_validation(self) -> None:
        store = self.store(self.options.validation_split)
        step = max(1, store.num_rows // self.options.validation_pieces)
        rows = range(0, store.num_rows, step)[: self.options.validation_pieces]
        for row in rows:
            notes = NoteColumns.read(store, row, self.options.validation_notes)
            whole = store.lengths[row] <= self.options.validation_notes
            nothing = np.zeros(len(notes.onset), dtype=bool)
            self._held_out.append(note_sequence(notes.attributes(), notes.onset, nothing, True, whole))

    def validate(self, model: nn.Module) -> Validation:
        if not self._held_out:
            self.prepare_validation()
        device, nats, notes, seconds = next(model.parameters()).device, 0.0, 0, 0.0
        for piece in self._held_out:
            arrays = (piece.roles, piece.attributes, piece.seconds, piece.labels)
            roles, attributes, onsets, labels = (torch.from_numpy(array)[None].to(device) for array in arrays)
            told = model.note_log_probabilities(model(roles, attributes, onsets), labels)
            nats = nats - told.double().sum((0, 1)).cpu()
            notes += len(piece) - 1
            seconds += float(piece.seconds[-1])
        bits = nats / math.log(2)
        uniform = sum(math.log2(size) for size in VOCAB_SIZES)
        total = bits.sum().item()
        metrics = {"bits_per_note": total / notes, "bits_per_second": total / max(seconds, 1e-9)}
        metrics |= {f"bits/{name}": bits[index].item() / notes for index, name in enumerate(ATTRIBUTES)}
        share = metrics["bits_per_note"] / uniform
        return Validation(metrics, summary=f"{share:.2f}x of guessing ({uniform:.1f} bits per note)")

    def describe_data(self) -> str:
        store = self.store("train")
        return f"{int(store.lengths.sum()):,} notes of {store.num_rows} pieces"


def padded(piece: NoteSequence, num_positions: int) -> dict[str, torch.Tensor]:
    """Tensors of exactly `num_positions`; what is added at the end teaches nothing."""
    missing = num_positions - len(piece)
    return {
        "roles": torch.from_numpy(np.pad(piece.roles, (0, missing), mode="edge")),
        "attributes": torch.from_numpy(np.pad(piece.attributes, ((0, missing), (0, 0)))),
        "seconds": torch.from_numpy(np.pad(piece.seconds, (0, missing), mode="edge")),
        "upcoming": torch.from_numpy(np.pad(piece.upcoming, ((0, missing), (0, 0)))),
        "labels": torch.from_numpy(np.pad(piece.labels, ((0, missing), (0, 0)), constant_values=-100)),
    }


__all__ = ["ComposerOptions", "ComposerRecipe", "NoteColumns"]
