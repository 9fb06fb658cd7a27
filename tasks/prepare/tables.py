"""Splits as Parquet files that can be mapped into memory; `tasks.pipeline.splits` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from decant.outputs import replacing
from tasks.pipeline.seals import BLANK, seal_
from tasks.prepare.sources import Source
from tasks.prepare.splits import Split


def write(
    splits: Mapping[str, Split], folder: Path, source: Source, drawn: Mapping[str, Any] | None = None
) -> None:
    """Write `<split>.parquet` for each split: the same bytes for the same arguments, and sealed.

    No file is moved into its place before all of them are written.

    Args:
        splits: By name.
        folder: Where the files go.
        source: Where the images come from.
        drawn: What params.yaml said when the splits were drawn; None where it did not say how to.
    """
    with ExitStack() as stack:
        for name, split in splits.items():
            path = stack.enter_context(replacing(folder / f"{name}.parquet"))
            of = {"split": name, "source": source.name, "classes": source.classes, "drawn": drawn}
            _write(_table(split, of), path)
            seal_(path)


def _table(split: Split, of: Mapping[str, Any]) -> pa.Table:
    """Return the columns `image` and `label`; what they are of is the schema's metadata, in JSON."""
    shape = split.images.shape[1:]
    image = pa.Array.from_buffers(
        pa.binary(math.prod(shape)), len(split), [None, pa.py_buffer(np.ascontiguousarray(split.images))]
    )
    columns = {"image": image, "label": pa.array(split.labels.astype(np.int64))}
    metadata = {key: json.dumps(value) for key, value in {"shape": shape, **of}.items()}
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.Table.from_arrays([*columns.values()], schema=pa.schema(fields, {**metadata, "seal": BLANK}))


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
