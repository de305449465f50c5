"""Residual vector quantization: every level quantizes what the levels before it left over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import mse_loss
from transformers.utils import ModelOutput

from melreformer_hf.nn.quantization.codebook import Codebook, CodebookInputs, PendingStatistics
from melreformer_hf.nn.quantization.options import CodebookOptions, check_choice
from melreformer_hf.nn.quantization.search import code_counts

if TYPE_CHECKING:
    from melreformer_hf.nn.quantization.som import Neighborhood


@dataclass
class QuantizerOutput(ModelOutput):
    """Output of a quantizer.

    Args:
        quantized: (batch, dim, frame) sum of the chosen codewords; gradients pass straight through to the input.
        audio_codes: (batch, quantizer, frame) int64; -1 where quantizer dropout left a level out.
        loss: scalar, commitment and codebook terms with their weights.
        perplexity: (quantizer,) exponential of the entropy of code use in this batch.
        codebook_inputs: what `accumulate` reads; in training mode only.
    """

    quantized: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None
    codebook_inputs: CodebookInputs | None = None


def perplexity_of(counts: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of code use: (..., codeword) counts -> (...)."""
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)  # a call may count nothing: 0 / 1, not 0 / 0
    return torch.exp(-(share * torch.log(share + 1e-10)).sum(-1))


def _straight(value: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`value` exactly, with the gradient of `source`."""
    return value.detach() + (source - source.detach())


def _mean_square(first: torch.Tensor, second: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Mean squared difference of (vector, dim) tensors over the vectors that count; 0 where none does."""
    if counted is None and len(first):
        return mse_loss(first, second)
    if counted is None:
        return first.sum() * 0.0
    # Selected by `where`, since padding may hold anything and zero times infinity is no zero; not by an index, whose
    # number of rows depends on the data, so that no graph could be captured.
    squares = torch.where(counted[:, None], first - second, 0.0).square()
    return squares.sum() / (counted.sum() * first.shape[1]).clamp(min=1)


def _per_level(value: object, num_quantizers: int, name: str) -> list:
    if not isinstance(value, Sequence):
        return [value] * num_quantizers
    if len(value) != num_quantizers:
        raise ValueError(f"{name} must be one number or one per level ({num_quantizers}), got {list(value)}.")
    return list(value)


class ResidualVectorQuantizer(nn.Module):
    """A stack of codebooks, coarse to fine (SoundStream, arXiv 2107.03312; EnCodec, arXiv 2210.13438).

    Args:
        dim: width of the input.
        codebook_size: codewords per level, one number or one per level.
        num_quantizers: levels.
        codebook_dim: width of the codewords where they are factorized by two linear layers per level (Descript Audio
            Codec, arXiv 2306.06546); `None`: no layers, codewords have the width of the input.
        update: "ema" or "gradient", see `CodebookOptions`.
        decay: of the running statistics, one number or one per level.
        shared_codebook: all levels use one codebook (RQ-VAE, arXiv 2203.01941).
        commitment_weight: of the distance of the input from its (fixed) codewords, at every level.
        codebook_weight: of the distance of the codewords from their (fixed) input; with `update="gradient"` only.
        level_reduction: losses of levels are averaged ("mean") or added ("sum").
        gradient_path: "once": every level sees a detached remainder, one straight-through copy at the end; the gradient
            of the output with respect to the input is the identity, and every level's commitment term is alive.
            "undetached": EnCodec and Descript, where the commitment terms of all levels but the first have no
            gradient. "every_level": vector-quantize-pytorch and others, the gradient grows with the number of levels.
        quantizer_dropout: probability that an example of a training batch keeps only its first n levels, n uniform
            (SoundStream 1.0, Descript 0.5).
        neighborhood: makes every codebook a self-organizing map, see `SomQuantizer`.
        **options: further fields of `CodebookOptions`.

    Codes of any prefix of the levels are a prefix of the codes. Searches run in float32.

    `forward` changes nothing: codebooks learn when they are told to, by `accumulate` for every micro batch and
    `update_codebooks` once per step. So they learn once per step under gradient accumulation (sums over the micro
    batches), on several processes (sums over all of them) and under gradient checkpointing (which runs a forward twice),
    and a step that is given up leaves no trace. A codebook that all levels share learns from one level after the other.

    Example:

        >>> import torch
        >>> from melreformer_hf.nn.quantization import ResidualVectorQuantizer
        >>> quantizer = ResidualVectorQuantizer(dim=16, codebook_size=32, num_quantizers=4)
        >>> hidden = torch.randn(2, 16, 50)
        >>> quantizer.initialize_codebooks(hidden)  # k-means on the first vectors of a training
        >>> quantizer.accumulate(quantizer.train()(hidden))  # once per micro batch
        >>> quantizer.update_codebooks()  # once per step, behind the optimizer's
        True
        >>> codes = quantizer.eval().encode(hidden)
        >>> tuple(codes.shape), tuple(quantizer.decode(codes[:, :2]).shape)
        ((2, 4, 50), (2, 16, 50))
        >>> torch.equal(quantizer.decode(codes), quantizer(hidden).quantized)
        True
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        num_quantizers: int,
        codebook_dim: int | None = None,
        update: Literal["ema", "gradient"] = "ema",
        *,
        decay: float | Sequence[float] = 0.99,
        shared_codebook: bool = False,
        commitment_weight: float = 1.0,
        codebook_weight: float = 1.0,
        level_reduction: Literal["mean", "sum"] = "mean",
        gradient_path: Literal["once", "undetached", "every_level"] = "once",
        quantizer_dropout: float = 0.0,
        neighborhood: Neighborhood | None = None,
        **options,
    ) -> None:
        super().__init__()
        if num_quantizers < 1:
            raise ValueError(f"num_quantizers must be at least 1, got {num_quantizers}.")
        check_choice("level_reduction", level_reduction, ("mean", "sum"))
        check_choice("gradient_path", gradient_path, ("once", "undetached", "every_level"))
        if not 0.0 <= quantizer_dropout <= 1.0:
            raise ValueError(f"quantizer_dropout must be in [0, 1], got {quantizer_dropout}.")
        sizes = _per_level(codebook_size, num_quantizers, "codebook_size")
        decays = _per_level(decay, num_quantizers, "decay")
        if shared_codebook and (len(set(sizes)) > 1 or len(set(decays)) > 1):
            raise ValueError(f"A shared codebook has one size and one decay, got {sizes} and {decays}.")
        self.dim, self.num_quantizers = dim, num_quantizers
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.codebook_sizes, self.shared_codebook = sizes, shared_codebook
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.level_reduction, self.gradient_path = level_reduction, gradient_path
        self.quantizer_dropout, self.neighborhood = quantizer_dropout, neighborhood
        base = CodebookOptions(update=update, **options)
        self.options = dataclasses.replace(base, decay=decays[0])
        tables = 1 if shared_codebook else num_quantizers
        self.codebooks = nn.ModuleList(
            self._codebook(sizes[level], dataclasses.replace(base, decay=decays[level])) for level in range(tables)
        )
        factorized = range(0 if codebook_dim is None else num_quantizers)
        self.in_projections = nn.ModuleList(nn.Linear(dim, self.codebook_dim) for _ in factorized)
        self.out_projections = nn.ModuleList(nn.Linear(self.codebook_dim, dim) for _ in factorized)
        # Not in the state dict: between two steps nothing is pending, and checkpoints are written there.
        self._pending: PendingStatistics | None = None

    def _codebook(self, size: int, options: CodebookOptions) -> Codebook:
        if self.neighborhood is not None:
            return self.neighborhood.codebook(size, self.codebook_dim, options)
        return Codebook(size, self.codebook_dim, options)

    def codebook(self, level: int) -> Codebook:
        """The codebook of a level, from 0."""
        return self.codebooks[0 if self.shared_codebook else level]

    def _project_in(self, level: int, vectors: torch.Tensor) -> torch.Tensor:
        if not self.in_projections:
            return vectors
        # The layers may be of a narrower type than the vectors, which stay wide for the remainder.
        layer = self.in_projections[level]
        return layer(vectors.to(layer.weight.dtype)).to(vectors.dtype)

    def _project_out(self, level: int, codewords: torch.Tensor) -> torch.Tensor:
        if not self.out_projections:
            return codewords
        layer = self.out_projections[level]
        return layer(codewords.to(layer.weight.dtype))

    def _levels(self, num_quantizers: int | None) -> int:
        levels = self.num_quantizers if num_quantizers is None else num_quantizers
        if not 1 <= levels <= self.num_quantizers:
            raise ValueError(f"num_quantizers must be in 1..{self.num_quantizers}, got {num_quantizers}.")
        return levels

    def _flat(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.ndim != 3 or hidden.shape[1] != self.dim:
            raise ValueError(f"hidden must be (batch, {self.dim}, frame), got {tuple(hidden.shape)}.")
        # Remainders shrink from level to level: in a narrow type the deeper ones would quantize rounding errors.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.transpose(1, 2).reshape(-1, self.dim).to(wide)

    @torch.no_grad()
    def encode(self, hidden: torch.Tensor, num_quantizers: int | None = None) -> torch.Tensor:
        """Codes of (batch, dim, frame).

        Args:
            hidden: (batch, dim, frame).
            num_quantizers: how many levels, the first ones; all by default.

        Returns:
            (batch, quantizer, frame) int64.

        Raises:
            ValueError: the shape or the number of levels does not fit.
        """
        levels, residual = self._levels(num_quantizers), self._flat(hidden)
        codes = []
        for level in range(levels):
            found = self.codebook(level).search(self._project_in(level, residual))
            codes.append(found)
            if level + 1 < levels:  # the last remainder is needed by nobody
                residual = residual - self._contribution(level, found).to(residual.dtype)
        # (level, batch * frame) -> (batch, level, frame)
        return torch.stack(codes).unflatten(1, (hidden.shape[0], hidden.shape[2])).transpose(0, 1)

    def _contribution(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        return self._project_out(level, self.codebook(level).lookup(codes))

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """Sum of the codewords of any prefix of the levels.

        Args:
            audio_codes: (batch, quantizer, frame) int64; -1 adds nothing.

        Returns:
            (batch, dim, frame).

        Raises:
            ValueError: too many levels, or codes out of range.
        """
        total = None
        # Added from the coarsest level on, as forward does: another order would round differently.
        for made in self._parts(audio_codes):
            total = made if total is None else total + made
        return total.transpose(1, 2).to(self.codebook(0).codewords.dtype)

    def decode_levels(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """What every level adds: (batch, quantizer, frame) -> (batch, quantizer, dim, frame)."""
        return torch.stack(list(self._parts(audio_codes)), dim=1).transpose(2, 3)

    def _parts(self, audio_codes: torch.Tensor) -> Iterator[torch.Tensor]:
        """(batch, frame, dim) of every level."""
        if audio_codes.ndim != 3 or not 1 <= audio_codes.shape[1] <= self.num_quantizers:
            raise ValueError(
                f"audio_codes must be (batch, 1..{self.num_quantizers} quantizers, frame), got "
                f"{tuple(audio_codes.shape)}."
            )
        for level, codes in enumerate(audio_codes.unbind(1)):
            self._check_codes(level, codes)
            # -1 looks up codeword 0, whose part the mask then takes away: no index depends on the data.
            made = self._contribution(level, codes.clamp(min=0))
            yield made.to(torch.promote_types(made.dtype, torch.float32)) * (codes >= 0)[..., None]

    def _check_codes(self, level: int, codes: torch.Tensor) -> None:
        size = self.codebook_sizes[level]
        if torch.compiler.is_compiling():  # no graph can depend on values; the lookup itself fails on wrong ones
            return
        if codes.numel() and (int(codes.min()) < -1 or int(codes.max()) >= size):
            raise ValueError(
                f"audio_codes of level {level} must be in 0..{size - 1} (or -1 for none), got "
                f"{int(codes.min())}..{int(codes.max())}."
            )

    def forward(
        self,
        hidden: torch.Tensor,
        num_quantizers: int | None = None,
        padding_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> QuantizerOutput:
        """Quantize; nothing is changed, see `update_codebooks`.

        Args:
            hidden: (batch, dim, frame).
            num_quantizers: how many levels, the first ones; all by default.
            padding_mask: (batch, frame) bool, `False` on frames that must not count in losses and statistics.
            generator: makes quantizer dropout repeatable.

        Raises:
            ValueError: the shape or the number of levels does not fit.
        """
        levels, vectors = self._levels(num_quantizers), self._flat(hidden)
        valid = self._valid(hidden, padding_mask)
        # How many levels each vector keeps; all of one example keep equally many, as one bitrate would.
        depths = self._drawn_depths(hidden, levels, generator)
        residual, total = vectors, torch.zeros_like(vectors)
        codes, losses, perplexities, learned = [], [], [], []
        for level in range(levels):
            active = None if depths is None else depths > level
            counted = valid if active is None else active if valid is None else valid & active
            latent = self._project_in(level, residual)
            found, codewords, loss, used = self._search(level, latent, counted)
            made = self._made(level, residual, latent, codewords)
            # Detached, no level's loss reaches back through the levels before it, and every commitment term acts on the
            # input itself; EnCodec leaves it attached, where all but the first cancel.
            residual = residual - (made if self.gradient_path == "undetached" else made.detach())
            total = total + (made if active is None else made * active[:, None])
            codes.append(found if active is None else found.masked_fill(~active, -1))
            losses.append(loss)
            perplexities.append(perplexity_of(used))
            learned.append((latent.detach(), found, counted))
        if self.gradient_path == "once":
            total = total + (vectors - vectors.detach())
        stacked = torch.stack(losses)
        shape = (hidden.shape[0], hidden.shape[2])
        return QuantizerOutput(
            quantized=total.unflatten(0, shape).transpose(1, 2).to(hidden.dtype),
            # (level, batch * frame) -> (batch, level, frame)
            audio_codes=torch.stack(codes).unflatten(1, shape).transpose(0, 1),
            loss=stacked.mean() if self.level_reduction == "mean" else stacked.sum(),
            perplexity=torch.stack(perplexities),
            codebook_inputs=CodebookInputs(vectors.detach(), valid, *zip(*learned, strict=True))
            if self.training
            else None,
        )

    def _valid(self, hidden: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor | None:
        if padding_mask is None:
            return None
        if padding_mask.shape != (hidden.shape[0], hidden.shape[2]):
            raise ValueError(
                f"padding_mask must be (batch, frame) = {(hidden.shape[0], hidden.shape[2])}, got "
                f"{tuple(padding_mask.shape)}."
            )
        return padding_mask.bool().flatten()

    def _drawn_depths(
        self, hidden: torch.Tensor, levels: int, generator: torch.Generator | None
    ) -> torch.Tensor | None:
        """Levels that every vector keeps, (batch * frame,), in training with quantizer dropout."""
        if not self.training or not self.quantizer_dropout:
            return None
        device = hidden.device if generator is None else generator.device
        # One draw for the depth, one for whether the example is dropped at all, so that equal seeds drop alike whatever
        # the probability.
        drawn = torch.rand(2, len(hidden), generator=generator, device=device).to(hidden.device)
        depths = 1 + (drawn[0] * levels).long().clamp(max=levels - 1)
        depths = torch.where(drawn[1] < self.quantizer_dropout, depths, levels)
        return depths.repeat_interleave(hidden.shape[2])

    def _search(
        self, level: int, latent: torch.Tensor, counted: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes (vector,), codewords (vector, codebook_dim), loss () and uses of every code (codeword,) of a level."""
        codebook = self.codebook(level)
        codes = codebook.search(latent)
        codewords = codebook.lookup(codes).to(latent.dtype)
        used = code_counts(codes, codebook.size, counted)
        # |x - sg(e)|^2 holds the input at its codeword, |sg(x) - e|^2 draws the codeword (arXiv 1711.00937, equation 3).
        loss = self.commitment_weight * _mean_square(latent, codewords.detach(), counted)
        if self.options.update == "gradient":
            loss = loss + self.codebook_weight * _mean_square(codewords, latent.detach(), counted)
        topology = codebook.topology_loss(used)
        return codes, codewords, loss if topology is None else loss + topology, used

    def _made(self, level: int, residual: torch.Tensor, latent: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
        """A level's part of the sum, (vector, dim), with its gradient path."""
        # "once": the input's gradient is added to the sum at the end; here only the projections may get theirs.
        source = self._project_in(level, residual.detach()) if self.gradient_path == "once" else latent
        return self._project_out(level, _straight(codewords, source)).to(residual.dtype)

    @torch.no_grad()
    def initialize_codebooks(
        self,
        hidden: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Place the codewords of all levels by k-means, each on what the levels before it leave over; once.

        Nothing happens where that is done (also in a loaded checkpoint) or not asked for (`kmeans_iterations=0`). Call it
        with the vectors of the first batch, before the first step; otherwise the first `update_codebooks` does it in place
        of its step, and the first forward quantizes with random codewords. With several processes the first one's vectors
        decide.

        Args:
            hidden: (batch, dim, frame).
            padding_mask: (batch, frame) bool, `False` on frames that must not count.
            generator: makes k-means repeatable.

        Raises:
            ValueError: a shape does not fit, or a vector is not finite.
        """
        vectors, valid = self._flat(hidden), self._valid(hidden, padding_mask)
        vectors = vectors if valid is None else vectors[valid]
        if not bool(vectors.isfinite().all()):
            raise ValueError("hidden must be finite to place codewords, got NaN or infinite values. Skip this batch.")
        self._initialize(vectors, generator)

    def _initialize(self, residual: torch.Tensor, generator: torch.Generator | None) -> None:
        for level in range(self.num_quantizers):
            latent = self._project_in(level, residual)
            self.codebook(level).initialize(latent, generator)
            # Deeper levels are placed on what the levels just placed leave over, as forward will search them.
            residual = residual - self._contribution(level, self.codebook(level).search(latent)).to(residual.dtype)

    def accumulate(self, output: ModelOutput) -> None:
        """Remember what the codebooks shall learn from a training forward, until `update_codebooks`.

        Args:
            output: of this quantizer in training mode, or of a model that passes its `codebook_inputs` on; or these
                alone, as a recipe keeps them of every batch (`Phase.kept`) for its `after_step`.

        Raises:
            ValueError: the output was made in evaluation mode.
        """
        inputs = output if isinstance(output, CodebookInputs) else output.codebook_inputs
        if inputs is None:
            raise ValueError(
                "output has no codebook_inputs, got those of a forward in evaluation mode: call train() before it."
            )
        if self._pending is None:
            self._pending = PendingStatistics([self.codebook(level) for level in range(self.num_quantizers)])
        self._pending.add(inputs)

    def discard_accumulated(self) -> None:
        """Forget what was accumulated, for a step that is given up."""
        self._pending = None

    @torch.no_grad()
    def update_codebooks(self, generator: torch.Generator | None = None) -> bool:
        """Let the codebooks learn from everything accumulated since the last call, as from one batch.

        One step of the running means, of the restart of unused codewords and of the maps' clocks; the k-means start where
        it is still to come. Every process must call it, also one that accumulated nothing.

        Args:
            generator: makes k-means and restarts repeatable.

        Returns:
            whether they learned: not, on any process, where nothing was accumulated or something was not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            pending = PendingStatistics([self.codebook(level) for level in range(self.num_quantizers)])
        totals = pending.totals()
        if totals is None:
            return False
        if not all(bool(codebook.initted) for codebook in self.codebooks):
            empty = pending.latest[0].new_zeros(0, self.dim)
            self._initialize(torch.cat([empty, *pending.hidden]), generator)
            return True
        for level, found in enumerate(totals):
            if found is not None:  # else no call of the step reached this level
                self.codebook(level).learn(*found, pending.latest[level], generator)
        return True


class CodebookModelMixin:
    """Base of models with a `quantizer`: their codebooks learn when the training says so, never inside `forward`.

    A training calls `accumulate_codebooks(output)` with the output (or its `codebook_inputs`) of every micro batch, and
    `update_codebooks()` once per step, behind the optimizer's; on several processes all of them do.
    """

    quantizer: ResidualVectorQuantizer

    def accumulate_codebooks(self, output: ModelOutput) -> None:
        """Remember what the codebooks shall learn from a training forward; see `ResidualVectorQuantizer.accumulate`."""
        self.quantizer.accumulate(output)

    def update_codebooks(self, generator: torch.Generator | None = None) -> bool:
        """Let the codebooks learn from what was accumulated; see `ResidualVectorQuantizer.update_codebooks`."""
        return self.quantizer.update_codebooks(generator)


class VectorQuantizer(ResidualVectorQuantizer):
    """One codebook (VQ-VAE, arXiv 1711.00937), with the three methods and the code axis of the residual quantizer.

    Args:
        dim: width of the input.
        codebook_size: number of codewords.
        codebook_dim: width of factorized codewords, see `ResidualVectorQuantizer`.
        update: "ema" or "gradient".
        **options: further arguments of `ResidualVectorQuantizer`.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        update: Literal["ema", "gradient"] = "ema",
        **options,
    ) -> None:
        super().__init__(dim, codebook_size, 1, codebook_dim, update, **options)


__all__ = [
    "CodebookModelMixin",
    "QuantizerOutput",
    "ResidualVectorQuantizer",
    "VectorQuantizer",
    "perplexity_of",
]
