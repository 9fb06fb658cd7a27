"""How sure a ratio of errors is that was measured on a few examples: samples drawn out of these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED = 1000, 0
FLIPS, PART = 10_000, 500
"""How often signs are flipped, and how many such at a time."""

Errors = NDArray[np.float64]
"""Of each example [n]."""


def ratio_interval(pairs: Sequence[tuple[Errors, Errors]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, over pairs, of the first errors' sum over the second errors'.

    In each of 1,000 samples the examples of each pair are drawn with replacement, the same for both sides, by
    a seed that is always the same; the ends are the 2.5th and the 97.5th percentile. Pairs whose second
    errors are all 0 are left out of the sample.

    Args:
        pairs: Of one or more groups of examples: what a model errs and what its teacher does, by example;
            at least one group in which the teacher errs.

    References:
        Efron, Bootstrap Methods: Another Look at the Jackknife, 1979, Ann. Statist. 7.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    ratios = np.stack([_ratios(generator, *pair) for pair in pairs])
    there = ~np.isnan(ratios)
    counts = there.sum(0)
    means = np.where(there, ratios, 0.0).sum(0)[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [0.025, 0.975]).tolist() if len(means) else (0.0, 0.0)
    return low, high


def _ratios(generator: np.random.Generator, ours: Errors, theirs: Errors) -> Errors:
    """Return the ratio in each sample [DRAWS]; NaN where the teacher does not err."""
    drawn = generator.integers(len(ours), size=(DRAWS, len(ours)))
    sums, expected = ours[drawn].sum(1), theirs[drawn].sum(1)
    return np.divide(sums, expected, out=np.full(DRAWS, np.nan), where=expected > 0)


def permutation(differences: Errors) -> float:
    """Return the p-value, in (0, 1], of paired differences [n] being as likely of one sign as of the other.

    Signs are flipped at random, 10,000 times, by a seed that is always the same; p is the share of mean
    differences, the one that was found among them, that are as far from 0. Examples without a difference say
    nothing. Differences of several models from one, averaged for each example, may be such.

    References:
        Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005, section 3.2.
    """
    there = differences[differences != 0]
    if not len(there):
        return 1.0
    generator = np.random.Generator(np.random.PCG64(SEED))
    found, beyond = abs(there.sum()), 0
    for _ in range(FLIPS // PART):
        signs = generator.integers(2, size=(PART, len(there)), dtype=np.int8) * 2.0 - 1
        beyond += int((np.abs(signs @ there) >= found * (1 - 1e-12)).sum())
    return (1 + beyond) / (1 + FLIPS)
