"""What a network answers to corrupted test examples, corruption by corruption and strength by strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decant.evidence.corruptions import Corruption, Fitting, fitting
from decant.examples import Batch, Examples, Rows, tensors_in
from decant.networks.execution import predict
from tasks.stability.sample import REFERENCE, chosen

BATCH, NUMBERS = 250, 1 << 22
"""Examples that are corrupted and predicted at a time: so many, or as few as have so many numbers."""


@dataclass(frozen=True)
class Cell:
    """One strength of one corruption.

    Attributes:
        corruption: Which.
        level: From 1, mild, to 5, severe.
        indices: The test examples that are corrupted [n].
    """

    corruption: Corruption
    level: int
    indices: Tensor

    @property
    def strength(self) -> float:
        """In the corruption's own unit."""
        return self.corruption.strengths[self.level - 1]


def fitting_of(test: Examples) -> Fitting:
    """Return the corruptions that fit the inputs of a test split."""
    images = test.images
    return fitting(images[chosen(len(test), count=REFERENCE)] if isinstance(images, Rows) else images[:1])


def cells(fit: Fitting, total: int) -> list[Cell]:
    """Return all strengths of all corruptions, in the order in which they are measured."""
    parts = len(fit.corruptions)
    rows = [(each, chosen(total, part, parts)) for part, each in enumerate(fit.corruptions)]
    return [
        Cell(each, level, indices) for each, indices in rows for level in range(1, len(each.strengths) + 1)
    ]


def answers(network: Callable[..., Any], images: Batch, every: list[Cell]) -> Tensor:
    """Return what a network answers to all cells, one behind the other [sum of n, M], float32."""
    if not every:
        return predict(network, images[:1])[:0].float()
    return torch.cat([part for cell in every for part in _of(network, images, cell)])


def _of(network: Callable[..., Any], images: Batch, cell: Cell) -> Iterator[Tensor]:
    size = max(1, min(BATCH, NUMBERS // max(1, _numbers(images))))
    for indices in cell.indices.split(size):
        batch = cell.corruption.apply(images[indices], indices, cell.strength)
        yield predict(network, batch, BATCH).float()


def _numbers(images: Batch) -> int:
    """Return how many numbers the inputs of one example are."""
    return sum(math.prod(tensor.shape[1:]) for tensor in tensors_in(images))
