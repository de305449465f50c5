"""The expansion of any length: local attention on one time axis, a rolling cache, and a head that finishes columns.

With a decoder, windows follow one another: a sampling head draws each window after the ones before it, while the post-net
corrects the decoder's columns behind it. Without one, the head works on the encoder's drawing of all columns at once.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from melreformer_hf.audio.fold import fold, unfold
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.encoder_mel_reformer import ColumnCurves, IdeaEncoder, stretch_of
from melreformer_hf.models.mel_reformer.heads_mel_reformer import SAMPLERS, HeadInputs, PostNet
from melreformer_hf.models.mel_reformer.timing_mel_reformer import column_of, interpolate_columns
from melreformer_hf.nn.attention import FeedForward, NeighborAttention, WindowedSelfAttention
from melreformer_hf.nn.seeded_noise import seeded_noise
from melreformer_hf.nn.streaming import Overlap

_CLOCK_SIZE = 6


@dataclasses.dataclass
class EncodedIdea:
    """An idea after the encoder: everything that decoding needs, of constant size whatever the length.

    Args:
        idea: (batch, mel, column), normalized.
        states: (batch, column, hidden).
        memories: keys and values per decoder layer, (batch, column, 2 * hidden) each.
        num_frames: (batch,).
        coefficients: (batch, column, mel * num_bases) of the curves inside each column.
    """

    idea: torch.Tensor
    states: torch.Tensor
    memories: list[torch.Tensor]
    num_frames: torch.Tensor
    coefficients: torch.Tensor

    def repeated(self, count: int) -> EncodedIdea:
        """Every idea `count` times in a row, for as many stretches of its piece."""
        if count == 1:
            return self
        memories = [memory.repeat_interleave(count, 0) for memory in self.memories]
        idea, states, num_frames, coefficients = (
            value.repeat_interleave(count, 0) for value in (self.idea, self.states, self.num_frames, self.coefficients)
        )
        return EncodedIdea(idea, states, memories, num_frames, coefficients)


@dataclasses.dataclass(frozen=True)
class ExpansionState:
    """A free expansion between two chunks: of constant size whatever the length.

    Args:
        encoded: the idea.
        longest: frames of the longest row.
        previous: (batch, mel, fold_size) columns of the last step, normalized; `None` without a decoder.
        seeds: (batch,) of the noise.
        temperature: (batch, 1, 1), the noise is scaled by this.
        caches: rolling keys and values per decoder layer.
        step: steps that were decoded.
        overlap: decoded columns that wait for those after them, which the post-net looks at.
        emitted: frames that were given away.
    """

    encoded: EncodedIdea
    longest: int
    previous: torch.Tensor | None
    seeds: torch.Tensor
    temperature: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    step: int = 0
    overlap: Overlap = Overlap()
    emitted: int = 0


class DecoderLayer(nn.Module):
    """Causal attention within a window of steps, attention to the nearest columns, a perceptron."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.self_attention = WindowedSelfAttention(size, heads, config.decoder_window, 0)
        self.cross_attention = NeighborAttention(size, heads, config.cross_reach)
        self.feed_forward = FeedForward(size, config.intermediate_size)

    def forward(
        self,
        hidden: torch.Tensor,
        memory: torch.Tensor,
        place: torch.Tensor,
        start: int = 0,
        cache: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """(batch, step, hidden) -> the same shape and the rolling cache."""
        attended, cache = self.self_attention(hidden, start, cache)
        hidden = hidden + attended
        hidden = hidden + self.cross_attention(hidden, memory, place)
        return hidden + self.feed_forward(hidden), cache


class Drawing(nn.Module):
    """The encoder's curves and nothing more: what is in the decoder's place where there is none."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.layers: nn.ModuleList = nn.ModuleList()
        self.curves = ColumnCurves(config.num_bases, config.frames_per_column)


class WindowDecoder(nn.Module):
    """One step makes `fold_size` columns from the previous ones and the aligned idea."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.fold_size, self.context_frames = config.fold_size, config.context_frames
        window = config.num_mel_bins * config.fold_size
        surrounding = config.num_mel_bins * (config.fold_size + 2 * config.context_frames)
        self.previous = nn.Linear(window, config.hidden_size)
        self.surrounding = nn.Linear(surrounding, config.hidden_size)
        self.aligned = nn.Linear(config.hidden_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, window)
        self.curves = ColumnCurves(config.num_bases, config.frames_per_column)
        self.gradient_checkpointing = False

    def forward(
        self, previous: torch.Tensor, encoded: EncodedIdea, start_frames: torch.Tensor, start: int = 0, caches=None
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run consecutive steps.

        Args:
            previous: (batch, step, mel * fold_size), for each step the window before it.
            encoded: the idea.
            start_frames: (batch,) first frame of the first step.
            start: position of the first step among those in the caches.
            caches: rolling caches per layer.

        Returns:
            (batch, mel, step * fold_size) made columns, the encoder's drawing under them, and the new caches.
        """
        made, base, _, new_caches = self.think(previous, encoded, start_frames, start, caches)
        return made, base, new_caches

    def think(
        self, previous: torch.Tensor, encoded: EncodedIdea, start_frames: torch.Tensor, start: int = 0, caches=None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """`forward`, with the steps' last hidden states (batch, step, hidden) in front of the caches."""
        steps, fold_size, context = previous.shape[1], self.fold_size, self.context_frames
        length = steps * fold_size + 2 * context
        around = self.curves(encoded.idea, encoded.coefficients, start_frames - context, length, encoded.num_frames)
        base = around[..., context : length - context]
        # Overlapping windows as views: (batch, mel, step, window) -> (batch, step, mel * window).
        windows = around.unfold(-1, fold_size + 2 * context, fold_size).transpose(1, 2).flatten(2)
        # Centers of the windows: start + (step + 1 / 2) fold_size frames, in half frames.
        centers = 2 * start_frames[:, None] + (2 * torch.arange(steps, device=previous.device) + 1) * fold_size
        place = column_of(centers, encoded.num_frames, encoded.idea.shape[-1])
        # What was made, what is drawn around it, and what the encoder thinks at this time.
        hidden = self.previous(previous) + self.surrounding(windows)
        hidden = hidden + self.aligned(interpolate_columns(encoded.states, place))
        new_caches = []
        for index, layer in enumerate(self.layers):
            arguments = (hidden, encoded.memories[index], place, start, caches[index] if caches else None)
            if self.gradient_checkpointing and self.training:
                hidden, cache = self._gradient_checkpointing_func(layer.__call__, *arguments)
            else:
                hidden, cache = layer(*arguments)
            new_caches.append(cache)
        # The decoder corrects the drawing: an untrained one leaves it as it is.
        hidden = self.norm(hidden)
        return base + unfold(self.head(hidden), fold_size), base, hidden, new_caches


@dataclasses.dataclass
class Expanded:
    """What every stage makes of a stretch of music, (batch, mel, frame) each, normalized.

    Args:
        drawing: of the encoder.
        made: of the decoder; the drawing where there is none.
        result: of the head; its first draw.
        loss: of the head, where there is a target.
    """

    drawing: torch.Tensor
    made: torch.Tensor
    result: torch.Tensor
    loss: torch.Tensor | None = None


class LocalExpansion(nn.Module):
    """Encoder, window decoder and head; works on normalized log-mels."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.fold_size, bins, hidden = config.fold_size, config.num_mel_bins, config.hidden_size
        self.silence = (config.mel_config.floor_value - config.mel_shift) / config.mel_scale
        self.frames_per_column, self.idea_columns = config.frames_per_column, config.idea_columns
        self.long_temperature = config.head_long_temperature
        self.encoder = IdeaEncoder(config)
        self.has_decoder, self.samples = config.num_decoder_layers > 0, config.head != "l1"
        self.decoder = WindowDecoder(config) if self.has_decoder else Drawing(config)
        if not self.samples:
            self.postnet = PostNet(config)
        elif self.has_decoder:
            # Tokens of a frame: the window before and the one to make; the drawing, the columns, and which are known.
            self.sampler = SAMPLERS[config.head](config, 1, 2 * bins + 1, hidden)
        else:
            self.sampler = SAMPLERS[config.head](config, self.fold_size, bins, bins + hidden + _CLOCK_SIZE)

    @property
    def head(self) -> nn.Module:
        """What finishes the columns."""
        return self.sampler if self.samples else self.postnet

    @property
    def token_frames(self) -> int:
        """Columns per place of the noise."""
        return 1 if self.has_decoder else self.fold_size

    def encode(self, idea: torch.Tensor, num_frames: torch.Tensor) -> EncodedIdea:
        """Run the encoder once for a whole piece."""
        states, coefficients = self.encoder(idea, num_frames)
        memories = [layer.cross_attention.memory(states) for layer in self.decoder.layers]
        return EncodedIdea(idea, states, memories, num_frames, coefficients)

    def draw(self, encoded: EncodedIdea, start_frames: torch.Tensor, length: int) -> torch.Tensor:
        """The encoder's drawing of a stretch, (batch, mel, length)."""
        return self.decoder.curves(encoded.idea, encoded.coefficients, start_frames, length, encoded.num_frames)

    def noise(
        self,
        seeds: torch.Tensor,
        num_frames: torch.Tensor,
        start_frames: torch.Tensor,
        tokens: int,
        first: int = 0,
    ) -> torch.Tensor:
        """What a draw of the head is made of.

        Args:
            seeds: (batch,).
            num_frames: (batch,) lengths of the pieces.
            start_frames: (batch,) first frame of the first token.
            tokens: how many.
            first: place of the first in the noise.

        Returns:
            (batch, num_noise, tokens) float32 on the device of `num_frames`.
        """
        head, device = self.head, num_frames.device
        noise = seeded_noise(seeds, first, tokens, head.noise_channels).to(device)
        if not head.column_channels:
            return noise
        columns = self.idea_columns
        own = seeded_noise(seeds, 0, columns, head.column_channels, stream=1).to(device)
        place = self._centers(start_frames, tokens, num_frames, columns)
        index = (place + 0.5).floor().long().clamp(0, columns - 1)[:, None].expand(-1, head.column_channels, -1)
        return torch.cat([noise, own.gather(2, index)], dim=1)

    def _centers(
        self, start_frames: torch.Tensor, tokens: int, num_frames: torch.Tensor, columns: int
    ) -> torch.Tensor:
        # Centers of the tokens in columns, (batch, token): start + (token + 1 / 2) token_frames, in half frames.
        steps = 2 * torch.arange(tokens, device=start_frames.device) + 1
        return column_of(2 * start_frames[:, None] + steps * self.token_frames, num_frames, columns)

    def field_inputs(self, encoded: EncodedIdea, start_frames: torch.Tensor, length: int) -> HeadInputs:
        """What the head is told of a stretch where there is no decoder."""
        drawing = self.draw(encoded, start_frames, length)
        columns, tokens = encoded.idea.shape[-1], -(-length // self.fold_size)
        place = self._centers(start_frames, tokens, encoded.num_frames, columns)
        idea = interpolate_columns(encoded.idea.transpose(1, 2), place)
        states = interpolate_columns(encoded.states, place)
        # Where inside its column a token lies, and how long columns are.
        phase = 2 * torch.pi * (place + 0.5)[..., None]
        stretch = stretch_of(encoded.num_frames, columns, self.frames_per_column)[:, None, None].expand(-1, tokens, 1)
        clock = [phase.sin(), phase.cos(), (2 * phase).sin(), (2 * phase).cos(), stretch, stretch.square()]
        features = torch.cat([idea, states, torch.cat(clock, dim=-1).to(idea.dtype)], dim=-1).transpose(1, 2)
        inside = self._inside(encoded, start_frames, length, drawing.dtype)
        return HeadInputs(drawing, drawing, features, inside, torch.ones_like(inside))

    def window_inputs(
        self,
        encoded: EncodedIdea,
        previous: torch.Tensor,
        made: torch.Tensor,
        hidden: torch.Tensor,
        start_frames: torch.Tensor,
    ) -> HeadInputs:
        """What a sampling head is told of every window, and of the window before it: rows are (batch * step).

        Args:
            encoded: the idea.
            previous: (batch, step, mel * fold_size) the windows before.
            made: (batch, mel, step * fold_size) columns of the decoder.
            hidden: (batch, step, hidden) its states.
            start_frames: (batch,) first frame of the first window.
        """
        size, steps = self.fold_size, hidden.shape[1]
        drawing = self.draw(encoded, start_frames - size, (steps + 1) * size)
        drawing = (
            drawing.unfold(-1, 2 * size, size).transpose(1, 2).flatten(0, 1)
        )  # (batch * step, mel, 2 * fold_size)
        told = previous.unflatten(2, (-1, size)).flatten(0, 1)  # (batch * step, mel, fold_size)
        mean = torch.cat([told, made.unflatten(2, (steps, size)).transpose(1, 2).flatten(0, 1)], dim=-1)
        known = (torch.arange(2 * size, device=mean.device) < size).to(mean.dtype).expand(len(mean), 1, -1)
        frames = start_frames[:, None, None] + torch.arange(steps, device=mean.device)[:, None] * size - size
        frames = frames + torch.arange(2 * size, device=mean.device)  # (batch, step, 2 * fold_size)
        inside = (frames < encoded.num_frames[:, None, None]).flatten(0, 1)[:, None].to(mean.dtype)
        features = hidden.flatten(0, 1)[..., None].expand(-1, -1, 2 * size)
        return HeadInputs(mean, torch.cat([drawing, mean, known], dim=1), features, inside, 1 - known)

    def window_noise(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise of frames, (batch, ..., channel, step * fold_size), by windows: (batch * step, ..., channel, 2 * fold_size)."""
        windows = noise.unflatten(-1, (-1, self.fold_size)).movedim(-2, 1).flatten(0, 1)
        return nn.functional.pad(windows, (self.fold_size, 0))  # what was made before is not drawn again

    def forward(
        self,
        encoded: EncodedIdea,
        inputs: torch.Tensor,
        previous: torch.Tensor,
        start_frames: torch.Tensor,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        heard: torch.Tensor | None = None,
    ) -> Expanded:
        """All steps of a stretch of music at once, given what came before each.

        Args:
            encoded: the idea.
            inputs: (batch, mel, frame) normalized columns that the next step is given.
            previous: (batch, mel, fold_size) the window before the first step.
            start_frames: (batch,) first frame.
            target: (batch, mel, frame) normalized true columns.
            noise: (batch, draw, num_noise, token) of a sampling head; default one draw without noise.
            heard: (batch, mel, fold_size + frame) normalized columns that the head is told, from the window before the
                first step on; default what the steps are told.
        """
        length = inputs.shape[-1]
        inside = self._inside(encoded, start_frames, length, inputs.dtype)
        if not self.has_decoder:
            told = self.field_inputs(encoded, start_frames, length)
            result, loss = self._finish(told, target, inside.float(), noise)
            return Expanded(told.mean, told.mean, result, loss)
        # Shifted by one window: step s is told the window before it and makes window s.
        tokens = fold(torch.cat([previous, inputs], dim=-1), self.fold_size, self.silence)
        tokens = tokens[:, : -(-length // self.fold_size)]
        made, base, hidden, _ = self.decoder.think(tokens, encoded, start_frames)
        if self.samples:
            before = tokens if heard is None else fold(heard, self.fold_size, self.silence)[:, : tokens.shape[1]]
            told = self.window_inputs(encoded, before, made, hidden, start_frames)
            result, loss = self._finish_windows(told, target, noise)
            result = result.unflatten(0, (len(inputs), -1)).transpose(1, 2).flatten(2)[..., :length]
            return Expanded(base[..., :length], made[..., :length], result, loss)
        made, base = made[..., :length], base[..., :length]
        told = HeadInputs(made, base, hidden.transpose(1, 2), inside.to(made.dtype), torch.ones_like(inside))
        return Expanded(base, made, *self._finish(told, target, inside.float(), None))

    def _finish(
        self, told: HeadInputs, target: torch.Tensor | None, counted: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if noise is None and self.samples:
            noise = told.mean.new_zeros(len(told.mean), 1, self.head.num_noise, told.features.shape[-1])
        if target is None:
            return self.head.sample(told, None if noise is None else noise[:, 0]), None
        loss, result = self.head.loss(told, target, counted, noise)
        return result, loss

    def _finish_windows(
        self, told: HeadInputs, target: torch.Tensor | None, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = self.fold_size
        if noise is not None:
            noise = self.window_noise(noise)
        if target is not None:
            windows = fold(target, size, self.silence).unflatten(2, (-1, size)).flatten(0, 1)
            # The true window follows what the head was told, so that a step across the border counts.
            target = torch.cat([told.mean[..., :size].to(windows.dtype), windows], dim=-1)
        result, loss = self._finish(told, target, told.inside.float(), noise)
        return result[..., size:], loss

    @staticmethod
    def _inside(encoded: EncodedIdea, start: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
        frames = start[:, None] + torch.arange(length, device=start.device)
        return ((frames >= 0) & (frames < encoded.num_frames[:, None]))[:, None].to(dtype)

    def begin(
        self, encoded: EncodedIdea, seeds: torch.Tensor | None = None, temperature: float = 1.0
    ) -> ExpansionState:
        """The state before the first step of a free expansion; `seeds` (batch,) default to 0."""
        batch, bins, _ = encoded.idea.shape
        seeds = torch.zeros(batch, dtype=torch.int64) if seeds is None else seeds
        # Silence lies before the first frame, as in training.
        previous = encoded.idea.new_full((batch, bins, self.fold_size), self.silence) if self.has_decoder else None
        stretch = stretch_of(encoded.num_frames, self.idea_columns, self.frames_per_column).clamp(0, 1)
        scale = (temperature * self.long_temperature**stretch)[:, None, None]
        return ExpansionState(encoded, int(encoded.num_frames.max()), previous, seeds, scale)

    def decode(self, state: ExpansionState) -> tuple[torch.Tensor, ExpansionState]:
        """One free-running step of the decoder, and of a sampling head.

        Returns:
            (batch, 2 * mel + 1, fold_size or less) columns, the encoder's drawing under them and the inside-mask, and
            the state after it.
        """
        frame, encoded = state.step * self.fold_size, state.encoded
        start = torch.full_like(encoded.num_frames, frame)
        told = fold(state.previous, self.fold_size)
        made, base, hidden, caches = self.decoder.think(told, encoded, start, state.step, state.caches)
        if self.samples:
            noise = self.noise(state.seeds, encoded.num_frames, start, self.fold_size, frame) * state.temperature
            inputs = self.window_inputs(encoded, told, made, hidden, start)
            made = self.sampler.sample(inputs, self.window_noise(noise.to(made.dtype)))[..., self.fold_size :]
        inside = self._inside(encoded, start, self.fold_size, made.dtype)
        window = torch.cat([made, base, inside], dim=1)[..., : state.longest - frame]
        return window, dataclasses.replace(state, previous=made, caches=caches, step=state.step + 1)

    def advance(self, state: ExpansionState, frames: int) -> tuple[torch.Tensor, ExpansionState]:
        """Expand by at least `frames` columns, or to the end of the piece.

        Returns:
            (batch, mel, frame) normalized columns and the state after them; its size does not grow.
        """
        if not self.has_decoder:
            return self._advance_field(state, frames)
        # The post-net looks `reach` columns ahead: so many more are decoded than are settled.
        reach, bins = 0 if self.samples else self.postnet.reach, state.previous.shape[1]
        overlap, windows = state.overlap, []
        waiting = overlap.waiting
        while state.step * self.fold_size < state.longest and waiting < frames + reach:
            window, state = self.decode(state)
            windows.append(window)
            waiting += window.shape[-1]
        if windows:
            overlap = overlap.join(torch.cat(windows, dim=-1))

        def improve(held: torch.Tensor, first_frame: int) -> torch.Tensor:
            if self.samples:
                return held[:, :bins]
            return self.postnet(held[:, :bins], held[:, bins : 2 * bins], held[:, 2 * bins :])

        last = state.step * self.fold_size >= state.longest
        piece, overlap = overlap.settle(improve, (reach, reach), 1, last)
        return piece, dataclasses.replace(state, overlap=overlap, emitted=state.emitted + piece.shape[-1])

    def _advance_field(self, state: ExpansionState, frames: int) -> tuple[torch.Tensor, ExpansionState]:
        size, begin = self.fold_size, state.emitted
        reach = -(-self.head.reach // size) * size
        # Drawing and noise are known everywhere: every piece is computed with the neighbors that it depends on, and long
        # enough that they are not most of the work.
        end = min(begin + -(-max(frames, 2 * reach) // size) * size, state.longest)
        first, last = max(begin - reach, 0), min(end + reach, state.longest)
        encoded, length = state.encoded, last - first
        start = torch.full_like(encoded.num_frames, first)
        noise = None
        if self.samples:
            tokens = -(-length // size)
            noise = self.noise(state.seeds, encoded.num_frames, start, tokens, first // size) * state.temperature
        made = self.head.sample(self.field_inputs(encoded, start, length), noise)
        piece = made[..., begin - first : end - first]
        return piece, dataclasses.replace(state, emitted=end)


__all__ = ["EncodedIdea", "Expanded", "ExpansionState", "LocalExpansion"]
