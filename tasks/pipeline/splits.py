"""The three splits on disk: the Parquet tables that `prepare` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from decant.errors import DecantError
from decant.examples import Examples, Splits

TRAIN, VALIDATION, TEST = (Path("data") / f"{split}.parquet" for split in ("train", "validation", "test"))


def read_splits() -> Splits:
    """Return what operations may look at: training and validation images, never the test split."""
    return Splits(read(TRAIN), read(VALIDATION))


def read(path: Path) -> Examples:
    """Return the table at `path`; the images stay in the mapped file where Arrow need not decode them.

    Raises:
        DecantError: The file is missing, or is not a table that `prepare` wrote.
    """
    try:
        table = pq.ParquetFile(path, memory_map=True).read().combine_chunks()
        metadata = table.schema.metadata or {}
        shape, classes = json.loads(metadata[b"shape"]), json.loads(metadata[b"classes"])
        images = _buffer(table.column("image"), np.dtype(np.uint8)).reshape(-1, *shape)
        labels = _buffer(table.column("label"), np.dtype(np.uint8))
    except FileNotFoundError:
        raise DecantError(f"No {path}; run `dvc repro prepare`") from None
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise DecantError(f"{path} is not a table of images ({error}); run `dvc repro -f prepare`") from None
    return Examples(torch.from_numpy(images), torch.from_numpy(labels).long(), tuple(classes))


def _buffer(column: pa.ChunkedArray, dtype: np.dtype[np.uint8]) -> np.ndarray:
    """Return the one chunk's values without a copy."""
    (chunk,) = column.chunks
    width = chunk.type.byte_width
    return np.frombuffer(chunk.buffers()[-1], dtype, len(chunk) * width, chunk.offset * width)
