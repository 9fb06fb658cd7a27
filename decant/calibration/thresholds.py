"""How far from zero to cut: by the error of rounding, by the divergence of histograms, by ACIQ's analysis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.calibration.observers import Sample
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD_CANDIDATES = 100
"""How many thresholds `least_error` tries, evenly from the largest size down."""

AT_ONCE = 2**16
"""Numbers that are rounded at once, which stay in a processor's cache. Longer samples are alone: torch adds
up a long row by itself in other parts than a row among others."""

BINS, STRIDE = 2048, 16
"""The bins of a histogram of sizes, and how many lie between two thresholds that `least_divergence` tries."""


def least_error(sample: Sample, bits: int) -> float:
    """Return the threshold whose cutting and rounding err least, the widest among equals.

    Tried are `THRESHOLD_CANDIDATES` of them.
    """
    return least_errors([sample], bits)[0]


def least_errors(samples: Sequence[Sample], bits: int) -> list[float]:
    """Return `least_error` of each sample, to the bit: those of one length are rounded at once.

    A weight in groups has tens of thousands of samples, and as many calls of torch would take minutes.
    """
    found = [0.0] * len(samples)
    for places in _together(samples):
        alike = [samples[at] for at in places]
        for at, threshold in zip(places, _least_of_alike(alike, bits), strict=True):
            found[at] = threshold
    return found


def _together(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Yield places of samples of one length that are rounded at once; none of samples of zeros alone."""
    alike: dict[tuple[int, bool], list[int]] = {}
    for at, sample in enumerate(samples):
        if sample.largest > 0:
            alike.setdefault((len(sample.values), sample.symmetric), []).append(at)
    for (length, _), places in alike.items():
        count = max(1, AT_ONCE // length)
        yield from (places[first : first + count] for first in range(0, len(places), count))


def _least_of_alike(samples: Sequence[Sample], bits: int) -> list[float]:
    """Return the threshold of the least error of each sample of one length."""
    rows = _Rows.of(samples)
    best, least = rows.largest, torch.full_like(rows.largest, math.inf)
    for k in range(THRESHOLD_CANDIDATES, 0, -1):
        thresholds = rows.largest * k / THRESHOLD_CANDIDATES
        errors = rows.rounding_errors(thresholds, bits)
        best, least = torch.where(errors < least, thresholds, best), errors.minimum(least)
    found: list[float] = best.tolist()
    return found


def least_divergence(sample: Sample, bits: int) -> float:
    """Return the threshold where merging the histogram to levels diverges least, the widest among equals."""
    if sample.largest == 0:
        return 0.0
    levels = 2**bits if sample.one_sided else 2 ** (bits - 1)
    counts = histogram(sample)
    ends = range(BINS, max(levels, STRIDE) - 1, -STRIDE)
    return sample.largest * min(ends, key=lambda end: divergence(counts, end, levels)) / BINS


def rounding_error(sample: Sample, threshold: float, bits: int) -> float:
    """Return the sum of squared errors after cutting at `threshold` around zero and rounding to `bits`."""
    thresholds = torch.tensor([threshold], dtype=torch.double)
    return _Rows.of([sample]).rounding_errors(thresholds, bits).item()


@dataclass(frozen=True)
class _Rows:
    """Samples of one length.

    Attributes:
        values: Of each sample a row [S, N], float64.
        low: The least number of each sample [S].
        high: The largest [S].
        symmetric: Whether they are rounded to levels on both sides of zero alike.
    """

    values: Tensor
    low: Tensor
    high: Tensor
    symmetric: bool

    @staticmethod
    def of(samples: Sequence[Sample]) -> _Rows:
        low, high = torch.tensor([(each.low, each.high) for each in samples], dtype=torch.double).unbind(1)
        return _Rows(torch.stack([each.values for each in samples]), low, high, samples[0].symmetric)

    @property
    def largest(self) -> Tensor:
        """The largest size of each sample [S]."""
        return self.low.abs().maximum(self.high.abs())

    def rounding_errors(self, thresholds: Tensor, bits: int) -> Tensor:
        """Return the sum of squared errors of each sample [S] once cut at its threshold [S] and rounded."""
        step, least, most = self._grid(thresholds, bits)
        codes = (self.values / step[:, None]).round_().clamp_(least[:, None], most[:, None])
        return codes.mul_(step[:, None]).sub_(self.values).square_().sum(1)

    def _grid(self, thresholds: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step, the least and the largest code of each sample [S]."""
        if self.symmetric:
            most = torch.full_like(thresholds, 2 ** (bits - 1) - 1)
            return thresholds / most, -most, most
        low = self.low.maximum(-thresholds).minimum(self.high).clamp(max=0.0)
        high = self.high.minimum(thresholds).maximum(self.low).clamp(min=0.0)
        step = (high - low) / (2**bits - 1)
        least = -torch.round(-low / step)
        return step, least, 2**bits - 1 + least


def histogram(sample: Sample) -> Tensor:
    """Return how many sizes that are not zero fall into each of `BINS` bins up to the largest, float64."""
    sizes = sample.values.abs()
    places = (sizes[sizes > 0] / sample.largest * BINS).long().clamp(max=BINS - 1)
    return torch.bincount(places, minlength=BINS).double()


def divergence(counts: Tensor, end: int, levels: int) -> float:
    """Return KL(P || Q) in nats between the bins before `end` and the same merged to `levels` groups."""
    tail_in = counts[:end].clone()
    tail_in[-1] += counts[end:].sum()
    filled = tail_in > 0
    group = torch.arange(end) * levels // end
    mass = torch.zeros(levels, dtype=torch.double).index_add_(0, group, counts[:end])
    bins = torch.zeros(levels, dtype=torch.double).index_add_(0, group, filled.double())
    spread = (mass / bins.clamp(min=1))[group][filled]
    p = tail_in[filled] / tail_in.sum().clamp(min=1)
    # A tail behind an empty group has no share in Q; the floor makes that very dear, and not infinite.
    q = (spread / spread.sum().clamp(min=1)).clamp(min=1e-12)
    return (p * (p / q).log()).sum().item()


@dataclass(frozen=True)
class Law:
    """A distribution around zero that ACIQ takes numbers to have.

    Attributes:
        scale: Returns the scale of numbers [N] around zero.
        slope: Returns half the derivative of the expected squared error, at scale 1, by where it is cut.
    """

    scale: Callable[[Tensor], float]
    slope: Callable[[float, int], float]

    def multiple(self, bits: int) -> float:
        """Return where to cut for the least expected squared error, in units of the scale."""
        return _root(lambda alpha: self.slope(alpha, bits))


def laplace_slope(alpha: float, bits: int) -> float:
    """Return half the derivative of 2 exp(-alpha) + alpha^2 / (3 * 4^bits): tails, and rounding."""
    return alpha / (3 * 4**bits) - math.exp(-alpha)


def gauss_slope(alpha: float, bits: int) -> float:
    """Return half the derivative of the error of a normal distribution, tails and rounding.

    The error is (alpha^2 + 1) erfc(alpha / sqrt 2) - alpha sqrt(2 / pi) exp(-alpha^2 / 2)
    + alpha^2 / (3 * 4^bits).
    """
    tails = alpha * math.erfc(alpha / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-(alpha**2) / 2)
    return tails + alpha / (3 * 4**bits)


LAWS: dict[str, Law] = {
    "laplace": Law(lambda centred: centred.abs().mean().item(), laplace_slope),
    "gauss": Law(lambda centred: centred.square().mean().sqrt().item(), gauss_slope),
}


def _root(rising: Callable[[float], float]) -> float:
    """Return where a function that rises from below zero crosses it, to the last bit."""
    low, high = 0.0, 50.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return low
