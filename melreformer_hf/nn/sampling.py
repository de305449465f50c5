"""Drawing from distributions over few values: repeatable, row by row its own, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator] | None


def _uniform(rows: int, device: torch.device, generator: Generators) -> torch.Tensor:
    """(row,) numbers in [0, 1); one generator per row makes a row independent of its batch."""
    if isinstance(generator, Sequence):
        if len(generator) != rows:
            raise ValueError(f"generator must be one, or one per row ({rows}), got {len(generator)}.")
        drawn = [torch.rand(1, generator=one, device=one.device) for one in generator]
        return torch.cat([value.to(device) for value in drawn])
    source = device if generator is None else generator.device
    return torch.rand(rows, generator=generator, device=source).to(device)


def draw(probabilities: torch.Tensor, generator: Generators = None) -> torch.Tensor:
    """Draw one index per row by inverting the cumulative distribution: (row, choice) -> (row,) int64."""
    # float32, which every device has.
    cumulative = probabilities.float().cumsum(-1)
    point = _uniform(len(probabilities), probabilities.device, generator)[:, None]
    # Divided by the last sum, so that it is one: a point below one is never behind the last that has any probability.
    index = torch.searchsorted(cumulative / cumulative[:, -1:], point, right=True).squeeze(1)
    return index.clamp_(max=probabilities.shape[-1] - 1)  # where there is no probability at all


def choose(
    logits: torch.Tensor,
    do_sample: bool,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
) -> torch.Tensor:
    """One code per row.

    Args:
        logits: (row, choice).
        do_sample: draw; otherwise take the likeliest.
        temperature: divides the logits.
        top_k: draw among the likeliest so many.
        top_p: draw among the likeliest that together reach this probability.
        generator: one, or one per row.

    Returns:
        (row,) int64.

    Raises:
        ValueError: temperature, top_k or top_p is out of range.
    """
    if not do_sample:
        return logits.argmax(-1)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}. For the likeliest use do_sample=False.")
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k must be positive, got {top_k}.")
        # Ties with the last of the k stay in: dropping one of them would depend on the order of the codebook.
        threshold = logits.topk(min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p is not None:
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}.")
        ordered, order = probabilities.sort(-1, descending=True)
        # The one that reaches top_p is kept, so that never all are dropped.
        before = ordered.cumsum(-1).sub_(ordered)
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill_(before >= top_p, 0.0))
    return draw(probabilities, generator)


__all__ = ["Generators", "choose", "draw"]
