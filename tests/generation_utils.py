"""Caches of the token models: what growing and static ones must agree in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import DynamicCache, StaticCache

_LENGTH = 20


def cached_token_step(model, prefix: dict) -> tuple[Callable, tuple]:
    """One step of generation as a function of tensors: token, then the keys and values of every layer."""
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with torch.no_grad():
        cache = model(tokens, **prefix, use_cache=True).past_key_values
    held = tuple(part for layer in cache.layers for part in (layer.keys.clone(), layer.values.clone()))

    def step(token: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        for index in range(len(parts) // 2):
            cache.update(parts[2 * index], parts[2 * index + 1], index)
        return model(token, past_key_values=cache, use_cache=True).logits

    return step, (torch.tensor([[3], [1]]), *held)


def check_static_cache(model, prefix: dict, mode: dict, begun: bool) -> None:
    """`generate` makes the same tokens with a growing cache, a static one by name, and one that the user made."""
    rows = len(next(iter(prefix.values())))
    beginning = torch.arange(4).repeat(rows, 1) if begun else None
    made = []
    for extra in ({}, {"cache_implementation": "static"}, {"past_key_values": StaticCache(model.config, 2 * _LENGTH)}):
        torch.manual_seed(3)
        made.append(model.generate(beginning, **prefix, **mode, **extra))
    assert made[0].shape == (rows, model.max_tokens)
    assert torch.equal(made[0], made[1]), "static by name"
    assert torch.equal(made[0], made[2]), "static by the user"
    short = [
        model.generate(beginning, **prefix, max_new_tokens=3, **extra)
        for extra in ({}, {"cache_implementation": "static"})
    ]
    assert torch.equal(*short)
    assert short[0].shape[1] == 3 + (4 if begun else 0)


def check_static_steps(model, prefix: dict) -> None:
    """Token by token in a compiled graph, with a cache twice as long as the sequence, equals the whole at once."""
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = StaticCache(model.config, max_cache_len=2 * _LENGTH)
    torch.compiler.reset()
    step = torch.compile(
        lambda token: model(token, past_key_values=cache, use_cache=True).logits, fullgraph=True, backend="eager"
    )
    with torch.no_grad():
        whole = model(tokens, **prefix).logits
        parts = [model(tokens[:, :2], **prefix, past_key_values=cache, use_cache=True).logits]
        parts += [step(tokens[:, index : index + 1]) for index in range(2, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def check_use_cache_of_the_configuration(model_class: type, config_class: type, prefix: dict) -> None:
    """`use_cache` of a configuration decides whether `generate` keeps keys and values."""
    for asked in (True, False):
        model, kept = model_class(config_class.preset("tiny", use_cache=asked)).eval(), []
        model.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output.past_key_values is not None))
        model.generate(**prefix, max_new_tokens=3)
        assert kept == [asked] * 3
