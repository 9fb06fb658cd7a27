"""Examples, some rows after others: read by the training itself, or ahead of it by processes of their own.

Which rows come is settled before, and nothing is drawn here: the batches are the same with any number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Generator, Tensor, from_numpy
from torch.utils.data import DataLoader, Dataset

from decant.errors import DecantError
from decant.examples import Batch, Examples, tensors_in
from decant.networks.devices import CPU

AHEAD = 2
"""Batches that each process has ready."""

Loaded: TypeAlias = tuple[Batch, Tensor | None]
"""Inputs [B, ...] and labels [B], or None where there are none."""


def loaded(
    examples: Examples, rows: Iterable[Tensor], own: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Iterator[Loaded]:
    """Yield inputs and labels of rows, in the order of `rows`.

    Args:
        examples: These say how many processes read ahead. What lies on another device than the processor is
            read when it is asked for, as it is with none.
        rows: Indices [B], int64, of each batch.
        own: Returns those of them [b] whose inputs are read; labels are of all.

    Raises:
        DecantError: One of the processes ended, such as for want of shared memory.
    """
    reader = _Reader(examples, own)
    if not examples.loaders or tensors_in(examples.images)[0].device.type != CPU:
        yield from map(reader.read, rows)
        return
    batches = DataLoader(
        reader,
        batch_size=None,
        sampler=(each.numpy() for each in rows),  # by value, where a tensor would take a file of its own
        num_workers=examples.loaders,
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
            f"in shared memory: give it more of that, or have no such processes"
        ) from None


class _Reader(Dataset[Loaded]):
    """Examples by the numbers of their rows, as a torch `DataLoader` asks for them."""

    def __init__(self, examples: Examples, own: Callable[[Tensor], Tensor]) -> None:
        self._examples, self._own = examples, own

    def __getitem__(self, rows: NDArray[np.int64]) -> Loaded:
        return self.read(from_numpy(rows))

    def read(self, rows: Tensor) -> Loaded:
        """Return the inputs and labels of rows [B]."""
        labels = self._examples.labels
        return _taken(self._examples.images, self._own(rows)), None if labels is None else labels[rows]


def _taken(images: Batch, rows: Tensor) -> Batch:
    """Return some of the images, in order; those of a tensor are copied whole, which is ten times as fast."""
    return images.index_select(0, rows) if isinstance(images, Tensor) else images[rows]


def _as_it_is(found: Any) -> Any:
    return found
