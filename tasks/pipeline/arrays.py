"""Named tensors from .npz and .safetensors files, read without running anything."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from decant.errors import DecantError
from decant.outputs import lacks_room
from decant.progress import progress_bar
from decant.row_groups import GROUP, WINDOW, group_rows
from decant.sealed import one_line

ENDINGS = (".npz", ".safetensors")

SMALL = WINDOW * GROUP
"""Bytes of the arrays of an .npz file up to which they are read as a whole, and not block by block."""

Empty = Callable[[Sequence[int], DTypeLike], NDArray[Any]]


def read_arrays(path: Path, empty: Empty = np.empty) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in the file's order.

    Those of .safetensors lie in the file, which is mapped. Those of .npz may be packed, and have a sum that
    says whether they are whole, so they are read from the first byte to the last.

    Args:
        path: The file; its ending says what it is.
        empty: Makes room for a large array, of a shape and type.

    Raises:
        DecantError: There is no such file; it is another or no whole one; or holds what is no tensor, such as
            words and Python's objects.
        OSError: There is no room.
    """
    if path.suffix not in ENDINGS:
        raise DecantError(f"{path} is read only as {' or '.join(ENDINGS)}; write named arrays into one")
    if not path.is_file():
        raise DecantError(f"No {path} here; put the file there, or name another")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with np.load(path, allow_pickle=False) as archive:
            large = sum(each.file_size for each in archive.zip.infolist()) > SMALL
            each = _streamed(archive, path, empty) if large else archive.items()
            found = dict(each)
        return {name: _tensor(name, each) for name, each in found.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError, TypeError) as error:
        if lacks_room(error):
            raise
        raise DecantError(f"{path} does not hold tensors ({one_line(error)}); write numbers alone") from None
    except Exception as error:  # safetensors has an error of its own
        raise DecantError(f"{path} is damaged ({one_line(error)}); replace it") from None


def _tensor(name: str, array: np.ndarray) -> Tensor:
    _check_numbers(name, array.dtype)
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    return torch.from_numpy(native)


def _check_numbers(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"{name} is of {dtype}")


def _streamed(archive: Any, path: Path, empty: Empty) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of an .npz file by name, each read a block at a time, rows together."""
    members = dict(zip(archive.files, archive.zip.infolist(), strict=True))
    total = sum(each.file_size for each in members.values())
    bar = progress_bar(None, f"reading {path.name}", "B", total=total, unit_scale=True)
    with bar:
        for name, member in members.items():
            with archive.zip.open(member) as file:
                shape, by_columns, dtype = _head(name, file)
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"{name} is cut off")
                found = empty(shape[::-1] if by_columns else shape, dtype.newbyteorder("="))
                _fill_(found.reshape(-1), dtype, file, bar.update)
                yield name, _by_rows(found, empty) if by_columns else found


HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""What reads the head of an array, by the version of NumPy's format."""


def _head(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return an array's shape, whether it lies column by column, and its type."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"{name} is of version {version} of the format")
    shape, by_columns, dtype = HEADERS[version](file)
    _check_numbers(name, dtype)
    return shape, by_columns, dtype


def _fill_(
    values: NDArray[Any], dtype: np.dtype[Any], file: IO[bytes], seen: Callable[[int], object]
) -> None:
    """Set values [N] to those of a file, which are of this type, in place."""
    size = max(1, GROUP // dtype.itemsize)
    for place in range(0, len(values), size):
        part = values[place : place + size]
        content = file.read(part.size * dtype.itemsize)
        part[:] = np.frombuffer(content, dtype)
        seen(len(content))
    file.read(1)  # behind the last byte its sum is compared


def _by_rows(columns: NDArray[Any], empty: Empty) -> NDArray[Any]:
    """Return an array whose values lie row by row, of one [..., N] that was written column by column."""
    shape = columns.shape[::-1]
    found, rows = empty(shape, columns.dtype), group_rows(math.prod(shape[1:]) * columns.itemsize)
    for place in range(0, len(found), rows):
        found[place : place + rows] = columns.T[place : place + rows]
    return found
