"""The teacher's answers on the test split: computed once, read by every evaluation.

They come out of the test split, so nothing that trains, prunes or calibrates may read them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decant.outputs import replacing
from decant.sealed import read_bytes, reading

TEACHER = Path("predictions/teacher.npy")
SUM = sha256().digest_size


def write(path: Path, classes: Tensor, sources: Sequence[Path] = ()) -> None:
    """Write the predicted classes [N] as an array of NumPy's, and after it a sum.

    Args:
        path: Where to.
        classes: Whole numbers of 64 bits.
        sources: The files that the predictions follow from: the sum is over them too.
    """
    array = _header(len(classes)) + classes.numpy().astype("<i8").tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(array + _sum(array, sources))


def read(path: Path, count: int, sources: Sequence[Path] = ()) -> Tensor:
    """Return the predicted classes [count] of as many images.

    Nothing in the file is parsed: its bytes are those that `write` writes, or it is refused.

    Raises:
        DecantError: The file is missing or damaged, or was written for another number of images or from other
            sources.
    """
    header = _header(count)
    size = len(header) + 8 * count
    with reading(path, "run `dvc repro -f evaluate-teacher`"):
        content = read_bytes(path, size + SUM)
        if not content.startswith(header) or len(content) != size + SUM:
            raise ValueError(f"it does not hold the classes of {count} images")
        if content[size:] != _sum(content[:size], sources):
            raise ValueError("its sum is of other classes, or of another model or images")
    return torch.from_numpy(np.frombuffer(content, "<i8", count, len(header)).astype(np.int64))


def _header(count: int) -> bytes:
    """Return what NumPy writes before the values of a vector of `count` numbers of 64 bits."""
    buffer = io.BytesIO()
    described = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _sum(array: bytes, sources: Sequence[Path]) -> bytes:
    digest = sha256(array)
    for file in sources:
        digest.update(sha256(file.read_bytes()).digest())
    return digest.digest()
