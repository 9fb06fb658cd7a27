"""Which row goes into which split, and whether the same row is in two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decant.errors import DecantError
from tasks.prepare.columns import Words
from tasks.prepare.ways import SPLITS, ByShares

Rows = NDArray[np.intp]
SHOWN = 20
"""Classes whose shares are told."""


def by_shares(
    how: ByShares, count: int, seed: int, groups: Sequence[Any] | NDArray[Any] | None = None
) -> dict[str, Rows]:
    """Return the rows of each split, drawn by the seed; those of `test` in order, the others shuffled.

    Args:
        how: The shares.
        count: How many rows there are.
        seed: Non-negative.
        groups: What each row is of: rows of one group stay together; or, stratified, its class. Numbers [N],
            or any values.

    Raises:
        DecantError: A split would have no row.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    if groups is None:
        parts = _cut(generator.permutation(count), how)
    elif how.stratified:
        each = [_cut(generator.permutation(rows), how) for rows in _members(groups)]
        parts = {name: np.concatenate([part[name] for part in each]) for name in SPLITS}
    else:
        parts = _whole(_members(groups), how, count, generator)
    for name, rows in parts.items():
        if not len(rows):
            raise DecantError(
                f"data.split: {name} has no row of {count:,}; give it a larger share, or the data more "
                f"{'rows' if how.groups is None else 'groups'}"
            )
    return _ordered(parts, generator)


def by_words(words: Words, rows: Rows, column: str, origin: str, seed: int) -> dict[str, Rows]:
    """Return the rows of each split as a column says; those of `test` in order, the others shuffled.

    Args:
        words: The column.
        rows: Those that are there, [M].
        column: Its name.
        origin: The file.
        seed: Non-negative.

    Raises:
        DecantError: A word is no split, or a split has no row.
    """
    places = words.places(SPLITS)[rows]
    if len(strange := np.flatnonzero(places < 0)):
        row = int(rows[strange[0]])
        raise DecantError(
            f"{origin}, row {row + 1}: {column} says {words[row]!r}, expected one of {', '.join(SPLITS)}"
        )
    parts = {name: rows[places == place] for place, name in enumerate(SPLITS)}
    if empty := [name for name, found in parts.items() if not len(found)]:
        raise DecantError(f"{origin}: {column} puts no row into {', '.join(empty)}; each needs one or more")
    return _ordered(parts, np.random.Generator(np.random.PCG64(seed)))


def _ordered(parts: Mapping[str, Rows], generator: np.random.Generator) -> dict[str, Rows]:
    return {
        name: np.sort(rows) if name == "test" else generator.permutation(np.sort(rows))
        for name, rows in parts.items()
    }


def _cut(rows: Rows, how: ByShares) -> dict[str, Rows]:
    """Return the first rows as `test`, the next as `validation`, the others as `train`."""
    test = round(how.test * len(rows))
    held = round((how.test + how.validation) * len(rows))
    return {"train": rows[held:], "validation": rows[test:held], "test": rows[:test]}


def _members(groups: Sequence[Any] | NDArray[Any]) -> list[Rows]:
    """Return the rows of each group, groups in the order in which they first come."""
    codes = groups if isinstance(groups, np.ndarray) else _coded(groups)
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    places = rank[group]
    return np.split(np.argsort(places, kind="stable"), np.bincount(places).cumsum()[:-1])


def _coded(groups: Sequence[Any]) -> NDArray[np.intp]:
    """Return a number for each value [N], the same for equal ones."""
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(group, len(codes)) for group in groups], np.intp)


def _whole(
    members: Sequence[Rows], how: ByShares, count: int, generator: np.random.Generator
) -> dict[str, Rows]:
    """Put group after group, in random order, where most of the share is still to be filled."""
    wanted = {"test": how.test * count, "validation": how.validation * count}
    wanted["train"] = count - sum(wanted.values())
    parts: dict[str, list[Rows]] = {name: [] for name in SPLITS}
    for number in generator.permutation(len(members)):
        name = max(SPLITS, key=lambda split: wanted[split])
        parts[name].append(members[number])
        wanted[name] -= len(members[number])
    none = np.array([], dtype=np.intp)
    return {name: np.concatenate([none, *rows]) for name, rows in parts.items()}


DIGEST = 16
"""Bytes of a sum by which rows are told apart: two of 100 million coincide once in 10^22 times."""


def sums_of(rows: Iterable[bytes]) -> NDArray[np.bytes_]:
    """Return a sum over the bytes of each row [N]."""
    found = bytearray()  # no list of bytes, each of which would take three times as much
    for row in rows:
        found += sha256(row).digest()[:DIGEST]
    return np.frombuffer(found, f"S{DIGEST}")


def check_sums(seen: Mapping[str, NDArray[np.bytes_]], fail: bool) -> str:
    """Return a sentence on the rows that two splits have; empty where there are none.

    Args:
        seen: A sum over each row that a network sees, by split.
        fail: Whether such rows are an error.

    Raises:
        DecantError: Two splits have the same rows, and they are an error.
    """
    once, told = {name: np.unique(each) for name, each in seen.items()}, []
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if both := int(_there(seen[other], once[one]).sum()):
            told.append(f"{both:,} of {len(seen[other]):,} {other} rows are in {one} too")
    if not told:
        return ""
    sentence = f"the same inputs in two splits: {'; '.join(told)}"
    if fail:
        raise DecantError(
            f"data.leak: {sentence}; take them out, name a column of `split.groups` that keeps them "
            "together, or say `leak: tell`"
        )
    return sentence


def _there(sums: NDArray[np.bytes_], once: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Say of each sum [N] whether it is one of those, which are in order."""
    if not len(once):
        return np.zeros(len(sums), bool)
    places = np.searchsorted(once, sums)
    found: NDArray[np.bool_] = once[np.minimum(places, len(once) - 1)] == sums
    return found


def check_learned(labels: Iterable[int], names: Sequence[str], origin: str, what: str) -> None:
    """Check that each class has a training example.

    Args:
        labels: Of the training examples.
        names: Of the classes.
        origin: The file or folder.
        what: What an example is called.

    Raises:
        DecantError: One has none.
    """
    if empty := without(labels, names):
        raise DecantError(
            f"{origin}: no training {what} is of {', '.join(empty)}; nothing can be learned of it"
        )


def without(labels: Iterable[int], names: Sequence[str]) -> list[str]:
    """Return the classes that no label is of."""
    there = {*np.unique(np.fromiter(labels, np.int64)).tolist()}
    return [name for label, name in enumerate(names) if label not in there]


def shares(split: str, count: int, labels: ArrayLike, names: Sequence[str], what: str) -> str:
    """Return a line on a split: how many examples there are, and the shares of the first classes."""
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(names))
    told = ", ".join(f"{name} {counts[label] / count:.1%}" for label, name in enumerate(names[:SHOWN]))
    return f"{split}: {count:,} {what}{f' ({told})' if told else ''}"
