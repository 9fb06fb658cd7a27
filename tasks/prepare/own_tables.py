"""The source `table`: rows of numbers and categories, and what is to be predicted of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError, Message
from decant.examples import Examples, Rows, tensors_in
from decant.inputs import Kind
from decant.progress import progress_bar
from decant.row_groups import is_large
from decant.schema import did_you_mean
from decant.targets import CLASSES, Classes, Labels, Numbers, Target
from tasks.prepare import parts, room
from tasks.prepare.asked import AnyAnswer, OfClasses, OfLabels, OfNumbers, OfTokens, answers
from tasks.prepare.columns import Source, Words, ordered
from tasks.prepare.of_files import Beside
from tasks.prepare.owned import NUMBERS
from tasks.prepare.params import TableParams
from tasks.prepare.ways import ByColumn, ByShares, sorting

Places = parts.Rows

SEEN = 1 << 12
"""Rows whose bytes are looked at together."""


class AllRows(Protocol):
    """The inputs of all rows, wherever they lie; `Rows` are some."""

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        """Return some of them, in memory: of a slice, or at indices [M], int64."""


class Known(NamedTuple):
    """What is to be predicted of all rows.

    Attributes:
        labels: [N] or [N, K]; None where there are none.
        classes: Their names; empty where there are none.
        target: What the labels are.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    target: Target = CLASSES


@dataclass(frozen=True)
class Taken:
    """The rows of a split, which are taken from all of them when they are written.

    Attributes:
        images: All rows.
        known: What is known of all rows.
        rows: Those of the split, in its order.
    """

    images: AllRows
    known: Known
    rows: Places

    @property
    def form(self) -> Examples:
        """What the parts are like: of no row."""
        return self._at(self.rows[:0])

    @property
    def width(self) -> int:
        """How many bytes the inputs of a row take."""
        return sum(math.prod(each.shape[1:]) * each.dtype.itemsize for each in tensors_in(self.form.images))

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, rows: int) -> Iterator[Examples]:
        """Yield the rows in order, so many at a time."""
        return (self._at(self.rows[start : start + rows]) for start in range(0, len(self), rows))

    def whole(self) -> Examples:
        """Return all rows of the split, in memory."""
        return self._at(self.rows)

    def _at(self, rows: Places) -> Examples:
        places, (labels, classes, target) = torch.from_numpy(rows), self.known
        return Examples(self.images[places], None if labels is None else labels[places], classes, target)


Split = Examples | Taken
"""Rows of a split: in memory where they are few, else taken when they are written."""


class Drawn(NamedTuple):
    """What came out of a table.

    Attributes:
        splits: By name; `train` and `validation` are shuffled.
        notes: Lines to tell.
        words: Of each category, those that the codes 1, 2, ... stand for.
    """

    splits: Mapping[str, Split]
    notes: list[str]
    words: dict[str, list[str]]


def draw(params: TableParams, seed: int) -> Drawn:
    """Return the splits `train`, `validation` and `test` of a table.

    Raises:
        DecantError: The file is no table; a column is missing or holds something else than is said; a split
            would be empty; or a class, a label or a category cannot be what it is said to be.
    """
    wanted = (*params.numbers, *params.categories, *answers(params.target), *sorting(params.split))
    source = Source(Path(params.file), wanted)
    rows = rows_of(params.split, params.target, source, np.arange(len(source)), seed)
    inputs, notes, words = columns_of(params, source, rows)
    known = known_of(params.target, source, rows)
    kinds: dict[str, Kind] = {NUMBERS: "numbers"} if params.numbers else {}
    found, more = divided(Rows(inputs, kinds=kinds), known, rows, params.leak == "fail")
    return Drawn(found, [*notes, *more], words)


def rows_of(
    how: ByShares | ByColumn,
    target: AnyAnswer | OfTokens | None,
    source: Source,
    kept: parts.Rows,
    seed: int,
) -> dict[str, parts.Rows]:
    """Return which rows of a table go into each split.

    Args:
        how: By shares, or by a column.
        target: What is to be predicted; its classes are what `stratified` means.
        source: The table.
        kept: The rows that are there, [M].
        seed: Non-negative.

    Raises:
        DecantError: A split would have no row, or a word is no split.
    """
    if isinstance(how, ByColumn):
        return parts.by_words(source.words(how.column), kept, how.column, str(source.path), seed)
    groups: NDArray[np.int64] | None = None
    if how.groups is not None:
        # A missing group is a group of its own: nothing says what such a row belongs to.
        words = source.words(how.groups)
        groups = np.where(words.codes < 0, len(words.known) + np.arange(len(words)), words.codes)
    elif how.stratified and isinstance(target, OfClasses):
        groups = source.words(target.column).codes.astype(np.int64)
    groups = None if groups is None else groups[kept]
    return {name: kept[chosen] for name, chosen in parts.by_shares(how, len(kept), seed, groups).items()}


def divided(
    images: AllRows, known: Known, rows: Mapping[str, parts.Rows], fail: bool, what: str = "rows"
) -> tuple[dict[str, Split], list[str]]:
    """Return the splits of all rows, and what to tell of them: what leaks, and the classes' shares.

    Args:
        images: The inputs of all rows.
        known: What is to be predicted of them.
        rows: Which go into each split.
        fail: Whether the same row in two splits is an error.
        what: What rows are called.

    Raises:
        DecantError: It is one, and there are some; or a number is the same in all training rows.
    """
    if known.labels is not None and isinstance(known.target, Numbers):
        train = known.labels[torch.from_numpy(rows["train"])]
        known = known._replace(target=scaled(known.target, train))
    sums = parts.sums_of(bytes_of(images))
    leak = parts.check_sums({name: sums[chosen] for name, chosen in rows.items()}, fail)
    found = {name: Taken(images, known, chosen) for name, chosen in rows.items()}
    splits = {name: each if is_large(len(each), each.width) else each.whole() for name, each in found.items()}
    return splits, [*filter(None, [leak]), *_shares(known, rows, what)]


def columns_of(
    params: TableParams | Beside, source: Source, rows: Mapping[str, parts.Rows]
) -> tuple[dict[str, Tensor], list[str], dict[str, list[str]]]:
    """Return the inputs of all rows [N, ...], by name, what is worth a line, and the categories' words."""
    found, notes, known = {}, [], {}
    if params.numbers:
        numbers = source.numbers(params.numbers, gaps=params.missing == "keep")
        found[NUMBERS] = torch.from_numpy(numbers)
        for name, column in zip(params.numbers, numbers.T, strict=True):
            there = ~np.isnan(column)
            if not there[rows["train"]].any():
                raise DecantError(f"{params.file}: {name} is missing in all training rows; leave it out")
            if gaps := len(there) - int(there.sum()):
                notes.append(f"{name}: {gaps:,} of {len(column):,} values are missing")
    for name in params.categories:
        codes, words = _coded(source.words(name), rows["train"])
        if not words:
            raise DecantError(f"{params.file}: {name} is missing in all training rows; leave it out")
        found[name], known[name] = torch.from_numpy(codes), words
        unknown = int((codes == 0).sum())
        notes.append(f"{name}: {len(words):,} categories from 1 on, {unknown:,} rows of none of them (0)")
    return found, notes, known


def _coded(words: Words, train: NDArray[np.intp]) -> tuple[NDArray[np.int64], list[str]]:
    """Return a code for each word [N], from 1 in sorted order; 0 where training rows have no such word."""
    known = ordered(words.among(train))
    return words.places(known) + 1, known


def known_of(
    target: AnyAnswer | None, source: Source, rows: Mapping[str, parts.Rows], one: str = "row"
) -> Known:
    """Return what is to be predicted of all rows.

    Args:
        target: What it is.
        source: The table that has it.
        rows: Which go into each split: what `train` does not have cannot be learned.
        one: What a row is called.

    Raises:
        DecantError: A value is missing, is of a class that no training row has, or is no number.
    """
    if isinstance(target, OfNumbers):
        values = torch.from_numpy(source.numbers(target.columns, gaps=False))
        scale = (1.0,) * len(target.columns)
        return Known(values, target=Numbers(names=target.columns, scale=scale, penalty=target.loss))
    if isinstance(target, OfClasses):
        return _classes(target, source, rows["train"], one)
    if isinstance(target, OfLabels):
        return _labels(target, source, rows["train"])
    return Known()


def _classes(target: OfClasses, source: Source, train: parts.Rows, one: str) -> Known:
    file, words = str(source.path), source.words(target.column)
    if len(missing := np.flatnonzero(words.codes < 0)):
        raise DecantError(f"{file}, row {missing[0] + 1}: {target.column} is missing; leave such rows out")
    names = target.names or _names(words.among(train), target.column, file)
    labels = words.places(names)
    if len(strange := np.flatnonzero(labels < 0)):
        first = int(strange[0])
        raise DecantError(_unknown(words[first], first, names, target.column, file))
    parts.check_learned(labels[train], names, file, one)
    return Known(torch.from_numpy(labels), names, Classes(balanced=target.balanced))


def _labels(target: OfLabels, source: Source, train: parts.Rows) -> Known:
    """Return marks [N, L]."""
    file, lists = str(source.path), source.lists(target.column, target.separator)
    rows, trained = lists.rows, np.zeros(len(lists), bool)
    trained[train] = True
    said = lists.words.among(np.flatnonzero(trained[rows]))
    names = target.names or _names(said, target.column, file)
    places = lists.words.places(names)
    if len(strange := np.flatnonzero(places < 0)):
        first = int(strange[0])
        raise DecantError(_unknown(lists.words[first], int(rows[first]), names, target.column, file))
    marks = room.empty((len(lists), len(names)), np.float32)
    marks[:] = 0
    marks[rows, places] = 1
    return Known(torch.from_numpy(marks), target=Labels(names=names))


def _names(words: Iterable[str], column: str, file: str) -> tuple[str, ...]:
    """Return the words of the training rows, in order.

    Raises:
        DecantError: There are fewer than two.
    """
    names = tuple(ordered(words))
    if len(names) < 2:
        raise DecantError(
            f"{file}: {column} has {len(names)} class in the training rows, expected two or more; there is "
            "nothing to tell apart"
        )
    return names


def _unknown(word: str | None, row: int, names: Sequence[str], column: str, file: str) -> Message:
    """Say that a word is none of those that can be learned."""
    return (
        f"{file}, row {row + 1}: {column} is {word!r}, which no training row has and `names` do not "
        f"name{did_you_mean(str(word), names)}"
    )


def scaled(target: Any, labels: Tensor) -> Any:
    """Return a target, numbers with the deviation of each over the labels [N, K] of the training rows.

    Raises:
        DecantError: A number is the same in all of these.
    """
    if not isinstance(target, Numbers):
        return target
    deviations = labels.double().std(0, correction=0).tolist()
    if constant := [name for name, found in zip(target.names, deviations, strict=True) if found == 0]:
        raise DecantError(f"data.target: {', '.join(constant)} is the same in all training rows, in float32")
    return target.model_copy(update={"scale": tuple(float(f"{each:.6g}") for each in deviations)})


def bytes_of(images: AllRows) -> Iterator[bytes]:
    """Yield the bytes of each row."""
    with progress_bar(None, "comparing rows", "rows", total=len(images)) as bar:
        for start in range(0, len(images), SEEN):
            tensors = [each[:].contiguous() for each in tensors_in(images[start : start + SEEN])]
            columns = [each.reshape(len(each), -1).view(torch.uint8).numpy() for each in tensors]
            rows = range(len(columns[0]))
            yield from (b"".join(column[row].tobytes() for column in columns) for row in rows)
            bar.update(len(rows))


def _shares(known: Known, rows: Mapping[str, parts.Rows], what: str) -> Iterator[str]:
    """Yield a line for each split."""
    for name, each in rows.items():
        labels = (
            known.labels[torch.from_numpy(each)].numpy() if known.classes and known.labels is not None else ()
        )
        yield parts.shares(name, len(each), labels, known.classes, what)
