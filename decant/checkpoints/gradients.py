"""Straight-through gradients: the value of a projection, with the gradient of the identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decant.checkpoints.constraints import Constraints


def passed(value: Tensor, through: Tensor) -> Tensor:
    """Return `value`, exactly, whose gradient goes to `through` unchanged; both of one shape."""
    result: Tensor = _Passed.apply(value, through)
    return result


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def straight_through(weight: Tensor, constraints: Constraints, dense: bool = False) -> Tensor:
    """Return the projected weight, exactly; its gradient goes to `weight` unchanged.

    Through masks it goes only where `dense`, so that masked weights may come back with a value.

    References:
        Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation, 2013. https://arxiv.org/abs/1308.3432
    """
    projected: Tensor = _StraightThrough.apply(weight, constraints, dense)
    return projected


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, constraints: Constraints, dense: bool) -> Tensor:
        ctx.mask = None if dense else constraints.mask
        return constraints.project(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient if ctx.mask is None else gradient * ctx.mask), None, None
