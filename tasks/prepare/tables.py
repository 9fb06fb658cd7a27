"""Splits as Parquet files that can be mapped into memory; `tasks.pipeline.splits` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from decant.examples import Examples, Rows
from decant.lazy import torch
from decant.outputs import replacing
from decant.targets import CLASSES, Target, Tokens
from tasks.pipeline.seals import BLANK, seal_
from tasks.prepare.splits import Split

if TYPE_CHECKING:
    from torch import Tensor


class Named(Protocol):
    """What a table says of where its rows come from: the source's name, and its classes' names."""

    @property
    def name(self) -> str:
        """What params.yaml calls it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of their labels."""


def write(
    splits: Mapping[str, Split],
    folder: Path,
    source: Named,
    drawn: Mapping[str, Any] | None = None,
    target: Target = CLASSES,
) -> None:
    """Write `<split>.parquet` for each split: the same bytes for the same arguments, and sealed.

    No file is moved into its place before all of them are written.

    Args:
        splits: By name.
        folder: Where the files go.
        source: Where the images come from.
        drawn: What params.yaml said when the splits were drawn; None where it did not say how to.
        target: What the labels are.
    """
    with ExitStack() as stack:
        for name, split in splits.items():
            path = stack.enter_context(replacing(folder / f"{name}.parquet"))
            of = {"split": name, "source": source.name, "classes": source.classes, "drawn": drawn}
            _write(_table(split, of | _told(target)), path)
            seal_(path)


def write_rows(
    splits: Mapping[str, Examples],
    folder: Path,
    drawn: Mapping[str, Any],
    source: str = "arrays",
    words: Mapping[str, Sequence[str]] | None = None,
    sizes: Mapping[str, Tensor] | None = None,
    code: str = "",
) -> None:
    """Write rows of any tensors in the same way: a column for each tensor, as bytes, and one of labels.

    Args:
        splits: By name; all of the same tensors.
        folder: Where the files go.
        drawn: What params.yaml said when the splits were drawn.
        source: What params.yaml calls where they come from.
        words: Of inputs that are codes, the words that 1, 2, ... stand for: for whoever has to code new rows.
        sizes: Of texts whose next tokens are predicted, by split: bytes of each [N], int64.
        code: The sum of the code that made them, where some did.
    """
    more = ({"words": words} if words else {}) | ({"code": code} if code else {})
    with ExitStack() as stack:
        for name, split in splits.items():
            path = stack.enter_context(replacing(folder / f"{name}.parquet"))
            table = _rows_table(split, {"split": name, "source": source, "drawn": drawn} | more)
            _write(table if not sizes else _with_sizes(table, sizes[name]), path)
            seal_(path)


def _with_sizes(table: pa.Table, sizes: Tensor) -> pa.Table:
    return table.append_column(pa.field("bytes", pa.int64(), nullable=False), pa.array(sizes.numpy()))


def _rows_table(split: Examples, of: Mapping[str, Any]) -> pa.Table:
    """Return a column of bytes for each tensor, and `label` where there are labels."""
    assert isinstance(split.images, Rows)
    columns, described, known = {}, {}, split.images.inputs or {}
    for name, tensor in split.images.tensors.items():
        described[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": [*tensor.shape[1:]]}
        if name in known:
            described[name] = known[name].model_dump(mode="json")
        columns[f"input.{name}"] = _bytes(tensor)
    if split.labels is not None and not isinstance(
        split.target, Tokens
    ):  # which are the inputs, one place on
        columns["label"] = _labels(split.labels)
    metadata = {"inputs": described, "classes": split.classes, **_told(split.target), **of}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.Table.from_arrays([*columns.values()], schema=pa.schema(fields, {**texts, "seal": BLANK}))


def _told(target: Target) -> dict[str, Any]:
    """Return what a table says of its labels; nothing of plain classes, which tables had before others."""
    return {} if target == CLASSES else {"target": target.model_dump(mode="json")}


def _labels(labels: Tensor) -> pa.Array:
    """Return classes [N] as whole numbers, anything else [N, K] as bytes."""
    return pa.array(labels.numpy()) if labels.dim() == 1 else _bytes(labels)


def _bytes(tensor: Tensor) -> pa.Array:
    """Return the bytes of each row of a tensor [N, ...]."""
    # One dimension more, as a number has no bytes that can be looked at.
    content = tensor.contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
    return pa.Array.from_buffers(pa.binary(content.shape[1]), len(tensor), [None, pa.py_buffer(content)])


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
