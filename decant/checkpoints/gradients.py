"""Straight-through gradients: the value of a projection, with the gradient of the identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decant.checkpoints.constraints import Constraints
from decant.networks.devices import CPU


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


def within(numbers: Tensor, inputs: Tensor, low: Tensor, high: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the numbers where the input beside each lies in [low, high], and 0 elsewhere.

    Args:
        numbers: Of any shape; the result lies in memory as they do.
        inputs: Of that shape.
        low: [], where the inputs lie; a number that they can have.
        high: The like.
        out: Where the result may be written, of its shape and strides; it may be either of the first two.
    """
    slow = inputs.device.type != CPU or inputs.dtype != torch.float32  # a GPU would wait for the bounds
    if slow or torch.compiler.is_compiling():
        return torch.where((inputs >= low).logical_and_(inputs <= high), numbers, 0.0)
    # torch's gradient of a clamp excludes the bounds, and takes a fraction of the time of `where`.
    below, above = _next(low, -math.inf), _next(high, math.inf)
    if out is None:
        found: Tensor = torch.ops.aten.hardtanh_backward(numbers, inputs, below, above)
    else:
        found = torch.ops.aten.hardtanh_backward.grad_input(numbers, inputs, below, above, grad_input=out)
    return found


def _next(bound: Tensor, end: float) -> float:
    """Return the number of float32 that follows a bound [] towards an end; numpy takes no time to find it."""
    return float(np.nextafter(np.float32(bound.item()), np.float32(end)))


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
