"""How a model's answers differ from its teacher's, example by example: classes, confidence, logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BINS = 15
"""Equal intervals of confidence."""

NONE = -1
"""The class of an example whose logits are NaN or infinite: it is no class, so it is never right."""


@dataclass(frozen=True)
class Flip:
    """Examples of one class by the teacher and of another by the model.

    Attributes:
        teacher: The class that the teacher says.
        model: The class that the model says.
        count: Of how many examples.
    """

    teacher: int
    model: int
    count: int


@dataclass(frozen=True)
class Confidence:
    """The examples of one interval of confidence.

    Attributes:
        confidence: Mean probability of the predicted class, in [0, 1].
        accuracy: Share of them that are predicted rightly.
        count: How many there are, at least 1.
    """

    confidence: float
    accuracy: float
    count: int


def predicted(logits: Tensor) -> Tensor:
    """Return the class of the largest of logits [N, C], [N]; `NONE` where one is NaN or infinite."""
    return torch.where(torch.isfinite(logits).all(1), logits.argmax(1), NONE)


def divergences(found: Tensor, expected: Tensor) -> Tensor:
    """Return KL(expected || found) of the classes' probabilities of each example, [N], float64, in nats.

    Args:
        found: Logits [N, C].
        expected: Logits [N, C], such as a teacher's.

    Raises:
        ValueError: The shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"Logits differ in shape: {[*found.shape]} and {[*expected.shape]}")
    log_p, log_q = expected.double().log_softmax(1), found.double().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0.0)


def flips(model: Tensor, teacher: Tensor) -> list[Flip]:
    """Return how many examples went from which class to which, the most frequent first.

    Args:
        model: The classes that the model says [N].
        teacher: Those that the teacher says [N].
    """
    differ = model != teacher
    pairs, counts = torch.stack([teacher[differ], model[differ]]).unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    rows = zip(*pairs[:, order].tolist(), counts[order].tolist(), strict=True)
    return [Flip(*row) for row in rows]


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> list[Confidence]:
    """Return confidence and accuracy of the examples in each of `bins` equal intervals; none of empty ones.

    The mean of the gaps between the two, weighted by the counts, is the expected calibration error.

    Args:
        logits: [N, C].
        labels: Classes [N].
        bins: How many intervals of confidence there are; their upper ends belong to them.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017. https://arxiv.org/abs/1706.04599
    """
    confidence, said = logits.double().softmax(1).max(1)
    where = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(where, minlength=bins)
    sums = torch.zeros(2, bins, dtype=torch.float64)
    sums.index_add_(1, where, torch.stack([confidence, (said == labels).double()]))
    return list(_filled(sums, counts))


def _filled(sums: Tensor, counts: Tensor) -> Iterator[Confidence]:
    for total, hits, count in zip(*sums.tolist(), counts.tolist(), strict=True):
        if count:
            yield Confidence(min(total / count, 1.0), hits / count, count)
