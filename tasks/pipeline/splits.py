"""The three splits on disk: the Parquet tables that `prepare` writes, believed only where they prove it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import PositiveInt
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Batch, Examples, Rows, Splits
from decant.inputs import IDS, MASK, Inputs, Kind, TensorInput, kinds_of
from decant.row_groups import RowGroups, group_rows, in_groups
from decant.schema import Section, mistakes
from decant.sealed import reading
from decant.targets import CLASSES, AnyTarget, Tokens, next_tokens
from tasks.pipeline.params import read_section
from tasks.pipeline.seals import check_seal

TRAIN, VALIDATION, TEST = (Path("data") / f"{split}.parquet" for split in ("train", "validation", "test"))


LOADERS = "DECANT_LOADERS"
"""The variable that says how many processes read batches of mapped tables ahead; none where it is not set."""

MOST_LOADERS = 64

ASIDE = ("label", "bytes")
"""Columns that are read into memory, also where all others are mapped."""


class _Header(Section):
    """What a table says of itself: see `tasks.prepare.tables`.

    Attributes:
        split: The name of its file, without the ending.
        source: Where the images come from.
        shape: One image [C, H, W], where there are images.
        inputs: Type and shape of each other tensor, by name, where there are none.
        classes: The classes' names; none where there are no labels.
        drawn: The sections of params.yaml that the split was drawn by.
        target: What the labels are; None of plain classes.
    """

    split: str
    source: str
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None
    inputs: dict[str, TensorInput] | None
    classes: tuple[str, ...]
    drawn: dict[str, Any] | None
    target: AnyTarget | None

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """What the table has to have, in order."""
        if self.inputs is None:
            return {"image": pa.binary(math.prod(self.shape or ())), "label": pa.int64()}
        found = {f"input.{name}": pa.binary(_width(each)) for name, each in self.inputs.items()}
        if isinstance(self.target, Tokens):  # labels are the inputs, one place on
            return found | {"bytes": pa.int64()}
        if self.numbers:
            return found | {"label": pa.binary(4 * self.numbers)}
        return found | ({"label": pa.int64()} if self.classes else {})

    @property
    def numbers(self) -> int:
        """How many numbers a row's label has; 0 where it is a class, or there is none."""
        return (self.target.width or 0) if self.target is not None else 0

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return sum(each.byte_width for each in self.columns.values())


def read_splits() -> Splits:
    """Return what operations may look at: training and validation images, never the test split."""
    return Splits(read(TRAIN), read(VALIDATION))


def read(path: Path) -> Examples:
    """Return the table at `path`; what lies in several row groups stays in the mapped file.

    Raises:
        DecantError: The file is missing, is not a whole table that `prepare` wrote, or is another split; or
            it lies in data/ and was drawn by other parameters than those of params.yaml.
    """
    with _repairing(path):
        header, file, content = _opened(path)
        if path.stem != header.split and path.stem in (split.stem for split in (TRAIN, VALIDATION, TEST)):
            raise ValueError(f"it is the split {header.split}")
        mapped = file.metadata.num_row_groups > 1
        if mapped:
            aside = [name for name in header.columns if name in ASIDE]
            table, images = file.read(aside).combine_chunks(), _mapped(content, file, header)
        else:
            table = file.read().combine_chunks()
            images = _images(table, header)
        labels = _labels(table, header, images)
    if path in (TRAIN, VALIDATION, TEST) and header.drawn is not None:
        _check_drawn(path, header.drawn)
    return Examples(images, labels, header.classes, header.target or CLASSES, _loaders() if mapped else 0)


def _loaders() -> int:
    """Return how many processes read ahead, as the environment says.

    Raises:
        DecantError: It says something else than a whole number in [0, 64].
    """
    found = os.environ.get(LOADERS, "").strip() or "0"
    if not (found.isdecimal() and found.isascii() and int(found) <= MOST_LOADERS):
        raise DecantError(
            f"{LOADERS} is {found!r}, expected a whole number from 0 to {MOST_LOADERS}; set it to one"
        )
    return int(found)


def bytes_of(path: Path) -> Tensor:
    """Return the bytes of the tokens that are predicted in each text of a table [N], int64.

    Raises:
        DecantError: As `read`; or the table is of no texts whose next tokens are predicted.
    """
    with _repairing(path):
        header, file, _ = _opened(path)
        if not isinstance(header.target, Tokens):
            raise ValueError("it is of no texts whose next tokens are predicted")
        found = _values(file.read(["bytes"]).combine_chunks().column("bytes"), np.int64)
        if found.min() < 0:
            raise ValueError(f"a text has {found.min()} bytes")
    return torch.from_numpy(found)


def _repairing(path: Path) -> AbstractContextManager[None]:
    return reading(path, "run `dvc repro -f prepare`" if path.exists() else "run `dvc repro prepare`")


def _opened(path: Path) -> tuple[_Header, pq.ParquetFile, np.ndarray[Any, Any]]:
    """Return what the table at `path` says of itself, its file, and that as mapped, once its seal is whole.

    Raises:
        ValueError: It is none that `prepare` wrote.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no plain file")
    # A private map: torch wants memory that may be written to, and the file stays as it is.
    content = np.memmap(path, np.uint8, "c")
    check_seal(content.data)
    return *_parsed(content), content


def _labels(table: pa.Table, header: _Header, images: Batch) -> Tensor | None:
    """Return the labels; None where there are none.

    Raises:
        ValueError: One is no class, or no number.
    """
    if header.numbers:
        content = _values(table.column("label"), np.uint8).reshape(-1, 4 * header.numbers)
        found = _aligned(content, torch.float32)
        if not bool(torch.isfinite(found).all()):
            raise ValueError("labels are NaN or infinite")
        return found
    if isinstance(header.target, Tokens):
        assert isinstance(images, Rows)
        groups = (in_groups(images.tensors[name]) for name in (IDS, MASK))
        return torch.cat([next_tokens(*group) for group in zip(*groups, strict=True)])
    if not header.classes:
        return None
    labels = _values(table.column("label"), np.int64)
    if labels.min() < 0 or labels.max() >= len(header.classes):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} of {len(header.classes)} classes")
    return torch.from_numpy(labels)


def _images(table: pa.Table, header: _Header) -> Batch:
    """Return pictures, or rows of other tensors."""
    if header.inputs is None:
        assert header.shape is not None
        return torch.from_numpy(_values(table.column("image"), np.uint8).reshape(-1, *header.shape))
    tensors = {}
    for name, each in header.inputs.items():
        content = _values(table.column(f"input.{name}"), np.uint8).reshape(-1, _width(each))
        tensors[name] = _aligned(content, getattr(torch, each.dtype)).reshape(-1, *each.row)
    return Rows(tensors, _declared(tensors, header.inputs), _kinds(header.inputs))


def _kinds(inputs: Inputs) -> dict[str, Kind]:
    """Return the kinds of inputs that are more than tensors."""
    return {name: kind for name, kind in kinds_of(inputs).items() if kind != "tensor"}


def _declared(tensors: Mapping[str, Tensor | RowGroups], inputs: Inputs) -> Inputs | None:
    """Return what a table says of its tensors; None where that is no more than their shapes and types.

    Raises:
        ValueError: A tensor holds numbers that it is said to hold none of.
    """
    if all(not each.example and (each.at_least, each.below) == (0, 2) for each in inputs.values()):
        return None
    for name, each in inputs.items():
        low, high = int(tensors[name].min()), int(tensors[name].max())
        if low < each.at_least or high >= each.below:
            raise ValueError(f"{name} holds {low} to {high}, expected {each.at_least} to {each.below - 1}")
    return inputs


def _mapped(content: np.ndarray[Any, Any], file: pq.ParquetFile, header: _Header) -> Batch:
    """Return pictures, or rows of other tensors, that stay in the file: a row group is a page, values alone.

    Raises:
        ValueError: The values do not lie where they should.
    """
    found = {}
    for number, (name, kind) in enumerate(header.columns.items()):
        if name not in ASIDE:
            found[name] = tuple(_pages(content, file.metadata, number, kind.byte_width))
    if header.inputs is None:
        assert header.shape is not None
        return RowGroups(found["image"], header.shape, torch.uint8)
    tensors = {
        name: RowGroups(found[f"input.{name}"], each.row, getattr(torch, each.dtype))
        for name, each in header.inputs.items()
    }
    return Rows(tensors, _declared(tensors, header.inputs), _kinds(header.inputs))


def _pages(content: np.ndarray[Any, Any], metadata: Any, number: int, width: int) -> Iterator[Tensor]:
    """Yield the values [n, width] of each row group's column of this number, as bytes of the map."""
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(number)
        size = column.num_values * width
        end = column.data_page_offset + column.total_compressed_size
        start = end - size
        # A page begins with its kind, 0 of values, and twice its size, once the second is of what is packed.
        sizes = b"\x15" + _varint(2 * size)
        begin = content[column.data_page_offset : start][: 2 + 2 * len(sizes)].tobytes()
        if begin != b"\x15\x00" + sizes + sizes or end > len(content):
            raise ValueError(f"row group {group} does not lie as it is mapped")
        yield torch.from_numpy(content[start:end]).reshape(-1, width)


def _varint(number: int) -> bytes:
    """Return a whole number as Thrift writes it: 7 bits a byte, the lowest first.

    References:
        Thrift compact protocol encoding.
        https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _aligned(content: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """Return bytes [N, M] as numbers [N, M / size], without a copy where they lie where such may."""
    found = torch.from_numpy(content)
    return (found if found.data_ptr() % dtype.itemsize == 0 else found.clone()).view(dtype)


def _width(each: TensorInput) -> int:
    """Return the bytes of a row of a tensor."""
    dtype: torch.dtype = getattr(torch, each.dtype)
    return math.prod(each.row) * dtype.itemsize


def _parsed(content: np.ndarray[Any, Any]) -> tuple[_Header, pq.ParquetFile]:
    """Return what a sealed table says of itself, and its file, once that is of the form that is written.

    Nothing is decoded before it is known to take no more memory than the file.

    Raises:
        ValueError: It has another form.
    """
    file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
    texts = {key.decode(): text for key, text in (file.schema_arrow.metadata or {}).items()}
    described = {key: json.loads(texts.get(key, "null")) for key in _Header.model_fields}
    if wrong := mistakes(described, _Header):
        raise ValueError("; ".join(wrong))
    header = _Header.model_validate(described)
    if (header.shape is None) == (header.inputs is None) or not (header.classes or header.inputs):
        raise ValueError("it has neither images with classes nor inputs alone")
    if isinstance(header.target, Tokens) and not {IDS, MASK} <= {*(header.inputs or {})}:
        raise ValueError(f"it has tokens for a target, and no {IDS} and {MASK}")
    if header.numbers and (header.classes or header.inputs is None):
        raise ValueError(f"it has classes or images, and {header.numbers} numbers for a label")
    schema = header.columns
    if {f.name: f.type for f in file.schema_arrow} != schema or len(file.schema_arrow) != len(schema):
        raise ValueError(f"its columns are not {schema}")
    if not _is_plain(file.metadata, header, content.size):
        raise ValueError("its rows are not in one piece, or in even ones, as they are")
    return header, file


def _is_plain(metadata: Any, header: _Header, size: int) -> bool:
    """Say whether a file of `size` bytes has rows in one piece, or in even row groups, and not encoded."""
    if not 0 < metadata.num_rows <= size // header.width:
        return False
    inputs = sum(kind.byte_width for name, kind in header.columns.items() if name not in ASIDE)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if any(group.num_rows != group_rows(inputs) for group in groups[:-1]) or not all(
        g.num_rows for g in groups
    ):
        return False
    columns = [group.column(number) for group in groups for number in range(metadata.num_columns)]
    return all(each.compression == "UNCOMPRESSED" and not each.has_dictionary_page for each in columns)


def _values(column: pa.ChunkedArray, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """Return the one chunk's values without a copy.

    Raises:
        ValueError: Some are missing.
    """
    (chunk,) = column.chunks
    if chunk.null_count:
        raise ValueError(f"{chunk.null_count} values are missing")
    width, size = chunk.type.byte_width, np.dtype(dtype).itemsize
    return np.frombuffer(chunk.buffers()[-1], dtype, len(chunk) * width // size, chunk.offset * width)


def _check_drawn(path: Path, drawn: dict[str, Any]) -> None:
    """Check that a table was drawn by what params.yaml says now.

    Raises:
        DecantError: It was not.
    """
    asked = {key: read_section(key, Any) for key in drawn}
    if asked != drawn:
        raise DecantError(f"{path} was drawn by {drawn}, params.yaml has {asked}; run `dvc repro prepare`")
