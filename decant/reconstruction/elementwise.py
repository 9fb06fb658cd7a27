"""A weight as rows [O, d]: constraints for each element, and the error of each row's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.lazy import torch
from decant.reconstruction.least_squares import NormalEquations

if TYPE_CHECKING:
    from torch import Tensor


def per_element(
    held: Constraints, shape: torch.Size, device: torch.device | str | None = None
) -> Constraints:
    """Return the same constraints on `weight.flatten(1)` [O, d], every number written out for each element.

    What was one scale for a tensor, a channel or a group becomes one for each element, so that columns can
    be taken in any order, and projecting a column is projecting its part of the weight, to the bit.

    Args:
        held: The constraints on a weight of this shape.
        shape: The weight's, output channels first.
        device: Where the tensors of the constraints lie, and the result does.
    """
    bounds = held.range

    def ends(bound: float | Tensor) -> Tensor:
        return torch.as_tensor(bound, dtype=torch.float32, device=device).expand(shape).flatten(1)

    return Constraints(
        None if bounds is None else Range(ends(bounds.low), ends(bounds.high)),
        None if held.levels is None else _levels(held.levels, shape),
        None if held.mask is None else held.mask.flatten(1),
    )


def _levels(levels: Levels, shape: torch.Size) -> Levels:
    def rows(each: Tensor) -> Tensor:
        return levels.spread(each, shape).expand(shape).flatten(1)

    zero_point = None if levels.zero_point is None else rows(levels.zero_point)
    return Levels(levels.values, rows(levels.scale), zero_point)


def select_elements(held: Constraints, take: Callable[[Tensor], Tensor]) -> Constraints:
    """Return what is left of constraints that are written out where only some elements are taken."""
    levels, bounds = held.levels, held.range
    if levels is not None:
        zero_point = None if levels.zero_point is None else take(levels.zero_point)
        levels = Levels(levels.values, take(levels.scale), zero_point)
    if bounds is not None:
        bounds = Range(take(torch.as_tensor(bounds.low)), take(torch.as_tensor(bounds.high)))
    return Constraints(bounds, levels, None if held.mask is None else take(held.mask))


def errors(problem: NormalEquations, rows: Tensor) -> Tensor:
    """Return each row's squared output error [O], float64, up to a constant of the row."""
    wide = rows.double()
    return ((problem.times(wide, problem.matrix) - 2 * problem.target) * wide).sum(1)


def better(problem: NormalEquations, first: Tensor, second: Tensor) -> Tensor:
    """Return, of two roundings [O, d], for each row the one of the smaller error; the first among equals."""
    return torch.where((errors(problem, first) <= errors(problem, second))[:, None], first, second)
