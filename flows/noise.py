"""How large a change for the worse the choice of test images alone explains, whatever the two models are.

The metrics are aggregates. Of accuracy, it is not known which images two models answer differently, only
how many at most. The exact test of paired answers is made for that number, where it finds least: so a drop is
called real only if it is real for every pair of models with these numbers, however their errors go together.
Of other means, intervals are written: a change is real only if it is however two models go together by rows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache

from tasks.pipeline.metrics import OF_CLASSES, interval

MetricValues = Mapping[str, float]
"""All numbers of one model, as in metrics/<model>.json."""

TEACHER = "teacher"
ALARMS = 0.025
"""How often, at most, two models that are equally good on all images may be told apart: one side of 95 %."""

Z = 1.959963984540054  # 95 % of a normal distribution, as in the intervals
DIGITS = 6  # that numbers are written with
MOST_IMAGES = 10**9


def reach(
    metric: str, model: str, old: Mapping[str, MetricValues], new: Mapping[str, MetricValues]
) -> float | None:
    """Return the largest change of a metric for the worse that the choice of test images explains.

    None where that is not known, as the metric has no interval.

    Args:
        metric: Its key.
        model: Its name; both sides have it.
        old: Every model's numbers in the revision, the teacher's among them.
        new: Every model's numbers here.
    """
    if metric == OF_CLASSES.quality:
        return reach_of_chance(model, old, new)
    return reach_of_means(metric, old[model], new[model]) if interval(metric)[0] in old[model] else None


def reach_of_means(metric: str, old: MetricValues, new: MetricValues) -> float:
    """Return the largest difference of two means that the choice of test rows explains, in 2.5 % of choices.

    It is not known how the two go together row by row. The deviation of their difference is at most the sum
    of their own deviations, however they do: so the two intervals' half widths are added. An end may have
    been cut at the end of the metric's range, so the wider half counts.
    """
    found = 0.0
    for row in (old, new):
        low, high = (row[end] for end in interval(metric))
        found += max(row[metric] - low, high - row[metric])
        found += 2 * max(_half_a_place(row[key]) for key in (metric, *interval(metric)))
    return found


def _half_a_place(value: float) -> float:
    """Return how far a number may lie from the one that it was rounded from."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) + 1 - DIGITS) if value else 0.0


def reach_of_chance(model: str, old: Mapping[str, MetricValues], new: Mapping[str, MetricValues]) -> float:
    """Return the largest drop of accuracy, a fraction, that the choice of test images explains.

    Two models that are equally good on all images differ by more in at most 2.5 % of choices. The digits that
    the numbers are written with are taken where they lead to the larger result.

    Args:
        model: Its name; both sides have it.
        old: Every model's numbers in the revision, the teacher's among them.
        new: Every model's numbers here.
    """
    before, after = old[model], new[model]
    (least, most), (least_new, most_new) = images(before), images(after)
    least, most = max(least, least_new), min(most, most_new)
    if least > most:
        return unpaired_reach(before, after)
    differing = most_differing(before, after)
    if TEACHER in old and TEACHER in new and dict(old[TEACHER]) == dict(new[TEACHER]):
        by_teacher = most_differing_by_teacher(before, after)
        # A larger drop was not measured on the same images, or by the same teacher.
        if before["accuracy"] - after["accuracy"] <= by_teacher:
            differing = min(differing, by_teacher)
    rounding = half_a_digit(before["accuracy"]) + half_a_digit(after["accuracy"])
    return (first_real_drop(math.floor(most * differing)) - 1) / least + rounding


def most_differing(old: MetricValues, new: MetricValues) -> float:
    """Return the largest share of images of which one model's answer can be right and the other's wrong.

    Each such image needs a right answer of one of the two, and a wrong one of the other.
    """
    rounding = half_a_digit(old["accuracy"]) + half_a_digit(new["accuracy"])
    right = old["accuracy"] + new["accuracy"]
    return min(right, 2 - right) + rounding


def most_differing_by_teacher(old: MetricValues, new: MetricValues) -> float:
    """Return the same for two models of one teacher: one of the two disagrees with it on each such image."""
    rounding = half_a_digit(old["agreement"]) + half_a_digit(new["agreement"])
    return (1 - old["agreement"]) + (1 - new["agreement"]) + rounding


def half_a_digit(value: float) -> float:
    """Return how far a share in [0, 1] may lie from the one that it was rounded from."""
    if value <= 0:
        return 0.0
    place = min(0, math.floor(math.log10(value)) + 1)  # none is more than 1, and so rounded down to it
    return 0.5 * 10.0 ** (place - DIGITS)


@lru_cache(maxsize=4096)
def first_real_drop(differing: int) -> int:
    """Return the smallest number of answers lost that chance does not explain.

    Of `differing` images that one model answers rightly and the other wrongly, chance gives each to either
    model alike: the exact test of McNemar. Fewer such images need a smaller drop, so the largest possible
    number decides; it is even where the drop is, and odd where that is.

    Args:
        differing: How many such images there are at most.

    Returns:
        One more than `differing` where no drop would be real.

    References:
        McNemar, Note on the Sampling Error of the Difference Between Correlated Proportions, 1947,
        Psychometrika 12.
    """

    def real(drop: int) -> bool:
        count = differing - (differing - drop) % 2
        return at_least((count + drop) // 2, count, 0.5) <= ALARMS

    return 1 + bisect_left(range(1, differing + 1), True, key=real)


def unpaired_reach(old: MetricValues, new: MetricValues) -> float:
    """Return the drop that two exact intervals explain, each of which is wrong in half of 2.5 % of choices.

    For models that were measured on different numbers of images, whatever these share.

    References:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial,
        1934, Biometrika 26.
    """
    share, share_new = old["accuracy"], new["accuracy"]
    lowest = lowest_share(share - half_a_digit(share), images(old)[0])
    highest = 1 - lowest_share(1 - share_new - half_a_digit(share_new), images(new)[0])
    return (share - lowest) + (highest - share_new)


def lowest_share(observed: float, trials: int) -> float:
    """Return the lower end of the one-sided interval of Clopper and Pearson at 1.25 %, in [0, 1]."""
    hits = math.floor(max(0.0, observed) * trials)
    low, high = 0.0, hits / trials
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if at_least(hits, trials, middle) > ALARMS / 2 else (middle, high)
    return low


def at_least(hits: int, trials: int, share: float) -> float:
    """Return the probability of so many hits or more, no fewer than are expected, in independent trials."""
    if hits <= 0 or share >= 1:
        return 1.0
    if hits > trials or share <= 0:
        return 0.0
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    term = math.exp(ways + hits * math.log(share) + (trials - hits) * math.log1p(-share))
    total, odds = 0.0, share / (1 - share)
    while total + term > total:
        total += term
        term *= odds * (trials - hits) / (hits + 1)
        hits += 1
    return total


def images(row: MetricValues) -> tuple[int, int]:
    """Return the least and the largest number of images that an accuracy can have been measured on.

    It is not written; the interval of Wilson depends on it. An end q of the interval around p solves
    (p - q)^2 = z^2 q (1 - q) / n; the farther end is the more exact.
    """
    share: float = row["accuracy"]
    end = max(row["accuracy_low"], row["accuracy_high"], key=lambda bound: abs(share - bound))
    rounding, width = half_a_digit(share) + half_a_digit(end), abs(share - end)
    spread = [Z**2 * one * (1 - one) for one in (end - half_a_digit(end), end + half_a_digit(end))]
    least = max(1, math.ceil(min(spread) / (width + rounding) ** 2))
    if max(spread) >= MOST_IMAGES * max(0.0, width - rounding) ** 2:
        return least, max(least, MOST_IMAGES)
    return least, max(least, math.floor(max(spread) / (width - rounding) ** 2))
