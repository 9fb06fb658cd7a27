"""The block of a model with `op: quantize`."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from tasks.grids import Bits
from tasks.params import Block, Section
from tasks.quantize.schemes import Scheme, check_width
from tasks.ranges import MinMax, Ranges


class Activations(Section):
    """How the inputs of layers are rounded: affine, per tensor, ranges from training images."""

    bits: Bits = 8
    images: PositiveInt = 1000
    range: Ranges = MinMax()

    @model_validator(mode="after")
    def _fitting(self) -> Activations:
        check_width(self.range, self.bits)
        if self.range.per_channel:
            raise ValueError(
                "range.per_channel: inputs are rounded per tensor; clip them per channel first, "
                "with `op: clip` and `target: activations`"
            )
        return self


class QuantizeParams(Block):
    """The levels of the weights, and of the activations where they are rounded too."""

    op: Literal["quantize"]
    scheme: Scheme
    activations: Activations | None = None
    skip: tuple[str, ...] = ()
