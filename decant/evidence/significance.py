"""What chance explains: intervals of shares, exact tests of pairs, and what a test set can show at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from decant.lazy import torch

Z95 = 1.959963984540054
"""The quantile of the normal distribution at 97.5 %: 95 % lie within so many deviations."""

Z80 = 0.8416212335729143
"""The quantile of the normal distribution at 80 %."""

FEWEST = 6
"""Pairs that differ below which no exact test at 5 % can tell: 2 / 2^5 is more than 0.05."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share observed in `count` independent trials.

    Unlike share +- 1.96 sigma it stays inside [0, 1] and does not vanish at 0 and 1. Two models measured on
    the same images differ more surely than two such intervals suggest: their errors are paired.

    References:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927, J. Am. Stat.
        Assoc. 22.
    """
    return _wilson_low(share, count), 1 - _wilson_low(1 - share, count)


def _wilson_low(share: float, count: int) -> float:
    """Return the lower end in [0, share]: the product of both ends over the upper one."""
    middle = share + Z95**2 / (2 * count)
    reach = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return share**2 / (middle + reach)


def mcnemar(first: int, second: int) -> float:
    """Return the p-value, in (0, 1], of two models being right equally often: the exact test of McNemar.

    Examples on which both are right or both wrong say nothing. Of the others each model should be the right
    one in half: p is twice the tail of that binomial distribution, at most 1.

    Args:
        first: On how many examples the first model alone is right.
        second: On how many the second model alone is.

    References:
        McNemar, Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages,
        1947, Psychometrika 12.
    """
    count = torch.tensor(float(first + second), dtype=torch.float64)
    hits = torch.arange(min(first, second) + 1, dtype=torch.float64)
    ways = torch.lgamma(count + 1) - torch.lgamma(hits + 1) - torch.lgamma(count - hits + 1)
    tail = torch.logsumexp(ways - count * math.log(2), 0).exp().item()
    return min(1.0, 2 * tail)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given, each in [0, 1].

    Whoever calls those of at most 0.05 a difference is wrong in any of them with at most 5 %.

    References:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979, Scand. J. Statist. 6.
    """
    found, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        found[place] = least
    return found


def smallest_difference(count: int, differing: int) -> float:
    """Return the smallest difference of two models' accuracies, in (0, 1], that a test set can show.

    One of this size comes out of McNemar's test with p <= 0.05 on four of five such test sets. It follows
    from how many of the pairs differ: (1.96 + 0.84) sqrt(differing) / count, and at least six pairs.

    Args:
        count: Examples in the test set, at least 1.
        differing: On how many of them one model alone is right.

    References:
        Connor, Sample Size for Testing Differences in Proportions for the Paired-Sample Design, 1987,
        Biometrics 43, with the difference's own square left out, which is small beside the pairs.
    """
    return min(1.0, max(float(FEWEST), (Z95 + Z80) * math.sqrt(differing)) / count)
