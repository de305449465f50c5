"""Tokens of MIDI music, both ways.

Source: schemes `arrival` and `interarrival` of Thickstun et al., Anticipatory Music Transformer (arXiv 2306.08620),
original repository jthickstun/anticipation, number for number; `note_tuple` is its intermediate form, five numbers per
note. Deviations: a padding token comes after the original's vocabulary; what the original would write as meaningless
numbers (times of 100 s and more) is refused; `note_tuple` has token numbers of its own for each of the five.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral
from typing import Any

from transformers import BatchEncoding, PythonBackend

from melreformer_hf.processing.midi.arrival import (
    EVENT_SIZE,
    anticipate,
    events_to_notes,
    latest_tick,
    notes_to_events,
    pad_events,
    split_instruments,
)
from melreformer_hf.processing.midi.interarrival import (
    changes_to_notes,
    close_changes,
    decode_changes,
    notes_to_changes,
    read_changes,
)
from melreformer_hf.processing.midi.notes import (
    TICKS_PER_SECOND,
    MidiChange,
    MidiNote,
    changes_to_midi,
    check_notes,
    midi_bytes,
    notes_to_midi,
    read_notes,
    seconds_to_ticks,
    write_midi,
)
from melreformer_hf.processing.midi.parsing import MidiSource
from melreformer_hf.processing.midi.vocabulary import MAX_TIME_TICKS, NOTE_TUPLE, VOCABULARIES, MidiVocabulary

_EVENT_KINDS = (
    ("time", "duration", "note"),
    ("time", "duration", "rest"),
    ("control_time", "control_duration", "control_note"),
    ("separator",) * EVENT_SIZE,
)
_TUPLE_KINDS = ("time", "duration", "pitch", "instrument", "velocity")


class MidiTokenizer(PythonBackend):
    """MIDI files or notes to token numbers and back.

    Text is the names of tokens, separated by blanks (`"time_0 duration_35 note_0_60"`); `encode_midi` and
    `decode_midi` are the way to and from music. Times are in ticks of 10 ms.

    Args:
        scheme: `arrival` (onset, duration and instrument with pitch, three tokens per note, 55,028 tokens),
            `interarrival` (waits, starts and ends, 34,025 tokens) or `note_tuple` (onset, duration, pitch, instrument
            and velocity, five tokens per note).
        kwargs: of transformers' tokenizers. `pad_token` is `<pad>`, numbered after the vocabulary; a checkpoint whose
            embedding has no row for it takes `pad_token="separator"`.

    Raises:
        ValueError: the scheme is unknown.

    Example:
        >>> from melreformer_hf import MidiTokenizer
        >>> tokenizer = MidiTokenizer(scheme="arrival")
        >>> ids = tokenizer.encode_midi([(0, 50, 60, 0, 90), (50, 50, 64, 0, 90)])
        >>> ids
        [0, 10050, 11060, 50, 10050, 11064]
        >>> tokenizer.decode(ids[:3])
        'time_0 duration_50 note_0_60'
        >>> [note.pitch for note in tokenizer.decode_notes(ids)]
        [60, 64]
    """

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, scheme: str = "arrival", **kwargs: Any) -> None:
        if scheme not in VOCABULARIES:
            raise ValueError(f"scheme must be one of {sorted(VOCABULARIES)}, got {scheme!r}.")
        self.scheme = scheme
        kwargs.setdefault("pad_token", "<pad>")
        kwargs.setdefault("eos_token", "separator")
        super().__init__(scheme=scheme, **kwargs)

    @property
    def vocabulary(self) -> MidiVocabulary:
        """Blocks of token numbers, without added tokens."""
        return VOCABULARIES[self.scheme]

    @property
    def vocab_size(self) -> int:
        """Number of tokens without added ones; `len(tokenizer)` counts those too."""
        return self.vocabulary.size

    def get_vocab(self) -> dict[str, int]:
        """Token numbers by name, added tokens included."""
        return {**self.vocabulary.numbers, **self._added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self.vocabulary.numbers:
            raise ValueError(f"The {self.scheme} scheme has no token {token!r}; names are like {self._examples()}.")
        return self.vocabulary.numbers[token]

    def _examples(self) -> str:
        return ", ".join(self.vocabulary.strings[number] for number in self.vocabulary.first.values())

    def _convert_id_to_token(self, index: int) -> str:
        self.vocabulary.locate(index)
        return self.vocabulary.strings[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Names separated by blanks."""
        return " ".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing to write: the scheme's name, kept in the configuration, is the vocabulary."""
        return ()

    def encode_midi(
        self,
        midi: MidiSource | Iterable[MidiNote],
        start: float | None = None,
        end: float | None = None,
        known_instruments: Collection[int] = (),
    ) -> list[int]:
        """Token numbers of music.

        Args:
            midi: path, bytes or binary file of a MIDI file, or notes in the order of their onsets.
            start: seconds; notes that begin earlier are left out, and `start` becomes time zero.
            end: seconds; notes that begin later are left out, and those that sound longer are shortened.
            known_instruments: instruments whose notes become controls, each five seconds ahead (`arrival` only).

        Returns:
            list of token numbers, without padding.

        Raises:
            ValueError: no notes, a piece of 100 s or more (pass `start` and `end`), a damaged file, a note out of range.
            FileNotFoundError: the path does not exist.
        """
        is_file = isinstance(midi, (str, os.PathLike, bytes, bytearray)) or hasattr(midi, "read")
        if known_instruments and self.scheme != "arrival":
            raise ValueError(f"known_instruments are for the scheme 'arrival', this tokenizer's is {self.scheme!r}.")
        whole = start is None and end is None
        if is_file and whole and self.scheme == "interarrival":
            return read_changes(midi)[0]
        notes = _window(read_notes(midi) if is_file else check_notes(midi), start, end)
        if any(late.onset < early.onset for early, late in zip(notes, notes[1:], strict=False)):
            raise ValueError("notes must be in the order of their onsets. Sort them first, for example with sorted().")
        if self.scheme == "interarrival":
            return notes_to_changes(notes)[0]
        if notes and notes[-1].onset >= MAX_TIME_TICKS:
            raise ValueError(
                f"The scheme {self.scheme!r} covers {MAX_TIME_TICKS // TICKS_PER_SECOND} s, the last note begins at "
                f"{notes[-1].onset / TICKS_PER_SECOND:g} s. Pass start and end in seconds."
            )
        return (
            self._encode_tuples(notes)
            if self.scheme == "note_tuple"
            else self._encode_events(notes, known_instruments)
        )

    def _encode_events(self, notes: list[MidiNote], known_instruments: Collection[int]) -> list[int]:
        events, _ = notes_to_events(notes)
        if not known_instruments:
            return events
        remaining, controls = split_instruments(events, set(known_instruments))
        merged, late = anticipate(pad_events(remaining, latest_tick(events)), controls)
        return merged + late

    def _encode_tuples(self, notes: list[MidiNote]) -> list[int]:
        if not notes:
            raise ValueError("midi must hold at least one note, got none.")
        first, ids = self.vocabulary.first, []
        for note in notes:
            known = note.duration is not None
            duration = (
                first["duration"] + min(note.duration, MAX_TIME_TICKS - 1) if known else first["unknown_duration"]
            )
            ids += [first["time"] + note.onset, duration]
            ids += [first[name] + getattr(note, name) for name in _TUPLE_KINDS[2:]]
        return ids

    def batch_encode_midi(
        self,
        midis: Sequence[MidiSource | Iterable[MidiNote]],
        start: float | None = None,
        end: float | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Token numbers of several pieces, padded: `input_ids` and `attention_mask` (batch, token).

        Args:
            midis: as `encode_midi` takes one.
            start: seconds.
            end: seconds.
            padding: as of `transformers.PreTrainedTokenizerBase.pad`.
            max_length: as there.
            pad_to_multiple_of: as there.
            return_tensors: `"pt"` or `"np"`.
        """
        return self.pad(
            {"input_ids": [self.encode_midi(midi, start, end) for midi in midis]},
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )

    def _ids(self, ids: Any) -> list[int]:
        numbers = list(ids.tolist() if hasattr(ids, "tolist") else ids)
        if not all(isinstance(number, Integral) for number in numbers):
            raise ValueError("ids must be the whole numbers of one piece, (token,). Decode a batch row by row.")
        numbers = [int(number) for number in numbers]
        while numbers and numbers[-1] == self.pad_token_id:
            numbers.pop()
        added = {number for number in self._added_tokens_decoder if number >= self.vocab_size}
        return [number for number in numbers if number not in added]

    def decode_notes(self, ids: Sequence[int], partial: bool = False) -> list[MidiNote]:
        """Notes of token numbers in the order of their onsets; padding, rests and flags are passed over.

        Controls become notes. The schemes without velocities give 72 (`arrival`) or 96 (`interarrival`).

        Args:
            ids: (token,) numbers, a list or a tensor.
            partial: the music may be cut off anywhere, as samples are at their greatest length: what is left of an event
                is left out, and notes that still sound (`interarrival`) end with the music.

        Raises:
            ValueError: the numbers are no whole events; the position and the token are named.
        """
        numbers = self._ids(ids)
        if self.scheme == "interarrival":
            return changes_to_notes(self._decode_changes(numbers, partial))
        decode = self._decode_tuples if self.scheme == "note_tuple" else self._decode_events
        return sorted(decode(numbers, partial), key=lambda note: note.onset)

    def _decode_changes(self, numbers: list[int], partial: bool) -> list[MidiChange]:
        changes = decode_changes(numbers)
        return close_changes(changes) if partial else changes

    def _decode_events(self, numbers: list[int], partial: bool) -> list[MidiNote]:
        first = self.vocabulary.first
        numbers = [number for number in numbers if number not in (first["autoregress"], first["anticipate"])]
        # A sample that ends at its first separator has not the other two.
        while numbers and numbers[-1] == first["separator"]:
            numbers.pop()
        numbers = _whole(numbers, EVENT_SIZE, partial)
        for position in range(0, len(numbers), EVENT_SIZE):
            event = numbers[position : position + EVENT_SIZE]
            if tuple(self.vocabulary.locate(number)[0] for number in event) not in _EVENT_KINDS:
                raise ValueError(self._complaint(event, position, "a time, a duration and a note"))
        return events_to_notes(numbers)

    def _decode_tuples(self, numbers: list[int], partial: bool) -> list[MidiNote]:
        numbers = [number for number in numbers if number != NOTE_TUPLE.first["separator"]]
        numbers = _whole(numbers, len(_TUPLE_KINDS), partial)
        notes = []
        for position in range(0, len(numbers), len(_TUPLE_KINDS)):
            event = numbers[position : position + len(_TUPLE_KINDS)]
            located = [NOTE_TUPLE.locate(number) for number in event]
            kinds = tuple(name.removeprefix("unknown_") for name, _ in located)
            if kinds != _TUPLE_KINDS:
                raise ValueError(self._complaint(event, position, "a time, duration, pitch, instrument and velocity"))
            onset, duration, *rest = (value for _, value in located)
            notes.append(MidiNote(onset, None if located[1][0] == "unknown_duration" else duration, *rest))
        return notes

    def _complaint(self, event: list[int], position: int, wanted: str) -> str:
        names = " ".join(self.vocabulary.strings[number] for number in event)
        complaint = f"ids[{position}:{position + len(event)}] (flags left out) must be {wanted}, got {names!r}."
        whole = len(_TUPLE_KINDS) if self.scheme == "note_tuple" else EVENT_SIZE
        return complaint if len(event) == whole else f"{complaint} Cut ids after the last whole event, at {position}."

    def decode_midi(self, ids: Sequence[int], path: str | os.PathLike | None = None, partial: bool = False) -> bytes:
        """MIDI file of token numbers: 120 beats a minute, one track per instrument.

        Args:
            ids: (token,) numbers, a list or a tensor.
            path: where to save it too.
            partial: as of `decode_notes`.

        Returns:
            content of the file.

        Raises:
            ValueError: the numbers are no whole events, or there are more instruments than MIDI has channels.
            ImportError: mido is not installed.
        """
        if self.scheme == "interarrival":
            midi = changes_to_midi(self._decode_changes(self._ids(ids), partial))
        else:
            midi = notes_to_midi(self.decode_notes(ids, partial))
        if path is not None:
            write_midi(midi, path)
        return midi_bytes(midi)


def _whole(numbers: list[int], size: int, partial: bool) -> list[int]:
    return numbers[: len(numbers) - len(numbers) % size] if partial else numbers


def _window(notes: list[MidiNote], start: float | None, end: float | None) -> list[MidiNote]:
    first = 0 if start is None else seconds_to_ticks(start)
    if first < 0 or (end is not None and seconds_to_ticks(end) <= first):
        raise ValueError(f"start must be at least 0 and before end, got start={start!r}, end={end!r}.")
    last = None if end is None else seconds_to_ticks(end)
    kept = []
    for note in notes:
        if note.onset < first or (last is not None and note.onset > last):
            continue
        duration = note.duration
        if last is not None and duration is not None:
            duration = min(duration, last - note.onset)
        kept.append(note._replace(onset=note.onset - first, duration=duration))
    return kept


__all__ = ["MidiTokenizer"]
