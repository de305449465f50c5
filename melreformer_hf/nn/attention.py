"""Attention shared by the transformers of the package.

Scaled dot products run through transformers' registry of attention functions, so that `attn_implementation` of
`from_pretrained` means what it means there: `"sdpa"` (the default, torch's fused kernels), `"eager"` (plain matrix
products), or a function that the user registered under a name. Masks are dense, which rules out flash and flex attention.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from melreformer_hf.nn.positions import rotary_angles, rotate

_UNFIT = ("flash", "flex", "paged")


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by plain matrix products, with its weights; the signature is that of transformers' registry.

    Args:
        module: the calling layer.
        query: (batch, head, step, head_dim).
        key: (batch, head, key, head_dim).
        value: the shape of `key`.
        attention_mask: boolean, true where visible, of a shape that broadcasts to (batch, head, step, key).
        dropout: on the weights.
        scaling: factor of the scores; `None` is one over the root of `head_dim`.
        is_causal: hide later keys, where there is no mask.

    Returns:
        (batch, step, head, head_dim) and the weights (batch, head, step, key).
    """
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None and is_causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    # The sum of exponentials of a long row does not fit into half precision.
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, 0.0)  # a query that sees nothing gets nothing, not NaN
    mixed = nn.functional.dropout(weights, dropout) @ value
    return mixed.transpose(1, 2), weights


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by the function that `module.attn_implementation` names; arguments as in `eager_attention`.

    Returns:
        (batch, step, head, head_dim), and the weights (batch, head, step, key) where the function has them.
    """
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.attn_implementation, eager_attention)
    return function(module, query, key, value, mask, dropout=dropout, scaling=scale, is_causal=is_causal)


class AttentionMixin:
    """Base of models, before `PreTrainedModel`: every attention below has the implementation that the user chose.

    A layer that calls `attend` has an attribute `attn_implementation`, `"sdpa"` until its model says otherwise. One that
    cannot, because it needs the scores themselves, has `always_eager = True`.
    """

    def post_init(self) -> None:
        """As in `PreTrainedModel`; `from_pretrained` has put the choice into the configuration by now."""
        super().post_init()
        self._choose_attention()

    def set_attn_implementation(self, attn_implementation: str, **kwargs) -> None:
        """Change the implementation of a model that exists: `"sdpa"`, `"eager"` or a registered name.

        Raises:
            ValueError: the name is unknown, or an implementation that cannot take dense masks.
        """
        super().set_attn_implementation(attn_implementation, **kwargs)
        self._choose_attention()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its own idiom in the source of the model's module; ours is in this one.
        return True

    def _choose_attention(self) -> None:
        name = self.config._attn_implementation
        if name.startswith(_UNFIT):
            raise ValueError(
                f'attn_implementation must be "sdpa", "eager" or a registered function that takes dense masks, got '
                f"{name!r}."
            )
        for module in self.modules():
            if getattr(module, "always_eager", False):
                if name not in ("sdpa", "eager"):
                    raise ValueError(
                        f'attn_implementation must be left out, or be "eager": {type(module).__name__} needs its own '
                        f"scores, which other implementations do not return; got {name!r}."
                    )
            elif hasattr(type(module), "attn_implementation"):
                module.attn_implementation = name


def split_heads(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(batch, step, width) -> (batch, head, step, width / head)."""
    return values.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(values: torch.Tensor) -> torch.Tensor:
    """(batch, head, step, width) -> (batch, step, head * width)."""
    return values.transpose(1, 2).flatten(2)


def band_mask(queries: torch.Tensor, keys: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Boolean mask that lets a query see the keys at most `before` earlier and `after` later.

    Args:
        queries: (query,) integer positions.
        keys: (key,) integer positions.
        before: farthest visible past.
        after: farthest visible future; 0 is causal.

    Returns:
        (query, key), true where visible.
    """
    distance = keys[None, :] - queries[:, None]
    return (distance >= -before) & (distance <= after)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, after a normalization."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.activation = nn.GELU()
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., hidden)."""
        return self.down(self.activation(self.up(self.norm(hidden))))


class WindowedSelfAttention(nn.Module):
    """Self-attention within a window around each step, with rotary relative positions.

    Args:
        hidden_size: width.
        num_heads: heads; `hidden_size / num_heads` must be even.
        before: steps of the past that a step sees.
        after: steps of the future that a step sees; 0 is causal.
    """

    attn_implementation = "sdpa"

    def __init__(self, hidden_size: int, num_heads: int, before: int, after: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.before, self.after = before, after
        self.norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden: torch.Tensor, start: int = 0, cache: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Attend.

        Args:
            hidden: (batch, step, hidden).
            start: position of the first step.
            cache: rotated keys and values of the steps just before `start`, (batch, head, past, head_dim) each.

        Returns:
            (batch, step, hidden) and the keys and values of the last `before` steps.
        """
        query, key, value = (split_heads(x, self.num_heads) for x in self.qkv(self.norm(hidden)).chunk(3, dim=-1))
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)
        cosine, sine = rotary_angles(positions, self.head_dim)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        past = 0
        if cache is not None:
            # Cached keys were turned by their own positions when they were made: relative angles stay right.
            past = cache[0].shape[2]
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        keys = torch.arange(start - past, start + hidden.shape[1], device=hidden.device)
        mask = band_mask(positions, keys, self.before, self.after)
        attended, _ = attend(self, query, key, value, mask)
        # A later step sees `before` steps back and no further, so the cache never grows beyond that.
        kept = max(0, key.shape[2] - self.before)
        return self.out(attended.flatten(2)), (key[:, :, kept:], value[:, :, kept:])


class NeighborAttention(nn.Module):
    """Cross-attention of each step to the few memory columns nearest to it in time.

    Keys carry the signed distance between column and step, measured in columns, so that the diagonal need not be found.

    Args:
        hidden_size: width of queries and memory.
        num_heads: heads.
        reach: columns to each side of the nearest one.
    """

    attn_implementation = "sdpa"

    def __init__(self, hidden_size: int, num_heads: int, reach: int) -> None:
        super().__init__()
        self.num_heads, self.reach = num_heads, reach
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.distance_key = nn.Linear(3, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def memory(self, states: torch.Tensor) -> torch.Tensor:
        """Keys and values of all columns, computed once: (batch, column, hidden) -> (batch, column, 2 * hidden)."""
        return self.key_value(states)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            hidden: (batch, step, hidden).
            memory: (batch, column, 2 * hidden), see `memory`.
            place: (batch, step) time of each step in columns, column c having its center at c.

        Returns:
            (batch, step, hidden).
        """
        batch, steps, width = hidden.shape
        columns = memory.shape[1]
        offsets = torch.arange(-self.reach, self.reach + 1, device=hidden.device)
        index = place.round().long()[..., None] + offsets
        visible = (index >= 0) & (index < columns)
        index = index.clamp(0, columns - 1)
        # Every step becomes a batch row of its own with 2 * reach + 1 keys: cost and memory are linear in steps.
        near = memory.gather(1, index.reshape(batch, -1, 1).expand(-1, -1, 2 * width))
        key, value = near.reshape(batch * steps, len(offsets), 2 * width).chunk(2, dim=-1)
        distance = (index - place[..., None]).reshape(batch * steps, len(offsets), 1)
        described = torch.cat([distance, distance.abs(), torch.exp(-distance.square())], dim=-1).to(hidden.dtype)
        key = key + self.distance_key(described)
        query = self.query(self.norm(hidden)).reshape(batch * steps, 1, width)
        attended, _ = attend(
            self,
            split_heads(query, self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
            visible.reshape(batch * steps, 1, 1, -1),  # (row, any head, the one query, key)
        )
        return self.out(attended.reshape(batch, steps, width))


__all__ = [
    "AttentionMixin",
    "FeedForward",
    "NeighborAttention",
    "WindowedSelfAttention",
    "attend",
    "band_mask",
    "eager_attention",
    "merge_heads",
    "split_heads",
]
