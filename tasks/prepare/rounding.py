"""What is left of a column's differences when its numbers become float32."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError

MOST = 0.1
"""The share of a column's deviation that rounding to float32 may be."""


class Rounding:
    """Sums up the numbers of a column, in float64, and what rounding them to float32 changed.

    Seconds since 1970, or amounts far from zero, differ by less than float32 can say: the network would see
    one number where there are many.
    """

    def __init__(self) -> None:
        self._count, self._offset = 0, 0.0
        self._sum = self._squares = self._lost = 0.0

    def note(self, values: NDArray[np.float64], rounded: NDArray[np.float32]) -> None:
        """Add numbers [n], and what they have become; such as are missing or infinite do not count."""
        there = np.isfinite(values) & np.isfinite(rounded)
        exact = values[there]
        if not self._count and len(exact):
            self._offset = float(exact[0])
        self._count += len(exact)
        near = exact - self._offset
        self._sum += float(near.sum())
        self._squares += float(np.square(near).sum())
        self._lost += float(np.square(exact - rounded[there].astype(np.float64)).sum())

    def check(self, place: str) -> None:
        """Refuse a column of which rounding has lost more than `MOST` of the deviation.

        Args:
            place: The file and the column, for the error.

        Raises:
            DecantError: It has.
        """
        if not self._count or not self._lost:
            return
        mean = self._sum / self._count
        deviation = math.sqrt(max(self._squares / self._count - mean**2, 0.0))
        if math.sqrt(self._lost / self._count) > MOST * deviation > 0:
            raise DecantError(
                f"{place} has numbers around {self._offset + mean:.6g} that differ by {deviation:.3g} (their "
                "deviation), which float32 does not keep apart; subtract an offset, or count in another unit"
            )
