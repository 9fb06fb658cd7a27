"""Whether an explanation means anything: the answer while its most important features go, or come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decant.explanations.agreement import places
from decant.explanations.masked import Masked

STEPS = 5
"""In how many equal shares of its features an example is taken apart."""


@dataclass(frozen=True)
class Curves:
    """What is left of an answer, mean over examples.

    Attributes:
        deletion: With a share of 0, 1 / STEPS, …, 1 of the features removed, the most important first.
        insertion: With these alone, all others removed.
    """

    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> float:
        """The area under the deletion curve: the lower, the more the explanation found."""
        return area(self.deletion)

    @property
    def insertion_area(self) -> float:
        """The area under the insertion curve: the higher, the more it found."""
        return area(self.insertion)


def curves_of(masked: Masked, attributions: Tensor, level: Callable[[Tensor], Tensor]) -> Curves:
    """Return how the answer to examples falls and rises with the features that an explanation ranks first.

    Beside the same of a random ranking they say whether an explanation means anything. Where features are
    replaced by what examples are like on the average, both curves depend on that average too.

    Args:
        masked: The network, as a function of which features are kept.
        attributions: Of the examples' features [N, M].
        level: What is drawn of scores: of log-probabilities, probabilities.

    References:
        Petsiuk et al., RISE: Randomized Input Sampling for Explanation of Black-box Models, 2018, section
        4.2. https://arxiv.org/abs/1806.07421
    """
    counts, rows = masked.features.counts, torch.arange(len(attributions))
    place = places(attributions, counts)
    ends = level(masked(rows, place >= 0)).mean(), level(masked(rows, place < 0)).mean()
    deletion, insertion = [ends[0]], [ends[1]]
    for step in range(1, STEPS):
        first = place < (counts * step / STEPS).round().long()[:, None]
        deletion.append(level(masked(rows, ~first)).mean())
        insertion.append(level(masked(rows, first)).mean())
    return Curves(torch.stack([*deletion, ends[1]]), torch.stack([*insertion, ends[0]]))


def area(curve: Tensor) -> float:
    """Return the area under a curve of equal steps from 0 to 1, by trapezoids."""
    return torch.trapezoid(curve, dx=1 / (len(curve) - 1)).item()
