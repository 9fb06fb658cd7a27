"""A teacher's answers to all training examples, made once and kept in a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Batch, tensors_in
from decant.networks.devices import A_PASS, computing_on, device_of, fed
from decant.networks.execution import predict
from decant.outputs import replacing
from decant.row_groups import in_groups
from decant.targets import Tokens

if TYPE_CHECKING:
    from decant.examples import Examples
    from decant.training.teaching import Teaching


def key_of(teachers: Sequence[nn.Module], images: Batch) -> str:
    """Return what answers depend on where nothing is augmented: a sum of teachers' tensors and inputs."""
    digest = hashlib.sha256(b"no augmentation")
    states = [tensor for each in teachers for tensor in each.state_dict().values()]
    for tensor in [*states, *tensors_in(images)]:
        digest.update(f"{tensor.dtype} {[*tensor.shape]}".encode())
        for rows in in_groups(tensor) if tensor.dim() else [tensor]:
            digest.update(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:20]


def remember_(teaching: Teaching, train: Examples, folder: Path | None) -> float:
    """Let teachers answer all training examples now, and never again; return the seconds that it took.

    Answers are those of batches of another size, so that their last bits are others than without.

    Args:
        teaching: The loss; must need no features.
        train: What will be learned from, not augmented.
        folder: Where the file lies, so that an interrupted training finds it; None keeps it in memory.

    Raises:
        DecantError: Answers are for each place of a text, and batches have as many as their longest text; or
            the device has no room for a pass.
    """
    if isinstance(train.target, Tokens):
        raise DecantError(
            "cache: these answers are for each token, and a batch is as long as its longest; leave it out"
        )
    begun = time.perf_counter()
    file = None if folder is None else folder / f"{key_of(teaching.teachers, train.images)}.npy"
    if file is None:
        teaching.known = _answers(teaching, train)
        return time.perf_counter() - begun
    if not file.exists():
        answers = _answers(teaching, train).numpy()
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.save(opened, answers)
    teaching.known = torch.from_numpy(np.load(file, mmap_mode="c"))
    return time.perf_counter() - begun


def _answers(teaching: Teaching, train: Examples) -> Tensor:
    """Return the mean of all teachers' outputs, [N, M], float32, on the processor."""
    found = []
    for each in teaching.teachers:
        with computing_on(there := device_of(each), A_PASS):
            found.append(predict(fed(each, there), train.images).float().cpu())
    return found[0] if len(found) == 1 else torch.stack(found).mean(0)
