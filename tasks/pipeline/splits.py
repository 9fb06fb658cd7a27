"""The three splits on disk: the Parquet tables that `prepare` writes, believed only where they prove it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
from decant.inputs import IDS, MASK, Inputs, TensorInput
from decant.schema import Section, mistakes
from decant.sealed import reading
from decant.targets import CLASSES, AnyTarget, Tokens, next_tokens
from tasks.pipeline.params import read_section
from tasks.pipeline.seals import check_seal

TRAIN, VALIDATION, TEST = (Path("data") / f"{split}.parquet" for split in ("train", "validation", "test"))


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
    """Return the table at `path`; the images stay in the mapped file where Arrow need not decode them.

    Raises:
        DecantError: The file is missing, is not a whole table that `prepare` wrote, or is another split; or
            it lies in data/ and was drawn by other parameters than those of params.yaml.
    """
    with _repairing(path):
        header, table = _opened(path)
        if path.stem != header.split and path.stem in (split.stem for split in (TRAIN, VALIDATION, TEST)):
            raise ValueError(f"it is the split {header.split}")
        images = _images(table, header)
        labels = _labels(table, header, images)
    if path in (TRAIN, VALIDATION, TEST) and header.drawn is not None:
        _check_drawn(path, header.drawn)
    return Examples(images, labels, header.classes, header.target or CLASSES)


def bytes_of(path: Path) -> Tensor:
    """Return the bytes of the tokens that are predicted in each text of a table [N], int64.

    Raises:
        DecantError: As `read`; or the table is of no texts whose next tokens are predicted.
    """
    with _repairing(path):
        header, table = _opened(path)
        if not isinstance(header.target, Tokens):
            raise ValueError("it is of no texts whose next tokens are predicted")
        found = _values(table.column("bytes"), np.int64)
        if found.min() < 0:
            raise ValueError(f"a text has {found.min()} bytes")
    return torch.from_numpy(found)


def _repairing(path: Path) -> AbstractContextManager[None]:
    return reading(path, "run `dvc repro -f prepare`" if path.exists() else "run `dvc repro prepare`")


def _opened(path: Path) -> tuple[_Header, pa.Table]:
    """Return what the table at `path` says of itself, and its columns, once its seal is whole.

    Raises:
        ValueError: It is none that `prepare` wrote.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no plain file")
    content = pa.memory_map(str(path)).read_buffer()
    check_seal(memoryview(content))
    return _parsed(content)


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
        return next_tokens(images.tensors[IDS], images.tensors[MASK])
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
    return Rows(tensors, _declared(tensors, header.inputs))


def _declared(tensors: Mapping[str, Tensor], inputs: Inputs) -> Inputs | None:
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


def _aligned(content: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """Return bytes [N, M] as numbers [N, M / size], without a copy where they lie where such may."""
    found = torch.from_numpy(content)
    return (found if found.data_ptr() % dtype.itemsize == 0 else found.clone()).view(dtype)


def _width(each: TensorInput) -> int:
    """Return the bytes of a row of a tensor."""
    dtype: torch.dtype = getattr(torch, each.dtype)
    return math.prod(each.row) * dtype.itemsize


def _parsed(content: pa.Buffer) -> tuple[_Header, pa.Table]:
    """Return what a sealed table says of itself, and its columns, once they are of the form that is written.

    Nothing is decoded before it is known to take no more memory than the file.

    Raises:
        ValueError: It has another form.
    """
    file = pq.ParquetFile(pa.BufferReader(content))
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
    if not _is_plain(file.metadata, header.width, content.size):
        raise ValueError("its rows are not in one piece, as they are")
    return header, file.read().combine_chunks()


def _is_plain(metadata: Any, width: int, size: int) -> bool:
    """Say whether a file of `size` bytes has rows of `width` bytes, in one piece and not encoded."""
    if metadata.num_row_groups != 1 or not 0 < metadata.num_rows <= size // width:
        return False
    columns = [metadata.row_group(0).column(number) for number in range(metadata.num_columns)]
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
