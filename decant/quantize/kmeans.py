"""The few numbers that stand for many with the least squared error: k-means in one dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


KMEANS_ITERATIONS = 1000
"""Of Lloyd's iteration, at most; it stops by itself, as a rule after some dozens."""

APART = 2.0**-20
"""How far apart two entries are, at least, as a share of their size: they stay apart under any scale."""

TINY = 1e-30
"""How far apart they are around zero; what is nearer to it is 0."""


def cluster(numbers: Tensor, entries: int) -> Tensor:
    """Return 2 to `entries` numbers, float32, strictly ascending: each the mean of those nearest to it.

    Where there are no more distinct numbers than entries, it is these. One alone gets 0 beside it, or 1.

    Args:
        numbers: What to cluster [N], float64; none at all is as one zero.
        entries: How many, at most, at least 2.

    References:
        Lloyd, Least Squares Quantization in PCM, 1982.
    """
    numbers = torch.where(numbers.abs() > TINY, numbers, 0.0)
    distinct = torch.unique(numbers)
    found = _apart((distinct if len(distinct) <= entries else _lloyd(numbers, entries)).float())
    for other in (0.0, 1.0):
        if len(found) < 2:
            found = torch.cat([found, torch.tensor([other])]).unique()
    return found


def _lloyd(numbers: Tensor, entries: int) -> Tensor:
    """Return the means after Lloyd's iteration from an even start, without those that nothing is near."""
    ordered = numbers.sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    means = torch.linspace(ordered[0].item(), ordered[-1].item(), entries, dtype=torch.double)
    for _ in range(KMEANS_ITERATIONS):
        borders = torch.searchsorted(ordered, (means[1:] + means[:-1]) / 2)
        places = torch.cat([borders.new_zeros(1), borders, borders.new_tensor([len(ordered)])])
        counts, totals = places.diff(), sums[places].diff()
        before, means = means, torch.where(counts > 0, totals / counts.clamp(min=1), means)
        if torch.equal(before, means):
            break
    return means[counts > 0]


def _apart(ascending: Tensor) -> Tensor:
    """Return the numbers without those that are next to the one before."""
    kept: list[float] = []
    for number in ascending.tolist():
        if not kept or number - kept[-1] > max(TINY, APART * max(abs(number), abs(kept[-1]))):
            kept.append(number)
    return torch.tensor(kept)
