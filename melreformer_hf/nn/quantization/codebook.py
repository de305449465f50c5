"""One codebook: its codewords, all that it must remember to go on learning, and what waits to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.functional import embedding
from transformers import initialization as init
from transformers.utils import ModelOutput

from melreformer_hf.nn.quantization.options import CodebookOptions
from melreformer_hf.nn.quantization.search import cluster_sums, kmeans, nearest_codes, sample_vectors

_STATISTICS = ("cluster_size", "vector_sum")


def is_distributed() -> bool:
    """Whether several processes work together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_processes(tensor: torch.Tensor) -> None:
    """Replace a tensor by its sum over all processes of torch.distributed; alone nothing is done."""
    if is_distributed():
        distributed.all_reduce(tensor)


def share_from_first_process(*tensors: torch.Tensor) -> None:
    """Replace every tensor by the first process's."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


@dataclass
class CodebookInputs(ModelOutput):
    """What the codebooks may learn from one call of a quantizer; nothing here carries gradients.

    Args:
        hidden: (vector, dim) that was quantized.
        valid: (vector,) bool, false on padding; or `None`.
        vectors: per level (vector, codebook_dim) that its codebook was searched for.
        codes: per level (vector,) int64 codes that were found.
        counted: per level (vector,) bool, false on padding and where quantizer dropout left the level out; or `None`.
    """

    hidden: torch.FloatTensor | None = None
    valid: torch.BoolTensor | None = None
    vectors: tuple[torch.FloatTensor, ...] | None = None
    codes: tuple[torch.LongTensor, ...] | None = None
    counted: tuple[torch.BoolTensor | None, ...] | None = None


class PendingStatistics:
    """Sums over the micro batches of a step, until the codebooks learn from them.

    Args:
        codebooks: of every level, from the coarsest.
    """

    def __init__(self, codebooks: Sequence[Codebook]) -> None:
        self.codebooks = codebooks
        self.hidden: list[torch.Tensor] = []
        self.latest = [codebook.codewords.new_zeros(0, codebook.dim) for codebook in codebooks]
        self._calls = [0] * len(codebooks)
        self._sums: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(codebooks)

    @torch.no_grad()
    def add(self, inputs: CodebookInputs) -> None:
        """Take one micro batch in. Sums are kept, not vectors, but for what a start or a restart needs."""
        if not all(bool(codebook.initted) for codebook in self.codebooks):
            self.hidden.append(inputs.hidden if inputs.valid is None else inputs.hidden[inputs.valid])
        for level, (vectors, codes) in enumerate(zip(inputs.vectors, inputs.codes, strict=True)):
            counted, codebook = inputs.counted[level], self.codebooks[level]
            if counted is not None:
                vectors, codes = vectors[counted], codes[counted]
            counts, sums = cluster_sums(vectors, codes, codebook.size)
            before = self._sums[level]
            self._sums[level] = (counts, sums) if before is None else (before[0] + counts, before[1] + sums)
            self._calls[level] += 1
            # Restarted codewords become vectors of the latest micro batch: enough of them, at bounded memory.
            if codebook.options.restart_threshold:
                self.latest[level] = vectors

    def totals(self) -> list[tuple[torch.Tensor, torch.Tensor] | None] | None:
        """Counts (codeword,) and sums (codeword, dim) of every level over all micro batches and processes.

        Returns:
            per level both, or `None` where no call reached so deep; `None` altogether where there was no call at all, or
            something is not finite. All processes get the same answer, so that none waits for another.
        """
        device = self.codebooks[0].cluster_size.device
        parts = [torch.tensor(self._calls, dtype=torch.float32, device=device)]
        shapes = [(codebook.size, codebook.dim) for codebook in self.codebooks]
        for shape, sums in zip(shapes, self._sums, strict=True):
            # A process that saw no batch brings zeros: it must take part, or the others would wait for it forever.
            parts += (
                [torch.zeros(shape[:1], device=device), torch.zeros(shape, device=device)] if sums is None else sums
            )
        # One exchange for everything; float64 vectors stay as they are where nothing is exchanged.
        flat = torch.cat([part.flatten() for part in parts])
        sum_over_processes(flat)
        if not bool(flat.isfinite().all()) or not bool(flat[: len(shapes)].any()):
            return None
        calls, *pieces = flat.split([len(shapes)] + [n for size, dim in shapes for n in (size, size * dim)])
        made = zip(pieces[::2], pieces[1::2], shapes, calls.tolist(), strict=True)
        return [(counts, sums.view(shape)) if used else None for counts, sums, shape, used in made]


class Codebook(nn.Module):
    """Codewords with their running statistics.

    Everything is a parameter or a persistent buffer: `codewords` (codeword, dim), a parameter with `update="gradient"`;
    `cluster_size` (codeword,) running number of vectors; `vector_sum` (codeword, dim) running sum of vectors (EMA only);
    `initted` () bool. Statistics stay in float32 when the module is cast to a narrower type, where a running mean would
    stop moving.

    Args:
        size: number of codewords.
        dim: width of a codeword.
        options: how it learns.
    """

    def __init__(self, size: int, dim: int, options: CodebookOptions) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"A codebook needs at least one codeword and one dimension, got {size} and {dim}.")
        self.size, self.dim, self.options = size, dim, options
        codewords = torch.empty(size, dim)
        if options.update == "gradient":
            self.codewords = nn.Parameter(codewords)
        else:
            self.register_buffer("codewords", codewords)
            self.register_buffer("vector_sum", torch.empty(size, dim))
        self.register_buffer("cluster_size", torch.empty(size))
        self.register_buffer("initted", torch.empty((), dtype=torch.bool))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, bound: float | None = None) -> None:
        """Random codewords, each counted once; models call it from `_init_weights`.

        Args:
            bound: values are uniform within it; `None`: normal, of about unit length.
        """
        if bound is None:
            init.normal_(self.codewords, std=self.dim**-0.5)
        else:
            init.uniform_(self.codewords, -bound, bound)
        init.ones_(self.cluster_size)
        init.constant_(self.initted, self.options.kmeans_iterations == 0)
        if self.options.update == "ema":
            init.copy_(self.vector_sum, self.codewords)

    def _apply(self, fn, recurse: bool = True):
        kept = {name: self._buffers[name] for name in _STATISTICS if name in self._buffers}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            new = self._buffers[name]
            # In bfloat16 a count of 300 would no longer grow by 1: running means would stand still.
            if new.dtype != old.dtype and new.dtype.itemsize < 4:
                self._buffers[name] = old.to(device=new.device, dtype=torch.float32)
        return self

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, update={self.options.update!r}"

    def search(self, vectors: torch.Tensor) -> torch.Tensor:
        """Codes of (vector, dim): (vector,) int64."""
        return nearest_codes(vectors.detach(), self.codewords.detach(), cosine=self.options.normalize)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Codewords (..., dim) of codes (...); gradients reach the codewords where they are parameters."""
        return embedding(codes, self.codewords)

    @torch.no_grad()
    def initialize(self, vectors: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """Place the codewords by k-means on (vector, dim), once; nothing happens when that is done or not asked for.

        With several processes the first one's vectors decide; where it has none, codewords stay as they are.
        """
        if bool(self.initted):
            return
        means, counts = self.codewords.detach().float(), torch.zeros_like(self.cluster_size).float()
        if len(vectors):
            means, counts = kmeans(vectors.float(), self.size, self.options.kmeans_iterations, generator)
        share_from_first_process(means, counts)
        # Also where the first process had no vectors: then all leave it for the next step.
        if not bool(counts.any()):
            return
        counts = counts.clamp(min=1)  # a mean without vectors counts as its own, or its running mean would be zero
        self.codewords.copy_(means)
        self._keep("cluster_size", counts)
        if self.options.update == "ema":
            self._keep("vector_sum", means * counts[:, None])
        self.initted.fill_(True)

    def _keep(self, name: str, value: torch.Tensor) -> None:
        """Write a running statistic in place; where the buffer is too narrow to go on, widen it."""
        buffer = self._buffers[name]
        if buffer.dtype.itemsize < 4:
            self._buffers[name] = value.float()
        else:
            buffer.copy_(value)

    def spread(self, counts: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Statistics (codeword,) and (codeword, dim) of a step before they enter the running ones: as they are."""
        return counts, sums

    def topology_loss(self, counts: torch.Tensor) -> torch.Tensor | None:
        """A loss of the codewords beyond the distance to their vectors, of the (codeword,) uses of a call: none."""
        return None

    @torch.no_grad()
    def learn(
        self,
        counts: torch.Tensor,
        sums: torch.Tensor,
        vectors: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        """One step of the statistics, of EMA codewords, and of the restart of unused codewords.

        Args:
            counts: (codeword,) vectors that chose each codeword, over all processes.
            sums: (codeword, dim) their sums.
            vectors: (vector, dim) that restarted codewords are drawn from, those of this process.
            generator: makes the choice of restarted codewords repeatable.
        """
        with torch.autocast(counts.device.type, enabled=False):
            counts, sums = self.spread(counts, sums)
            # N <- decay N + (1 - decay) n and m <- decay m + (1 - decay) sum, arXiv 1711.00937, equations 6 and 7.
            self._keep("cluster_size", self._blend(self.cluster_size, counts, counts))
            if self.options.update == "ema":
                self._keep("vector_sum", self._blend(self.vector_sum, sums, counts[:, None]))
            # Before the average: restarted statistics then say what their codewords become, and the restart lasts.
            self._restart(vectors, generator)
            if self.options.update == "ema":
                self._average(counts)

    def _blend(self, old: torch.Tensor, new: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Running mean of old and new; without smoothing, what was not written keeps its value."""
        wide = old.float() if old.dtype.itemsize < 4 else old
        blended = wide * self.options.decay + new * (1 - self.options.decay)
        return torch.where(counts > 0, blended, wide) if self.options.smoothing == "none" else blended

    def _average(self, counts: torch.Tensor) -> None:
        """Codewords become their running means, equation 8 of arXiv 1711.00937, with Laplace-smoothed counts."""
        size, total, epsilon = self.cluster_size, self.cluster_size.sum(), self.options.epsilon
        if self.options.smoothing == "none":
            means = (self.vector_sum / size.clamp(min=epsilon)[:, None]).to(self.codewords.dtype)
            self.codewords.copy_(torch.where((counts > 0)[:, None], means, self.codewords))
            return
        smoothed = (size + epsilon) / (total + self.size * epsilon) * total
        if self.options.smoothing == "running":
            self._keep("cluster_size", smoothed)
        self.codewords.copy_(self.vector_sum / smoothed[:, None])

    def _restart(self, vectors: torch.Tensor, generator: torch.Generator | None) -> None:
        options = self.options
        if not options.restart_threshold:
            return
        if options.restart_rule == "count":
            threshold = fresh = torch.as_tensor(options.restart_threshold, device=vectors.device)
        else:
            fresh = self.cluster_size.mean()
            threshold = options.restart_threshold * fresh
        dead = self.cluster_size < threshold
        # A process without vectors of its own still takes part in the exchange.
        if not bool(dead.any()) or (not len(vectors) and not is_distributed()):
            return
        drawn = self.codewords.detach().float()
        if len(vectors):
            drawn = sample_vectors(vectors.float(), self.size, options.restart_noise, generator)
        share_from_first_process(drawn)
        self._keep("cluster_size", torch.where(dead, fresh, self.cluster_size))
        if options.update == "ema":
            self._keep("vector_sum", torch.where(dead[:, None], drawn * fresh, self.vector_sum))
        self.codewords.copy_(torch.where(dead[:, None], drawn, self.codewords))


__all__ = [
    "Codebook",
    "CodebookInputs",
    "PendingStatistics",
    "is_distributed",
    "share_from_first_process",
    "sum_over_processes",
]
