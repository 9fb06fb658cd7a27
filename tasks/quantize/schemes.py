"""Which levels weights are rounded to: each scheme is one class, and the union names them for params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.constraints import Levels
from tasks.params import Section

Bits = Annotated[int, Field(ge=2, le=8)]


class Integer(Section):
    """Symmetric integers: w_q = round(w / step), with the step from the largest |w|.

    The levels are -(2^(b-1) - 1) ... 2^(b-1) - 1, so that zero is exact and pruned weights stay zero.
    Per channel each output channel has its own step. Below 4 bits the largest weight makes the step too
    coarse for all others: clip first, or fine-tune after.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, 2017. https://arxiv.org/abs/1712.05877
    """

    kind: Literal["integer"] = "integer"
    bits: Bits = 8
    per_channel: bool = True

    def levels(self, weight: Tensor, mask: Tensor | None = None) -> Levels:
        """Return 2^bits - 1 integer levels with a step per output channel [O, 1, ...], or one [].

        A channel of zeros gets the step 1: any step rounds it to zero.
        """
        top = 2 ** (self.bits - 1) - 1
        largest = weight.detach().abs()
        largest = largest.flatten(1).amax(1) if self.per_channel else largest.amax()
        return Levels(torch.arange(-top, top + 1).float(), _column(_positive(largest / top), weight))


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


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    """Return a scale per output channel in a shape that multiplies the weight; leave a single one alone."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale
