"""Performer: notes to log-mel spectrograms of any length.

The notes of a struck instrument are nearly independent of each other, and each sounds the same whenever its key is struck
alike. So the model is a table of the spectra of single notes (key and age), whose energies are added, then a room, then a
small convolutional net that corrects the logarithm of the sum (`blocks_note_performer`). Differentiable, additive
synthesis with learned parts is known from DDSP (Engel et al., arXiv 2001.04643) and its piano (Renault et al.); here the
parts are whole mel spectra, found by table look-up, so that the cost does not grow with the number of partials.

It is a family of its own, not a condition of the expansion: a convolutional net of 1.7 M parameters over key features
had 0.41 nats of log-mel L1 and a time sharpness of 0.18 on held-out pieces where a first sum of note spectra, trained for
as long on fewer examples, had 0.34 and 0.31.

Every frame is a function of the notes around it alone: nothing is carried from frame to frame, so that any stretch of a
piece is computed by itself, and streams equal what is made in one go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.audio.stft import full_precision
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.note_performer.blocks_note_performer import Correction, NoteSounds, Room
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.nn.convnext import ConvNeXtBlock, init_convnext_block
from melreformer_hf.nn.sounding import SoundingNotes

# Frames that are computed at a time: enough to make the context on both sides cheap, few enough for little memory.
_PIECE_FRAMES = 512
# Numbers of notes are rounded up to a multiple: a compiled model meets few different shapes.
_NOTES_STEP = 16


@dataclass
class NotePerformerOutput(ModelOutput):
    """Output of `NotePerformerModel`.

    Args:
        log_mel: (batch, mel, frame) under `config.mel_config`.
    """

    log_mel: torch.FloatTensor | None = None


class NotePerformerPreTrainedModel(HubMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = NotePerformerConfig
    base_model_prefix = "note_performer"
    main_input_name = "onset"
    card_pipeline_tag = "other"
    card_tags = ("music", "midi", "mel-spectrogram", "piano")
    _no_split_modules = ["NoteSounds", "ConvNeXtBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (NoteSounds, Room)):
            module.init_weights()
        elif isinstance(module, ConvNeXtBlock):
            init_convnext_block(module, std)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.trunc_normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, NotePerformerModel):
            init.constant_(module.floor, module.floor_level)


class NotePerformerModel(NotePerformerPreTrainedModel):
    """Notes to log-mels, whole or as a stream.

    Args:
        config: sizes.

    Example:
        >>> import numpy as np
        >>> from melreformer_hf import NotePerformerConfig, NotePerformerModel, SoundingNotes
        >>> model = NotePerformerModel(NotePerformerConfig.preset("test")).eval()
        >>> chord = SoundingNotes(np.array([0.1, 0.1]), np.array([1.0, 1.5]), np.array([60, 64]), np.array([70, 80]))
        >>> tuple(model.perform(chord, num_frames=100).shape)
        (1, 128, 100)
    """

    def __init__(self, config: NotePerformerConfig) -> None:
        super().__init__(config)
        mel = config.mel_config
        self.num_mel_bins, self.hop_length, self.sampling_rate = mel.num_mel_bins, mel.hop_length, mel.sampling_rate
        # Natural logarithms of magnitudes become values of the contract by a factor and an offset.
        self.unit = mel.log_multiplier * mel.power / (math.log(10) if mel.log_base == "10" else 1.0)
        self.offset, self.floor_value, self.clip_max = mel.log_offset, mel.floor_value, mel.clip_max
        self.floor_level = math.log(mel.log_floor) / mel.power
        self.sounds = NoteSounds(config)
        self.room = Room(mel.num_mel_bins, config.room_frames)
        self.floor = nn.Parameter(torch.empty(mel.num_mel_bins))
        self.correction = Correction(config)
        self.post_init()

    @property
    def lookahead_frames(self) -> int:
        """Frames that have to be waited for: what happens at the beginning of frame t may change frames from here before."""
        ahead = -self.config.first_age_in_s * self.sampling_rate / self.hop_length
        return self.correction.reach + math.ceil(ahead + 0.5)

    @property
    def memory_in_s(self) -> float:
        """Seconds after its damper fell in which a note may still be heard."""
        frames = self.config.room_frames + self.correction.reach + 1
        return self.config.release_tail_in_s + frames * self.hop_length / self.sampling_rate

    def forward(
        self,
        onset: torch.Tensor,
        release: torch.Tensor,
        pitch: torch.Tensor,
        velocity: torch.Tensor,
        num_frames: int,
        first_frame: int = 0,
        return_dict: bool | None = None,
        spectra: torch.Tensor | None = None,
    ) -> NotePerformerOutput | tuple[torch.Tensor]:
        """Play frames of a piece.

        Args:
            onset: (batch, note) seconds at which notes are struck, in any order.
            release: (batch, note) seconds at which their dampers fall, `inf` where that is not known.
            pitch: (batch, note) MIDI pitch, whole numbers.
            velocity: (batch, note) MIDI velocity 1..127, whole numbers; 0 where a row has fewer notes.
            num_frames: how many.
            first_frame: number of the first; the middle of frame 0 is half a hop after time zero.
            return_dict: `False` gives a tuple.
            spectra: `sounds.energies()`, for callers that play many short stretches; `None` computes it anew.

        Raises:
            ValueError: shapes differ, there is no note, or `num_frames` is below 1.
        """
        shapes = [tuple(column.shape) for column in (onset, release, pitch, velocity)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2 or not all(shapes[0]):
            raise ValueError(
                f"onset, release, pitch and velocity must be (batch, note) with one note at least, got {shapes}. Fill "
                "rows that have none with notes of velocity 0."
            )
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
        reach = self.correction.reach
        begin = first_frame - reach - self.config.room_frames
        frames = torch.arange(begin, first_frame + num_frames + reach, device=onset.device)
        with full_precision(onset):  # energies of single notes are far apart
            times = (frames + 0.5) * (self.hop_length / self.sampling_rate)
            energy = self.room(self.sounds(onset, release, pitch, velocity, times, spectra))
            level = (
                0.5 * (energy + (2 * self.floor.float()).exp()[:, None]).log()
            )  # (batch, mel, reach + frame + reach)
        correction = self.correction(level.to(self.floor.dtype)).float()
        mel = (level[..., reach : level.shape[-1] - reach] + correction) * self.unit + self.offset
        mel = mel.clamp(self.floor_value, self.clip_max).to(self.floor.dtype)
        return (mel,) if return_dict is False else NotePerformerOutput(log_mel=mel)

    def perform(self, notes: SoundingNotes, num_frames: int) -> torch.Tensor:
        """Play a piece from its beginning.

        Args:
            notes: see `SoundingNotes`; those that begin after the end are not played.
            num_frames: length.

        Returns:
            (1, mel, frame) on the model's device.

        Raises:
            ValueError: as `stream`.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
        return torch.cat(list(self.stream([(notes, num_frames)])), dim=-1)

    @torch.no_grad()
    def stream(
        self, snapshots: Iterable[tuple[SoundingNotes, int]], module: Callable | None = None
    ) -> Iterator[torch.Tensor]:
        """Play a piece that becomes known little by little; what comes out, joined, equals `perform` of the whole.

        The output lags `lookahead_frames` behind what is known, and memory does not grow with the length.

        Args:
            snapshots: (notes, until): all that happens before the beginning of frame `until` is known. Of the notes, those
                that begin later are not looked at; those whose damper fell before an earlier snapshot's `until` may be
                left out.
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.

        Yields:
            (1, mel, frame), the frames that are settled.

        Raises:
            ValueError: `until` goes back, or notes are not finite, of no MIDI pitch or velocity, or end before they begin.
        """
        # Short pieces would spend most of their time on the exponentials of the table.
        step = partial(self if module is None else module, spectra=self.sounds.energies())
        hop = self.hop_length / self.sampling_rate
        current, ended, done, known = SoundingNotes.none(), SoundingNotes.none(), 0, 0
        for notes, until in snapshots:
            if until < known:
                raise ValueError(f"until must not go back: got {until} after {known}.")
            told = checked_notes(notes)
            known, told = until, told.where(told.onset < until * hop)
            current = ended.where(~np.isin(_names(ended), _names(told))).joined(told)
            settled = max(done, known - self.lookahead_frames)
            yield from self._pieces(step, current, done, settled)
            done = settled
            # What has ended does not change any more, and is heard for a while.
            ended = current.where((current.release < known * hop) & (current.release > done * hop - self.memory_in_s))
        yield from self._pieces(step, current, done, known)

    def _pieces(self, step: Callable, notes: SoundingNotes, begin: int, end: int) -> Iterator[torch.Tensor]:
        """Frames [begin, end), a few hundred at a time, each of the notes that matter for them."""
        hop, ahead = self.hop_length / self.sampling_rate, (self.correction.reach + 1) * self.hop_length
        for first in range(begin, end, _PIECE_FRAMES):
            count = min(_PIECE_FRAMES, end - first)
            earliest = first * hop - self.memory_in_s
            latest = (first + count) * hop + ahead / self.sampling_rate - self.config.first_age_in_s
            heard = notes.where((notes.release > earliest) & (notes.onset < latest))
            # Counted from the piece's first frame, so that float32 is as exact after hours as in the first second.
            heard = replace(heard, onset=heard.onset - first * hop, release=heard.release - first * hop)
            output = step(**self._row(heard), num_frames=count, return_dict=True)
            yield output.log_mel

    def _row(self, notes: SoundingNotes) -> dict[str, torch.Tensor]:
        """A batch of one, filled with notes of velocity 0."""
        missing = -len(notes) % _NOTES_STEP or (0 if len(notes) else _NOTES_STEP)
        columns = {}
        for name, kind in (
            ("onset", torch.float32),
            ("release", torch.float32),
            ("pitch", torch.int64),
            ("velocity", torch.int64),
        ):
            padded = np.pad(getattr(notes, name), (0, missing))
            columns[name] = torch.as_tensor(padded).to(self.floor.device, kind)[None]
        return columns


def checked_notes(notes: SoundingNotes) -> SoundingNotes:
    """The notes with numpy columns, or a ValueError that names column, rule and value."""
    notes = notes.as_arrays()
    rules = (
        ("onset", np.isfinite(notes.onset) & (notes.onset >= 0), "finite and at least 0 s"),
        ("release", notes.release >= notes.onset, "at or after the onset"),
        ("pitch", (notes.pitch >= 0) & (notes.pitch < 128), "in 0..127"),
        ("velocity", (notes.velocity >= 1) & (notes.velocity < 128), "in 1..127"),
    )
    for name, holds, rule in rules:
        if not holds.all():
            place = int(np.argmin(holds))
            raise ValueError(f"notes.{name}[{place}] must be {rule}, got {getattr(notes, name)[place]}.")
    return notes


def _names(notes: SoundingNotes) -> np.ndarray:
    """A number for each note, by which two snapshots' notes are known as one: its onset in microseconds, and its pitch."""
    return np.rint(notes.onset * 1e6).astype(np.int64) * 128 + notes.pitch


__all__ = ["NotePerformerModel", "NotePerformerOutput", "NotePerformerPreTrainedModel", "checked_notes"]
