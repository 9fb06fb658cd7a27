"""Whether two samples of a number or of a code are of one distribution: the size of a shift and its p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tasks.drift.features import Column

BINS = 10
"""Of the population stability index: tenths of the reference."""

EXPECTED = 5.0
"""The least expected count of a code in the chi-square test; rarer ones are counted together."""


@dataclass(frozen=True)
class Shift:
    """How far one feature has moved.

    Attributes:
        feature: Its name.
        measure: `ks`, the largest distance of the two distribution functions, of numbers; `js`, the
            Jensen-Shannon distance to base 2, of codes. Both lie in [0, 1], 0 where the samples are alike.
        size: By that measure.
        psi: The population stability index, at least 0; 0.1 and 0.25 are where people look and act.
        p: The probability of a size like this one between two samples of one distribution, in [0, 1]; after
            `adjusted`, the least rate of false discoveries at which it is one.
    """

    feature: str
    measure: str
    size: float
    psi: float
    p: float


def shifts(reference: Mapping[str, Column], today: Mapping[str, Column]) -> list[Shift]:
    """Return every feature's shift, the surest first, with p adjusted for how many are looked at.

    A feature that one side alone has, such as that a number is missing, is 0 on the other.
    """
    nothing = [np.zeros(len(next(iter(side.values()))), np.int64) for side in (reference, today)]
    found = []
    for name in dict.fromkeys([*reference, *today]):
        one, other = reference.get(name, nothing[0]), today.get(name, nothing[1])
        found.append(of_codes(name, one, other) if one.dtype.kind == "i" else of_numbers(name, one, other))
    return adjusted(found)


def of_numbers(feature: str, reference: Column, today: Column) -> Shift:
    """Return the shift of a number by the test of Kolmogorov and Smirnov; NaN is left out.

    Where many numbers are equal, as the dark corners of pictures, the test finds less than it could, and
    never more.

    Args:
        feature: Its name.
        reference: [N].
        today: [M].
    """
    one, other = reference[~np.isnan(reference)], today[~np.isnan(today)]
    if not len(one) or not len(other):  # all of one side are missing, of which the other feature tells
        return Shift(feature, "ks", 0.0, 0.0, 1.0)
    tested = stats.ks_2samp(one, other, method="asymp")
    edges = np.unique(np.quantile(one, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, each, "left"), minlength=len(edges) + 1) for each in (one, other)
    ]
    return Shift(feature, "ks", float(tested.statistic), psi(*counts), float(tested.pvalue))


def of_codes(feature: str, reference: Column, today: Column) -> Shift:
    """Return the shift of a code, [N] and [M], by the chi-square test of two samples."""
    codes = np.unique(np.concatenate([reference, today]))
    one, other = (
        np.bincount(np.searchsorted(codes, each), minlength=len(codes)) for each in (reference, today)
    )
    return Shift(feature, "js", jensen_shannon(one, other), psi(one, other), chi_square(one, other))


def psi(reference: NDArray[np.int64], today: NDArray[np.int64]) -> float:
    """Return the population stability index of two histograms [K]: sum of (q - p) ln(q / p) over the bins.

    Half a row is added to each bin, so that an empty one is no infinity.
    """
    p, q = ((each + 0.5) / (each + 0.5).sum() for each in (reference, today))
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(reference: NDArray[np.int64], today: NDArray[np.int64]) -> float:
    """Return the Jensen-Shannon distance, to base 2 in [0, 1], of two histograms [K].

    References:
        Endres and Schindelin, A New Metric for Probability Distributions, 2003.
    """
    p, q = reference / reference.sum(), today / today.sum()
    middle = (p + q) / 2
    halves = [stats.entropy(each, middle, base=2) for each in (p, q)]
    return float(np.sqrt(np.clip(np.mean(halves), 0, 1)))


def chi_square(reference: NDArray[np.int64], today: NDArray[np.int64]) -> float:
    """Return the p-value of two histograms [K] being of one distribution; rare codes are counted together."""
    table = np.stack([reference, today]).astype(float)
    least = table.sum(0) * table.sum(1).min() / table.sum()
    rare = least < EXPECTED
    table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2:
        return 1.0
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def adjusted(found: Sequence[Shift]) -> list[Shift]:
    """Return shifts with p-values adjusted by Benjamini and Hochberg, the smallest first.

    References:
        Benjamini and Hochberg, Controlling the False Discovery Rate, 1995, J. R. Statist. Soc. B 57.
    """
    if not found:
        return []
    rates = stats.false_discovery_control([each.p for each in found])
    told = [replace(each, p=float(rate)) for each, rate in zip(found, rates, strict=True)]
    return sorted(told, key=lambda each: (each.p, -each.size))
