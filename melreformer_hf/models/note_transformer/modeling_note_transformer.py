"""Language model of notes: one position per note, its attributes written one after the other.

The structure is that of the spatial/depth transformers over residual codes (Lee et al., arXiv 2203.01941): a transformer
runs once per note, small heads then write time, pitch, duration, velocity and pedal in turn, each knowing those before.
`RQTransformerModel` itself does not serve: its codes share one vocabulary and its positions are a table of fixed length,
while notes have an own vocabulary per attribute, pieces have any length, and what matters is how many seconds ago a note
was. Positions are rotary over two clocks, order and time, within a sliding window, so that pieces have any length at
constant memory.

Notes that are given (a melody to accompany, what follows a gap) stand among the notes to come a few seconds before they
sound, as in the Anticipatory Music Transformer (Thickstun et al., arXiv 2306.08620). Deviations: the next given
notes are always in sight, which makes the original's rests unnecessary, and every position is told when the next given chords
come, because a given note's own time is counted from the moment when it came into sight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.hub.int8 import Int8StorageMixin
from melreformer_hf.hub.mixin import HubMixin
from melreformer_hf.models.note_transformer.blocks_note_transformer import (
    NoteBlock,
    NoteCache,
    NoteEmbedding,
    NoteHead,
    rotary_rates,
    rotary_table,
)
from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
from melreformer_hf.nn.attention import AttentionMixin, band_mask
from melreformer_hf.nn.phrases import PhraseFilter


@dataclass
class NoteTransformerOutput(ModelOutput):
    """Output of `NoteTransformerModel`.

    Args:
        loss: scalar, nats per note: the sum over attributes of the mean cross-entropies.
        attribute_losses: (attribute,) mean cross-entropy of each attribute in nats.
        last_hidden_state: (batch, position, hidden), the contexts from which the next notes are written.
        next_notes: (batch, attribute) int64, what `draw` has drawn.
    """

    loss: torch.FloatTensor | None = None
    attribute_losses: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    next_notes: torch.LongTensor | None = None


class NoteTransformerPreTrainedModel(HubMixin, Int8StorageMixin, AttentionMixin, PreTrainedModel):
    """Initial values and loading."""

    config_class = NoteTransformerConfig
    base_model_prefix = "note_transformer"
    main_input_name = "attributes"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NoteBlock"]
    _supports_sdpa = True
    # Weights from before a memory was asked for: it begins empty.
    _keys_to_ignore_on_load_missing = [r"phrases\.table"]
    card_pipeline_tag = "other"
    card_tags = ("music", "midi", "symbolic-music")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        spread = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, spread)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, spread)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, NoteEmbedding):
            init.copy_(module.offsets, module.initial_offsets())
        elif isinstance(module, PhraseFilter):
            init.zeros_(module.table)


class NoteTransformerModel(NoteTransformerPreTrainedModel):
    """Autoregressive model of notes.

    Args:
        config: sizes and window.

    Attributes:
        phrases: memory of the phrases that it was trained on, or `None`; `NoteSampler` does not write them again.

    Example:

        >>> import torch
        >>> from melreformer_hf.models.note_transformer.configuration_note_transformer import NoteTransformerConfig
        >>> from melreformer_hf.models.note_transformer.modeling_note_transformer import NoteTransformerModel
        >>> model = NoteTransformerModel(NoteTransformerConfig.preset("test")).eval()
        >>> roles, attributes = torch.tensor([[0, 2]]), torch.tensor([[[0, 0, 0, 0, 0], [0, 60, 20, 16, 0]]])
        >>> output = model(roles, attributes, seconds=torch.zeros(1, 2))
        >>> tuple(output.last_hidden_state.shape)
        (1, 2, 32)
    """

    def __init__(self, config: NoteTransformerConfig) -> None:
        super().__init__(config)
        self.embedding = NoteEmbedding(config, config.num_marks + config.num_note_roles)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([NoteBlock(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.head = NoteHead(config)
        remembered = config.phrase_filter_bytes, config.phrase_length
        self.phrases = PhraseFilter(*remembered) if config.phrase_filter_bytes else None
        self.post_init()

    def forward(
        self,
        roles: torch.Tensor,
        attributes: torch.Tensor,
        seconds: torch.Tensor,
        upcoming: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: NoteCache | None = None,
        draw: Callable[[NoteHead, torch.Tensor], torch.Tensor] | None = None,
        return_dict: bool | None = None,
    ) -> NoteTransformerOutput | tuple:
        """Contexts of the next notes, with `labels` their loss, with `draw` the note that follows the last position.

        Args:
            roles: (batch, position) int64: marks first, then notes (`processing.midi.sequences` names them).
            attributes: (batch, position, attribute) int64; those of positions that are no notes are not looked at. The
                time of a given note is that from the last played note's onset to its own.
            seconds: (batch, position) onsets in seconds; where a position is no note, the time it stands for.
            upcoming: (batch, position, 2 * num_upcoming) int64: of the next given chords, the nearest first, 1 + the time
                from the last played note to each and 1 + its highest pitch; 0 where there is none. `None` where nothing is
                given.
            labels: (batch, position, attribute) int64: the note that is played next, -100 where there is none to learn. A
                piece's end is a time of `config.end_id` with -100 for the other attributes.
            cache: of the positions before these; it is changed. `None` starts anew and keeps nothing.
            draw: writes a note with the head and the last position's context (batch, hidden): (batch, attribute). It is
                called here, so that offloaded and wrapped models have their weights at hand (`NoteSampler`).
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: shapes do not fit the configuration or one another.
        """
        self._check(roles, attributes, seconds, upcoming, labels)
        hidden = self.dropout(self.embedding(roles, attributes, roles >= self.config.num_marks, upcoming))
        rotary, mask = self._places(seconds, cache)
        for layer in self.layers:
            hidden = layer(hidden, rotary, mask, cache)
        if cache is not None:
            cache.seen += seconds.shape[1]
        output = NoteTransformerOutput(last_hidden_state=self.norm(hidden))
        if labels is not None:
            self._add_losses(output, labels)
        if draw is not None:
            output.next_notes = draw(self.head, output.last_hidden_state[:, -1])
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def lay_out_for_single_notes(self) -> NoteTransformerModel:
        """Let the weights of products lie in memory as (input, output): the same parameters, of which a CPU multiplies a
        single row by a third faster. Sums are then taken in another order, and differ in the last digits."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.t().contiguous().t()
        return self

    def _places(
        self, seconds: torch.Tensor, cache: NoteCache | None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor | None]:
        """The rotary codes of all positions, and which of the others each sees."""
        steps = seconds.shape[1]
        if cache is not None:
            return cache.rotary(seconds), cache.mask(steps, seconds.device)
        # Counted from the newest note: only differences matter, and small numbers keep float32's angles exact.
        places = torch.arange(1 - steps, 1, device=seconds.device)
        rotary = rotary_table(places[None], seconds - seconds[:, -1:], rotary_rates(self.config, seconds.device))
        return rotary, band_mask(places, places, self.config.window - 1, 0)

    def _check(
        self,
        roles: torch.Tensor,
        attributes: torch.Tensor,
        seconds: torch.Tensor,
        upcoming: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> None:
        expected = (*roles.shape, self.config.num_attributes)
        if roles.ndim != 2 or roles.shape[1] < 1:
            raise ValueError(f"roles must be (batch, position) with a position, got {tuple(roles.shape)}.")
        if attributes.shape != expected:
            raise ValueError(f"attributes must be {expected}, got {tuple(attributes.shape)}.")
        if seconds.shape != roles.shape:
            raise ValueError(f"seconds must be {tuple(roles.shape)}, got {tuple(seconds.shape)}.")
        chords = (*roles.shape, 2 * self.config.num_upcoming)
        if upcoming is not None and upcoming.shape != chords:
            raise ValueError(f"upcoming must be {chords}, got {tuple(upcoming.shape)}.")
        if labels is not None and labels.shape != expected:
            raise ValueError(f"labels must be {expected}, got {tuple(labels.shape)}.")

    def _add_losses(self, output: NoteTransformerOutput, labels: torch.Tensor) -> None:
        # Only where a played note follows: the heads are the costliest part, and given notes teach nothing.
        learned = labels[..., 0] != -100
        contexts, wanted = output.last_hidden_state[learned], labels[learned]  # (note, hidden), (note, attribute)
        logits = self.head(contexts, wanted.clamp(min=0))
        # Means per attribute, not per note: the end of a piece has a time alone.
        losses = [
            cross_entropy(values.float(), wanted[:, index], reduction="sum")
            / (wanted[:, index] != -100).sum().clamp(1)
            for index, values in enumerate(logits)
        ]
        output.attribute_losses = torch.stack(losses)
        output.loss = output.attribute_losses.sum()

    @torch.no_grad()
    def note_log_probabilities(self, output: NoteTransformerOutput, labels: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of each attribute's probability, (batch, position, attribute); zero where labels are -100."""
        logits = self.head(output.last_hidden_state, labels.clamp(min=0))
        columns = [
            -cross_entropy(values.float().movedim(-1, 1), labels[..., index], reduction="none")
            for index, values in enumerate(logits)
        ]
        return torch.stack(columns, dim=-1)


__all__ = ["NoteTransformerModel", "NoteTransformerOutput", "NoteTransformerPreTrainedModel"]
