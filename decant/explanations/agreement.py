"""How alike two explanations of one example are: Spearman's rank correlation, and the features on top."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOP = 0.2
"""The share of an example's features that are compared as its most important ones."""


def spearman(one: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each example's attributions [N], in [-1, 1], float64.

    Equal attributions share the mean of their ranks. Where all features of one explanation are equal it has
    no ranking: the correlation is 0, and 1 where the other one has none either.

    Args:
        one: Attributions [N, M], finite.
        other: The like.
        counts: How many of the M features each example has [N]; those behind them are left out.

    References:
        Spearman, The Proof and Measurement of Association between Two Things, 1904, Am. J. Psychol. 15.
    """
    there = present(counts, one.shape[1])
    left, right = (_centred(ranks(each, counts), there) for each in (one, other))
    norms = left.norm(dim=1), right.norm(dim=1)
    found = (left * right).sum(1) / (norms[0] * norms[1]).clamp(min=1e-12)
    both = (norms[0] == 0) & (norms[1] == 0)
    return torch.where(both, 1.0, found.clamp(-1, 1))


def ranks(values: Tensor, counts: Tensor) -> Tensor:
    """Return the rank of each value [N, M] in its row, from 0, ties in the middle; float64.

    What lies behind a row's count is not counted, and its own rank means nothing.
    """
    there = present(counts, values.shape[1])[:, None, :]
    lower = (values[:, None, :] < values[:, :, None]) & there
    equal = (values[:, None, :] == values[:, :, None]) & there
    return lower.sum(2).double() + (equal.sum(2).double() - 1) / 2


def top_overlap(one: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """Return which share of the most important features of an example is the same in both [N], in [0, 1].

    Compared are the `TOP` of its features with the largest attributions, one at least. Of equal ones the
    first count. An example without features has the same ones.

    Args:
        one: Attributions [N, M].
        other: The like.
        counts: How many of the M features each example has [N].
    """
    many = torch.tensor([math.ceil(TOP * count) for count in counts.tolist()])
    tops = [places(each, counts) < many[:, None] for each in (one, other)]
    both = (tops[0] & tops[1]).sum(1).double()
    return torch.where(many > 0, both / many.clamp(min=1), 1.0)


def places(values: Tensor, counts: Tensor) -> Tensor:
    """Return the place of each value in its row [N, M], 0 of the largest; last what is behind a count."""
    shown = values.masked_fill(~present(counts, values.shape[1]), -math.inf)
    return shown.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def present(counts: Tensor, width: int) -> Tensor:
    """Say which of `width` features each example has [N, width]: the first `counts` [N]."""
    return torch.arange(width) < counts[:, None]


def _centred(values: Tensor, there: Tensor) -> Tensor:
    """Return values less their row's mean, 0 where nothing is there."""
    held = values.masked_fill(~there, 0)
    mean = held.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    return (held - mean).masked_fill(~there, 0)
