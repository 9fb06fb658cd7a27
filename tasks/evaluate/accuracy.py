"""What a model is measured by, as pure functions of logits, labels and modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from decant.errors import DecantError
from decant.evidence.significance import Z95


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction in [0, 1] of examples [N] whose largest logit of [N, C] is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()


def top(count: int, logits: Tensor, labels: Tensor) -> float:
    """Return the fraction in [0, 1] of examples [N] with fewer than `count` logits above the label's.

    So a label that shares its logit with others counts as found. Logits are [N, C].
    """
    own = logits.gather(1, labels[:, None])
    return ((logits > own).sum(1) < count).double().mean().item()


def mean_interval(values: Tensor) -> tuple[float, float, float]:
    """Return the mean of independent numbers [N], and the ends of its 95 % interval: mean +- t s / sqrt(N).

    t is Student's, by its expansion in 1 / (N - 1), which is within 1 % from six numbers on. The interval is
    right for the mean of many; of few that are spread unevenly it is a little too narrow.

    Raises:
        DecantError: There are fewer than two numbers, of which there is no spread.

    References:
        Fisher and Cornish, The Percentile Points of Distributions Having Known Cumulants, 1960,
        Technometrics 2.
    """
    if len(values) < 2:
        raise DecantError(f"{len(values)} test row has no spread to judge a mean by; take two or more")
    z, left = Z95, len(values) - 1
    t = z + (z**3 + z) / (4 * left) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * left**2)
    mean, reach = values.double().mean().item(), t * values.double().std().item() / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def nll(logits: Tensor, labels: Tensor) -> float:
    """Return the mean negative log likelihood of the labels, in nats, at least 0."""
    return F.cross_entropy(logits.double(), labels).item() + 0.0  # no minus before the 0 of certain answers


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in [0, 1]: how far confidence is from accuracy.

    Examples are sorted into `bins` equal intervals of confidence; the gaps between mean confidence and
    accuracy are averaged, weighted by the examples in each.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017. https://arxiv.org/abs/1706.04599
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return torch.zeros(bins, dtype=torch.double).index_add_(0, bin_of, gap).abs().sum().item() / len(labels)


def agreement(logits: Tensor, classes: Tensor) -> float:
    """Return the fraction in [0, 1] of logits [N, C] whose largest is the class [N] of another model."""
    return (logits.argmax(1) == classes).double().mean().item()
