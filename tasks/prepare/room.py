"""Room for what is read before it is written: in memory where it is small, else in files without a name.

Such a file is gone once nobody has it open, however a process ends; its pages are the system's, which takes
them back when it needs them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from decant.row_groups import GROUP, WINDOW

FOLDER = Path("data")
"""Where the files lie: on the disk that the tables are written to."""

SMALL = WINDOW * GROUP
"""Bytes up to which an array lies in memory."""


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of which no value has been set.

    Raises:
        OSError: The disk has no room for it: found out here, as whoever writes to a map is not asked.
    """
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    if size <= SMALL:
        return np.empty(shape, kind)
    with nameless() as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return mapped(file, kind).reshape(shape)


class Growing:
    """Values of one type that come one after another, of which nobody knows how many there will be.

    Args:
        dtype: Their type.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype, self._file = np.dtype(dtype), nameless()

    def add(self, values: NDArray[Any]) -> None:
        """Put values of any shape behind those that are there."""
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())

    def array(self) -> NDArray[Any]:
        """Return all of them, in one row; none can be added afterwards."""
        with self._file as file:
            file.flush()
            return mapped(file, self._dtype)


def nameless() -> IO[bytes]:
    """Return a file that has no name and ends with its last user."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=FOLDER, buffering=1 << 20)


def mapped(file: IO[bytes], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
    """Return what a file holds as an array whose pages lie there."""
    size = os.fstat(file.fileno()).st_size
    return np.frombuffer(mmap.mmap(file.fileno(), size), dtype) if size else np.empty(0, dtype)
