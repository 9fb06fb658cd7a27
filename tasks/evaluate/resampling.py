"""The 95 % interval of a measure that has no formula: what it is on test splits drawn out of this one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
DRAWS = 1000
SEED = 0


def bootstrap(measure: Callable[[Weights], float], count: int, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of a measure over samples with replacement.

    Each sample has `count` rows, drawn by a seed that is always the same. The ends are moved, if need be, so
    that the measure itself lies between them.

    Args:
        measure: Of how often each row counts [N].
        count: How many rows there are, N.
        draws: How many samples are drawn.

    References:
        Efron, Bootstrap Methods: Another Look at the Jackknife, 1979, Ann. Statist. 7.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    found = [measure(_drawn(generator, count)) for _ in range(draws)]
    low, high = np.nanquantile(found, [0.025, 0.975]).tolist()
    middle = measure(np.ones(count))
    return min(low, middle), max(high, middle)


def _drawn(generator: np.random.Generator, count: int) -> Weights:
    return np.bincount(generator.integers(count, size=count), minlength=count).astype(np.float64)
