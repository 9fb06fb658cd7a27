"""The few numbers that stand for many with the least squared error: k-means in one dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


KMEANS_ITERATIONS = 1000
"""Of Lloyd's iteration, at most; it stops by itself, as a rule after some dozens."""

CELLS = 1024
"""Runs of neighbours that are not divided where the start is looked for; it is exact for as many numbers."""

APART = 2.0**-20
"""How far apart two entries are, at least, as a share of their size: they stay apart under any scale."""

TINY = 1e-30
"""How far apart they are around zero; what is nearer to it is 0."""


def cluster(numbers: Tensor, entries: int) -> Tensor:
    """Return 2 to `entries` numbers, float32, strictly ascending: each the mean of those nearest to it.

    They are as many as asked wherever as many of the numbers are `APART`. Where there are no more distinct
    numbers than entries, it is these. One alone gets 0 beside it, or 1. The start is the least squared error
    that entries can have which do not divide `CELLS` runs of neighbours, so that no outlier spoils it; where
    there are no more distinct numbers than these, the result is the least error that there is.

    Args:
        numbers: What to cluster [N], float64; none at all is as one zero.
        entries: How many, at most, at least 2.

    References:
        Lloyd, Least Squares Quantization in PCM, 1982.
        Wang and Song, Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming,
        2011, for the start.
    """
    numbers = torch.where(numbers.abs() > TINY, numbers, 0.0)
    distinct, counts = torch.unique(numbers, return_counts=True)
    found = _apart((distinct if len(distinct) <= entries else _means(distinct, counts, entries)).float())
    for other in (0.0, 1.0):
        if len(found) < 2:
            found = torch.cat([found, torch.tensor([other])]).unique()
    return found


def _means(distinct: Tensor, counts: Tensor, entries: int) -> Tensor:
    """Return the means [entries] of Lloyd's iteration over distinct numbers [D], ascending, each so often."""
    cells = _cells(distinct, entries)
    ends = cells[_partition(distinct, counts, cells, entries)]
    means = _of_runs(distinct, counts, ends)
    for _ in range(KMEANS_ITERATIONS):
        before = ends
        borders = torch.searchsorted(distinct, (means[1:] + means[:-1]) / 2)
        ends = torch.cat([borders, ends[-1:]])
        if torch.equal(before, ends) or not bool((ends.diff(prepend=ends.new_zeros(1)) > 0).all()):
            break  # nothing moves; or an entry would be left without a number
        means = _of_runs(distinct, counts, ends)
    return means


def _cells(distinct: Tensor, entries: int) -> Tensor:
    """Return where runs of neighbours end [C], ascending: at the widest gaps, and evenly between them.

    Evenly is in the integral of the density to the power of one third, by which the best entries lie where
    there are many of them.

    References:
        Panter and Dite, Quantization Distortion in Pulse-Count Modulation with Nonuniform Spacing of Levels,
        1951.
    """
    number = max(CELLS, 4 * entries)
    if len(distinct) <= number:
        return torch.arange(1, len(distinct) + 1)
    gaps = distinct.diff()
    wide = torch.zeros_like(gaps, dtype=torch.bool)
    wide[gaps.topk(number // 2).indices] = True
    places = torch.where(wide, 0.0, gaps / gaps.max()).pow(2 / 3).cumsum(0)
    step = (places / places[-1].clamp(min=TINY) * (number // 2)).floor()
    ends = wide | (step.diff(append=step[-1:]) > 0)
    return torch.cat([ends.nonzero()[:, 0] + 1, torch.tensor([len(distinct)])])


def _partition(distinct: Tensor, counts: Tensor, cells: Tensor, entries: int) -> Tensor:
    """Return the last cells [entries] of the runs of cells whose squared error is least, ascending.

    With cost[i, j] the error of the cells i to j as one run, the least of j cells in k runs is the least over
    i of that of i cells in k - 1 runs plus cost[i, j].
    """
    cost = _costs(distinct, counts, cells).T.contiguous()  # by last cell and first: the minimum is of rows
    tried, best, choices = torch.empty_like(cost), cost[:, 0], []
    for _ in range(entries - 1):
        # One run more: the last one begins at cell i, and the cells before i are in the others.
        before = torch.cat([best.new_full((1,), torch.inf), best[:-1]])
        best, begin = torch.add(cost, before, out=tried).min(1)
        choices.append(begin)
    last = [len(cells) - 1]
    for begin in reversed(choices):
        last.append(int(begin[last[-1]]) - 1)
    return torch.tensor(last[::-1])


def _costs(distinct: Tensor, counts: Tensor, cells: Tensor) -> Tensor:
    """Return the squared error [C, C] of the cells i to j as one run; infinite where j is before i.

    Sums are of distances to the first number of i, and begin there: far away numbers cost no digits.
    """
    begins = torch.cat([cells.new_zeros(1), cells[:-1]])
    owner = torch.repeat_interleave(torch.arange(len(cells)), cells - begins)
    first, weights = distinct[begins], counts.double()

    def summed(each: Tensor) -> Tensor:
        return torch.zeros(len(cells), dtype=torch.double).index_add_(0, owner, each)

    own = distinct - first[owner]
    total, sums, squares = summed(weights), summed(weights * own), summed(weights * own.square())
    away = first - first[:, None]  # of cell j from cell i
    within = torch.ones_like(away, dtype=torch.bool).triu()
    number = (within * total).cumsum(1)
    linear = (within * (sums + total * away)).cumsum(1)
    square = (within * (squares + 2 * away * sums + total * away.square())).cumsum(1)
    error = (square - linear.square() / number.clamp(min=1)).clamp(min=0.0)
    return torch.where(within, error, torch.inf)


def _of_runs(distinct: Tensor, counts: Tensor, ends: Tensor) -> Tensor:
    """Return the mean [K] of each run of numbers that ends there."""
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    owner = torch.repeat_interleave(torch.arange(len(ends)), ends - begins)
    first = distinct[begins]
    totals = torch.zeros(len(ends), dtype=torch.double).index_add_(
        0, owner, counts * (distinct - first[owner])
    )
    number = torch.zeros(len(ends), dtype=torch.double).index_add_(0, owner, counts.double())
    return first + totals / number


def _apart(ascending: Tensor) -> Tensor:
    """Return the numbers without those that are next to the one before."""
    kept: list[float] = []
    for number in ascending.tolist():
        if not kept or number - kept[-1] > max(TINY, APART * max(abs(number), abs(kept[-1]))):
            kept.append(number)
    return torch.tensor(kept)
