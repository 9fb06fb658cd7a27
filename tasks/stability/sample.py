"""Which test examples are corrupted: a few for each corruption, spread over the split, others for each."""

from __future__ import annotations

import torch
from torch import Tensor

COUNT = 250
"""Examples that each strength of each corruption is measured on."""

REFERENCE = 10_000
"""Examples at most that deviations, means and gaps are taken from."""

RULE = (
    "of the test split's n examples, corruption k of K takes those of index floor((j K + k) n / (250 K)) "
    "for j = 0 ... 249, or all where there are at most 250; all strengths take the same"
)
"""How they are chosen, as the report says it."""


def chosen(total: int, part: int = 0, parts: int = 1, count: int = COUNT) -> Tensor:
    """Return the indices of at most `count` examples of `total`, rising, spread evenly; int64.

    Args:
        total: How many examples there are.
        part: Which of `parts` such samples; where there are enough examples no two have one in common.
        parts: How many samples there are.
        count: How many are taken; all where there are no more.
    """
    if total <= count:
        return torch.arange(total)
    return (torch.arange(count) * parts + part) * total // (count * parts)
