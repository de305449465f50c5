"""How the ear listens: waveforms or mels of any length to notes, at constant memory and as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import ceil

import numpy as np
import torch

from melreformer_hf.audio.io import resample_stream
from melreformer_hf.audio.mel import log_mel_spectrogram
from melreformer_hf.models.note_ear.decoding_note_ear import NoteDecoder
from melreformer_hf.nn.streaming import Overlap
from melreformer_hf.processing.feature_extraction_mel import check_waveform
from melreformer_hf.processing.midi.notes import MidiNote

# A recording is taken in pieces of this length, so that memory does not grow with it.
_PIECE_IN_S = 20.0


class ListeningMixin:
    """Transcription by a model whose `forward` makes a `NoteEarOutput` of a log-mel."""

    @property
    def waveform_reach_steps(self) -> tuple[int, int]:
        """Steps (before, after) of the waveform that what is heard in a step depends on, the mel's windows included."""
        mel, (before, after) = self.config.mel_config, self.receptive_field_steps
        # A frame's window begins so many samples before the frame's own, and ends so many after them.
        left, right = (ceil(samples / self.config.step_samples) for samples in mel.padding)
        return before + left, after + right

    def transcribe(
        self, waveform: np.ndarray | torch.Tensor, sampling_rate: int, module: Callable | None = None
    ) -> list[MidiNote]:
        """Notes of a recording, in the order of onset and pitch.

        Args:
            waveform: (sample,) mono floating point, full scale at 1, of any length.
            sampling_rate: its samples per second; another rate than the contract's is resampled.
            module: called in place of the model: the model in a wrapper, such as `torch.compile(model)`.

        Raises:
            ValueError: not mono, empty, integer or not finite; or a rate that is not positive.
        """
        pieces = check_waveform(waveform).split(max(1, round(_PIECE_IN_S * sampling_rate)))
        notes = self.transcribe_stream(pieces, sampling_rate, module=module, block_length_in_s=_PIECE_IN_S)
        return sorted(notes, key=lambda note: (note.onset, note.pitch))

    def transcribe_stream(
        self,
        chunks: Iterable[np.ndarray | torch.Tensor],
        sampling_rate: int,
        module: Callable | None = None,
        block_length_in_s: float = 1.0,
    ) -> Iterator[MidiNote]:
        """Notes of a recording that arrives in chunks, each when it has ended; the same notes as of the whole.

        Args:
            chunks: (sample,) each, of any lengths, one after another in time.
            sampling_rate: their samples per second.
            module: see `transcribe`.
            block_length_in_s: seconds that are computed at once. Shorter ones tell of notes earlier and cost more, since
                every block is computed with its whole context.

        Raises:
            ValueError: see `transcribe`; or a block length that is not positive.
        """
        self._check_block(block_length_in_s)
        step = self if module is None else module
        mel = self.config.mel_config
        device = next(self.parameters()).device

        def hear(steps: torch.Tensor) -> torch.Tensor:
            samples = steps.transpose(1, 2).flatten(1).to(device)  # (1, step * step_samples)
            return self._heard(step, log_mel_spectrogram(samples, mel))

        given = (check_waveform(chunk) for chunk in chunks)
        resampled = resample_stream((chunk.numpy() for chunk in given), sampling_rate, mel.sampling_rate)
        rows = (torch.from_numpy(chunk)[None, None] for chunk in resampled)  # (1, 1, sample)
        # A window has to fit, however short the recording is.
        least = max(max(mel.padding) + 1, mel.n_fft - sum(mel.padding))
        steps = _whole_steps(rows, self.config.step_samples, 0.0, least)
        yield from self._notes(steps, hear, self.waveform_reach_steps, block_length_in_s)

    def transcribe_mel(self, mel_chunks: torch.Tensor | Iterable[torch.Tensor]) -> list[MidiNote]:
        """Notes of a log-mel, in the order of onset and pitch.

        Args:
            mel_chunks: (1, mel, frame) under the model's contract, or an iterable of such, one after another in time.

        Raises:
            ValueError: another shape.
        """
        bins, device = self.config.num_mel_bins, next(self.parameters()).device
        whole = isinstance(mel_chunks, torch.Tensor)
        frames = max(1, round(_PIECE_IN_S * self.config.sampling_rate / self.config.hop_length))
        pieces = mel_chunks.split(frames, dim=-1) if whole else mel_chunks

        def checked() -> Iterator[torch.Tensor]:
            for piece in pieces:
                if piece.ndim != 3 or piece.shape[:2] != (1, bins):
                    raise ValueError(f"mel_chunks must be (1, {bins}, frames), got {tuple(piece.shape)}.")
                yield piece.detach()

        def hear(steps: torch.Tensor) -> torch.Tensor:
            # (1, mel * fold, step) -> (1, mel, frame)
            folded = steps.unflatten(1, (bins, self.config.fold_size)).transpose(2, 3)
            return self._heard(self, folded.flatten(2).to(device))

        steps = _whole_steps(checked(), self.config.fold_size, self.config.mel_config.floor_value)
        notes = self._notes(steps, hear, self.receptive_field_steps, _PIECE_IN_S)
        return sorted(notes, key=lambda note: (note.onset, note.pitch))

    def _check_block(self, block_length_in_s: float) -> None:
        if not block_length_in_s > 0:
            raise ValueError(f"block_length_in_s must be positive, got {block_length_in_s}.")

    @torch.no_grad()
    def _heard(self, module: Callable, log_mel: torch.Tensor) -> torch.Tensor:
        """(1, mel, frame) -> (4 * key, step), probabilities and velocities."""
        output = module(log_mel, return_dict=True)
        logits = torch.stack([output.onset_logits, output.frame_logits, output.offset_logits], dim=2).float().sigmoid()
        heard = torch.cat([logits, output.velocities.float().unsqueeze(2)], dim=2)  # (1, step, 4, key)
        return heard[0].flatten(1).T.cpu()

    def _notes(
        self,
        steps: Iterable[torch.Tensor],
        hear: Callable[[torch.Tensor], torch.Tensor],
        reach: tuple[int, int],
        block_length_in_s: float,
    ) -> Iterator[MidiNote]:
        """Notes of steps (1, value, step): every step is heard with as much context as `reach` says."""
        block = max(1, round(block_length_in_s / self.config.step_in_s))
        decoder, overlap = NoteDecoder(self.config), Overlap()

        def decided(heard: torch.Tensor | None, last: bool = False) -> list[MidiNote]:
            heard = torch.zeros(4 * self.config.num_keys, 0) if heard is None else heard
            return decoder.feed(heard.T.unflatten(1, (4, self.config.num_keys)).numpy(), last)

        for chunk in steps:
            overlap = overlap.join(chunk)
            if overlap.waiting >= block + reach[1]:
                heard, overlap = overlap.settle(lambda held, _: hear(held), reach, 1)
                yield from decided(heard)
        heard, _ = overlap.settle(lambda held, _: hear(held), reach, 1, last=True)
        yield from decided(heard, last=True)


def _whole_steps(chunks: Iterable[torch.Tensor], size: int, filler: float, least: int = 1) -> Iterator[torch.Tensor]:
    """Chunks (1, value, any length) as steps of `size`: (1, value * size, step); the last step is filled up.

    What is shorter than `least` as a whole is filled up to that.
    """
    held, total = None, 0
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=-1)
        whole = held.shape[-1] // size
        if whole and total + held.shape[-1] >= least:
            yield _folded(held[..., : whole * size], size)
            held, total = held[..., whole * size :], total + whole * size
    if held is not None and (held.shape[-1] or not total):
        length = max(held.shape[-1], 0 if total else least)
        yield _folded(
            torch.nn.functional.pad(held, (0, -(-length // size) * size - held.shape[-1]), value=filler), size
        )


def _folded(values: torch.Tensor, size: int) -> torch.Tensor:
    """(1, value, step * size) -> (1, value * size, step)."""
    return values.unflatten(-1, (-1, size)).transpose(2, 3).flatten(1, 2)


__all__ = ["ListeningMixin"]
