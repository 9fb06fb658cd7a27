"""The source `table`: rows of numbers and categories, and what is to be predicted of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Examples, Rows, tensors_in
from decant.schema import did_you_mean
from decant.targets import Classes, Labels, Numbers
from tasks.prepare import parts
from tasks.prepare.columns import Source, ordered
from tasks.prepare.params import (
    NUMBERS,
    AnyAnswer,
    Beside,
    ByColumn,
    ByShares,
    OfClasses,
    OfLabels,
    OfNumbers,
    OfTokens,
    TableParams,
)


class Drawn(NamedTuple):
    """What came out of a table.

    Attributes:
        splits: By name; `train` and `validation` are shuffled.
        notes: Lines to tell.
        words: Of each category, those that the codes 1, 2, ... stand for.
    """

    splits: dict[str, Examples]
    notes: list[str]
    words: dict[str, list[str]]


def draw(params: TableParams, seed: int) -> Drawn:
    """Return the splits `train`, `validation` and `test` of a table.

    Raises:
        DecantError: The file is no table; a column is missing or holds something else than is said; a split
            would be empty; or a class, a label or a category cannot be what it is said to be.
    """
    source = Source(Path(params.file))
    rows = rows_of(params.split, params.target, source, np.arange(len(source)), seed)
    inputs, notes, words = columns_of(params, source, rows)
    found, more = divided(with_target(params.target, source, Rows(inputs), rows), rows, params.leak == "fail")
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
        words = source.words(how.column)
        found = parts.by_words([words[row] for row in kept], how.column, str(source.path), seed)
        return {name: kept[chosen] for name, chosen in found.items()}
    groups: Sequence[Any] | None = None
    if how.groups is not None:
        # A missing group is a group of its own: nothing says what such a row belongs to.
        groups = [row if word is None else word for row, word in enumerate(source.words(how.groups))]
    elif how.stratified and isinstance(target, OfClasses):
        groups = source.words(target.column)
    groups = None if groups is None else [groups[row] for row in kept]
    return {name: kept[chosen] for name, chosen in parts.by_shares(how, len(kept), seed, groups).items()}


def divided(
    examples: Examples, rows: Mapping[str, parts.Rows], fail: bool, what: str = "rows"
) -> tuple[dict[str, Examples], list[str]]:
    """Return the splits of all rows, and what to tell of them: what leaks, and the classes' shares.

    Args:
        examples: All rows.
        rows: Which go into each split.
        fail: Whether the same row in two splits is an error.
        what: What rows are called.

    Raises:
        DecantError: It is one, and there are some; or a number is the same in all training rows.
    """
    found = {name: _taken(examples, torch.from_numpy(chosen)) for name, chosen in rows.items()}
    found = {name: replace(each, target=scaled(each, found["train"])) for name, each in found.items()}
    leak = parts.check_leaks({name: _bytes(each) for name, each in found.items()}, fail)
    return found, [*filter(None, [leak]), *_shares(found, what)]


def columns_of(
    params: TableParams | Beside, source: Source, rows: Mapping[str, parts.Rows]
) -> tuple[dict[str, Tensor], list[str], dict[str, list[str]]]:
    """Return the inputs of all rows [N, ...], by name, what is worth a line, and the categories' words."""
    found, notes, known = {}, [], {}
    if params.numbers:
        numbers = source.numbers(params.numbers, gaps=params.missing == "keep")
        found[NUMBERS] = torch.from_numpy(numbers)
        for name, column in zip(params.numbers, numbers.T, strict=True):
            if np.isnan(column[rows["train"]]).all():
                raise DecantError(f"{params.file}: {name} is missing in all training rows; leave it out")
            if gaps := int(np.isnan(column).sum()):
                notes.append(f"{name}: {gaps:,} of {len(column):,} values are missing")
    for name in params.categories:
        codes, words = _coded(source.words(name), rows["train"])
        if not words:
            raise DecantError(f"{params.file}: {name} is missing in all training rows; leave it out")
        found[name], known[name] = torch.from_numpy(codes), words
        unknown = int((codes == 0).sum())
        notes.append(f"{name}: {len(words):,} categories from 1 on, {unknown:,} rows of none of them (0)")
    return found, notes, known


def _coded(words: Sequence[str | None], train: NDArray[np.intp]) -> tuple[NDArray[np.int64], list[str]]:
    """Return a code for each word [N], from 1 in sorted order; 0 where training rows have no such word."""
    known = ordered(word for row in train if (word := words[row]) is not None)
    codes = {word: code for code, word in enumerate(known, start=1)}
    return np.array([0 if word is None else codes.get(word, 0) for word in words], np.int64), known


def with_target(
    target: AnyAnswer | None,
    source: Source,
    images: Rows,
    rows: Mapping[str, parts.Rows],
    one: str = "row",
) -> Examples:
    """Return all rows with their labels.

    Args:
        target: What is to be predicted.
        source: The table that has it.
        images: The inputs of all rows of the table.
        rows: Which go into each split: what `train` does not have cannot be learned.
        one: What a row is called.

    Raises:
        DecantError: A value is missing, is of a class that no training row has, or is no number.
    """
    file = str(source.path)
    if isinstance(target, OfNumbers):
        values = torch.from_numpy(source.numbers(target.columns, gaps=False))
        scale = (1.0,) * len(target.columns)
        return Examples(images, values, (), Numbers(names=target.columns, scale=scale, penalty=target.loss))
    if isinstance(target, OfClasses):
        words = source.words(target.column)
        if None in words:
            raise DecantError(
                f"{file}, row {words.index(None) + 1}: {target.column} is missing; leave such rows out"
            )
        names = target.names or _names(({words[row]} for row in rows["train"]), target.column, file)
        place = _places(names, target.column, file)
        labels = [place(word, row) for row, word in enumerate(words)]
        parts.check_learned((labels[row] for row in rows["train"]), names, file, one)
        return Examples(images, torch.tensor(labels), names, Classes(balanced=target.balanced))
    if isinstance(target, OfLabels):
        lists = source.lists(target.column, target.separator)
        names = target.names or _names((lists[row] for row in rows["train"]), target.column, file)
        marks, place = torch.zeros(len(lists), len(names)), _places(names, target.column, file)
        for row, found in enumerate(lists):
            for word in found:
                marks[row, place(word, row)] = 1.0
        return Examples(images, marks, (), Labels(names=names))
    return Examples(images, None, ())


def _names(words: Iterator[Any], column: str, file: str) -> tuple[str, ...]:
    """Return the words of the training rows, in order.

    Raises:
        DecantError: There are fewer than two.
    """
    names = tuple(ordered(str(word) for row in words for word in row))
    if len(names) < 2:
        raise DecantError(
            f"{file}: {column} has {len(names)} class in the training rows, expected two or more; there is "
            "nothing to tell apart"
        )
    return names


def _places(names: tuple[str, ...], column: str, file: str) -> Callable[[Any, int], int]:
    """Return what gives the place of a word in `names`; its second argument is the row, for the error."""
    places = {name: place for place, name in enumerate(names)}

    def place(word: Any, row: int) -> int:
        if str(word) not in places:
            raise DecantError(
                f"{file}, row {row + 1}: {column} is {word!r}, which no training row has and `names` do not "
                f"name{did_you_mean(str(word), names)}"
            )
        return places[str(word)]

    return place


def scaled(examples: Examples, train: Examples) -> Any:
    """Return the target of examples, numbers with the deviation of each over the training rows.

    Raises:
        DecantError: A number is the same in all of these.
    """
    target = examples.target
    if not isinstance(target, Numbers):
        return target
    deviations = train.known_labels.double().std(0, correction=0).tolist()
    if constant := [name for name, found in zip(target.names, deviations, strict=True) if found == 0]:
        raise DecantError(f"data.target: {', '.join(constant)} is the same in all training rows")
    return target.model_copy(update={"scale": tuple(float(f"{each:.6g}") for each in deviations)})


def _taken(examples: Examples, rows: Tensor) -> Examples:
    labels = None if examples.labels is None else examples.labels[rows]
    return replace(examples, images=examples.images[rows], labels=labels)


def _bytes(examples: Examples) -> Iterator[bytes]:
    """Yield the bytes of each row."""
    columns = [np.ascontiguousarray(tensor[:].numpy()) for tensor in tensors_in(examples.images)]
    return (b"".join(column[row].tobytes() for column in columns) for row in range(len(examples)))


def _shares(splits: Mapping[str, Examples], what: str) -> Iterator[str]:
    """Yield a line for each split."""
    for name, each in splits.items():
        labels = each.known_labels.tolist() if each.classes else ()
        yield parts.shares(name, len(each), labels, each.classes, what)
