"""Least squares of one layer within all that its weight has to satisfy: a mask, a range, levels.

What is solved first and projected afterwards misses the layer's outputs by far more than it has to: the other
weights have not made up for what the projection did.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING

from decant.checkpoints.constraints import Constraints, Levels
from decant.lazy import torch
from decant.reconstruction.elementwise import better, select_elements
from decant.reconstruction.least_squares import NormalEquations, cholesky, solve

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""Columns after which the rest of the rows is brought up to date, at once: a product in place of 128."""

ACTIVE_SETS = 30
"""How often it is looked which weights lie at an end of their range, at most; some five times are enough."""

SWEEPS = 10
"""How often each weight is moved by itself among levels, at most, to where the error is least."""

CIRCLES = 100
"""The same in a range, where the active sets turn circles."""

SETTLED = 1e-9
"""Share of a row's largest weight, by which a weight in a range may still move when all is done."""


def fitted(problem: NormalEquations, held: Constraints, present: Tensor) -> Tensor:
    """Return the rows [O, d], float32, that satisfy the constraints with the least error, or nearly so.

    Within a mask and a range it is the least error. Among levels it is one that hardly any single weight can
    make smaller, from the best of three starts: levels taken column by column as GPTQ does, the levels
    nearest to the optimum without them, and those nearest to the present rows.

    Args:
        problem: The layer's normal equations.
        held: Constraints that are written out for each element [O, d].
        present: The rows that there are [O, d].

    Returns:
        What projecting onto the constraints changes no more, to the bit.

    Raises:
        ValueError: The Hessian is not positive definite.
    """
    free = optimum(problem, held)
    if held.levels is None:
        return held.project(free.float())
    order = problem.matrix.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    starts = (held.project(free.float()), held.project(present))
    best = reduce(partial(better, problem), starts, swept(problem, free, held, order))
    return descended(problem, held, best, SWEEPS)


def optimum(problem: NormalEquations, held: Constraints) -> Tensor:
    """Return the rows [O, d], float64, of the least error within mask and range, before any rounding.

    Which weights lie at an end of their range is guessed, the others are solved for, and the guess is
    corrected by the gradient, until it stays. Where it turns circles, weights are moved one at a time.

    Args:
        problem: The layer's normal equations.
        held: Constraints that are written out for each element [O, d]; levels are not looked at.

    Raises:
        ValueError: The Hessian is not positive definite.

    References:
        Hintermüller, Ito and Kunisch, The Primal-Dual Active Set Strategy as a Semismooth Newton Method,
        2002.
    """
    mask = torch.ones_like(problem.dead) if held.mask is None else held.mask
    rows = problem.dense if held.mask is None else solve(problem, mask)
    if held.range is None:
        return rows
    low, high = (
        torch.where(mask, torch.as_tensor(end, device=mask.device).double(), 0.0)
        for end in (held.range.low, held.range.high)
    )
    inside, bounds = mask, replace(held, levels=None)
    for _ in range(ACTIVE_SETS):
        aim = _aim(problem, rows)
        below, above = mask & (aim < low), mask & (aim > high)
        before, inside = inside, mask & ~below & ~above
        ends = torch.where(below, low, torch.where(above, high, 0.0))
        if torch.equal(before, inside) and torch.equal(torch.where(inside, 0.0, rows), ends):
            return bounds.project(rows)
        rest = replace(problem, target=problem.target - problem.times(ends, problem.matrix))
        rows = torch.where(inside, solve(rest, inside), ends)
    return descended(problem, bounds, bounds.project(rows), CIRCLES)


def descended(problem: NormalEquations, held: Constraints, rows: Tensor, sweeps: int) -> Tensor:
    """Return the rows [O, d] after each weight, in turn, went to where the error is least; it only falls.

    All weights have their turn `sweeps` times, or fewer where none moves any more.

    The error is a parabola in each weight, so the best place is the allowed one nearest to its vertex.
    """
    group, matrix = problem.group, problem.matrix
    wide, least = rows.double(), SETTLED * rows.abs().amax(1).double()
    slope = problem.times(wide, matrix) - problem.target
    for _ in range(sweeps):
        moved = torch.zeros(len(rows), dtype=torch.double, device=rows.device)
        for at in range(rows.shape[1]):
            here = wide[:, at].clone()
            vertex = here - slope[:, at] / matrix[group, at, at]
            place = _allowed(held, vertex.to(rows.dtype), at).double()
            # What is as near already stays: rounding alone would turn circles.
            nearer = ((place - vertex).abs() < (here - vertex).abs()) & ~problem.dead[:, at]
            wide[:, at] = torch.where(nearer, place, here)
            step = wide[:, at] - here
            slope += step[:, None] * matrix[group, at]
            moved = moved.maximum(step.abs())
        if bool((moved <= least).all()):
            break
    return wide.to(rows.dtype)


def _aim(problem: NormalEquations, rows: Tensor) -> Tensor:
    """Return where each weight [O, d] would go by itself, to the vertex of the error."""
    slope = problem.times(rows, problem.matrix) - problem.target
    return rows - slope / problem.matrix.diagonal(dim1=1, dim2=2)[problem.group]


def swept(problem: NormalEquations, rows: Tensor, held: Constraints, order: Tensor) -> Tensor:
    """Return the rows [O, d], float32, rounded column by column in the order [G, d] of each group.

    Each column goes to its nearest levels, and the later ones make up for its error.

    Args:
        problem: The layer's normal equations.
        rows: Where they begin [O, d], float64.
        held: Constraints that are written out for each element [O, d].
        order: A permutation of the columns for each group, int64.

    Raises:
        ValueError: The Hessian is not positive definite.
    """
    groups, width = order.shape
    each = order[problem.group]
    held_there = select_elements(held, lambda numbers: numbers.gather(1, each))
    rows = rows.gather(1, each).unflatten(0, (groups, -1))
    factor = _factor(problem, order)
    result = torch.empty(len(each), width, device=rows.device)
    for first in range(0, width, BLOCK):
        last = min(first + BLOCK, width)
        errors = torch.zeros_like(rows[:, :, first:last])
        for at in range(first, last):
            column = rows[:, :, at].flatten()
            result[:, at] = _allowed(held_there, column.float(), at)
            off = (column - result[:, at]).unflatten(0, (groups, -1)) / factor[:, at, at, None]
            rows[:, :, at + 1 : last] -= off[:, :, None] * factor[:, None, at, at + 1 : last]
            errors[:, :, at - first] = off
        rows[:, :, last:] -= errors @ factor[:, first:last, last:]
    return torch.empty_like(result).scatter_(1, each, result)


def _factor(problem: NormalEquations, order: Tensor) -> Tensor:
    """Return U [G, d, d], upper, with the inverse Hessian in the columns' order Uᵀ U."""
    group = torch.arange(len(order), device=order.device)[:, None, None]
    return cholesky(problem.inverse[group, order[:, :, None], order[:, None, :]]).mT


def _allowed(held: Constraints, column: Tensor, at: int) -> Tensor:
    """Return a column [O] projected onto its part of constraints that are written out [O, d], to the bit."""
    if held.range is not None:
        low, high = (torch.as_tensor(end)[:, at] for end in (held.range.low, held.range.high))
        column = torch.clamp(column, low, high)
    if held.levels is not None:
        zero_point = held.levels.zero_point
        zeros = None if zero_point is None else zero_point[:, at]
        column = Levels(held.levels.values, held.levels.scale[:, at], zeros).project(column)
    return column if held.mask is None else torch.where(held.mask[:, at], column, 0.0)
