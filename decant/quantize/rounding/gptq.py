"""GPTQ: each column is rounded in turn, and the columns after it make up for its error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from decant.checkpoints.constraints import Constraints
from decant.lazy import torch
from decant.quantize.rounding.by_outputs import ByOutputs
from decant.quantize.rounding.elementwise import optimum, select_elements
from decant.reconstruction.least_squares import NormalEquations, cholesky

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""Columns after which the rest of the rows is brought up to date, at once: a product in place of 128."""


class Gptq(ByOutputs):
    """Round column by column; the columns that are still to come take over the error of each.

    Rows begin at the least squares for the inputs that the layer really receives, so that the errors of
    earlier layers are made up for. Then column j goes to its nearest levels q, and the later ones move by
    -(w_j - q) / U_jj * U_j,j+1..., with H⁻¹ = Uᵀ U: what minimizes the layer's error if they stay free. A
    masked weight goes to 0 in its turn, and its error is fed on too. Columns on inputs that are always zero
    are rounded to nearest. A row whose error is smaller with nearest rounding keeps that.

    Does not help at 8 bits, where nearest rounding costs nothing; nor where there are fewer rows of inputs
    than columns, whose noise it fits; nor activations, which are rounded elsewhere.

    Attributes:
        order: Columns of the largest inputs first (`activation`), which leaves the small ones to make up for
            them, or as they lie (`index`).
        damping: Share of the Hessian's mean diagonal added to its diagonal, in [0, 1].

    References:
        Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        2022. https://arxiv.org/abs/2210.17323
    """

    kind: Literal["gptq"] = "gptq"
    order: Literal["activation", "index"] = "activation"
    damping: Annotated[float, Field(ge=0, le=1)] = 0.01

    def _damped(self) -> float:
        return self.damping

    def _solved(self, problem: NormalEquations, rows: Tensor, held: Constraints, nearest: Tensor) -> Tensor:
        return swept(problem, held, self._columns(problem))

    def _columns(self, problem: NormalEquations) -> Tensor:
        """Return the order of the columns [G, d] of each group."""
        diagonal = problem.matrix.diagonal(dim1=1, dim2=2)
        if self.order == "index":
            return torch.arange(diagonal.shape[1]).expand_as(diagonal)
        return diagonal.argsort(dim=1, descending=True, stable=True)


def swept(problem: NormalEquations, held: Constraints, order: Tensor) -> Tensor:
    """Return the rows [O, d], float32, rounded column by column in the order [G, d] of each group.

    Args:
        problem: The layer's normal equations.
        held: Constraints that are written out for each element [O, d].
        order: A permutation of the columns for each group, int64.

    Raises:
        ValueError: The Hessian is not positive definite.
    """
    groups, width = order.shape
    each = order[problem.group]
    held_there = select_elements(held, lambda numbers: numbers.gather(1, each))
    rows = optimum(problem, held.mask).gather(1, each).unflatten(0, (groups, -1))
    factor = _factor(problem, order)
    result = torch.empty(len(each), width)
    for first in range(0, width, BLOCK):
        last = min(first + BLOCK, width)
        errors = torch.zeros_like(rows[:, :, first:last])
        for at in range(first, last):
            column = rows[:, :, at].flatten()
            result[:, at] = _column(held_there, at).project(column.float())
            off = (column - result[:, at]).unflatten(0, (groups, -1)) / factor[:, at, at, None]
            rows[:, :, at + 1 : last] -= off[:, :, None] * factor[:, None, at, at + 1 : last]
            errors[:, :, at - first] = off
        rows[:, :, last:] -= errors @ factor[:, first:last, last:]
    return torch.empty_like(result).scatter_(1, each, result)


def _factor(problem: NormalEquations, order: Tensor) -> Tensor:
    """Return U [G, d, d], upper, with the inverse Hessian in the columns' order Uᵀ U."""
    group = torch.arange(len(order))[:, None, None]
    return cholesky(problem.inverse[group, order[:, :, None], order[:, None, :]]).mT


def _column(held: Constraints, at: int) -> Constraints:
    return select_elements(held, lambda numbers: numbers[:, at])
