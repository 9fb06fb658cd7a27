"""Splits as Parquet files that can be mapped into memory; `tasks.pipeline.splits` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from decant.examples import Examples, Rows
from decant.lazy import torch
from decant.outputs import replacing
from decant.progress import progress_bar
from decant.row_groups import group_rows, is_large
from decant.targets import CLASSES, Target, Tokens
from tasks.pipeline.seals import BLANK, seal_
from tasks.prepare.splits import Split

if TYPE_CHECKING:
    from torch import Tensor


PAGE = (1 << 31) - 1
"""Bytes, and rows, that a page never has: a row group of a mapped file is one."""


class Named(Protocol):
    """What a table says of where its rows come from: the source's name, and its classes' names."""

    @property
    def name(self) -> str:
        """What params.yaml calls it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of their labels."""


class Pictures(Protocol):
    """Pictures that need not be in memory together: a `Split`, or what is decoded as it is written."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One picture [C, H, W]."""

    def __len__(self) -> int:
        """How many there are, or at most: what cannot be decoded is left out."""

    def parts(self, rows: int) -> Iterator[Split]:
        """Yield the pictures in order, `rows` at a time; the last part may have fewer."""


class Streamed(Protocol):
    """Rows that need not be in memory together, but are read as they are written."""

    @property
    def form(self) -> Examples:
        """What the parts are like: of no row."""

    @property
    def width(self) -> int:
        """How many bytes the inputs of a row take."""

    def __len__(self) -> int:
        """How many there are, or at most: what cannot be read is left out."""

    def parts(self, rows: int) -> Iterator[Examples]:
        """Yield the rows in order, so many at a time; the last part may have fewer."""


def write(
    splits: Mapping[str, Pictures],
    folder: Path,
    source: Named,
    drawn: Mapping[str, Any] | None = None,
    target: Target = CLASSES,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Write `<split>.parquet` for each split: the same bytes for the same arguments, and sealed.

    What is larger than a window of row groups is written in such, each column of each as one page that can be
    mapped, and never is more than a group of it in memory; anything else in one row group. No file is moved
    into its place before all of them are written.

    Args:
        splits: By name.
        folder: Where the files go.
        source: Where the images come from.
        drawn: What params.yaml said when the splits were drawn; None where it did not say how to.
        target: What the labels are.
        check: Raises where what was written must not be used after all; called once all of it was decoded.
    """
    with ExitStack() as stack:
        for name, split in splits.items():
            path = stack.enter_context(replacing(folder / f"{name}.parquet"))
            of = {"split": name, "source": source.name, "classes": source.classes, "drawn": drawn}
            schema = _pictures_schema(split.shape, of | _told(target))
            rows = _rows(len(split), math.prod(split.shape))
            tables = (_pictures_table(part, schema) for part in split.parts(rows or len(split)))
            _write(tables, schema, path, title=f"writing {name}", count=len(split), mapped=bool(rows))
            seal_(path)
        check()


def write_rows(
    splits: Mapping[str, Examples | Streamed],
    folder: Path,
    drawn: Mapping[str, Any],
    source: str = "arrays",
    words: Mapping[str, Sequence[str]] | None = None,
    sizes: Mapping[str, Tensor] | None = None,
    code: str = "",
    check: Callable[[], object] = lambda: None,
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
        check: As of `write`.
    """
    more = ({"words": words} if words else {}) | ({"code": code} if code else {})
    with ExitStack() as stack:
        for name, split in splits.items():
            path = stack.enter_context(replacing(folder / f"{name}.parquet"))
            form = split if isinstance(split, Examples) else split.form
            of = {"split": name, "source": source, "drawn": drawn} | more
            schema = _rows_schema(form, of, bool(sizes))
            rows = _rows(len(split), split.width)
            written = _parts(split, sizes[name] if sizes else None, rows or len(split))
            tables = (_rows_table(part, known, schema) for part, known in written)
            _write(tables, schema, path, title=f"writing {name}", count=len(split), mapped=bool(rows))
            seal_(path)
        check()


def _rows(count: int, width: int) -> int:
    """Return how many rows of so many bytes a row group has; 0 where all of them lie in one, as they did."""
    return group_rows(width) if is_large(count, width) else 0


def _parts(
    split: Examples | Streamed, sizes: Tensor | None, rows: int
) -> Iterator[tuple[Examples, Tensor | None]]:
    """Yield examples in order, `rows` at a time, and what is known of their sizes."""
    if not isinstance(split, Examples):
        at = 0
        for part in split.parts(rows):
            yield part, None if sizes is None else sizes[at : at + len(part)]
            at += len(part)
        return
    for place in range(0, len(split), rows):
        labels, known = (
            None if each is None else each[place : place + rows] for each in (split.labels, sizes)
        )
        yield replace(split, images=split.images[place : place + rows], labels=labels), known


def _rows_schema(split: Examples, of: Mapping[str, Any], sized: bool) -> pa.Schema:
    """Return a column of bytes for each tensor, and `label` where there are labels that are no inputs."""
    assert isinstance(split.images, Rows)
    kinds, known = {}, split.images.inputs or {}
    described: dict[str, Any] = {}
    for name, tensor in split.images.tensors.items():
        described[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": [*tensor.shape[1:]]}
        if kind := split.images.kinds.get(name):
            described[name]["kind"] = kind
        if name in known:
            described[name] = known[name].model_dump(mode="json")
        kinds[f"input.{name}"] = pa.binary(math.prod(tensor.shape[1:]) * tensor.dtype.itemsize)
    if _labelled(split):
        width = math.prod(split.known_labels.shape[1:]) * split.known_labels.dtype.itemsize
        kinds["label"] = pa.int64() if split.known_labels.dim() == 1 else pa.binary(width)
    if sized:
        kinds["bytes"] = pa.int64()
    return _schema(kinds, {"inputs": described, "classes": split.classes, **_told(split.target), **of})


def _labelled(split: Examples) -> bool:
    """Say whether labels are written: the next tokens are the inputs, one place on."""
    return split.labels is not None and not isinstance(split.target, Tokens)


def _rows_table(split: Examples, sizes: Tensor | None, schema: pa.Schema) -> pa.Table:
    """Return a part of the rows as the schema says."""
    assert isinstance(split.images, Rows)
    columns = [_bytes(tensor[:]) for tensor in split.images.tensors.values()]
    if _labelled(split):
        columns.append(_labels(split.known_labels))
    if sizes is not None:
        columns.append(pa.array(sizes.numpy()))
    return pa.Table.from_arrays(columns, schema=schema)


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


def _pictures_schema(shape: Sequence[int], of: Mapping[str, Any]) -> pa.Schema:
    """Return the columns `image` and `label`; what they are of is the metadata, in JSON."""
    return _schema({"image": pa.binary(math.prod(shape)), "label": pa.int64()}, {"shape": shape, **of})


def _schema(kinds: Mapping[str, pa.DataType], metadata: Mapping[str, Any]) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in kinds.items()]
    return pa.schema(fields, {**{key: json.dumps(value) for key, value in metadata.items()}, "seal": BLANK})


def _pictures_table(split: Split, schema: pa.Schema) -> pa.Table:
    """Return a part of the pictures as the schema says."""
    content = pa.py_buffer(np.ascontiguousarray(split.images))
    image = pa.Array.from_buffers(schema.field("image").type, len(split), [None, content])
    return pa.Table.from_arrays([image, pa.array(split.labels.astype(np.int64))], schema=schema)


def _write(
    tables: Iterable[pa.Table], schema: pa.Schema, path: Path, *, title: str, count: int, mapped: bool
) -> None:
    """Write plain values, each table as a row group: what a memory map can serve and what never differs.

    Args:
        tables: The parts, in order.
        schema: Of each.
        path: Where to.
        title: What the bar says.
        count: How many rows there are, for the bar.
        mapped: Whether the values of a column lie in one page, as what is mapped needs.
    """
    whole = {"data_page_size": PAGE, "max_rows_per_page": PAGE} if mapped else {}
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    with (
        progress_bar(None, title, "rows", total=count) as bar,
        pq.ParquetWriter(path, schema, **plain, **whole) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=max(len(table), 1))
            bar.update(len(table))
