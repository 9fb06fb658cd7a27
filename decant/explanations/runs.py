"""Features as runs of places side by side; and what an example usually has at each."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 64
"""Features of an example: more numbers or tokens than that are taken in runs, side by side."""

TYPICAL = 1000
"""Examples whose mean stands in the place of what is removed."""


def bands(length: int, count: int, shift: float = 0.0) -> Tensor:
    """Return the band of each of `length` places [length]: `count` even ones, moved by a share of a band."""
    count = min(count, length)
    return ((torch.arange(length) + 0.5) * count / length + shift).floor().long()


def summed_by(values: Tensor, where: Tensor, count: int) -> Tensor:
    """Return the sums [N, count] of values [N, D] whose feature is `where` [D], float64."""
    sums = torch.zeros(len(values), count, dtype=torch.float64)
    return sums.index_add_(1, where, values.double())


def typical(examples: Tensor) -> Tensor:
    """Return the mean of fractions [n, ...] -> [...], the commonest of others; 0 where there is one alone."""
    if len(examples) < 2:
        return torch.zeros_like(examples[0])
    if examples.is_floating_point():
        return examples.double().mean(0).to(examples.dtype)
    return commonest(examples)


def middle(examples: Tensor) -> Tensor:
    """Return the median of fractions [n, ...] -> [...], the least of others; 1 where there is one alone."""
    if len(examples) < 2:
        return torch.ones_like(examples[0])
    if examples.is_floating_point():
        return examples.double().median(0).values.to(examples.dtype)
    return examples.amin(0)


def commonest(examples: Tensor) -> Tensor:
    """Return the value that stands most often at each place [n, ...] -> [...]; the least of several."""
    return examples.long().mode(0).values.to(examples.dtype)
