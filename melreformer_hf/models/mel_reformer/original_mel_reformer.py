"""The original MelReformer transformer, quirk by quirk, for its checkpoints.

Source: TariqAHassan/MelReformer, commit 0806579 (MIT). Kept as they are there: absolute sinusoidal positions in fixed
blocks, full cross-attention, a learned start token in input space, no stop rule, a prime that takes the start token's
place, and windows beyond the block size that re-use its positions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from melreformer_hf.audio.fold import fold, unfold
from melreformer_hf.audio.resize import resize_mel
from melreformer_hf.models.mel_reformer.configuration_mel_reformer import MelReformerConfig
from melreformer_hf.nn.attention import attend, split_heads
from melreformer_hf.nn.positions import sinusoidal_table


class OriginalAttention(nn.Module):
    """Multi-head attention with separate projections; dropout after the output projection only."""

    attn_implementation = "sdpa"

    def __init__(self, config: MelReformerConfig, is_causal: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.is_causal = config.num_attention_heads, is_causal
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value, self.out = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, step, hidden) attending to itself, or to `memory` (batch, column, hidden)."""
        source = hidden if memory is None else memory
        heads = self.num_heads
        attended, _ = attend(
            self,
            split_heads(self.query(hidden), heads),
            split_heads(self.key(source), heads),
            split_heads(self.value(source), heads),
            is_causal=self.is_causal,
        )
        return self.dropout(self.out(attended.flatten(2)))


class OriginalFeedForward(nn.Module):
    """Two linear layers with a ReLU, dropout after both."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, step, hidden) -> the same shape."""
        # Dropout twice, as there: after the activation and after the output.
        return self.dropout(self.down(self.dropout(self.up(hidden).relu())))


class OriginalEncoderLayer(nn.Module):
    """Pre-normalized self-attention and perceptron."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.attention = OriginalAttention(config, is_causal=False)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = OriginalFeedForward(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, column, hidden) -> the same shape."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class OriginalDecoderLayer(nn.Module):
    """Pre-normalized causal self-attention, cross-attention, perceptron."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(config.hidden_size)
        self.self_attention = OriginalAttention(config, is_causal=True)
        self.cross_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attention = OriginalAttention(config, is_causal=False)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = OriginalFeedForward(config)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """(batch, step, hidden) and (batch, column, hidden) -> (batch, step, hidden)."""
        hidden = hidden + self.self_attention(self.self_norm(hidden))
        hidden = hidden + self.cross_attention(self.cross_norm(hidden), memory)
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


@dataclasses.dataclass(frozen=True)
class OriginalState:
    """A free expansion between two chunks.

    Args:
        memory: (batch, column, hidden) of the encoder.
        longest: frames of the longest row.
        tokens: (batch, step, mel * fold_size) the last steps, at most `decoder_window` and one.
        primed: whether the tokens themselves come out first.
        emitted: frames that were given away.
    """

    memory: torch.Tensor
    longest: int
    tokens: torch.Tensor
    primed: bool = False
    emitted: int = 0


class OriginalExpansion(nn.Module):
    """The original encoder and decoder over raw log-mels."""

    def __init__(self, config: MelReformerConfig) -> None:
        super().__init__()
        self.config = config
        self.silence = config.mel_config.floor_value
        size, token = config.hidden_size, config.num_mel_bins * config.fold_size
        self.start_token = nn.Parameter(torch.zeros(1, 1, token))
        self.encoder_in = nn.Linear(config.num_mel_bins, size)
        self.encoder_layers = nn.ModuleList(OriginalEncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(size)
        self.decoder_in = nn.Linear(token, size)
        self.decoder_layers = nn.ModuleList(OriginalDecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, token)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False

    def _add_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        # Positions begin at zero in every block, also where the block is a window of a longer piece.
        table = sinusoidal_table(hidden.shape[1], hidden.shape[2]).to(hidden)
        return self.dropout(hidden + table)

    def _run(self, layer: nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, *arguments)
        return layer(*arguments)

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """(batch, mel, frame), point-sampled to `idea_columns` if longer -> (batch, column, hidden)."""
        if mel.shape[-1] > self.config.idea_columns:
            # Two source columns per column whatever the ratio: what lies between is never seen.
            mel = resize_mel(mel, self.config.idea_columns, mode="point")
        hidden = self._add_positions(self.encoder_in(mel.transpose(1, 2)))
        for layer in self.encoder_layers:
            hidden = self._run(layer, hidden)
        return self.encoder_norm(hidden)

    def decode(self, tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Shifted tokens (batch, step, mel * fold_size) to predicted ones, at most `decoder_window` steps."""
        hidden = self._add_positions(self.decoder_in(tokens))
        for layer in self.decoder_layers:
            hidden = self._run(layer, hidden, memory)
        return self.head(self.decoder_norm(hidden))

    def forward(self, mel: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Teacher forcing: (batch, mel, frame) whole mel and decoder input -> (batch, mel, frame)."""
        tokens = fold(told, self.config.fold_size, self.silence)
        if tokens.shape[1] > self.config.decoder_window:
            raise ValueError(
                f"The original architecture decodes at most decoder_window={self.config.decoder_window} windows of "
                f"{self.config.fold_size} frames at once, got {tokens.shape[1]}."
            )
        start = self.start_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        # The start token lives in the space of windows, before the input projection.
        shifted = torch.cat([start, tokens[:, :-1]], dim=1)
        return unfold(self.decode(shifted, self.encode(mel)), self.config.fold_size, told.shape[-1])

    def begin(self, mel: torch.Tensor, num_frames: torch.Tensor, prime: torch.Tensor | None = None) -> OriginalState:
        """The state before the first step; a given `prime` (batch, mel, n) comes out first."""
        memory, longest = self.encode(mel), int(num_frames.max())
        if prime is None:
            tokens = self.start_token.expand(mel.shape[0], -1, -1).to(mel.dtype)
            return OriginalState(memory, longest, tokens)
        return OriginalState(memory, longest, fold(prime, self.config.fold_size), primed=True)

    def advance(self, state: OriginalState, frames: int) -> tuple[torch.Tensor, OriginalState]:
        """Expand by at least `frames` columns, or to the end: (batch, mel, frame) and the state after them."""
        pieces, tokens = [], state.tokens
        if state.primed:
            pieces.append(unfold(tokens, self.config.fold_size))
        made = sum(piece.shape[-1] for piece in pieces)
        while made < frames and state.emitted + made < state.longest:
            tokens = tokens[:, -self.config.decoder_window :]
            token = self.decode(tokens, state.memory)[:, -1:]
            tokens = torch.cat([tokens, token], dim=1)
            pieces.append(unfold(token, self.config.fold_size))
            made += pieces[-1].shape[-1]
        piece = torch.cat(pieces, dim=-1)[..., : state.longest - state.emitted]
        emitted = state.emitted + piece.shape[-1]
        return piece, dataclasses.replace(state, tokens=tokens, primed=False, emitted=emitted)


__all__ = ["OriginalExpansion", "OriginalState"]
