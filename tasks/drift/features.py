"""What of an input is looked at: a few numbers, or a code, for each row, by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decant.examples import Batch, Rows

SIDE = 4
"""Blocks of a picture along each side; a mean and a deviation of each are looked at."""

MOST = 64
"""Numbers of a tensor that are looked at one by one; of longer rows, the means of so many equal parts."""

FREQUENT = 64
"""Codes of a longer row whose counts are looked at: the most frequent ones of the reference."""

Column = NDArray[np.float64] | NDArray[np.int64]
"""One number of each row, float64 [N], NaN where it is missing; or one code of each row, int64 [N]."""


def features(batch: Batch, reference: Batch) -> dict[str, Column]:
    """Return what is looked at, by name, in a fixed order.

    Args:
        batch: Pictures [N, C, H, W], uint8, or rows of any tensors.
        reference: Of the same form; decides which codes are counted.
    """
    if not isinstance(batch, Rows):
        return dict(_of_pictures(batch[:]))
    assert isinstance(reference, Rows)
    named = ((name, tensor[:], reference.tensors[name][:]) for name, tensor in batch.tensors.items())
    return {key: column for each in named for key, column in _of_tensor(*each)}


def _of_pictures(pictures: Tensor) -> Iterator[tuple[str, Column]]:
    """Yield mean and deviation, in [0, 1], of each block of each channel of pictures [N, C, H, W]."""
    for channel, plane in enumerate(pictures.unbind(1)):
        for i, rows in enumerate(plane.tensor_split(min(SIDE, plane.shape[1]), dim=1)):
            for j, block in enumerate(rows.tensor_split(min(SIDE, plane.shape[2]), dim=2)):
                values = block.flatten(1).double() / 255
                place = f"block {i},{j}" + (f" of channel {channel}" if pictures.shape[1] > 1 else "")
                yield f"mean of {place}", values.mean(1).numpy()
                yield f"deviation of {place}", values.std(1, correction=0).numpy()


def _of_tensor(name: str, tensor: Tensor, reference: Tensor) -> Iterator[tuple[str, Column]]:
    """Yield what is looked at of one tensor [N, ...]."""
    rows = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
    if tensor.is_floating_point():
        yield from _of_numbers(name, rows.double())
    elif rows.shape[1] == 1:
        yield name, rows[:, 0].long().numpy()
    else:
        yield from _of_codes(name, rows.long(), reference.flatten(1).long())


def _of_numbers(name: str, rows: Tensor) -> Iterator[tuple[str, Column]]:
    """Yield each number of rows [N, M], or the means of equal parts of long ones; and which are missing."""
    parts = rows.tensor_split(MOST, dim=1) if rows.shape[1] > MOST else rows.split(1, dim=1)
    for number, part in enumerate(parts):
        place = name if len(parts) == 1 else f"{name}[{number}]"
        place = f"mean of part {number} of {name}" if rows.shape[1] > MOST else place
        yield place, part.nanmean(1).numpy()
        if bool(torch.isnan(part).any()):
            yield missing(place), torch.isnan(part).any(1).long().numpy()


def missing(place: str) -> str:
    """Return what the code is called that says whether a number is missing."""
    return f"{place} is missing"


def _of_codes(name: str, rows: Tensor, reference: Tensor) -> Iterator[tuple[str, Column]]:
    """Yield how often each frequent code stands in rows [N, M], and how many are not 0, as padding is."""
    yield f"length of {name}", (rows != 0).sum(1).double().numpy()
    codes, counts = reference[reference != 0].unique(return_counts=True)
    for code in codes[counts.argsort(descending=True, stable=True)][:FREQUENT].tolist():
        yield f"count of {code} in {name}", (rows == code).sum(1).double().numpy()
