"""Which levels weights are rounded to: each scheme is one class, and the union names them for params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tasks.constraints import Levels
from tasks.grids import Bits, symmetric_levels
from tasks.params import Section
from tasks.ranges import Best, Fitted, MinMax, Ranges


class Integer(Section):
    """Symmetric integers: w_q = round(w / step), with the step from the largest size in `range`.

    The levels are -(2^(b-1) - 1) ... 2^(b-1) - 1, so that zero is exact and pruned weights stay zero.
    Per channel each output channel has its own range and step. Below 4 bits the largest weight, which is
    where `min-max` ends, makes the step too coarse for all others: take a narrower range, or fine-tune after.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, 2017. https://arxiv.org/abs/1712.05877
    """

    kind: Literal["integer"] = "integer"
    bits: Bits = 8
    per_channel: bool = True
    range: Ranges = MinMax()

    @model_validator(mode="after")
    def _fitting(self) -> Integer:
        check_width(self.range, self.bits)
        if self.range.per_channel and not self.per_channel:
            raise ValueError("range.per_channel: one step for the tensor needs one range for it")
        return self

    def levels(self, weight: Tensor, mask: Tensor | None = None) -> Levels:
        """Return 2^bits - 1 integer levels with a step per output channel [O, 1, ...], or one [].

        A channel of zeros gets the step 1: any step rounds it to zero.

        Raises:
            ValueError: A weight is NaN or infinite; or the range is `best`, which has to be chosen first.
        """
        reach = self.range.reach(weight, mask, self.bits, per_channel=self.per_channel)
        return symmetric_levels(reach, self.bits)


class Binary(Section):
    """Signs with a scale per output channel: w_q = alpha * sign(w), alpha = mean |w|, sign(0) = 1.

    The alpha is the one that leaves the least squared error. Weights that a mask holds at zero stay zero and
    do not count into alpha. Loses most of the accuracy without fine-tuning after it.

    References:
        Rastegari et al., XNOR-Net, 2016, section 3.1. https://arxiv.org/abs/1603.05279
    """

    kind: Literal["binary"] = "binary"

    def levels(self, weight: Tensor, mask: Tensor | None = None) -> Levels:
        """Return the levels -1 and 1 with a scale per output channel [O, 1, ...]."""
        kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        size = (weight.detach().abs().double() * kept).flatten(1)
        alpha = size.sum(1) / kept.flatten(1).sum(1).clamp(min=1)
        return Levels(torch.tensor([-1.0, 1.0]), _column(_positive(alpha.float()), weight))


Scheme = Annotated[Integer | Binary, Field(discriminator="kind")]


def check_width(span: Ranges, bits: int) -> None:
    """Refuse a range that is made for another number of bits than those that are rounded to."""
    if isinstance(span, Fitted | Best) and span.bits not in (None, bits):
        raise ValueError(f"range.bits: {span.bits} is not the {bits} of the grid; leave it out")


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    """Return a scale per output channel in a shape that multiplies the weight; leave a single one alone."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale
