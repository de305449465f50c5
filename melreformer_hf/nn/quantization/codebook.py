"""One codebook: its codewords and all that it must remember to go on learning."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import embedding
from transformers import initialization as init

from melreformer_hf.nn.quantization.distributed import (
    is_distributed,
    share_from_first_process,
    sum_over_processes,
)
from melreformer_hf.nn.quantization.kmeans import cluster_sums, kmeans, sample_vectors
from melreformer_hf.nn.quantization.options import CodebookOptions
from melreformer_hf.nn.quantization.search import nearest_codes

_STATISTICS = ("cluster_size", "vector_sum")


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
    def reset_parameters(self) -> None:
        """Random codewords, each counted once; models call it from `_init_weights`."""
        init.normal_(self.codewords, std=self.dim**-0.5)
        init.ones_(self.cluster_size)
        init.constant_(self.initted, self.options.kmeans_iterations == 0)
        if self.options.update == "ema":
            init.copy_(self.vector_sum, self.codewords)

    def _apply(self, fn, recurse: bool = True):
        kept = {name: self._buffers[name] for name in _STATISTICS if name in self._buffers}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            new = self._buffers[name]
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

        With several processes the first one's vectors decide. A process without vectors takes part in the exchange.
        """
        if bool(self.initted) or not (len(vectors) or is_distributed()):
            return
        means, counts = self.codewords.detach().float(), torch.ones_like(self.cluster_size).float()
        if len(vectors):
            means, counts = kmeans(vectors.float(), self.size, self.options.kmeans_iterations, generator)
        share_from_first_process(means, counts)
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

    def topology_loss(self, codes: torch.Tensor) -> torch.Tensor | None:
        """A loss of the codewords beyond the distance to their vectors: none."""
        return None

    @torch.no_grad()
    def learn(self, vectors: torch.Tensor, codes: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """One training step of the statistics, of EMA codewords, and of the restart of unused codewords.

        Args:
            vectors: (vector, dim) that were quantised.
            codes: (vector,) their codes.
            generator: makes the choice of restarted codewords repeatable.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            counts, sums = cluster_sums(vectors, codes, self.size)
            sum_over_processes(counts, sums)
            counts, sums = self.spread(counts, sums)
            self._keep("cluster_size", self._blend(self.cluster_size, counts, counts))
            if self.options.update == "ema":
                self._keep("vector_sum", self._blend(self.vector_sum, sums, counts[:, None]))
            self._restart(vectors, generator)
            if self.options.update == "ema":
                self._average(counts)

    def _blend(self, old: torch.Tensor, new: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Running mean of old and new; without smoothing, what was not written keeps its value."""
        wide = old.float() if old.dtype.itemsize < 4 else old
        blended = wide * self.options.decay + new * (1 - self.options.decay)
        return torch.where(counts > 0, blended, wide) if self.options.smoothing == "none" else blended

    def _average(self, counts: torch.Tensor) -> None:
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


__all__ = ["Codebook"]
