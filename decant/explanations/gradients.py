"""Integrated gradients, through captum: for networks in PyTorch whose inputs are fractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decant.errors import DecantError
from decant.explanations.answers import Answer
from decant.explanations.features import Features
from decant.explanations.masked import TOGETHER, rounded
from decant.networks.execution import as_rows

POINTS = 12
"""Of the path from baseline to example, by Gauss and Legendre."""


def integrated_gradients(module: Callable[..., Any], features: Features, answer: Answer) -> Tensor:
    """Return the gradient along the straight way from the baseline, times its length; sums [N, M] by feature.

    They add up to the score of the example less that of the baseline, as far as `POINTS` points go. A network
    that rounds has the gradient that trains it, straight through.

    Raises:
        DecantError: The network has no gradient by its inputs, or one that is NaN or infinite.

    References:
        Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017, section 3.
        https://arxiv.org/abs/1703.01365
    """
    from captum.attr import IntegratedGradients

    def score(*arguments: Any) -> Tensor:
        *inputs, rows = arguments
        return answer.scores(as_rows(module(*inputs), len(rows)).double(), rows)

    rows = torch.arange(len(features.counts))
    try:
        found = IntegratedGradients(score).attribute(
            features.inputs(),
            features.baselines(),
            additional_forward_args=(rows,),
            n_steps=POINTS,
            internal_batch_size=TOGETHER,
        )
    except RuntimeError as error:
        raise DecantError(f"It has no gradient by its inputs: {' '.join(str(error).split())[:200]}") from None
    sums = features.summed(found)
    if not bool(torch.isfinite(sums).all()):
        raise DecantError("Its gradients by its inputs are NaN or infinite")
    return rounded(sums, sums.abs().sum(1))
