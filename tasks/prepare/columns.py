"""The columns of a table as arrays: numbers, words, lists of words; mistakes name file, row and column."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from decant.errors import DecantError, Message
from decant.outputs import lacks_room
from decant.schema import did_you_mean
from decant.sealed import one_line
from tasks.prepare import readers, room
from tasks.prepare.rounding import Rounding

DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
"""How many units of a time a day has."""


PART = 1 << 16
"""Rows that are looked at together."""


@dataclass(frozen=True)
class Words:
    """A column of words: a number for each row, and the words once each.

    Attributes:
        codes: The place of each row's word in `known` [N], int32; -1 where it is missing.
        known: The words, in the order in which they first come.
    """

    codes: NDArray[np.int32]
    known: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str | None:
        code = self.codes[row]
        return None if code < 0 else self.known[code]

    def __iter__(self) -> Iterator[str | None]:
        known = (*self.known, None)
        return (known[code] for code in self.codes)

    def among(self, rows: NDArray[np.intp]) -> set[str]:
        """Return the words that some of these rows have."""
        return {self.known[code] for code in np.unique(self.codes[rows]) if code >= 0}

    def places(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the place of each row's word among names [N]; -1 where it has none there, or is missing."""
        place = {name: at for at, name in enumerate(names)}
        return np.array([*(place.get(word, -1) for word in self.known), -1], np.int64)[self.codes]


@dataclass(frozen=True)
class Lists:
    """A column of lists of words.

    Attributes:
        words: Those of all rows, one after another.
        ends: Behind which of them each row's list ends [N], int64.
    """

    words: Words
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def rows(self) -> NDArray[np.intp]:
        """The row of each of the words, [M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.ends, prepend=0))


class Source:
    """A table on disk, of which large ones are mapped and not in memory.

    Args:
        path: The file; its ending says how it is read.
        columns: Those that are asked for later.
        long: Whether rows are texts, which may be long and have lines of their own.

    Raises:
        DecantError: There is no such file, it is no table, or has no row.
    """

    def __init__(self, path: Path, columns: Sequence[str], long: bool = False) -> None:
        self.path, self._lines = path, path.suffix == ".csv"
        if not path.is_file():
            raise DecantError(f"No {path} here; put the file there, or name another")
        try:
            if path.stat().st_size <= readers.SMALL:
                self._table = readers.whole(path, long)
                self._names = self._table.column_names
            else:
                self._table, self._names = readers.mapped(path, columns, long)
        except (pa.ArrowException, OSError, ValueError) as error:
            if lacks_room(sys.exception()):
                raise
            raise DecantError(f"{path} is no table that can be read ({one_line(error)}); repair it") from None
        if not len(self):
            raise DecantError(f"{path} has no row; give it some")

    @classmethod
    def of(cls, path: Path, table: pa.Table) -> Source:
        """Return a table that was read otherwise."""
        source = cls.__new__(cls)
        source.path, source._table, source._names = path, table, table.column_names
        source._lines = False
        return source

    def __len__(self) -> int:
        return self._table.num_rows

    def numbers(self, names: Sequence[str], gaps: bool) -> NDArray[np.float32]:
        """Return columns of numbers, dates (as days since 1970) or switches [N, F].

        Args:
            names: The columns.
            gaps: Whether values may be missing; such are NaN.

        Raises:
            DecantError: A column is not there or holds words; a value is infinite, or missing; or float32
                does not keep apart what differs.
        """
        found = room.empty((len(self), len(names)), np.float32)
        for place, name in enumerate(names):
            infinite, missing, rounding = Wrong(), Wrong(), Rounding()
            for start, values in self._numbers(name):
                part = found[start : start + len(values), place]
                with np.errstate(over="ignore"):
                    part[:] = values
                rounding.note(values, part)
                infinite.note(np.isinf(part), start)
                missing.note(np.isnan(part), start)
            self._refuse(infinite, name, "is infinite, or beyond float32")
            if not gaps:
                self._refuse(missing, name, "is missing")
            rounding.check(f"{self.path}: {name}")
        return found

    def words(self, name: str) -> Words:
        """Return a column as words, none where it is missing, or empty.

        Whole numbers of CSV with zeros before them are words as they are written, so that 01 and 1 are two.

        Raises:
            DecantError: There is no such column, or it holds lists, fractions or times.
        """
        column = self._column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not _is_word(kind):
            found = f"{kind}, or letters that are no UTF-8" if pa.types.is_binary(kind) else f"{kind}"
            raise DecantError(f"{self.path}: {name} holds {found}, expected words or whole numbers")
        coder = _Coder()
        if self._lines and pa.types.is_integer(kind) and readers.are_padded(self.path, name):
            for part in readers.written(self.path, name):
                coder.add(part)
            return coder.words()
        for _, part in _parts(column):
            coder.add(part.cast(kind) if pa.types.is_dictionary(part.type) else part)
        return coder.words()

    def raw(self, name: str, rows: int) -> Iterator[list[Any]]:
        """Yield a column of texts as bytes, which may be no UTF-8, some at a time; None where one is missing.

        Raises:
            DecantError: There is no such column, or it holds something else.
        """
        column = self._column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        checks = ("string", "large_string", "string_view", "binary", "large_binary", "null")
        if not any(getattr(pa.types, f"is_{each}")(kind) for each in checks):
            raise DecantError(f"{self.path}: {name} holds {kind}, expected texts")
        return (part.cast(kind).cast(pa.large_binary()).to_pylist() for _, part in _parts(column, rows))

    def lists(self, name: str, separator: str) -> Lists:
        """Return a column of lists of words, or of words that are cut at `separator`; some may be empty.

        Raises:
            DecantError: There is no such column, it holds something else, or a list or a label is missing.
        """
        column = self._column(name)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            words = self.words(name)
            each = [[*filter(None, word.split(separator))] for word in words.known]
            return _listed([*each, []], words.codes)
        if not _is_word(column.type.value_type):
            raise DecantError(
                f"{self.path}: {name} holds {column.type}, expected lists of words or whole numbers"
            )
        missing, coder, lengths = Wrong(), _Coder(blank=True), [np.zeros(0, np.int64)]
        blank = Wrong()
        for start, part in _parts(column):
            missing.note(part.is_null().to_numpy(zero_copy_only=False), start)
            blank.note(_with_gaps(part), start)
            lengths.append(pc.fill_null(pc.list_value_length(part), 0).to_numpy(zero_copy_only=False))
            coder.add(pa.array([str(word) for word in part.flatten().to_pylist()], pa.string()))
        self._refuse(missing, name, "is missing (no label is an empty list)")
        self._refuse(blank, name, "has a label that is missing")
        return Lists(coder.words(), np.concatenate(lengths).astype(np.int64).cumsum())

    def _numbers(self, name: str) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield a column's numbers, some at a time, and where they begin."""
        column, unit = self._column(name), 1.0
        kind, plain = column.type, column.type
        if pa.types.is_timestamp(kind):
            plain, unit = pa.int64(), float(DAY[kind.unit])
        elif pa.types.is_date(kind):
            plain = pa.int32()
        elif not (_is_number(kind) or pa.types.is_null(kind)):
            raise DecantError(self._no_numbers(name))
        for start, part in _parts(column):
            days = part.cast(pa.date32()) if pa.types.is_date(kind) else part
            # Whole numbers beyond 2^53 are rounded, as all are to float32 after it.
            rounded = days.cast(plain).cast(pa.float64(), safe=False)
            values = pc.fill_null(rounded, float("nan"))
            yield start, values.to_numpy(zero_copy_only=False) / unit

    def _no_numbers(self, name: str) -> Message:
        """Say which value of a column is no number."""
        column = self._column(name)
        row, found = _first_word(column)
        place = f", row {row + 1}" if found else ""
        return (
            f"{self.path}{place}: {name} holds {column.type} such as {one_line(found or 'nothing')}, "
            "expected numbers; name it among categories, or write numbers"
        )

    def _column(self, name: str) -> pa.ChunkedArray:
        names = self._names
        if names.count(name) != 1:
            how = f"{names.count(name)} columns" if name in names else "no column"
            raise DecantError(f"{self.path} has {how} {name!r}{did_you_mean(name, {*names} - {name})}")
        return self._table.column(name)

    def _refuse(self, wrong: Wrong, name: str, what: str) -> None:
        if wrong.count:
            more = f" ({wrong.count:,} such rows in all)" if wrong.count > 1 else ""
            hint = (
                "; `missing: keep` lets NaN through to a network that knows it"
                if what == "is missing"
                else ""
            )
            raise DecantError(
                f"{self.path}, row {wrong.first + 1}: {name} {what}{more}; leave such rows out{hint}"
            )


def _first_word(column: pa.ChunkedArray) -> tuple[int, str]:
    """Return the first value that is no number, and its row; the first of all where each is one."""
    first = None
    for start, part in _parts(column):
        for row, value in enumerate(part.to_pylist(), start):
            if value is not None:
                first = first or (row, repr(value))
                try:
                    float(value)
                except (TypeError, ValueError):
                    return row, repr(value)
    return first or (0, "")


@dataclass
class Wrong:
    """Rows that are wrong: how many, and the first."""

    count: int = 0
    first: int = -1

    def note(self, wrong: NDArray[np.bool_], start: int) -> None:
        """Count those of some rows [n], of which the first is the row `start`."""
        if wrong.any():
            self.first = self.first if self.count else start + int(np.flatnonzero(wrong)[0])
            self.count += int(wrong.sum())


class _Coder:
    """Gives words numbers in the order in which they first come.

    Args:
        blank: Whether the empty word is one too, and not a missing one.
    """

    def __init__(self, blank: bool = False) -> None:
        self._missing = (None,) if blank else (None, "")
        self._codes: dict[str, int] = {}
        self._found: list[NDArray[np.int32]] = []

    def add(self, part: pa.Array) -> None:
        """Add the words of an array of words or whole numbers."""
        coded = pc.dictionary_encode(part.cast(pa.string()) if pa.types.is_null(part.type) else part)
        numbers = [self._code(word) for word in coded.dictionary.to_pylist()]
        places = pc.fill_null(coded.indices, len(numbers)).to_numpy(zero_copy_only=False)
        self._found.append(np.array([*numbers, -1], np.int32)[places])

    def _code(self, word: Any) -> int:
        return -1 if word in self._missing else self._codes.setdefault(str(word), len(self._codes))

    def words(self) -> Words:
        """Return all that were added."""
        return Words(np.concatenate([np.zeros(0, np.int32), *self._found]), tuple(self._codes))


def _listed(each: Sequence[Sequence[str]], codes: NDArray[np.int32]) -> Lists:
    """Return the list of each row, by the place of it among those that there are."""
    known = {
        word: place for place, word in enumerate(dict.fromkeys(word for words in each for word in words))
    }
    lengths = np.array([len(words) for words in each], np.int64)[codes]
    found = [np.array([known[word] for word in words], np.int32) for words in each]
    flat = np.concatenate([np.zeros(0, np.int32), *(found[code] for code in codes)])
    return Lists(Words(flat, tuple(known)), lengths.cumsum())


def _parts(column: pa.ChunkedArray, rows: int = PART) -> Iterator[tuple[int, pa.Array]]:
    """Yield a column in pieces, and the row at which each begins."""
    start = 0
    for chunk in column.chunks:
        for place in range(0, len(chunk), rows):
            part = chunk.slice(place, rows)
            yield start, part
            start += len(part)


def table_of(columns: Mapping[str, Sequence[Any]], origin: str) -> pa.Table:
    """Return columns in memory as a table.

    Args:
        columns: Of one length, by name.
        origin: Where they are from, for the error.

    Raises:
        DecantError: A column holds values of several kinds.
    """
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise DecantError(
                f"{origin}: {name} holds values of several kinds, or of one that no table has "
                f"({one_line(error)}); give numbers alone, words alone, or lists of words"
            ) from None
    return pa.table(arrays)


def ordered(words: Iterable[str]) -> list[str]:
    """Return words once each, by their value where all of them are whole numbers, else by the alphabet.

    Those of one value, as 01 and 1, stand by the alphabet.
    """
    once = sorted({*words})
    numbers = all(word.removeprefix("-").isdecimal() for word in once)
    return sorted(once, key=Decimal) if numbers else once


def _is_word(kind: Any) -> bool:
    checks = ("integer", "boolean", "string", "large_string", "null")
    return any(getattr(pa.types, f"is_{each}")(kind) for each in checks)


def _with_gaps(lists: pa.Array) -> NDArray[np.bool_]:
    """Say of each list [n] whether one of its elements is missing."""
    found, flat = np.zeros(len(lists), bool), lists.flatten()
    if flat.null_count:
        found[pc.list_parent_indices(lists).filter(flat.is_null()).to_numpy()] = True
    return found


def _is_number(kind: Any) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(check(kind) for check in checks)
