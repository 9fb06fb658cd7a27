"""What models answer on the test split: computed once, when they are evaluated, and read ever after.

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

from decant.checkpoints.files import DEPLOYED
from decant.errors import DecantError
from decant.outputs import replacing
from decant.sealed import read_bytes, reading
from tasks.pipeline.lineages import MODELS, TEACHER
from tasks.pipeline.splits import TEST

FOLDER = Path("predictions")
SUM = sha256().digest_size
TYPE = "<f4"

MOST = 1 << 31
"""Bytes of a model's answers that are kept at most."""


def path_of(model: str) -> Path:
    """Return where the answers of a model lie."""
    return FOLDER / f"{model}.npy"


def sources_of(model: str) -> list[Path]:
    """Return the files that the answers of a model follow from."""
    return [TEST, *(MODELS / model / file for file in DEPLOYED)]


def stage_of(model: str) -> str:
    """Return the stage that writes the answers of a model."""
    return "evaluate-teacher" if model == TEACHER else f"evaluate@{model}"


def write(path: Path, answers: Tensor, sources: Sequence[Path] = ()) -> None:
    """Write what a model answers as an array of NumPy's, and after it a sum.

    Args:
        path: Where to.
        answers: Outputs [N, M], float32.
        sources: The files that the answers follow from: the sum is over them too.

    Raises:
        DecantError: They are too large to be kept.
    """
    array = answers.numpy().astype(TYPE)
    if array.nbytes > MOST:
        raise DecantError(
            f"{len(answers):,} test rows of {answers.shape[1]:,} outputs take {array.nbytes:,} bytes, and "
            f"at most {MOST:,} are kept to compare models with; take fewer test rows"
        )
    content = _header((len(array), array.shape[1])) + array.tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(content + _sum(content, sources))


def read(
    path: Path, shape: tuple[int, int], sources: Sequence[Path] = (), stage: str = stage_of(TEACHER)
) -> Tensor:
    """Return what a model answers: outputs of this shape [N, M].

    Nothing in the file is parsed: its bytes are those that `write` writes, or it is refused.

    Raises:
        DecantError: The file is missing or damaged, or was written for another number of rows or outputs, or
            from other sources; names the stage that writes it.
    """
    header = _header(shape)
    size = len(header) + np.dtype(TYPE).itemsize * math.prod(shape)
    with reading(path, f"run `dvc repro -f {stage}`"):
        content = read_bytes(path, size + SUM)
        if not content.startswith(header) or len(content) != size + SUM:
            raise ValueError(f"it does not hold the {shape[1]:,} outputs each of {shape[0]:,} rows")
        if content[size:] != _sum(content[:size], sources):
            raise ValueError("its sum is of other outputs, or of another model or other rows")
    values = np.frombuffer(content, TYPE, math.prod(shape), len(header))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def _header(shape: tuple[int, int]) -> bytes:
    """Return what NumPy writes before the values of an array of this shape."""
    buffer = io.BytesIO()
    described = {"descr": TYPE, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _sum(array: bytes, sources: Sequence[Path]) -> bytes:
    digest = sha256(array)
    for file in sources:
        digest.update(sha256(file.read_bytes()).digest())
    return digest.digest()
