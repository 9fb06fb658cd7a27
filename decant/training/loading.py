"""Examples, some rows after others: read by the training itself, or ahead of it by processes of their own.

Which rows come is settled before, and nothing is drawn here: the batches are the same with any number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor, from_numpy
from torch.utils.data import DataLoader, Dataset

from decant.errors import DecantError
from decant.examples import Batch, Examples

LOADERS = "DECANT_LOADERS"
"""The variable that says how many processes read ahead; without it the training reads by itself."""

MOST = 64
AHEAD = 2
"""Batches that each process has ready."""

Loaded: TypeAlias = tuple[Batch, Tensor | None]
"""Inputs [B, ...] and labels [B], or None where there are none."""


def loaders() -> int:
    """Return how many processes read ahead, as the environment says; 0 where it says nothing.

    Raises:
        DecantError: It says something else than a whole number in [0, 64].
    """
    found = os.environ.get(LOADERS, "").strip() or "0"
    if not (found.isdecimal() and found.isascii() and int(found) <= MOST):
        raise DecantError(f"{LOADERS} is {found!r}, expected a whole number from 0 to {MOST}; set it to one")
    return int(found)


def loaded(examples: Examples, rows: Iterable[Tensor], processes: int) -> Iterator[Loaded]:
    """Yield inputs and labels of rows, in the order of `rows`.

    Args:
        examples: On the processor, where other processes read.
        rows: Indices [B], int64, of each batch.
        processes: How many read ahead; 0 reads when it is asked.

    Raises:
        DecantError: One of the processes ended, such as for want of shared memory.
    """
    reader = _Reader(examples)
    if not processes:
        yield from map(reader.read, rows)
        return
    batches = DataLoader(
        reader,
        batch_size=None,
        sampler=(each.numpy() for each in rows),  # by value, where a tensor would take a file of its own
        num_workers=processes,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        generator=Generator(),  # torch draws from the global one where there is none
        multiprocessing_context="fork",  # mapped files and what was computed stay where they are
    )
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DecantError(
            f"A process that reads examples ended ({str(error).splitlines()[0]}); each keeps {AHEAD} batches "
            f"in shared memory: give it more of that, or set {LOADERS} to 0"
        ) from None


class _Reader(Dataset[Loaded]):
    """Examples by the numbers of their rows, as a torch `DataLoader` asks for them."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __getitem__(self, rows: NDArray[np.int64]) -> Loaded:
        return self.read(from_numpy(rows))

    def read(self, rows: Tensor) -> Loaded:
        """Return the inputs and labels of rows [B]."""
        labels = self._examples.labels
        return self._examples.images[rows], None if labels is None else labels[rows]


def _as_it_is(found: Any) -> Any:
    return found
