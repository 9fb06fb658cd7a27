"""Straight-through gradients: the value of a projection, with the gradient of the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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


@dataclass(frozen=True)
class Interval:
    """What inputs lie in where gradients pass.

    Attributes:
        low: [], where the inputs lie; a number that they can have.
        high: The like.
    """

    low: Tensor
    high: Tensor

    @cached_property
    def _open(self) -> tuple[float, float]:
        """The numbers next to it, outside."""
        below = torch.nextafter(self.low, self.low.new_tensor(-math.inf))
        return below.item(), torch.nextafter(self.high, self.high.new_tensor(math.inf)).item()

    def _holds(self, inputs: Tensor) -> Tensor:
        return (inputs >= self.low).logical_and_(inputs <= self.high)

    def keep(self, numbers: Tensor, inputs: Tensor, out: Tensor) -> Tensor:
        """Return, in `out`, the numbers where the input beside each lies inside, and 0 elsewhere.

        Args:
            numbers: Of any shape.
            inputs: Of that shape.
            out: Of that shape; may be one of both.
        """
        if torch.compiler.is_compiling():  # which knows `out` in one layout alone
            return out.copy_(torch.where(self._holds(inputs), numbers, 0.0))
        if inputs.device.type != CPU or inputs.dtype != torch.float32:  # a GPU would wait for the bounds
            return torch.where(self._holds(inputs), numbers, numbers.new_zeros(()), out=out)
        # torch's gradient of a clamp excludes the bounds, and takes a fraction of the time of `where`.
        found: Tensor = torch.ops.aten.hardtanh_backward.grad_input(
            numbers, inputs, *self._open, grad_input=out
        )
        return found


def within(numbers: Tensor, inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the numbers where the input beside each lies in [low, high], and 0 elsewhere.

    Args:
        numbers: Of any shape; the result lies in memory as they do.
        inputs: Of that shape.
        low: [], where the inputs lie; a number that they can have.
        high: The like.
    """
    return Interval(low, high).keep(numbers, inputs, torch.empty_like(numbers))


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
