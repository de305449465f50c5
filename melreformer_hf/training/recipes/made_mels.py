"""Mels that a trained model makes, for a vocoder that will have to sound them.

A mel of a recording and one that a model made of the same music are not alike: the model's is smoother and has errors of
its own. Whatever else makes mels of items of a dataset stands in the place of `PerformedMels` with the same methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.audio.stft import full_precision
from melreformer_hf.models.note_performer.configuration_note_performer import NotePerformerConfig
from melreformer_hf.models.note_performer.modeling_note_performer import NotePerformerModel
from melreformer_hf.training.recipes.companions import Companion
from melreformer_hf.training.recipes.performer import padded_notes

_COLUMNS = ("onset", "release", "pitch", "velocity")


class PerformedMels:
    """Mels that a performer makes of the notes of performances.

    Args:
        place: folder or Hub id of a performer, or of a saved pipeline that has one; or the name of a bundled pipeline.
        mel: the contract of the mels that are needed.

    Raises:
        ValueError: there is no performer, or its mel contract is another one.
    """

    def __init__(self, place: str, mel: MelConfig) -> None:
        self.mel, self.place = mel, place
        self._found = Companion.find("performer", "a performer", place, "performer", NotePerformerConfig)
        self._found.config.mel_config.check_matches(mel, "options.performer", "this training")
        # Seconds around a crop in which notes may matter to it; the model narrows them down.
        self._before = self._after = math.inf

    def load(self) -> NotePerformerModel:
        """The model, which is handed to `mels` later."""
        model = NotePerformerModel.from_pretrained(
            self._found.folder, subfolder=self._found.subfolder, dtype=torch.float32
        )
        self._before = model.memory_in_s
        self._after = model.lookahead_frames * self.mel.hop_length / self.mel.sampling_rate
        return model

    def inputs(self, item: Mapping, num_frames: int) -> dict[str, torch.Tensor]:
        """What the model has to know of an item, to be collated.

        Args:
            item: of a `PerformanceStore`; its `notes` count from the crop's beginning.
            num_frames: length of the crop.
        """
        notes = item["notes"]
        end = num_frames * self.mel.hop_length / self.mel.sampling_rate
        return padded_notes(notes.where((notes.release > -self._before) & (notes.onset < end + self._after)))

    @torch.no_grad()
    def mels(
        self, model: NotePerformerModel, batch: Mapping[str, torch.Tensor], rows: torch.Tensor, num_frames: int
    ) -> torch.Tensor:
        """The mels of some rows of a batch: (row, mel, frame) float32, computed in full precision.

        Args:
            model: what `load` gave.
            batch: collated `inputs`, on any device.
            rows: (batch,) bool.
            num_frames: length of the crops.
        """
        device = next(model.parameters()).device
        notes = {name: batch[name][rows].to(device) for name in _COLUMNS}
        with full_precision(notes["onset"]):
            return model(**notes, num_frames=num_frames).log_mel.float()


__all__ = ["PerformedMels"]
