"""Which recordings are held out: decided by their names, so that adding files moves none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

HELD_OUT = ("validation", "test")


def name_hash(recording: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big") / 2**64


def split_of(recording: str, validation_fraction: float, test_fraction: float) -> str:
    """`test`, `validation` or `train`; fixed shares of all names, by `name_hash`."""
    place = name_hash(recording)
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def assign_splits(
    given: Mapping[str, str | None], validation_fraction: float = 0.1, test_fraction: float = 0.1
) -> tuple[dict[str, str], list[str]]:
    """The split of every recording.

    Recordings without a split are divided by the hash of their names. Where somebody named splits, but no `validation`
    (or no `test`), that one is taken out of `train` by the same rule. A split that is wanted and would be empty, as
    happens with a handful of recordings, is given the recording with the lowest hash of the fullest split.

    Args:
        given: recording -> split, or `None` where nobody said.
        validation_fraction: share of the names for validation; 0 wants none.
        test_fraction: share of the names for the test; 0 wants none.

    Returns:
        (recording -> split, sentences that tell what was done beyond the hash and what is missing).
    """
    fractions = {"validation": validation_fraction, "test": test_fraction}
    named = {split for split in given.values() if split is not None}
    open_splits = [split for split in HELD_OUT if fractions[split] > 0 and split not in named]
    shares = [fractions[split] if split in open_splits else 0.0 for split in HELD_OUT]
    result, free, notes = {}, set(), []
    for recording, split in given.items():
        if split is None:
            result[recording] = split_of(recording, validation_fraction, test_fraction)
        else:
            result[recording] = split_of(recording, *shares) if split == "train" else split
        if split is None or split == "train":
            free.add(recording)
    for split in ("train", *(split for split in HELD_OUT if fractions[split] > 0)):
        if split in result.values():
            continue
        moved = _donor(result, free, split)
        if moved is None:
            notes.append(f"{split} is missing: {len(given)} recordings are not enough for it.")
        else:
            result[moved] = split
    for split in open_splits:
        count = sum(result[recording] == split and given[recording] == "train" for recording in given)
        if count:
            notes.append(f"The metadata name no {split}: {count} of their train recordings are held out as {split}.")
    return result, notes


def _donor(result: dict[str, str], free: set[str], wanted: str) -> str | None:
    """The recording that moves to an empty split: of the fullest split, which keeps at least one."""
    members: dict[str, list[str]] = {}
    for recording, split in result.items():
        members.setdefault(split, []).append(recording)
    giving = [split for split, names in members.items() if len(names) > 1 and free.intersection(names)]
    if not giving:
        # One or two recordings: train comes first, then validation, which chooses the weights that are kept.
        poorer = {"train": ("test", "validation"), "validation": ("test",)}.get(wanted, ())
        giving = [split for split in poorer if free.intersection(members.get(split, []))][:1]
    if not giving:
        return None
    fullest = max(giving, key=lambda split: (len(members[split]), split == "train"))
    return min(free.intersection(members[fullest]), key=name_hash)


__all__ = ["HELD_OUT", "assign_splits", "name_hash", "split_of"]
