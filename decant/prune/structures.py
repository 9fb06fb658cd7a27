"""What may be removed: single weights, N of M, blocks, channels. Each structure is one class.

Scores of weights that are removed already are minus infinity, so that they are the first to count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from decant.lazy import torch
from decant.prune.channels.structure import Channels
from decant.schema import Count, Section

if TYPE_CHECKING:
    from torch import Tensor


class Weights(Section):
    """Single weights, wherever they are: the most accuracy for a size on disk.

    Does not help speed: kernels multiply single zeros like any other weight.
    """

    kind: Literal["weights"] = "weights"

    @property
    def size(self) -> int:
        """Weights in one unit."""
        return 1

    def refuses(self, shape: Sequence[int]) -> str:
        """Return why a weight of this shape cannot be pruned so; empty where it can."""
        return ""

    def pool(self, score: Tensor) -> Tensor:
        """Return the scores [U] of the units of a weight, from the scores of its elements."""
        return score.flatten()

    def mask(self, score: Tensor, removed: int) -> Tensor:
        """Return the mask [score's shape], False for the `removed` units of the lowest score."""
        return lowest(score.flatten(), removed).logical_not().reshape(score.shape)

    def broken_by(self, mask: Tensor, earlier: Tensor) -> str:
        """Return what is wrong with a mask, given the parent's: never anything, as single weights go."""
        return ""


class Blocks(Section):
    """Blocks of `rows` x `columns` weights of the matrix [outputs, inputs * kernel], removed as one.

    Helps kernels that work on blocks. Does not help accuracy beside single weights of the same number, and
    the larger the block, the less. A layer that the block does not divide is left alone.

    References:
        Narang et al., Block-Sparse Recurrent Neural Networks, 2017. https://arxiv.org/abs/1711.02782
    """

    kind: Literal["blocks"] = "blocks"
    rows: Count = 1
    columns: Count = 4

    @property
    def size(self) -> int:
        """Weights in one unit."""
        return self.rows * self.columns

    def refuses(self, shape: Sequence[int]) -> str:
        """Return why a weight of this shape cannot be pruned so; empty where it can."""
        rows, columns = shape[0], math.prod(shape[1:])
        if rows % self.rows == 0 and columns % self.columns == 0:
            return ""
        return f"{rows} x {columns} weights are no whole number of {self.rows} x {self.columns} blocks"

    def pool(self, score: Tensor) -> Tensor:
        """Return the sum of the scores [U] of each block, row by row, without what is removed already."""
        rows, columns = score.shape[0] // self.rows, score[0].numel() // self.columns
        blocks = score.reshape(rows, self.rows, columns, self.columns)
        alive = torch.isfinite(blocks)
        sums = torch.where(alive, blocks, 0.0).sum((1, 3))
        return torch.where(alive.any(3).any(1), sums, -math.inf).flatten()

    def mask(self, score: Tensor, removed: int) -> Tensor:
        """Return the mask [score's shape], False for the `removed` blocks of the lowest score."""
        rows, columns = score.shape[0] // self.rows, score[0].numel() // self.columns
        kept = lowest(self.pool(score), removed).logical_not().reshape(rows, 1, columns, 1)
        return kept.expand(rows, self.rows, columns, self.columns).reshape(score.shape)

    def broken_by(self, mask: Tensor, earlier: Tensor) -> str:
        """Return what is wrong with a mask, given the parent's: blocks that lost a part of their weights."""
        left, had = self.pool(mask.double()), self.pool(earlier.double())
        parts = int(((left > 0) & (left < had)).sum())
        return f"{parts} of {len(left)} blocks have lost some of their weights and not all" if parts else ""


class NOfM(Section):
    """Keep the best `n` of each `m` consecutive inputs: the pattern that sparse tensor cores multiply.

    Consecutive along the input channels, at each place of a convolution's kernel by itself, which is how
    such hardware reads a weight. A layer whose input channels are no multiple of m, such as one that sees a
    picture of one colour, is left alone. The sparsity is 1 - n/m and needs no budget. Does not help on
    processors without instructions for it.

    References:
        Mishra et al., Accelerating Sparse Deep Neural Networks, 2021. https://arxiv.org/abs/2104.08378
    """

    kind: Literal["n-of-m"] = "n-of-m"
    n: Count = 2
    m: Count = 4

    @model_validator(mode="after")
    def _fewer(self) -> NOfM:
        if self.n >= self.m:
            raise ValueError(f"n must be below m, got {self.n} of {self.m}, which removes nothing")
        return self

    @property
    def size(self) -> int:
        """Weights in one unit."""
        return 1

    def refuses(self, shape: Sequence[int]) -> str:
        """Return why a weight of this shape cannot be pruned so; empty where it can."""
        if shape[1] % self.m == 0:
            return ""
        return f"{shape[1]} input channels are no multiple of {self.m}"

    def pool(self, score: Tensor) -> Tensor:
        """Return the scores [U] of single weights."""
        return score.flatten()

    def fixed(self, shape: Sequence[int]) -> int:
        """Return how many weights the pattern removes."""
        return math.prod(shape) // self.m * (self.m - self.n)

    def mask(self, score: Tensor, removed: int) -> Tensor:
        """Return the mask [score's shape]; as many are False in each m, so `removed` is rounded up to that.

        `score` may be a weight [O, I, ...].
        """
        groups = score.numel() // self.m
        zeros = min(-(-removed // groups), self.m - self.n)
        last = score.movedim(1, -1)
        ranked = last.reshape(-1, self.m)
        # Of equal scores the later one goes first, as everywhere.
        order = ranked.flip(1).argsort(dim=1, stable=True)
        kept = torch.ones_like(ranked, dtype=torch.bool)
        kept.scatter_(1, self.m - 1 - order[:, :zeros], False)
        return kept.reshape(last.shape).movedim(-1, 1).contiguous()

    def broken_by(self, mask: Tensor, earlier: Tensor) -> str:
        """Return what is wrong with a mask, given the parent's: groups of m that keep more than n."""
        left = mask.movedim(1, -1).reshape(-1, self.m).sum(1)
        full = int((left > self.n).sum())
        return f"{full} of {len(left)} groups of {self.m} keep more than {self.n}" if full else ""


Structure = Annotated[Weights | Blocks | NOfM | Channels, Field(discriminator="kind")]
Masked = Weights | Blocks | NOfM
"""The structures that leave the shapes alone."""


def removal_order(scores: Tensor) -> Tensor:
    """Return the places [N], int64, of scores [N] from the lowest on; of equal ones the later goes first."""
    return len(scores) - 1 - scores.flip(0).argsort(stable=True)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return True for the `count` lowest of scores [N], exactly; of equal ones the later goes first."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[removal_order(scores)[:count]] = True
    return chosen


def zeros_after(structure: Masked, score: Tensor) -> Tensor:
    """Return how many weights are zero [U + 1], int64, once 0, 1, ... U units of a weight are removed.

    Those whose score is minus infinity are zero from the start. A unit that is partly so adds only the rest.
    """
    alive = torch.isfinite(score)
    added = structure.pool(alive.double()).long()[removal_order(structure.pool(score))]
    return int((~alive).sum()) + torch.cat([torch.zeros(1, dtype=torch.long), added.cumsum(0)])


def mask_along(structure: Masked, score: Tensor, removed: int, axis: int) -> Tensor:
    """Return the mask of a weight whose output channels are this dimension of its own."""
    return structure.mask(score.movedim(axis, 0), removed).movedim(0, axis).contiguous()


def split(structure: Masked, shapes: Mapping[str, Sequence[int]]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the weights that can be pruned so, by their shapes, and why each other cannot.

    Args:
        structure: What goes together.
        shapes: [O, I, ...], the outputs in front.
    """
    refused = {name: structure.refuses(shape) for name, shape in shapes.items()}
    return [n for n, reason in refused.items() if not reason], {n: w for n, w in refused.items() if w}
