"""Composer, performer, vocoder: music from notes that a model writes, or that a MIDI file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, takewhile
from typing import TypeAlias

import numpy as np
import torch

from melreformer_hf._threads import calm_number, made_ahead
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.audio.sampler import SampledInstrument

# Imported by name: diffusers resolves saved components among modules that are loaded.
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel
from melreformer_hf.models.note_ear.modeling_note_ear import NoteEarModel
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
from melreformer_hf.pipelines.composing import (
    DrawnNote,
    Score,
    accompany_notes,
    compose,
    compose_notes,
    continue_notes,
    fill_notes,
    sampling,
    watched,
)
from melreformer_hf.pipelines.hearing import (
    SYNTHS,
    Music,
    Snapshot,
    Snapshots,
    score_end,
    score_of,
    score_snapshots,
    written_snapshots,
)
from melreformer_hf.pipelines.mel_to_audio import CHUNK_FRAMES, MelToAudio
from melreformer_hf.pipelines.outputs import MidiMusicOutput
from melreformer_hf.pipelines.pipeline_utils import AudioPipeline, bare, check_count, check_seconds, row_generators
from melreformer_hf.processing.midi.attributes import notes_of_attributes
from melreformer_hf.processing.midi.notes import MidiNote

OUTPUT_TYPES = ("pt", "np", "mel", "notes", "midi")
Generators: TypeAlias = "torch.Generator | list[torch.Generator] | None"
# Longer than any piece: a stream whose end is not known beforehand.
_ENDLESS = 1 << 40


class MidiGenerationPipeline(MelToAudio, AudioPipeline):
    """Music generation by way of notes.

    Args:
        composer: writes notes.
        performer: makes notes a mel.
        vocoder: makes a mel audible.
        ear: hears notes in recordings; `None` for a pipeline that does not.

    Raises:
        ValueError: performer, vocoder and ear were trained with different mel contracts.

    Example:
        >>> import torch
        >>> from melreformer_hf import MidiGenerationPipeline
        >>> pipe = MidiGenerationPipeline.from_pretrained("piano-tiny")
        >>> output = pipe(audio_length_in_s=2, generator=torch.Generator().manual_seed(0))
        >>> output.audios.shape
        torch.Size([1, 1, 44032])
    """

    card_template = "midi_pipeline_card.md"
    card_tags = ("music", "midi", "symbolic-music", "mel-spectrogram", "vocoder")
    model_cpu_offload_seq = "composer->performer->vocoder"
    _optional_components = ["ear"]
    # Makes music loud enough whose loudest sample is not known yet: the peaks of pieces lie between 0.1 and 0.45.
    live_gain = 2.0

    def __init__(
        self,
        composer: NoteTransformerModel,
        performer: NotePerformerModel,
        vocoder: HifiVocoderModel | MelGanVocoderModel,
        ear: NoteEarModel | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(composer=composer, performer=performer, vocoder=vocoder, ear=ear)
        contract = bare(vocoder).config.mel_config
        bare(performer).config.mel_config.check_matches(contract, "performer", "vocoder")
        if ear is not None:
            bare(ear).config.mel_config.check_matches(contract, "ear", "vocoder")
        if isinstance(bare(composer), NoteTransformerModel):
            bare(composer).lay_out_for_single_notes()
        self._samples: SampledInstrument | None = None

    def check_inputs(self, num_waveforms: int, output_type: str, synth: str) -> None:
        """Raise ValueError naming argument, rule and value."""
        check_count("num_waveforms_per_prompt", num_waveforms)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if synth not in SYNTHS:
            raise ValueError(f"synth must be one of {SYNTHS}, got {synth!r}.")

    def compose(
        self,
        audio_length_in_s: float | None = None,
        *,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Score:
        """Write a piece from nothing: notes only.

        Args:
            audio_length_in_s: its length in seconds; `None` lets the composer end it, after ten minutes at the latest.
            temperature: divides the composer's logits, one number or one per attribute (time, pitch, duration,
                velocity, pedal); below 1 is more likely, above 1 more daring. `None` is the composer's own.
            top_p: draw among the likeliest values that together reach this probability; `None` is the composer's own.
            generator: its state decides the notes.

        Returns:
            `Score(notes, pedal)`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        seconds = self._seconds(audio_length_in_s)
        (row,) = row_generators(generator, 1)
        return compose(
            bare(self.composer), seconds, options=sampling(temperature, top_p), generator=row, module=self.composer
        )

    @torch.no_grad()
    def __call__(
        self,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        midi: Music | None = None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        output_type: str = "pt",
        synth: str = "performer",
        return_dict: bool = True,
    ) -> MidiMusicOutput | tuple:
        """Generate music, or play a MIDI file.

        Args:
            audio_length_in_s: length in seconds; `None` lets the composer end the piece, or plays the file to its end.
            num_waveforms_per_prompt: pieces; 1 with `midi`.
            midi: a file (path, bytes or binary file), `Score(notes, pedal)`, or notes, to be played as they are in place
                of notes that the composer writes. Drums are not played.
            temperature: as `compose`.
            top_p: as `compose`.
            generator: drives everything random; one, or one per piece. The same gives the same samples.
            output_type: what `audios` holds: sound (batch, channel, sample) as `pt` (tensor) or `np` (array), or, to
                stop earlier, `mel` (batch, mel, frame), `notes` or `midi` (lists of notes, or of the bytes of files).
            synth: what plays: the `performer`, or the `sampled` piano that comes with the package.
            return_dict: whether to return `MidiMusicOutput` rather than a tuple of `audios`.

        Raises:
            ValueError: an argument breaks its rule, or `midi` holds nothing to play.
        """
        self.check_inputs(num_waveforms_per_prompt, output_type, synth)
        seconds, scores = self._seconds(audio_length_in_s), []
        if midi is not None:
            if num_waveforms_per_prompt != 1:
                raise ValueError(f"num_waveforms_per_prompt must be 1 with midi, got {num_waveforms_per_prompt}.")
            scores.append(score_of(midi))
        else:
            options = sampling(temperature, top_p)
            for row in row_generators(generator, int(num_waveforms_per_prompt)):
                net = bare(self.composer)
                scores.append(compose(net, seconds, options=options, generator=row, module=self.composer))
        output = self.perform(scores, seconds, output_type=output_type, synth=synth)
        return output if return_dict else (output.audios,)

    def continue_(self, midi: Music, audio_length_in_s: float | None = None, **arguments) -> MidiMusicOutput:
        """Go on where a piece ends; its own notes stay as they are.

        Args:
            midi: the beginning, as `midi` of `__call__`.
            audio_length_in_s: length of the whole piece; `None` lets the composer end it.
            arguments: `num_waveforms_per_prompt`, `temperature`, `top_p`, `generator`, `output_type`, `synth` of
                `__call__`, and `callback_on_note` of `stream`; what that raises ends the work.

        Raises:
            ValueError: an argument breaks its rule, or the beginning has no notes or is longer than the whole.
        """
        score, seconds = score_of(midi), self._seconds(audio_length_in_s)
        return self._written(
            lambda **drawing: continue_notes(self._net, score, seconds, **drawing), seconds, **arguments
        )

    def fill(self, midi: Music, start: float, end: float, **arguments) -> MidiMusicOutput:
        """Write what is missing between two parts, which stay as they are.

        Args:
            midi: both parts, as `midi` of `__call__`; notes that begin within the gap are replaced.
            start: of the gap in seconds.
            end: of the gap in seconds.
            arguments: as `continue_`.

        Raises:
            ValueError: an argument breaks its rule, or there are no notes before or after the gap.
        """
        score = score_of(midi)
        return self._written(lambda **drawing: fill_notes(self._net, score, start, end, **drawing), None, **arguments)

    def accompany(self, midi: Music, audio_length_in_s: float | None = None, **arguments) -> MidiMusicOutput:
        """Write notes to a melody, which stays as it is.

        Args:
            midi: the melody, as `midi` of `__call__`.
            audio_length_in_s: where the piece ends; `None` ends it with the melody.
            arguments: as `continue_`.

        Raises:
            ValueError: an argument breaks its rule, or the melody has no notes.
        """
        score, seconds = score_of(midi), self._seconds(audio_length_in_s)
        return self._written(
            lambda **drawing: accompany_notes(self._net, score, seconds, **drawing), seconds, **arguments
        )

    def transcribe(self, waveform: np.ndarray | torch.Tensor, sampling_rate: int) -> Score:
        """Notes of a recording, by the ear.

        Args:
            waveform: (sample,) mono floating point, full scale at 1.
            sampling_rate: its samples per second.

        Raises:
            ValueError: the pipeline has no ear, or the waveform breaks a rule.
        """
        if self.ear is None:
            raise ValueError("This pipeline has no ear: it was saved without one.")
        try:
            return Score(bare(self.ear).transcribe(waveform, sampling_rate, module=self.ear))
        finally:
            self.maybe_free_model_hooks()

    @property
    def _net(self) -> NoteTransformerModel:
        return bare(self.composer)

    def _seconds(self, audio_length_in_s: float | None) -> float | None:
        return None if audio_length_in_s is None else check_seconds("audio_length_in_s", audio_length_in_s)

    def _written(
        self,
        write: Callable[..., Score],
        seconds: float | None,
        *,
        num_waveforms_per_prompt: int = 1,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        output_type: str = "pt",
        synth: str = "performer",
        callback_on_note: Callable[[DrawnNote], None] | None = None,
    ) -> MidiMusicOutput:
        self.check_inputs(num_waveforms_per_prompt, output_type, synth)
        rows = row_generators(generator, int(num_waveforms_per_prompt))
        drawing = {"options": sampling(temperature, top_p), "callback_on_note": callback_on_note}
        scores = [write(generator=row, module=self.composer, **drawing) for row in rows]
        return self.perform(scores, seconds, output_type=output_type, synth=synth)

    @torch.no_grad()
    def perform(
        self,
        scores: Sequence[Score],
        audio_length_in_s: float | None = None,
        *,
        output_type: str = "pt",
        synth: str = "performer",
        peak_db: float | None = -1.0,
    ) -> MidiMusicOutput:
        """Play pieces, whole: the concatenation of `stream_score`.

        Args:
            scores: one or more pieces.
            audio_length_in_s: length of all of them; `None` lets each die away.
            output_type: as `__call__`.
            synth: as `__call__`.
            peak_db: the output's.

        Raises:
            ValueError: an argument breaks its rule.
        """
        self.check_inputs(len(scores), output_type, synth)
        lengths = [self._frames(score, audio_length_in_s) for score in scores]
        num_frames, hop = torch.tensor(lengths), self.mel_config.hop_length
        output = MidiMusicOutput(
            audios=[],
            num_samples=num_frames * hop,
            sampling_rate=self.sampling_rate,
            peak_db=peak_db,
            mels=torch.zeros(len(scores), self.mel_config.num_mel_bins, 0),
            num_frames=num_frames,
            notes=[list(score.notes) for score in scores],
            pedal=[list(score.pedal) for score in scores],
        )
        if output_type in ("notes", "midi"):
            output.audios = output.notes if output_type == "notes" else output.midi
            return output
        played = [
            self._played(score, frames, synth, output_type != "mel")
            for score, frames in zip(scores, lengths, strict=True)
        ]
        mels, audios = zip(*played, strict=True)
        self.maybe_free_model_hooks()
        output.mels = joined_rows(mels, self.mel_config.floor_value)
        output.audios = output.mels if output_type == "mel" else joined_rows(audios, 0.0)
        if output_type == "np":
            output.audios = output.audios.cpu().numpy()
        return output

    def _played(self, score: Score, frames: int, synth: str, audible: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel (1, mel, frame) and, where it is asked for, sound (1, 1, sample) of a piece."""
        known = self._known(score, frames, CHUNK_FRAMES, synth)
        if synth == "sampled":
            audio = torch.cat(list(self._sampled(known)), dim=-1)
            return log_mel_spectrogram(audio[:, 0], self.mel_config), audio
        if not audible:
            mel = torch.cat(list(bare(self.performer).stream(known, module=self.performer)), dim=-1).float()
            return mel, mel[:, :1, :0]
        pieces: list[torch.Tensor] = []
        audio = torch.cat(list(self._audible(known, frames, synth, pieces.append)), dim=-1)
        return torch.cat(pieces, dim=-1), audio

    def stream_score(
        self,
        score: Score,
        audio_length_in_s: float | None = None,
        *,
        chunk_length_in_s: float | None = None,
        synth: str = "performer",
        callback_on_mel: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Play a piece and yield it chunk by chunk, at constant memory; arguments as `stream`."""
        self.check_inputs(1, "pt", synth)
        frames, chunk = self._frames(score, audio_length_in_s), self.chunk_frames_of(chunk_length_in_s)
        known = self._known(score, frames, chunk, synth)
        yield from self.calmly(self._audible(known, frames, synth, callback_on_mel))

    def stream(
        self,
        audio_length_in_s: float | None = None,
        *,
        midi: Music | None = None,
        prompt: Music | None = None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        synth: str = "performer",
        chunk_length_in_s: float | None = None,
        callback_on_note: Callable[[DrawnNote], None] | None = None,
        callback_on_mel: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Generate music and yield it while its notes are written, at constant memory whatever its length.

        The composer writes no more notes than the next chunk needs; on a CPU with two threads or more it writes those
        of one chunk ahead, in a thread of its own, while the others play.

        Args:
            audio_length_in_s: as `__call__`; with `prompt` as `continue_`.
            midi: as `__call__`.
            prompt: a beginning that is played and gone on with, as `continue_` does.
            temperature: as `__call__`.
            top_p: as `__call__`.
            generator: as `__call__`, one.
            synth: as `__call__`.
            chunk_length_in_s: about how much audio a chunk holds; default 1.5 seconds, about.
            callback_on_note: told every note after it was written, before it sounds; not those of `midi` and `prompt`.
            callback_on_mel: told every (1, mel, frame) piece of the performer's mel before it becomes audible.

        Yields:
            (1, 1, sample) tensors whose concatenation equals the `audios` of `__call__` (or `continue_`) with the same
            generator.

        Raises:
            ValueError: an argument breaks its rule (when the first chunk is asked for).
        """
        self.check_inputs(1, "pt", synth)
        if midi is not None:
            if prompt is not None:
                raise ValueError("midi plays a piece and prompt goes on with one; give one of them, got both.")
            played = {"chunk_length_in_s": chunk_length_in_s, "synth": synth, "callback_on_mel": callback_on_mel}
            yield from self.stream_score(score_of(midi), audio_length_in_s, **played)
            return
        seconds, begun = self._seconds(audio_length_in_s), Score([]) if prompt is None else score_of(prompt, "prompt")
        (row,) = row_generators(generator, 1)
        drawing = {"options": sampling(temperature, top_p), "generator": row, "module": self.composer}
        frames = None if seconds is None else self.frames_of(seconds)
        chunks = {"num_frames": frames, "chunk": self.chunk_frames_of(chunk_length_in_s), "tail": self._tail(synth)}

        def compose(stopped: Callable[[], bool]) -> Iterator[tuple[Snapshot | None, list[DrawnNote]]]:
            drawn = compose_notes(self._net, seconds=seconds, prompt=begun, **drawing)
            wanted = takewhile(lambda note: not stopped(), drawn)
            return composed_snapshots(wanted, begun, rate=self.mel_config.frame_rate, **chunks)

        overlap = self._overlaps()
        with closing(made_ahead(compose) if overlap else compose(lambda: False)) as composed:
            known = told_snapshots(composed, callback_on_note)
            audible = self._audible(known, frames or _ENDLESS, synth, callback_on_mel)
            yield from self.calmly(audible, others=int(overlap))

    def _overlaps(self) -> bool:
        """Whether the composer writes in a thread of its own while what it wrote is played."""
        # Beside a GPU both threads would wait for Python to start kernels; an autocast does not reach another thread.
        device = self._execution_device
        return device.type == "cpu" and calm_number(device) > 1 and not torch.is_autocast_enabled("cpu")

    def _frames(self, score: Score, audio_length_in_s: float | None) -> int:
        seconds = score_end(*score) if audio_length_in_s is None else audio_length_in_s
        return self.frames_of(seconds)

    def _known(self, score: Score, frames: int, chunk: int, synth: str) -> Snapshots:
        rate = self.mel_config.frame_rate
        return score_snapshots(*score, num_frames=frames, chunk=chunk, rate=rate, tail=self._tail(synth))

    def _tail(self, synth: str) -> float:
        """Seconds that a note may be heard after its damper fell."""
        return bare(self.performer).memory_in_s if synth == "performer" else self._piano.longest_tail

    @property
    def _piano(self) -> SampledInstrument:
        if self._samples is None:
            self._samples = SampledInstrument(None, self.sampling_rate)
        return self._samples

    @torch.no_grad()
    def _audible(
        self,
        known: Snapshots,
        frames: int,
        synth: str,
        callback_on_mel: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Sound (1, 1, sample) of notes as they become known, at most so many frames of it."""
        if synth == "sampled":
            yield from self._sampled(known)
            return
        mels = bare(self.performer).stream(known, module=self.performer)
        yield from self.make_audible(mels, torch.tensor([frames]), callback_on_mel)

    def _sampled(self, known: Snapshots) -> Iterator[torch.Tensor]:
        hop, done = self.mel_config.hop_length, 0
        for notes, until in known:
            yield self._piano.render(notes.as_arrays(), done * hop, until * hop)[None]
            done = until


def struck_notes(drawn: Iterable[DrawnNote]) -> Iterator[tuple[MidiNote, bool]]:
    """Notes as they are drawn, each with whether the pedal is down from its onset on."""
    for note in drawn:
        alone = np.array([[0, *note.row[1:]]])
        yield notes_of_attributes(alone, int(note.onset))[0], bool(note.row[-1])


def composed_snapshots(
    drawn: Iterable[DrawnNote], begun: Score, **lengths
) -> Iterator[tuple[Snapshot | None, list[DrawnNote]]]:
    """What is known of a piece while it is composed.

    Args:
        drawn: its notes, as they are drawn.
        begun: what it begins with.
        lengths: of `written_snapshots`.

    Yields:
        a snapshot, and the notes that were drawn since the one before; at last `None` with those that are left.
    """
    fresh: list[DrawnNote] = []
    given = ((note, None) for note in sorted(begun.notes, key=lambda note: (note.onset, note.pitch)))
    notes = chain(given, struck_notes(watched(drawn, fresh.append)))
    for snapshot in written_snapshots(notes, begun.pedal, **lengths):
        yield snapshot, fresh.copy()
        fresh.clear()
    yield None, fresh


def told_snapshots(
    composed: Iterable[tuple[Snapshot | None, list[DrawnNote]]], callback: Callable[[DrawnNote], None] | None
) -> Snapshots:
    """The snapshots of `composed_snapshots`, whose notes are told, in the thread that plays, before they sound."""
    for snapshot, notes in composed:
        if callback is not None:
            for note in notes:
                callback(note)
        if snapshot is not None:
            yield snapshot


def joined_rows(rows: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """(1, channel, length) each, as one tensor (batch, channel, longest)."""
    longest = max(row.shape[-1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[-1]), value=value) for row in rows])


__all__ = ["MidiGenerationPipeline"]
