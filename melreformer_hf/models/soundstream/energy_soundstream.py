"""Energy transformer: a block that walks down one energy of attention and associative memory.

Hoover, Liang, Pham, Panda, Strobelt, Chau, Zaki, Krotov, Energy Transformer (arXiv 2302.07253); original repositories
bhoov/energy-transformer-jax (scalar-gamma norm, fixed temperatures) and LumenPallidium/energy_transformer (torch port:
layer norm with a gain per channel, learned temperatures, learned positions). Both attend a step to itself.

Deviations: the gradient is written out instead of being taken by automatic differentiation, so that inference records
nothing and training differentiates once; any length, with rotary positions or a table that is stretched; padding is
masked; a step that would raise the energy is halved until it does not (`monotone`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.nn.positions import rotary_angles, rotate

_NEAREST_TO_MINUS_INFINITY = -1e30
_MAX_HALVINGS = 12
_QUERIES_PER_BLOCK = 512  # bounds the memory of inference on long inputs
MEMORIES = ("relu", "softmax")
NORMS = ("scalar", "layer")
POSITIONS = ("none", "rotary", "table")


@dataclass
class EnergyTransformerOutput(ModelOutput):
    """Output of `EnergyTransformer`.

    Args:
        hidden: (batch, step, hidden) after the descent.
        energies: (num_steps + 1, batch) energy before each step and after the last; no gradient.
    """

    hidden: torch.FloatTensor | None = None
    energies: torch.FloatTensor | None = None


class EnergyNorm(nn.Module):
    """Layer norm with one gain for all channels, the gradient of a convex Lagrangian.

    With a gain per channel the Jacobian is not symmetric, and descent of the energy is not guaranteed.

    Args:
        hidden_size: width.
        eps: added to the variance.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def _deviation(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centered = hidden - hidden.mean(dim=-1, keepdim=True)
        return centered, (centered.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., hidden)."""
        centered, deviation = self._deviation(hidden)
        return self.gain * centered / deviation + self.bias

    def lagrangian(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden_size * gain * sqrt(variance + eps) + bias . x` of every step: (..., hidden) -> (...)."""
        _, deviation = self._deviation(hidden)
        # The normalization is this function's gradient, which makes the descent of the energy certain.
        return hidden.shape[-1] * self.gain * deviation.squeeze(-1) + (self.bias * hidden).sum(dim=-1)

    def energy(self, hidden: torch.Tensor) -> torch.Tensor:
        """Legendre transform of the Lagrangian, `g . x - L(x)`: (..., hidden) -> (...)."""
        return (self(hidden) * hidden).sum(dim=-1) - self.lagrangian(hidden)


class EnergyAttention(nn.Module):
    """Attention as an energy, `-sum over heads and queries of logsumexp over keys (beta q . k) / beta`.

    There are neither values nor an output projection.

    Args:
        hidden_size: width.
        num_heads: heads.
        head_dim: width of queries and keys; even with `rotary`.
        learned_temperature: whether beta (per head) is learned; else it is `1 / sqrt(head_dim)`.
        rotary: whether queries and keys are turned by their positions.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, head_dim: int, learned_temperature: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        self.head_dim, self.rotary = head_dim, rotary
        self.query = nn.Parameter(torch.empty(num_heads, head_dim, hidden_size))
        self.key = nn.Parameter(torch.empty(num_heads, head_dim, hidden_size))
        self.beta = nn.Parameter(torch.empty(num_heads)) if learned_temperature else None
        init_energy_weights(self)

    def _turned(self, values: torch.Tensor, back: bool = False) -> torch.Tensor:
        if not self.rotary:
            return values
        # Turned back for the gradient: the transpose of a rotation is the rotation by the opposite angle.
        cosine, sine = rotary_angles(torch.arange(values.shape[-2], device=values.device), self.head_dim)
        return rotate(values, cosine, -sine if back else sine)

    def _blocks(self, normed: torch.Tensor, mask: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, ...]]:
        """Blocks of queries: their slice, queries, all keys, beta times their products with masked keys out of reach."""
        query = self._turned(torch.einsum("bnd,hyd->bhny", normed, self.query))
        key = self._turned(torch.einsum("bnd,hyd->bhny", normed, self.key))
        beta = self._beta()
        # (batch, head, query, head_dim) @ (batch, head, head_dim, key): scores of one block of queries at a time.
        for begin in range(0, normed.shape[1], _QUERIES_PER_BLOCK):
            part = slice(begin, begin + _QUERIES_PER_BLOCK)
            scores = beta * (query[:, :, part] @ key.transpose(-1, -2))
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, None, :], _NEAREST_TO_MINUS_INFINITY)
            yield part, query[:, :, part], key, scores

    def _beta(self) -> torch.Tensor | float:
        return self.head_dim**-0.5 if self.beta is None else self.beta[:, None, None]

    def energy(self, normed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, step, hidden), (batch, step) true where not padding -> (batch,)."""
        energy = normed.new_zeros(len(normed))
        for part, _, _, scores in self._blocks(normed, mask):
            # Each query's soft maximum over its keys; a padded query has no energy.
            depths = scores.logsumexp(dim=-1, keepdim=True) / self._beta()
            if mask is not None:
                depths = depths * mask[:, None, part, None]
            energy = energy - depths.sum(dim=(1, 2, 3))
        return energy

    def gradient(self, normed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Derivative of the energy: what a step is pulled to as a query, and as a key.

        (batch, step, hidden), (batch, step) true where not padding -> (batch, step, hidden).
        """
        as_query, as_key = [], 0.0
        for part, query, key, scores in self._blocks(normed, mask):
            weights = scores.softmax(dim=-1)
            if mask is not None:
                weights = weights * mask[:, None, part, None]
            # A step acts twice in the energy, through its query and through its key; the derivative adds both.
            # Only the first term is what ordinary attention has.
            as_query.append(weights @ key)
            as_key = as_key + weights.transpose(-1, -2) @ query
        as_query = self._turned(torch.cat(as_query, dim=2), back=True)
        pulled = torch.einsum("bhny,hyd->bnd", as_query, self.query)
        return -(pulled + torch.einsum("bhny,hyd->bnd", self._turned(as_key, back=True), self.key))


class AssociativeMemory(nn.Module):
    """Hopfield memory as an energy: `-1/2 sum relu(beta g . memory)^2` or `-logsumexp(beta g . memory) / beta`.

    Args:
        hidden_size: width.
        num_memories: stored patterns.
        kind: `"relu"` or `"softmax"`.
        learned_temperature: whether beta is learned; else it is 1 (`"relu"`) or 0.01 (`"softmax"`).
    """

    def __init__(
        self, hidden_size: int, num_memories: int, kind: str = "relu", learned_temperature: bool = False
    ) -> None:
        super().__init__()
        if kind not in MEMORIES:
            raise ValueError(f"kind must be one of {MEMORIES}, got {kind!r}.")
        self.kind = kind
        self.initial_beta = 1.0 if kind == "relu" else 0.01
        self.memories = nn.Parameter(torch.empty(hidden_size, num_memories))
        self.beta = nn.Parameter(torch.empty(())) if learned_temperature else None
        init_energy_weights(self)

    def _scores(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        beta = self.initial_beta if self.beta is None else self.beta
        return beta * (normed @ self.memories), beta

    def energy(self, normed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, step, hidden), (batch, step) true where not padding -> (batch,)."""
        scores, beta = self._scores(normed)
        if self.kind == "relu":
            # The memory's activation is the derivative of what is summed.
            depths = 0.5 * scores.relu().square().sum(dim=-1)
        else:
            depths = scores.logsumexp(dim=-1) / beta
        return -(depths if mask is None else depths * mask).sum(dim=-1)

    def gradient(self, normed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Derivative of the energy: (batch, step, hidden), (batch, step) -> (batch, step, hidden)."""
        scores, beta = self._scores(normed)
        # d/dg of 1/2 relu(s)^2 is relu(s) ds/dg with ds/dg = beta memory; of logsumexp(s) / beta it is softmax(s)
        # memory.
        weights = beta * scores.relu() if self.kind == "relu" else scores.softmax(dim=-1)
        pulled = -(weights @ self.memories.transpose(0, 1))
        return pulled if mask is None else pulled * mask[..., None]


class EnergyTransformer(nn.Module):
    """Descent along the energy of attention plus memory, `x <- x - step_size dE/dg` with `g = norm(x)`.

    Args:
        hidden_size: width.
        num_memories: patterns of the memory.
        num_heads: heads of the attention.
        head_dim: their width; `None` for `hidden_size // num_heads`.
        num_steps: steps of the descent, all with the same weights.
        step_size: of each step.
        memory: `"relu"` or `"softmax"`.
        norm: `"scalar"` (one gain, energy descends) or `"layer"` (the torch port's).
        positions: `"rotary"`, `"none"` or `"table"` (learned vectors added to the input).
        num_positions: rows of the table; a longer input gets the table stretched linearly.
        learned_temperature: whether betas are learned.
        monotone: whether a step that raises the energy of a sample is halved for it, at last to none.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_memories: int,
        num_heads: int = 8,
        head_dim: int | None = None,
        num_steps: int = 12,
        step_size: float = 0.1,
        memory: str = "relu",
        norm: str = "scalar",
        positions: str = "rotary",
        num_positions: int = 0,
        learned_temperature: bool = False,
        monotone: bool = True,
    ) -> None:
        super().__init__()
        if norm not in NORMS or positions not in POSITIONS:
            raise ValueError(f"norm must be in {NORMS} and positions in {POSITIONS}, got {norm!r} and {positions!r}.")
        if (positions == "table") != (num_positions > 0):
            raise ValueError(f'num_positions must be positive with positions="table" only, got {num_positions}.')
        if num_steps < 1 or step_size <= 0:
            raise ValueError(f"num_steps and step_size must be positive, got {num_steps} and {step_size}.")
        head_dim = head_dim or hidden_size // num_heads
        self.num_steps, self.step_size, self.monotone = num_steps, step_size, monotone
        self.norm = EnergyNorm(hidden_size) if norm == "scalar" else nn.LayerNorm(hidden_size)
        self.attention = EnergyAttention(hidden_size, num_heads, head_dim, learned_temperature, positions == "rotary")
        self.memory = AssociativeMemory(hidden_size, num_memories, memory, learned_temperature)
        self.position_table = nn.Parameter(torch.empty(num_positions, hidden_size)) if num_positions else None
        init_energy_weights(self)

    def energy(self, normed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Energy of normalized states: (batch, step, hidden), (batch, step) true where not padding -> (batch,)."""
        return self.attention.energy(normed, mask) + self.memory.energy(normed, mask)

    def gradient(self, normed: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Derivative of `energy` with respect to the normalized states, in closed form: their shape."""
        return self.attention.gradient(normed, mask) + self.memory.gradient(normed, mask)

    def _with_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.position_table is None:
            return hidden
        table, length = self.position_table, hidden.shape[1]
        if length > len(table):
            # (position, hidden) -> (1, hidden, position), which interpolate stretches along its last axis
            table = nn.functional.interpolate(table.T[None], size=length, mode="linear", align_corners=True)[0].T
        return hidden + table[:length]

    @torch.no_grad()
    def _step_sizes(
        self, hidden: torch.Tensor, gradient: torch.Tensor, energy: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(batch, 1, 1): the largest of step_size, step_size / 2, ... that does not raise a sample's energy, or 0."""
        # One size per sample of the batch: a sample's result does not depend on its neighbors in the batch.
        sizes = torch.full((len(hidden), 1, 1), self.step_size, dtype=hidden.dtype, device=hidden.device)
        for _ in range(_MAX_HALVINGS):
            falls = self.energy(self.norm(hidden - sizes * gradient), mask) <= energy
            # Sizes that fall stay as they are: leaving early saves time and changes nothing. A captured graph cannot.
            if not torch.compiler.is_compiling() and falls.all():
                return sizes
            sizes = torch.where(falls[:, None, None], sizes, sizes / 2)
        # After the last halving a sample that still rises stays where it is.
        falls = self.energy(self.norm(hidden - sizes * gradient), mask) <= energy
        return torch.where(falls[:, None, None], sizes, torch.zeros_like(sizes))

    def forward(
        self,
        hidden: torch.Tensor,
        num_steps: int | None = None,
        mask: torch.Tensor | None = None,
        output_energies: bool = False,
    ) -> EnergyTransformerOutput:
        """Walk down the energy.

        Args:
            hidden: (batch, step, hidden), any number of steps.
            num_steps: steps of the descent, default the module's.
            mask: (batch, step) bool, false at padding, which neither moves nor is seen.
            output_energies: whether to return the energies on the way.

        Raises:
            ValueError: num_steps is negative.
        """
        num_steps = self.num_steps if num_steps is None else num_steps
        if num_steps < 0:
            raise ValueError(f"num_steps must not be negative, got {num_steps}.")
        hidden = self._with_positions(hidden)
        normed, energies = self.norm(hidden), []
        watch = output_energies or self.monotone
        for _ in range(num_steps):
            # x <- x - alpha dE/dg: the gradient is taken at the normalized state and applied to the raw
            # one.
            gradient, size = self.gradient(normed, mask), self.step_size
            if watch:
                with torch.no_grad():
                    energies.append(self.energy(normed, mask))
            if self.monotone:
                size = self._step_sizes(hidden, gradient, energies[-1], mask)
            hidden = hidden - size * gradient
            normed = self.norm(hidden)
        if output_energies:
            with torch.no_grad():
                energies.append(self.energy(normed, mask))
        return EnergyTransformerOutput(
            hidden=hidden, energies=torch.stack(energies).detach() if output_energies else None
        )


@torch.no_grad()
def init_energy_weights(module: nn.Module) -> None:
    """Initial values of this file's layers, for a model's `_init_weights`; other modules are left alone.

    Projections and memories are normal with variance `1 / hidden_size`, under which a step is a real change (the
    originals' deviation of 0.002 makes the block the identity at first).
    """
    if isinstance(module, EnergyNorm):
        init.ones_(module.gain)
        init.zeros_(module.bias)
    elif isinstance(module, EnergyAttention):
        for weight in (module.query, module.key):
            init.normal_(weight, 0.0, weight.shape[-1] ** -0.5)
        if module.beta is not None:
            init.constant_(module.beta, module.head_dim**-0.5)
    elif isinstance(module, AssociativeMemory):
        init.normal_(module.memories, 0.0, module.memories.shape[0] ** -0.5)
        if module.beta is not None:
            init.constant_(module.beta, module.initial_beta)
    elif isinstance(module, EnergyTransformer) and module.position_table is not None:
        init.normal_(module.position_table, 0.0, 0.02)


__all__ = [
    "AssociativeMemory",
    "EnergyAttention",
    "EnergyNorm",
    "EnergyTransformer",
    "EnergyTransformerOutput",
    "init_energy_weights",
]
