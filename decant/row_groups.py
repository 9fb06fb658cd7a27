"""Rows that need not fit into memory: tensors in row groups, and the order in which a training sees them.

The order is a function of how many rows there are, how wide they are, and a generator: it does not depend on
where the rows lie, in memory or in a mapped file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 8 << 20
"""Bytes of a row group, about: as many whole rows as fit, or one."""

WINDOW = 32
"""Row groups that are shuffled together. Rows of no more bytes than that are small: shuffled as one."""


def group_rows(width: int) -> int:
    """Return how many rows of `width` bytes a row group has; the last one may have fewer."""
    return max(1, GROUP // max(width, 1))


def is_large(count: int, width: int) -> bool:
    """Say whether `count` rows of `width` bytes are more than a window."""
    return count * width > WINDOW * GROUP


@dataclass(frozen=True)
class RowGroups:
    """A tensor [N, ...] in pieces, such as the row groups of a mapped file; what is asked for is copied.

    Attributes:
        groups: The bytes of the rows of each piece [n, M], uint8, contiguous; at least one.
        row: The shape of a row.
        dtype: Its type.
    """

    groups: tuple[Tensor, ...]
    row: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The first row of each piece, and N."""
        return tuple(accumulate(map(len, self.groups), initial=0))

    @property
    def shape(self) -> tuple[int, ...]:
        """As a tensor's."""
        return len(self), *self.row

    @property
    def device(self) -> torch.device:
        """Where the pieces lie."""
        return self.groups[0].device

    @property
    def nbytes(self) -> int:
        """How many bytes all rows take."""
        return sum(each.nbytes for each in self.groups)

    def dim(self) -> int:
        """Return how many dimensions it has."""
        return 1 + len(self.row)

    def is_floating_point(self) -> bool:
        """Say whether it holds fractions."""
        return self.dtype.is_floating_point

    def min(self) -> Tensor:
        """Return the least number, [], read group by group."""
        return torch.stack([self._typed(each).min() for each in self.groups]).min()

    def max(self) -> Tensor:
        """Return the largest number, [], read group by group."""
        return torch.stack([self._typed(each).max() for each in self.groups]).max()

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return a copy of some rows: of a slice, at indices [M], int64, or where a mask [N] is True."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._typed(self._between(start, max(start, stop)))
            rows = torch.arange(start, stop, step)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        return self._typed(self._at(torch.where(rows < 0, rows + len(self), rows)))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the rows in order, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def _between(self, start: int, stop: int) -> Tensor:
        spans = zip(self.groups, self._starts, strict=False)
        parts = [
            each[max(start - at, 0) : stop - at] for each, at in spans if start < at + len(each) and at < stop
        ]
        return torch.cat(parts) if parts else self.groups[0][:0].clone()

    def _at(self, rows: Tensor) -> Tensor:
        """Return the bytes of rows at indices: group after group, then in the order asked for."""
        rows, place, starts = rows.cpu(), self.device, torch.tensor(self._starts)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IndexError(f"rows from {int(rows.min())} to {int(rows.max())} of {len(self)}")
        groups, places = torch.sort(torch.bucketize(rows, starts[1:], right=True), stable=True)
        found, counts = torch.unique_consecutive(groups, return_counts=True)
        inside = (rows[places] - starts[groups]).split(counts.tolist())
        parts = [
            self.groups[n].index_select(0, at.to(place)) for n, at in zip(found.tolist(), inside, strict=True)
        ]
        if not parts:
            return self.groups[0][:0].clone()
        back = torch.empty_like(places)
        back[places] = torch.arange(len(places))
        return torch.cat(parts).index_select(0, back.to(place))

    def _typed(self, content: Tensor) -> Tensor:
        """Return bytes [n, M] as rows; such as lie where their type may not are copied."""
        if content.data_ptr() % self.dtype.itemsize:
            content = content.clone()
        return content.view(self.dtype).reshape(-1, *self.row)


def in_groups(tensor: Tensor | RowGroups) -> Iterator[Tensor]:
    """Yield the rows [n, ...] of a tensor: all at once where it is small, else a row group at a time."""
    count, width = len(tensor), tensor.nbytes // max(len(tensor), 1)
    if isinstance(tensor, RowGroups) or is_large(count, width):
        return iter(tensor.split(group_rows(width) if is_large(count, width) else count))
    return iter([tensor])


# --- the order


def order(count: int, width: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield all row numbers once, in random order, some at a time; [M] each, int64.

    Rows that are no more than a window are shuffled as a whole. Of more, the row groups are, and then the
    rows of `WINDOW` of these after another, so that only so many need be in memory at a time.

    Args:
        count: How many rows there are.
        width: Bytes of a row.
        generator: Draws all that is random before the first rows are yielded.
    """
    if not is_large(count, width):
        yield torch.randperm(count, generator=generator)
        return
    rows = group_rows(width)
    windows = torch.randperm(-(-count // rows), generator=generator).split(WINDOW)
    seeds = torch.randint(1 << 62, (len(windows),), generator=generator).tolist()
    for groups, seed in zip(windows, seeds, strict=True):
        found = torch.cat([torch.arange(at * rows, min(at * rows + rows, count)) for at in groups.tolist()])
        yield found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))]


def full(windows: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield windows [M] of which each holds a multiple of `size`: what is over begins the next.

    What is over in the last one is left out.
    """
    rest: list[Tensor] = []
    for window in windows:
        rows = torch.cat([*rest, window])
        end = len(rows) // size * size
        if end:
            yield rows[:end]
        rest = [rows[end:]]
