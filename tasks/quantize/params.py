"""The block of a model with `op: quantize`."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from tasks.params import Block, Section
from tasks.quantize.schemes import Bits, Scheme


class Activations(Section):
    """How the inputs of layers are rounded: affine, per tensor, ranges from training images."""

    bits: Bits = 8
    images: PositiveInt = 1000


class QuantizeParams(Block):
    """The levels of the weights, and of the activations where they are rounded too."""

    op: Literal["quantize"]
    scheme: Scheme
    activations: Activations | None = None
    skip: tuple[str, ...] = ()
