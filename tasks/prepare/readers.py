"""Tables on disk as Arrow's: small ones in memory, larger ones copied by batches into a file that is mapped.

Both have the same types and values. Of a large one only the columns that are asked for are read, a batch at a
time; what is mapped is decoded, so its columns can be walked through as often as one likes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from decant.errors import Message
from decant.progress import progress_bar
from tasks.prepare import room

SMALL = 32 << 20
"""Bytes of a file up to which it is read as a whole."""

BLOCK = 1 << 26
"""Bytes that are read at a time where rows may be long."""

ROWS = 1 << 14
"""Rows that are read at a time of what is stored by columns."""

LADDER: tuple[Any, ...] = (
    pa.null(), pa.int64(), pa.bool_(), pa.date32(), pa.time32("s"), pa.timestamp("s"), pa.timestamp("ns"),
    pa.float64(), pa.string(), pa.binary(),
)  # fmt: skip
"""What Arrow takes a column of CSV for: the first of these that all of its values are."""

PADDED = r"^(\+|-?0[0-9xX]|-0$)"
"""How a word begins that is taken for a whole number and that no number is written as."""

_ROW = re.compile(r"row (\d+)")
_REFUSED = re.compile(r"In CSV column #(\d+): .*(conversion error|invalid UTF8)", re.IGNORECASE)


def whole(path: Path, long: bool) -> pa.Table:
    """Return a table in memory.

    Args:
        path: The file; its ending says what it is.
        long: Whether rows may be longer than a megabyte, and have lines of their own.

    Raises:
        ArrowException: It is no table.
    """
    if path.suffix == ".csv":
        return pyarrow.csv.read_csv(str(path), **(_csv(long) if long else {}))
    if path.suffix == ".jsonl":
        options = pyarrow.json.ReadOptions(block_size=BLOCK) if long else None
        return pyarrow.json.read_json(str(path), read_options=options)
    return pyarrow.parquet.read_table(str(path))


def mapped(path: Path, columns: Sequence[str], long: bool) -> tuple[pa.Table, list[str]]:
    """Return some columns of a table in a file that is mapped, and the names of all.

    Args:
        path: The file; its ending says what it is.
        columns: Those that are wanted; such as are not there are left out.
        long: As of `whole`.

    Raises:
        ArrowException: It is no table.
    """
    names, schema, batches = OPENED[path.suffix](path, columns, long)
    return copied(schema, batches, path), names


def lines(path: Path, column: str) -> pa.Table:
    """Return the lines of a file as a column of bytes, mapped."""
    schema = pa.schema([(column, pa.binary())])

    def batches() -> Iterator[pa.RecordBatch]:
        with path.open("rb") as file:
            while found := file.readlines(BLOCK):
                bare = [line.removesuffix(b"\n").removesuffix(b"\r") for line in found]
                yield pa.record_batch([pa.array(bare, pa.binary())], schema=schema)

    return copied(schema, batches(), path)


def copied(schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> pa.Table:
    """Return batches as a table in a file that has no name, mapped."""
    with room.nameless() as file:
        sink = pa.PythonFile(file, "w")
        with (
            pa.ipc.new_stream(sink, schema) as writer,
            progress_bar(None, f"reading {path.name}", "rows") as bar,
        ):
            for batch in batches:
                writer.write_batch(batch)
                bar.update(batch.num_rows)
        file.flush()
        return pa.ipc.open_stream(pa.py_buffer(room.mapped(file))).read_all()


Opened = tuple[list[str], pa.Schema, Iterator[pa.RecordBatch]]


def _wanted(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(columns) if name in names]


def _parquet(path: Path, columns: Sequence[str], long: bool) -> Opened:
    file = pyarrow.parquet.ParquetFile(str(path), memory_map=True)
    names = file.schema_arrow.names
    wanted = [name for name in names if name in columns]
    schema = pa.schema([file.schema_arrow.field(name) for name in wanted])
    found = file.iter_batches(ROWS >> 4 if long else ROWS, columns=wanted)
    return names, schema, (pa.RecordBatch.from_arrays(each.columns, schema=schema) for each in found)


def _csv(long: bool) -> dict[str, Any]:
    """Return how CSV is read a block at a time."""
    return {
        "read_options": pyarrow.csv.ReadOptions(block_size=BLOCK),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=long),
    }


def _of_csv(path: Path, columns: Sequence[str], long: bool) -> Opened:
    """Return CSV by blocks, each column of the type that all blocks have, which a first reading finds out."""

    def opened(types: Mapping[str, Any] | None) -> pyarrow.csv.CSVStreamingReader:
        options = None
        if types is not None:
            options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=[*types])
        return pyarrow.csv.open_csv(str(path), convert_options=options, **_csv(long))

    with opened(None) as reader:
        first, names = reader.schema, list(reader.schema.names)
    wanted = _wanted(names, columns)
    types = {name: first.field(name).type for name in wanted if names.count(name) == 1}
    while True:
        try:
            with opened(types) as reader:
                for _ in reader:
                    pass
            break
        except pa.ArrowInvalid as error:
            _loosen_(types, names, error)
    return names, pa.schema([*types.items()]), iter(opened(types))


def are_padded(path: Path, name: str) -> bool:
    """Say whether a column of CSV has whole numbers that no number is written as, such as 01 and +1."""
    return any(
        bool(pc.any(pc.match_substring_regex(part, PADDED), skip_nulls=True).as_py())
        for part in written(path, name)
    )


def written(path: Path, name: str) -> Iterator[pa.StringArray]:
    """Yield a column of CSV as the words that stand there, some at a time, without blanks around them."""
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string()}, include_columns=[name], strings_can_be_null=True
    )
    with pyarrow.csv.open_csv(str(path), convert_options=options, **_csv(long=False)) as reader:
        for batch in reader:
            yield pc.utf8_trim_whitespace(batch.column(0))


def _loosen_(types: dict[str, Any], names: Sequence[str], error: pa.ArrowInvalid) -> None:
    """Take the next type on the ladder for the column that an error is about, in place.

    Raises:
        ArrowInvalid: It is about no column, or there is no other type.
    """
    found = _REFUSED.search(str(error))
    if found is None:
        raise error
    name = names[int(found[1])]
    place = LADDER.index(types[name])
    if place + 1 == len(LADDER):
        raise error
    types[name] = LADDER[place + 1]


def _json(path: Path, columns: Sequence[str], long: bool) -> Opened:
    """Return JSON lines by blocks, each column of the type that all blocks have."""
    fields: dict[str, Any] = {}
    for table in _of_lines(path, None):
        for field in table.schema:
            before = fields.get(field.name, field.type)
            fields[field.name] = _merged(before, field.type, field.name)
    schema = pa.schema([(name, fields[name]) for name in _wanted([*fields], columns)])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    tables = (table.select(schema.names) for table in _of_lines(path, options))
    return [*fields], schema, (batch for table in tables for batch in table.to_batches())


def _of_lines(path: Path, options: Any) -> Iterator[pa.Table]:
    """Yield the blocks of a file of JSON lines, read one after another.

    Raises:
        ArrowInvalid: One cannot be; names the row of the file, from 1.
    """
    seen = 0
    for block in _blocks(path):
        reading = pyarrow.json.ReadOptions(block_size=len(block))
        try:
            table = pyarrow.json.read_json(io.BytesIO(block), read_options=reading, parse_options=options)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(_later(error, seen)) from None
        seen += len(table)
        yield table


def _later(error: pa.ArrowInvalid, rows: int) -> Message:
    """Return what an error says, with a row of the file, from 1, in the place of one of a block, from 0."""
    return _ROW.sub(lambda found: f"row {rows + int(found[1]) + 1}", str(error))


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield whole lines, about `BLOCK` bytes at a time."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            if (block := block + file.readline()).strip():
                yield block


def _merged(one: Any, other: Any, name: str) -> Any:
    """Return the type that values of two types have together, as Arrow has it for a whole file.

    Raises:
        ArrowInvalid: There is none.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if {one, other} == {pa.timestamp("s"), pa.string()}:
        return pa.string()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_merged(one.value_type, other.value_type, name))
    raise pa.ArrowInvalid(f"{name} changes from {one} to {other}")


OPENED: Mapping[str, Callable[[Path, Sequence[str], bool], Opened]] = {
    ".csv": _of_csv,
    ".parquet": _parquet,
    ".jsonl": _json,
}
"""By a file's ending: the names of its columns, the schema of those wanted, and their batches."""
