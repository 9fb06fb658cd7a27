"""What roundings by a layer's outputs share: the normal equations, and the search for a range."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from decant.checkpoints.constraints import Constraints
from decant.lazy import torch
from decant.reconstruction.elementwise import better, errors, per_element
from decant.reconstruction.least_squares import NormalEquations, normal_equations
from decant.schema import Section

if TYPE_CHECKING:
    from torch import Tensor

    from decant.reconstruction.hessians import InputHessian


class ByOutputs(Section):
    """Round so that a layer's outputs are off least, and with `search` choose the range by them too.

    A range that errs least on the weights is too narrow for a rounding whose weights make up for each other:
    they can make up for a coarse step, and not for what was cut off. So each row is rounded with the step of
    its levels times n/n, (n - 1)/n ... 1/n, and keeps the one whose outputs are off least, the widest among
    equals. Where all rows share a scale they share the choice.

    Helps at 2 bits. Does not help at 3 and more, where the step is fine enough in any range, nor from a range
    that is narrow already: begin with `min-max`.

    Attributes:
        search: Ranges that are tried for each row; 1 keeps the scheme's.

    References:
        Lin et al., AWQ: Activation-aware Weight Quantization, 2023, which searches scales by a layer's
        outputs for nearest rounding. https://arxiv.org/abs/2306.00978
    """

    needs_moments: ClassVar[bool] = True

    kind: str
    # Left out where nothing is searched for: recipes that are older than it keep their lineage to the byte.
    search: Annotated[int, Field(gt=0, le=1000, exclude_if=lambda count: count == 1)] = 1

    def fitted(
        self, weight: Tensor, held: Constraints, moments: InputHessian | None
    ) -> tuple[Tensor, Constraints]:
        """Return the weight on levels whose range was searched for, and its constraints then.

        Args:
            weight: Output channels first, as in a linear layer or a convolution.
            held: Levels, and maybe a mask and a range; only the levels' scale changes.
            moments: Of the layer's inputs, with a group for each of the layer's.

        Raises:
            ValueError: As `rounded`.
        """
        if self.search == 1:
            return self.rounded(weight, held, moments), held
        problem = self._equations(weight, moments, self._damped())
        # What damping draws to, and weights on inputs that are always zero, are no concern of the range.
        plain = self._equations(weight, moments, 0.0)
        found = self._on_levels(problem, weight, held)
        least, shares = _off(plain, found), torch.ones(len(found), device=found.device)
        for tried in range(1, self.search):
            share = torch.full_like(shares, 1 - tried / self.search)
            other = self._on_levels(problem, weight, _scaled(held, share))
            off = _off(plain, other)
            nearer = off < least if _by_row(held) else (off.sum() < least.sum()).expand_as(off)
            found = torch.where(nearer[:, None], other, found)
            least, shares = torch.where(nearer, off, least), torch.where(nearer, share, shares)
        return found.reshape(weight.shape), _scaled(held, shares)

    def rounded(self, weight: Tensor, held: Constraints, moments: InputHessian | None) -> Tensor:
        """Return the weight on its levels, at most with the error of nearest rounding in each row.

        Args:
            weight: Output channels first, as in a linear layer or a convolution.
            held: Levels, and maybe a mask and a range, that it has to satisfy.
            moments: Of the layer's inputs, with a group for each of the layer's.

        Returns:
            Float32 of the weight's shape; projecting it onto `held` changes nothing, to the bit.

        Raises:
            ValueError: There are no moments or no levels, shapes do not fit, or the Hessian is singular where
                its inverse is needed, and damping too small.
        """
        problem = self._equations(weight, moments, self._damped())
        return self._on_levels(problem, weight, held).reshape(weight.shape)

    def _equations(self, weight: Tensor, moments: InputHessian | None, damping: float) -> NormalEquations:
        if moments is None:
            raise ValueError(f"{self.kind} needs moments of the layer's inputs: give it images")
        return normal_equations(weight.detach().flatten(1), moments.hessian, moments.cross, damping)

    def _on_levels(self, problem: NormalEquations, weight: Tensor, held: Constraints) -> Tensor:
        """Return the rows [O, d] on their levels, in each row at most with the error of nearest rounding."""
        if held.levels is None:
            raise ValueError("The weight has no levels to round to; a scheme has to find them first")
        rows, written = weight.detach().flatten(1), per_element(held, weight.shape, weight.device)
        nearest = written.project(rows)
        # Damping adds the squared distance to the weight, of which nearest rounding has the least there is:
        # what is better with it is better without.
        return better(problem, self._solved(problem, rows, written, nearest), nearest)

    def _damped(self) -> float:
        """Return the share of the Hessian's mean diagonal that is added to its diagonal."""
        raise NotImplementedError

    def _solved(self, problem: NormalEquations, rows: Tensor, held: Constraints, nearest: Tensor) -> Tensor:
        """Return the rows [O, d] on levels that are written out for each element, by this method."""
        raise NotImplementedError


def _off(problem: NormalEquations, rows: Tensor) -> Tensor:
    """Return the error [O] of rows in what the layer puts out."""
    return errors(problem, torch.where(problem.dead, 0.0, rows))


def _by_row(held: Constraints) -> bool:
    assert held.levels is not None
    return held.levels.scale.dim() > 0


def _scaled(held: Constraints, shares: Tensor) -> Constraints:
    """Return the constraints with the scales of each row, or that of all, times its share [O]."""
    assert held.levels is not None
    scale = held.levels.scale
    each = shares.reshape(-1, *[1] * (scale.dim() - 1)) if _by_row(held) else shares[0]
    return replace(held, levels=replace(held.levels, scale=scale * each))
