"""A teacher's answers to all training examples, made once and kept in a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from decant.errors import DecantError, Message
from decant.examples import Batch, tensors_in
from decant.networks.devices import A_PASS, computing_on, device_of, fed
from decant.networks.execution import predict
from decant.outputs import replacing
from decant.row_groups import in_groups
from decant.sealed import one_line
from decant.targets import Tokens
from decant.training.ensemble import Mean

if TYPE_CHECKING:
    from decant.examples import Examples
    from decant.training.teaching import Teaching

ASKED = 8
"""Examples whose answers are part of the key: networks of the same tensors may still be other functions."""

SUM = hashlib.sha256().digest_size
"""Bytes behind the answers in a file: a sum over them."""


def key_of(teachers: Sequence[nn.Module], images: Batch, mean: Mean | None = None) -> str:
    """Return what answers depend on where nothing is augmented, as a sum.

    That is of the teachers' tensors and what they answer to the first `ASKED` inputs, which tells functions
    apart that the same tensors stand for, of the inputs, and of which mean it is.
    """
    digest = hashlib.sha256(f"no augmentation {mean or Mean()}".encode())
    states = [tensor for each in teachers for tensor in each.state_dict().values()]
    asked = [_answer(each, images[:ASKED]) for each in teachers]
    for tensor in [*states, *asked, *tensors_in(images)]:
        digest.update(f"{tensor.dtype} {[*tensor.shape]}".encode())
        for rows in in_groups(tensor) if tensor.dim() else [tensor]:
            digest.update(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:20]


def remember_(teaching: Teaching, train: Examples, folder: Path | None) -> tuple[float, bool]:
    """Let teachers answer all training examples now, and never again.

    Answers are those of batches of another size, so that their last bits are others than without.

    Args:
        teaching: The loss; must need no features.
        train: What will be learned from, not augmented.
        folder: Where the file lies, so that an interrupted training finds it; None keeps it in memory.

    Returns:
        The seconds that it took, and whether teachers had to answer: not where the file was whole.

    Raises:
        DecantError: Answers are for each place of a text, and batches have as many as their longest text; or
            the device has no room for a pass.
    """
    if isinstance(train.target, Tokens):
        raise DecantError(
            "cache: these answers are for each token, and a batch is as long as its longest; leave it out"
        )
    begun = time.perf_counter()
    file = None if folder is None else folder / f"{_key(teaching, train)}.npy"
    teaching.known = None if file is None else _read(file, len(train))
    if there := teaching.known is not None:
        return time.perf_counter() - begun, not there
    teaching.known = _answers(teaching, train)
    if file is not None:
        _write(file, teaching.known)
        teaching.known = _read(file, len(train))
    return time.perf_counter() - begun, True


def _key(teaching: Teaching, train: Examples) -> str:
    return key_of(teaching.teachers, train.images, teaching.mean)


def _answers(teaching: Teaching, train: Examples) -> Tensor:
    """Return the mean of all teachers' outputs, [N, M], float32, on the processor."""
    return teaching.mean([_answer(each, train.images) for each in teaching.teachers], train.target)


def _answer(teacher: nn.Module, images: Batch) -> Tensor:
    """Return what one teacher answers, [N, M], float32, on the processor."""
    with computing_on(there := device_of(teacher), A_PASS):
        return predict(fed(teacher, there), images).float().cpu()


# --- the file


def _write(file: Path, answers: Tensor) -> None:
    with replacing(file) as temporary:
        with temporary.open("wb") as opened:
            np.save(opened, answers.numpy())
        found = _sum(temporary, temporary.stat().st_size)
        with temporary.open("ab") as opened:
            opened.write(found)


def _read(file: Path, rows: int) -> Tensor | None:
    """Return the answers in a file, mapped; None where there is none, or, told, where it is not whole."""
    if not file.exists():
        return None
    try:
        size = file.stat().st_size - SUM
        with file.open("rb") as opened:
            opened.seek(max(size, 0))
            expected = opened.read()
        if size < 0 or _sum(file, size) != expected:
            raise ValueError("it has not the sum that it ends with")
        found = torch.from_numpy(np.load(file, mmap_mode="c"))
    except (OSError, ValueError) as error:
        print(_unused(file, error), file=sys.stderr)
        return None
    return found if len(found) == rows else None


def _unused(file: Path, error: Exception) -> Message:
    return f"{os.fspath(file)} is not used ({one_line(error)}); the teacher answers once more"


def _sum(file: Path, size: int) -> bytes:
    """Return the sum of the first bytes of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while size > 0 and (part := opened.read(min(size, 1 << 20))):
            digest.update(part)
            size -= len(part)
    return digest.digest()
