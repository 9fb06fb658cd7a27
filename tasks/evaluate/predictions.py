"""The teacher's answers on the test split: computed once, read by every evaluation.

They come out of the test split, so nothing that trains, prunes or calibrates may read them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decant.errors import DecantError
from decant.outputs import replacing
from decant.sealed import read_bytes, reading

TEACHER = Path("predictions/teacher.npy")
SUM = sha256().digest_size


MOST = 1 << 31
"""Bytes of a teacher's answers that are kept at most."""


def expected(outputs: Tensor, classes: bool) -> Tensor:
    """Return what is kept of a network's outputs [N, M]: the classes [N], int64, or all of them, float32."""
    return outputs.argmax(1) if classes else outputs.float()


def write(path: Path, answers: Tensor, sources: Sequence[Path] = ()) -> None:
    """Write what a teacher answers as an array of NumPy's, and after it a sum.

    Args:
        path: Where to.
        answers: Classes [N], int64; or outputs [N, M], float32.
        sources: The files that the answers follow from: the sum is over them too.

    Raises:
        DecantError: They are too large to be kept.
    """
    array = answers.numpy().astype(_type(answers.shape))
    if array.nbytes > MOST:
        raise DecantError(
            f"{len(answers):,} test rows of {answers[0].numel():,} outputs take {array.nbytes:,} bytes, and "
            f"at most {MOST:,} are kept to compare models with; take fewer test rows"
        )
    content = _header(array.shape) + array.tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(content + _sum(content, sources))


def read(path: Path, shape: int | tuple[int, ...], sources: Sequence[Path] = ()) -> Tensor:
    """Return what a teacher answers: the classes of so many images [N], or outputs of this shape [N, M].

    Nothing in the file is parsed: its bytes are those that `write` writes, or it is refused.

    Raises:
        DecantError: The file is missing or damaged, or was written for another number of images or outputs,
            or from other sources.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    header, dtype = _header(shape), np.dtype(_type(shape))
    size = len(header) + dtype.itemsize * math.prod(shape)
    what = "classes" if len(shape) == 1 else f"{shape[1]:,} outputs each"
    with reading(path, "run `dvc repro -f evaluate-teacher`"):
        content = read_bytes(path, size + SUM)
        if not content.startswith(header) or len(content) != size + SUM:
            raise ValueError(f"it does not hold the {what} of {shape[0]} images")
        if content[size:] != _sum(content[:size], sources):
            raise ValueError(f"its sum is of other {what}, or of another model or images")
    values = np.frombuffer(content, dtype, math.prod(shape), len(header))
    return torch.from_numpy(values.astype(dtype.newbyteorder("="))).reshape(shape)


def _type(shape: Sequence[int]) -> str:
    """Return the type of numbers in an array of this shape, as NumPy writes it."""
    return "<i8" if len(shape) == 1 else "<f4"


def _header(shape: tuple[int, ...]) -> bytes:
    """Return what NumPy writes before the values of an array of this shape."""
    buffer = io.BytesIO()
    described = {"descr": _type(shape), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _sum(array: bytes, sources: Sequence[Path]) -> bytes:
    digest = sha256(array)
    for file in sources:
        digest.update(sha256(file.read_bytes()).digest())
    return digest.digest()
