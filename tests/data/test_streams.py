"""What streams draw: of seed and index alone, for any whole number as a seed."""

from __future__ import annotations

import itertools

import pytest

from melreformer_hf.data.batches import item_generator
from melreformer_hf.data.streams import ItemStream


class Drawing(ItemStream):
    """Items that hold what was drawn for them."""

    def item(self, index: int) -> dict:
        random = self.random(index)
        return {"index": index, "drawn": (random.random(), random.random())}


SEEDS = (0, 1, 2, 3, 63, 64, 127, 128, 2**32, 2**63, 2**64 - 2, -1)


def test_every_seed_and_every_index_draws_something_else():
    drawn = {Drawing(seed).item(index)["drawn"] for seed in SEEDS for index in (0, 1, 2, 10**9)}
    assert len(drawn) == 4 * len(SEEDS)
    assert Drawing(5).item(7) == Drawing(5, 1, 3).item(7)
    assert [Drawing(seed).natural_seed for seed in (0, 7, 2**64 - 1, 2**64 + 7, -1)] == [0, 7, 2**64 - 1, 7, 2**64 - 1]


def test_generators_of_items_differ_by_seed_and_index():
    seeds = [seed for seed in SEEDS if seed < 2**63]  # counted in 63 bits
    states = {item_generator(seed, index).initial_seed() for seed in seeds for index in range(20)}
    assert len(states) == 20 * len(seeds) and all(0 <= state < 2**63 for state in states)
    assert item_generator(3, 4).initial_seed() == item_generator(3, 4).initial_seed()


def test_processes_take_turns_and_count_what_they_take():
    alone = Drawing()
    assert (alone.seed, alone.rank, alone.world_size, next(iter(alone))["index"]) == (0, 0, 1, 0)
    streams = [Drawing(1, rank, 3) for rank in range(3)]
    taken = [[item["index"] for item in itertools.islice(stream, 4)] for stream in streams]
    assert taken == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert [stream.state_dict() for stream in streams] == [{"seed": 1, "position": 4, "anchor": None}] * 3
    streams[0].advance(2, {"place": 1})
    streams[0].advance(1)
    assert streams[0].state_dict() == {"seed": 1, "position": 7, "anchor": {"place": 1}}
    for rank, world_size in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"rank must be in 0\.\.world_size-1"):
            Drawing(0, rank, world_size)
