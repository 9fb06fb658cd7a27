"""The columns of a table as arrays: numbers, words, lists of words; mistakes name file, row and column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.schema import did_you_mean
from decant.sealed import one_line

READERS: dict[str, Callable[[str], pa.Table]] = {
    ".csv": pyarrow.csv.read_csv,
    ".parquet": pyarrow.parquet.read_table,
    ".jsonl": pyarrow.json.read_json,
}
BLOCK = 1 << 26
"""Bytes that are read at a time where rows may be long."""

LONG_READERS: dict[str, Callable[[str], pa.Table]] = READERS | {
    ".csv": partial(
        pyarrow.csv.read_csv,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    ),
    ".jsonl": partial(pyarrow.json.read_json, read_options=pyarrow.json.ReadOptions(block_size=BLOCK)),
}
"""The same for texts, which may be long and have lines of their own."""

DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
"""How many units of a time a day has."""


class Source:
    """A table on disk.

    Args:
        path: The file; its ending says how it is read.
        readers: By the ending.

    Raises:
        DecantError: There is no such file, it is no table, or has no row.
    """

    def __init__(self, path: Path, readers: Mapping[str, Callable[[str], pa.Table]] = READERS) -> None:
        self.path = path
        if not path.is_file():
            raise DecantError(f"No {path} here; put the file there, or name another")
        try:
            self._table = readers[path.suffix](str(path))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DecantError(f"{path} is no table that can be read ({one_line(error)}); repair it") from None
        if not len(self):
            raise DecantError(f"{path} has no row; give it some")

    @classmethod
    def of(cls, path: Path, table: pa.Table) -> Source:
        """Return a table that was read otherwise."""
        source = cls.__new__(cls)
        source.path, source._table = path, table
        return source

    def __len__(self) -> int:
        return self._table.num_rows

    def numbers(self, names: Sequence[str], gaps: bool) -> NDArray[np.float32]:
        """Return columns of numbers, dates (as days since 1970) or switches [N, F].

        Args:
            names: The columns.
            gaps: Whether values may be missing; such are NaN.

        Raises:
            DecantError: A column is not there or holds words; a value is infinite, or missing.
        """
        found = np.empty((len(self), len(names)), np.float32)
        for place, name in enumerate(names):
            values = self._numbers(name)
            with np.errstate(over="ignore"):
                found[:, place] = values
            self._refuse(np.isinf(found[:, place]), name, "is infinite, or beyond float32")
            if not gaps:
                self._refuse(np.isnan(found[:, place]), name, "is missing")
        return found

    def words(self, name: str) -> list[str | None]:
        """Return a column as words; None where it is missing, or empty.

        Raises:
            DecantError: There is no such column, or it holds lists, fractions or times.
        """
        column = self._column(name)
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if not (
            whole or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        ):
            raise DecantError(f"{self.path}: {name} holds {kind}, expected words or whole numbers")
        return [None if value in (None, "") else str(value) for value in column.to_pylist()]

    def raw(self, name: str) -> list[Any]:
        """Return a column of texts as bytes, which may be no UTF-8; None where one is missing.

        Raises:
            DecantError: There is no such column, or it holds something else.
        """
        column = self._column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        checks = ("string", "large_string", "string_view", "binary", "large_binary", "null")
        if not any(getattr(pa.types, f"is_{each}")(kind) for each in checks):
            raise DecantError(f"{self.path}: {name} holds {kind}, expected texts")
        values: list[Any] = column.cast(kind).cast(pa.large_binary()).to_pylist()
        return values

    def lists(self, name: str, separator: str) -> list[list[str]]:
        """Return a column of lists of words, or of words that are cut at `separator`; some may be empty.

        Raises:
            DecantError: There is no such column, it holds something else, or a list is missing.
        """
        column = self._column(name)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            return [[*filter(None, (words or "").split(separator))] for words in self.words(name)]
        rows = column.to_pylist()
        self._refuse(np.array([row is None for row in rows]), name, "is missing (no label is an empty list)")
        return [[str(word) for word in row] for row in rows]

    def _numbers(self, name: str) -> NDArray[np.float64]:
        column = self._column(name)
        kind, unit = column.type, 1.0
        if pa.types.is_timestamp(kind):
            column, unit = column.cast(pa.int64()), float(DAY[kind.unit])
        elif pa.types.is_date(kind):
            column = column.cast(pa.date32()).cast(pa.int32())
        elif not (_is_number(kind) or pa.types.is_null(kind)):
            found = next((repr(value) for value in column.to_pylist() if value is not None), "nothing")
            raise DecantError(
                f"{self.path}: {name} holds {kind} such as {one_line(found)}, expected numbers; name it "
                "among categories, or write numbers"
            )
        return pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy() / unit

    def _column(self, name: str) -> pa.ChunkedArray:
        names = self._table.column_names
        if names.count(name) != 1:
            how = f"{names.count(name)} columns" if name in names else "no column"
            raise DecantError(f"{self.path} has {how} {name!r}{did_you_mean(name, {*names} - {name})}")
        return self._table.column(name)

    def _refuse(self, wrong: NDArray[np.bool_], name: str, what: str) -> None:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0]) + 1
            more = f" ({int(wrong.sum()):,} such rows in all)" if wrong.sum() > 1 else ""
            hint = (
                "; `missing: keep` lets NaN through to a network that knows it"
                if what == "is missing"
                else ""
            )
            raise DecantError(f"{self.path}, row {row}: {name} {what}{more}; leave such rows out{hint}")


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
    """Return words once each, by their value where all of them are whole numbers, else by the alphabet."""
    once = {*words}
    numbers = all(word.removeprefix("-").isdecimal() for word in once)
    return sorted(once, key=int) if numbers else sorted(once)


def _is_number(kind: Any) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(check(kind) for check in checks)
