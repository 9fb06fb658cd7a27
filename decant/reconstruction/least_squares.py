"""Least squares of one layer: the weights that come nearest to its outputs, from the Hessian of its inputs.

With a layer's inputs x̂, those of a reference network x, H = mean x̂ x̂ᵀ and G = mean x̂ xᵀ, the error of a
row w' against the reference's row w is the mean of (w x - w' x̂)²: w' H w'ᵀ - 2 w' G wᵀ and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


CHUNK = 2**24
"""Numbers of one batch of matrices: 64 MB in float32, so that thousands of rows do not fill the memory."""

FACTORED = 2**38
"""Sum over rows of cubed unknowns up to which systems are factored: some seconds on two cores."""

CG_ITERATIONS = 32
"""Conjugate gradients where a factorization is too dear."""


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations w' A = target of all rows of a layer.

    Attributes:
        matrix: A [G, d, d], the damped Hessian, float64, positive definite.
        target: Right-hand sides [rows, d], float64.
        dead: Inputs [rows, d] that are always zero: no weight on them has any effect.
    """

    matrix: Tensor
    target: Tensor
    dead: Tensor

    @cached_property
    def group(self) -> Tensor:
        """The group [rows] of each row."""
        return torch.arange(len(self.target), device=self.target.device) // (
            len(self.target) // len(self.matrix)
        )

    @cached_property
    def inverse(self) -> Tensor:
        """A⁻¹ [G, d, d], float64."""
        return torch.cholesky_inverse(cholesky(self.matrix))

    @cached_property
    def dense(self) -> Tensor:
        """The best rows without a mask [rows, d], float64."""
        return self.times(self.target, self.inverse)

    def times(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Return each row [rows, d] times its group's matrix [G, d, e]."""
        return (rows.unflatten(0, (len(matrices), -1)) @ matrices.to(rows.dtype)).flatten(0, 1)


def normal_equations(
    weight: Tensor, hessian: Tensor, cross: Tensor | None, damping: float
) -> NormalEquations:
    """Return the layer's normal equations.

    Damping adds a share of the Hessian's mean diagonal to the diagonals of both H and G, which draws weights
    towards those that they have and not towards zero. An input that is always zero gets 1 there, in both:
    its weights stay as they are.

    Args:
        weight: The reference's rows [rows, d].
        hessian: H [d, d], or [G, d, d] where each rows / G rows have inputs of their own.
        cross: G, of the same shape; H where None.
        damping: Share of the mean diagonal over inputs that are not dead, at least 0.

    Raises:
        ValueError: Shapes do not fit, or damping is negative.
    """
    matrix = hessian.double().reshape(-1, *hessian.shape[-2:])
    rows, width = weight.shape
    if matrix.shape[1:] != (width, width) or rows % len(matrix):
        raise ValueError(f"A Hessian {[*hessian.shape]} does not fit a weight {[*weight.shape]}")
    if damping < 0:
        raise ValueError(f"Damping must not be negative, got {damping}")
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    dead = diagonal <= 0
    mean = diagonal.sum(1, keepdim=True) / (~dead).sum(1, keepdim=True).clamp(min=1)
    ridge = torch.diag_embed(torch.where(dead, 1.0, damping * mean))
    other = matrix if cross is None else cross.double().reshape(matrix.shape)
    split = weight.double().unflatten(0, (len(matrix), -1))
    target = (split @ (other + ridge).mT).flatten(0, 1)
    return NormalEquations(matrix + ridge, target, dead.repeat_interleave(rows // len(matrix), dim=0))


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower factor [..., d, d]; what fails in float32 is factored in float64.

    Raises:
        ValueError: A matrix is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()) and matrix.dtype != torch.double:
        wide, failed = torch.linalg.cholesky_ex(matrix.double())
        factor = wide.to(matrix.dtype)
    if bool(failed.any()):
        raise ValueError("A Hessian is not positive definite: take more images, or more damping")
    return factor


def solve(problem: NormalEquations, mask: Tensor, start: Tensor | None = None) -> Tensor:
    """Return the rows [rows, d], float64, with the least error among those that are zero outside the mask.

    Exact up to a size that depends on the mask's counts alone; beyond that, `CG_ITERATIONS` of conjugate
    gradients from `start`. Weights on dead inputs keep what they have.
    """
    kept = mask.sum(1).double()
    if float(kept.pow(3).sum()) > FACTORED:
        return descend(problem, mask, problem.dense if start is None else start)
    masks, owner = torch.unique(mask, dim=0, return_inverse=True)
    if 2 * len(masks) <= len(mask):
        return _shared(problem, masks, owner)
    result = torch.zeros_like(problem.target)
    for rows in chunks(mask.sum(1)):
        index, valid = padded(mask[rows])
        right = torch.where(valid, problem.target[rows].gather(1, index), 0.0)
        factor = cholesky(submatrices(problem.matrix, problem.group[rows], index, valid))
        found = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        result[rows] = unpadded(found, index, valid, mask.shape[1])
    return result


def _shared(problem: NormalEquations, masks: Tensor, owner: Tensor) -> Tensor:
    """Solve for rows of equal masks (blocks, channels) together, each with one factorization."""
    result = torch.zeros_like(problem.target)
    for number in range(len(masks)):
        kept = masks[number].nonzero()[:, 0]
        for group in map(int, problem.group[owner == number].unique()):
            rows = ((owner == number) & (problem.group == group)).nonzero()[:, 0]
            factor = cholesky(problem.matrix[group][kept[:, None], kept])
            right = problem.target[rows[:, None], kept]
            result[rows[:, None], kept] = torch.cholesky_solve(right.mT, factor).mT
    return result


def descend(problem: NormalEquations, mask: Tensor, start: Tensor, steps: int = CG_ITERATIONS) -> Tensor:
    """Return the rows after some steps of conjugate gradients within the mask, each O(rows d²), float64.

    The error falls with every step, so what comes back is never worse than `start` within the mask.

    References:
        Hestenes and Stiefel, Methods of Conjugate Gradients for Solving Linear Systems, 1952.
    """
    matrix, kept = problem.matrix.float(), mask.float()
    rows = start.float() * kept
    scale = kept / problem.matrix.diagonal(dim1=1, dim2=2).float()[problem.group]
    residual = (problem.target - problem.times(rows.double(), problem.matrix)).float() * kept
    step = scaled = residual * scale
    product = (residual * scaled).sum(1, keepdim=True)
    for _ in range(steps):
        moved = problem.times(step, matrix)
        # A row that has arrived has no residual; without the floor it would divide zero by zero.
        length = product / (step * moved).sum(1, keepdim=True).clamp(min=1e-30)
        rows = rows + length * step
        residual = residual - length * moved * kept
        scaled = residual * scale
        before, product = product, (residual * scaled).sum(1, keepdim=True)
        step = scaled + step * (product / before.clamp(min=1e-30))
    return rows.double()


def chunks(counts: Tensor, width: int | None = None) -> list[Tensor]:
    """Return row numbers in parts of similar counts [rows], whose padded matrices fit in memory.

    Matrices are count x count, or count x `width`.
    """
    order = counts.argsort(stable=True, descending=True)
    parts, at = [], 0
    while at < len(order):
        count = int(counts[order[at]])
        size = max(1, CHUNK // max(1, count * (width or count)))
        parts.append(order[at : at + size])
        at += size
    return parts


def padded(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns [rows, k] where each row of a mask is True, and which of them are no padding."""
    counts = mask.sum(1)
    index = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    return index, torch.arange(index.shape[1], device=index.device) < counts[:, None]


def unpadded(values: Tensor, index: Tensor, valid: Tensor, width: int) -> Tensor:
    """Return values [rows, k] back at their columns, zero elsewhere [rows, width]."""
    result = torch.zeros(len(values), width, dtype=values.dtype, device=values.device)
    return result.scatter_(1, index, torch.where(valid, values, 0.0))


def submatrices(matrices: Tensor, group: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Return each row's part [rows, k, k] of its group's matrix; padding is the identity."""
    found = matrices[group[:, None, None], index[:, :, None], index[:, None, :]]
    found = torch.where(valid[:, :, None] & valid[:, None, :], found, 0.0)
    found.diagonal(dim1=1, dim2=2).add_((~valid).to(found.dtype))
    return found
