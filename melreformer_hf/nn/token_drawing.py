"""Tokens drawn one after another from a model whose first position is a vector: seeds by row, guidance, any order.

transformers' `generate` (see `nn.gpt.PrefixGenerationMixin`) draws a batch from one random state and returns it whole; here
every row has its own, so that it does not depend on its neighbors, and tokens can be used while they come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch

from melreformer_hf.nn.sampling import Generators, choose


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSampling:
    """How tokens are drawn.

    Args:
        do_sample: draw; otherwise the likeliest token is taken every time (greedy).
        temperature: divides the logits.
        top_k: draw among the likeliest so many.
        top_p: draw among the likeliest that together reach this probability.
        guidance_scale: how far logits go from those without the condition towards those with it: 1 is the condition alone,
            more exaggerates it, 0 ignores it (classifier-free guidance, arXiv 2207.12598).
        use_cache: whether keys and values are kept; without, every token computes all before it anew.

    Raises:
        ValueError: a field breaks its rule.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    use_cache: bool = True

    def __post_init__(self) -> None:
        rules = [
            ("temperature", self.temperature > 0, "be positive; for the likeliest token say do_sample=False"),
            ("top_k", self.top_k is None or self.top_k >= 1, "be at least 1, or None"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "be in (0, 1], or None"),
            ("guidance_scale", self.guidance_scale >= 0, "not be negative"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}.")


def order_around(missing: torch.Tensor) -> torch.Tensor:
    """Places of tokens, those that are there before those that are missing, each in their usual order.

    Args:
        missing: (token,) bool.

    Returns:
        (token,) int64.
    """
    return torch.cat([(~missing).nonzero()[:, 0], missing.nonzero()[:, 0]])


@torch.no_grad()
def draw_tokens(
    model: Callable,
    condition: Mapping[str, torch.Tensor],
    given: torch.Tensor,
    count: int,
    options: TokenSampling,
    generators: Generators = None,
    without: Mapping[str, torch.Tensor] | None = None,
    order: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Draw tokens that follow those that are given.

    Args:
        model: `ClassGptModel`, `GptVaeModel`, or a wrapper around one.
        condition: its vectors' sources by argument, each with a first axis of rows: `class_labels` or `latents`.
        given: (row, step) int64 tokens that come first; may have no steps.
        count: tokens to draw.
        options: how.
        generators: one, or one per row.
        without: what stands for no condition, for guidance; `None` where there is none.
        order: (row, step + count) places of all tokens, of a model that takes them.

    Yields:
        (row,) int64, `count` times.

    Raises:
        ValueError: guidance is asked for and there is nothing to guide away from.
    """
    guided = options.guidance_scale != 1.0
    if guided and without is None:
        raise ValueError(
            f"guidance_scale must be 1: the model knows no absence of the condition, got {options.guidance_scale}."
        )
    if guided:
        # With and without the condition side by side: one pass of twice as many rows.
        condition = {name: torch.cat([value, without[name]]) for name, value in condition.items()}
        order = None if order is None else order.repeat(2, 1)
    places = {} if order is None else {"order": order}
    tokens, cache = given, None
    for _ in range(count):
        fresh = tokens if cache is None else tokens[:, -1:]
        fresh = fresh.repeat(2, 1) if guided else fresh
        start = condition if cache is None else {}
        output = model(
            fresh if fresh.shape[1] else None,
            **start,
            **places,
            past_key_values=cache,
            use_cache=options.use_cache,
            return_dict=True,
        )
        logits = output.logits[:, -1].float()  # (row, vocab)
        if guided:
            wanted, plain = logits.chunk(2)
            logits = plain + options.guidance_scale * (wanted - plain)
        drawn = choose(logits, options.do_sample, options.temperature, options.top_k, options.top_p, generators)
        yield drawn
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
        cache = output.past_key_values if options.use_cache else None


__all__ = ["TokenSampling", "draw_tokens", "order_around"]
