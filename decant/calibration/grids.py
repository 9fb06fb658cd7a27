"""The integer grids: symmetric around zero, or affine over a range, for weights and the inputs of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from decant.checkpoints.constraints import Levels, Range
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from decant.checkpoints.activations import Grid, InputGrid

Bits = Annotated[int, Field(ge=2, le=8)]

TINY = 1e-30


def symmetric_levels(threshold: Tensor, bits: int, group: int | None = None) -> Levels:
    """Return 2^bits - 1 integer levels from -threshold to threshold, so that zero is one of them.

    Args:
        threshold: The largest level, not negative, float32: one [], one for each output channel
            [O, 1, ...], or one for each group [O, G]. Where it is zero the step is 1: any step rounds zeros
            to zero.
        bits: Width of a code.
        group: How many neighbours of a row share a step, where `threshold` is by group.
    """
    top = 2 ** (bits - 1) - 1
    step = threshold / top
    return Levels(torch.arange(-top, top + 1).float(), torch.where(step > 0, step, 1.0), group=group)


def affine_levels(low: Tensor, high: Tensor, bits: int, group: int | None = None) -> Levels:
    """Return 2^bits integer levels over [low, high], one of which is exactly 0: the zero point.

    The zero point is rounded to a whole number, which shifts the ends by up to half a step.

    Args:
        low: The least level, not positive, float32, of a shape as in `symmetric_levels`.
        high: The largest level, not negative, of the same shape. Where both are zero the step is 1.
        bits: Width of a code.
        group: How many neighbours of a row share a step, where the ends are by group.

    References:
        Jacob et al., 2017, section 2.1. https://arxiv.org/abs/1712.05877
    """
    top = 2**bits - 1
    step = ((high.double() - low.double()) / top).float()
    step = torch.where(step < TINY, 1.0, step)
    zero_point = torch.round(-low / step).clamp(0, top)
    return Levels(torch.arange(top + 1).float(), step, zero_point, group)


def affine_grid(low: float, high: float, bits: int) -> InputGrid:
    """Return the grid of 2^bits points over [low, high], widened to hold 0, which it represents exactly.

    Raises:
        ValueError: The range is empty or not finite.

    References:
        Jacob et al., 2017, section 2.1. https://arxiv.org/abs/1712.05877
    """
    from decant.checkpoints.activations import InputGrid

    if not (torch.isfinite(torch.tensor([low, high])).all() and low <= high):
        raise ValueError(f"A range of inputs must be finite and ordered, got [{low}, {high}]")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    if scale < TINY:  # constant inputs, or so near to it that 1 / scale is infinite in float32
        scale = 1.0
    return InputGrid(bits, torch.tensor(scale, dtype=torch.float32).item(), round(-low / scale))


def check_apart(layer: str, seen: Range, clamp: Range | None, grid: Grid | None) -> None:
    """Refuse to cut and round inputs so that all those that were seen become one number.

    Args:
        layer: Whose inputs they are.
        seen: From the least to the largest input.
        clamp: What inputs are cut to, where they are.
        grid: What they are rounded on after that, where they are.

    Raises:
        ValueError: Names the layer and the number.
    """
    from decant.checkpoints.activations import RecurrentGrid

    ends = torch.tensor(seen.ends())
    left = ends if clamp is None else ends.clamp(*clamp.ends())
    left = left if grid is None or isinstance(grid, RecurrentGrid) else grid(left)
    if ends[0] < ends[1] and left[0] == left[1]:
        raise ValueError(
            f"inputs of {layer}, which lie in {seen.describe()}, would all be {left[0]:.3g}; take a wider "
            f"range, or more bits"
        )
