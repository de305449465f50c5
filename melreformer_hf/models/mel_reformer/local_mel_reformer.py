"""The expansion of any length: local attention on one time axis, a rolling cache, and a post-net across the seams."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from melreformer_hf.audio.fold import fold, unfold
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.models.mel_reformer.encoder_mel_reformer import ColumnCurves, IdeaEncoder
from melreformer_hf.models.mel_reformer.timing_mel_reformer import column_of, interpolate_columns
from melreformer_hf.nn.attention import FeedForward, NeighborAttention, WindowedSelfAttention
from melreformer_hf.nn.convnext import ConvNeXtBlock
from melreformer_hf.nn.streaming import Overlap


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


@dataclasses.dataclass(frozen=True)
class ExpansionState:
    """A free expansion between two chunks: of constant size whatever the length.

    Args:
        encoded: the idea.
        longest: frames of the longest row.
        previous: (batch, mel, fold_size) columns of the last step, normalized.
        caches: rolling keys and values per decoder layer.
        step: steps that were decoded.
        overlap: decoded columns that wait for those after them, which the post-net looks at.
        emitted: frames that were given away.
    """

    encoded: EncodedIdea
    longest: int
    previous: torch.Tensor
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
        return base + unfold(self.head(self.norm(hidden)), fold_size), base, new_caches


class PostNet(nn.Module):
    """Convolutions over the unfolded columns, which see across the borders of decoder windows."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        size, kernel = config.postnet_size, config.postnet_kernel
        self.stem = nn.Conv1d(2 * config.num_mel_bins, size, kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(ConvNeXtBlock(size, 3 * size, kernel) for _ in range(config.postnet_layers))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, config.num_mel_bins)

    @property
    def reach(self) -> int:
        """Frames to each side that an output frame depends on."""
        return self.stem.kernel_size[0] // 2 + sum(block.reach for block in self.blocks)

    def forward(self, made: torch.Tensor, base: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Improve columns.

        Args:
            made: (batch, mel, frame) columns of the decoder.
            base: (batch, mel, frame) the encoder's drawing.
            inside: (batch, 1, frame) one where the frame belongs to the piece, zero elsewhere.

        Returns:
            (batch, mel, frame).
        """
        # Whatever lies outside a piece counts as the zero padding that a shorter batch would have there.
        hidden = self.stem(torch.cat([made, base], dim=1) * inside)
        for block in self.blocks:
            hidden = block(hidden * inside)
        return made + self.head(self.norm(hidden.transpose(1, 2))).transpose(1, 2)


class LocalExpansion(nn.Module):
    """Encoder, window decoder and post-net; works on normalized log-mels."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.fold_size = config.fold_size
        self.silence = (config.mel_config.floor_value - config.mel_shift) / config.mel_scale
        self.encoder = IdeaEncoder(config)
        self.decoder = WindowDecoder(config)
        self.postnet = PostNet(config)

    def encode(self, idea: torch.Tensor, num_frames: torch.Tensor) -> EncodedIdea:
        """Run the encoder once for a whole piece."""
        states, coefficients = self.encoder(idea, num_frames)
        memories = [layer.cross_attention.memory(states) for layer in self.decoder.layers]
        return EncodedIdea(idea, states, memories, num_frames, coefficients)

    def forward(
        self, encoded: EncodedIdea, inputs: torch.Tensor, previous: torch.Tensor, start_frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All steps of a stretch of music at once, given what came before each.

        Args:
            encoded: the idea.
            inputs: (batch, mel, frame) normalized columns that the next step is given.
            previous: (batch, mel, fold_size) the window before the first step.
            start_frames: (batch,) first frame.

        Returns:
            drawing of the encoder, columns of the decoder and of the post-net, (batch, mel, frame) each.
        """
        length = inputs.shape[-1]
        # Shifted by one window: step s is told the window before it and makes window s.
        tokens = fold(torch.cat([previous, inputs], dim=-1), self.fold_size, self.silence)
        steps = -(-length // self.fold_size)
        made, base, _ = self.decoder(tokens[:, :steps], encoded, start_frames)
        made, base = made[..., :length], base[..., :length]
        return base, made, self.postnet(made, base, self._inside(encoded, start_frames, length, made.dtype))

    @staticmethod
    def _inside(encoded: EncodedIdea, start: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
        frames = start[:, None] + torch.arange(length, device=start.device)
        return ((frames >= 0) & (frames < encoded.num_frames[:, None]))[:, None].to(dtype)

    def begin(self, encoded: EncodedIdea) -> ExpansionState:
        """The state before the first step of a free expansion."""
        batch, bins, _ = encoded.idea.shape
        # Silence lies before the first frame, as in training.
        previous = encoded.idea.new_full((batch, bins, self.fold_size), self.silence)
        return ExpansionState(encoded, int(encoded.num_frames.max()), previous)

    def decode(self, state: ExpansionState) -> tuple[torch.Tensor, ExpansionState]:
        """One free-running step of the decoder.

        Returns:
            (batch, 2 * mel + 1, fold_size or less) columns, the encoder's drawing under them and the inside-mask, and
            the state after it.
        """
        frame = state.step * self.fold_size
        start = torch.full_like(state.encoded.num_frames, frame)
        told = fold(state.previous, self.fold_size)
        made, base, caches = self.decoder(told, state.encoded, start, state.step, state.caches)
        inside = self._inside(state.encoded, start, self.fold_size, made.dtype)
        window = torch.cat([made, base, inside], dim=1)[..., : state.longest - frame]
        return window, dataclasses.replace(state, previous=made, caches=caches, step=state.step + 1)

    def advance(self, state: ExpansionState, frames: int) -> tuple[torch.Tensor, ExpansionState]:
        """Expand by at least `frames` columns, or to the end of the piece.

        Returns:
            (batch, mel, frame) normalized columns and the state after them; its size does not grow.
        """
        reach, bins = self.postnet.reach, state.previous.shape[1]
        overlap, windows = state.overlap, []
        waiting = overlap.waiting
        # The post-net looks `reach` columns ahead: so many more are decoded than are settled.
        while state.step * self.fold_size < state.longest and waiting < frames + reach:
            window, state = self.decode(state)
            windows.append(window)
            waiting += window.shape[-1]
        if windows:
            overlap = overlap.join(torch.cat(windows, dim=-1))

        def improve(held: torch.Tensor, first_frame: int) -> torch.Tensor:
            return self.postnet(held[:, :bins], held[:, bins : 2 * bins], held[:, 2 * bins :])

        last = state.step * self.fold_size >= state.longest
        piece, overlap = overlap.settle(improve, (reach, reach), 1, last)
        return piece, dataclasses.replace(state, overlap=overlap, emitted=state.emitted + piece.shape[-1])


__all__ = ["EncodedIdea", "ExpansionState", "LocalExpansion"]
