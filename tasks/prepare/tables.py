"""Splits as Parquet files that can be mapped into memory; `tasks.pipeline.splits` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from decant.outputs import replacing
from tasks.prepare.sources import Source
from tasks.prepare.splits import Split


def write(splits: Mapping[str, Split], folder: Path, source: Source) -> None:
    """Write `<split>.parquet` for each split: the same bytes for the same splits.

    No file is moved into its place before all of them are written.
    """
    with ExitStack() as stack:
        for name, split in splits.items():
            path = stack.enter_context(replacing(folder / f"{name}.parquet"))
            _write(_table(split, source), path)


def _table(split: Split, source: Source) -> pa.Table:
    """Return the columns `image` and `label`; shape, classes and source are the schema's metadata."""
    shape = split.images.shape[1:]
    pixels, labels = (pa.py_buffer(np.ascontiguousarray(a)) for a in (split.images, split.labels))
    columns = {
        "image": pa.Array.from_buffers(pa.binary(math.prod(shape)), len(split), [None, pixels]),
        "label": pa.Array.from_buffers(pa.uint8(), len(split), [None, labels]),
    }
    metadata = {"shape": json.dumps(shape), "classes": json.dumps(source.classes), "source": source.name}
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.Table.from_arrays([*columns.values()], schema=pa.schema(fields, metadata))


def _write(table: pa.Table, path: Path) -> None:
    """Write plain values, in one row group: what a memory map can serve and what never differs."""
    pq.write_table(
        table,
        path,
        row_group_size=len(table),
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
    )
