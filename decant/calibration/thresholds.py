"""How far from zero to cut: by the error of rounding, by the divergence of histograms, by ACIQ's analysis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.calibration.observers import Sample
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD_CANDIDATES = 100
"""How many thresholds `least_error` tries, evenly from the largest size down."""

BINS, STRIDE = 2048, 16
"""The bins of a histogram of sizes, and how many lie between two thresholds that `least_divergence` tries."""


def least_error(sample: Sample, bits: int) -> float:
    """Return the threshold whose cutting and rounding err least, the widest among equals.

    Tried are `THRESHOLD_CANDIDATES` of them.
    """
    if sample.largest == 0:
        return 0.0
    thresholds = [sample.largest * k / THRESHOLD_CANDIDATES for k in range(THRESHOLD_CANDIDATES, 0, -1)]
    return min(thresholds, key=lambda threshold: rounding_error(sample, threshold, bits))


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
    if sample.symmetric:
        most = 2 ** (bits - 1) - 1
        step, least = threshold / most, -most
    else:
        low, high = sample.within(threshold)
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / (2**bits - 1)
        least = -round(-low / step)
        most = 2**bits - 1 + least
    codes = (sample.values / step).round_().clamp_(least, most)
    return (codes * step - sample.values).square_().sum().item()


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
