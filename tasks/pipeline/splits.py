"""The three splits on disk: the Parquet tables that `prepare` writes, believed only where they prove it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, PositiveInt

from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.schema import Section, mistakes
from decant.sealed import reading
from tasks.pipeline.params import read_section
from tasks.pipeline.seals import check_seal

TRAIN, VALIDATION, TEST = (Path("data") / f"{split}.parquet" for split in ("train", "validation", "test"))


class _Header(Section):
    """What a table says of itself: see `tasks.prepare.tables`.

    Attributes:
        split: The name of its file, without the ending.
        source: Where the images come from.
        shape: One image [C, H, W].
        classes: The classes' names.
        drawn: The sections of params.yaml that the split was drawn by.
    """

    split: str
    source: str
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    classes: tuple[str, ...] = Field(min_length=1)
    drawn: dict[str, Any] | None


def read_splits() -> Splits:
    """Return what operations may look at: training and validation images, never the test split."""
    return Splits(read(TRAIN), read(VALIDATION))


def read(path: Path) -> Examples:
    """Return the table at `path`; the images stay in the mapped file where Arrow need not decode them.

    Raises:
        DecantError: The file is missing, is not a whole table that `prepare` wrote, or is another split; or
            it lies in data/ and was drawn by other parameters than those of params.yaml.
    """
    with reading(path, "run `dvc repro -f prepare`" if path.exists() else "run `dvc repro prepare`"):
        if path.exists() and not path.is_file():
            raise ValueError("no plain file")
        content = pa.memory_map(str(path)).read_buffer()
        check_seal(memoryview(content))
        header, table = _parsed(content)
        if path.stem != header.split and path.stem in (split.stem for split in (TRAIN, VALIDATION, TEST)):
            raise ValueError(f"it is the split {header.split}")
        labels = _values(table.column("label"), np.int64)
        if labels.min() < 0 or labels.max() >= len(header.classes):
            raise ValueError(f"labels from {labels.min()} to {labels.max()} of {len(header.classes)} classes")
        images = _values(table.column("image"), np.uint8).reshape(-1, *header.shape)
    if path in (TRAIN, VALIDATION, TEST) and header.drawn is not None:
        _check_drawn(path, header.drawn)
    return Examples(torch.from_numpy(images), torch.from_numpy(labels), header.classes)


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
    schema = {"image": pa.binary(math.prod(header.shape)), "label": pa.int64()}
    if {field.name: field.type for field in file.schema_arrow} != schema or len(file.schema_arrow) != 2:
        raise ValueError(f"its columns are not {schema}")
    if not _is_plain(file.metadata, math.prod(header.shape) + 8, content.size):
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
