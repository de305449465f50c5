"""From items to batches: stacked where equal, padded with a mask where lengths differ."""

from __future__ import annotations

import pytest
import torch

from melreformer_hf.data.batches import Batch, BatchStream, item_generator
from melreformer_hf.data.collation import collate
from melreformer_hf.data.streams import ItemStream


def test_unequal_lengths_are_padded_with_zeros_and_masked():
    rows = [{"mel": torch.full((2, length), float(length)), "size": length} for length in (3, 5)]
    batch = collate(rows)
    assert batch["mel"].shape == (2, 2, 5) and batch["mel_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch["mel"][0].tolist() == [[3.0, 3.0, 3.0, 0.0, 0.0]] * 2 and batch["mel"][1].eq(5).all()
    assert batch["size"].tolist() == [3, 5]


def test_equal_shapes_are_stacked_without_a_mask_and_names_stay_lists():
    batch = collate([{"x": torch.ones(2, dtype=torch.int64), "label": name, "known": True} for name in "ab"])
    assert list(batch) == ["x", "label", "known"] and batch["x"].dtype == torch.int64
    assert batch["label"] == ["a", "b"] and batch["known"].tolist() == [True, True]


def test_what_cannot_be_a_batch_is_refused():
    with pytest.raises(ValueError, match="'mel' must have one shape"):
        collate([{"mel": torch.ones(2, 3)}, {"mel": torch.ones(3, 3)}])
    with pytest.raises(ValueError, match="same keys"):
        collate([{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="at least one"):
        collate([])


class Counting(ItemStream):
    """Items that are their index; anchors every four."""

    def item(self, index: int) -> dict:
        return {"index": index, "anchor": {"first": index // 4 * 4}}


def prepared(item: dict, generator: torch.Generator) -> dict:
    return {"index": item["index"], "noise": torch.randn((), generator=generator)}


def test_batches_carry_the_anchor_of_their_last_item_and_do_not_move_the_stream():
    stream = Counting(seed=1, rank=1, world_size=2)
    stream.advance(2, {"first": 4})
    batches = iter(BatchStream(stream, prepared, 3))
    first, second = next(batches), next(batches)
    assert first.tensors["index"].tolist() == [5, 7, 9] and second.tensors["index"].tolist() == [11, 13, 15]
    assert first.anchor == {"first": 8} and stream.position == 2
    assert first.to("cpu").anchor == first.anchor and isinstance(first.to("cpu"), Batch)
    expected = torch.randn((), generator=item_generator(1, 7))
    assert torch.equal(first.tensors["noise"][1], expected)


def test_the_position_has_one_owner_and_is_saved_with_its_anchor():
    stream = Counting(seed=1)
    taken = [item["index"] for _, item in zip(range(6), stream, strict=False)]
    assert taken == list(range(6)) and stream.state_dict() == {"seed": 1, "position": 6, "anchor": {"first": 4}}
    resumed = Counting(seed=1)
    resumed.load_state_dict(stream.state_dict())
    assert next(iter(resumed))["index"] == 6
    with pytest.raises(ValueError, match="seed 1, this one 2"):
        Counting(seed=2).load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="rank"):
        Counting(rank=2, world_size=2)
