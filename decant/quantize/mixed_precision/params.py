"""What a recipe says of mixed precision: a budget, and the widths that layers may have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from decant.calibration.grids import Bits
from decant.schema import Amount, Section, ValidationImages


class WidthBudget(Section):
    """What the quantized model may have: exactly one of these.

    A number below 1 is a share of what the teacher has in float32, and one above a count.

    Attributes:
        bytes: On disk, of all that rebuilds the function.
        bit_operations: Multiplications of convolutions and linear layers for one image, each times the bits
            of its weight and the bits of its input; 32 where they are not rounded.
    """

    bytes: Amount | None = None
    bit_operations: Amount | None = None

    @model_validator(mode="after")
    def _one(self) -> WidthBudget:
        if len(given := [name for name in type(self).model_fields if getattr(self, name) is not None]) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}, got {found}")
        if self.amount == 1 or (self.amount > 1 and self.amount != int(self.amount)):
            raise ValueError(
                f"{self.measure} is a share below 1 or a whole number above, got {self.amount:g}"
            )
        return self

    @property
    def measure(self) -> str:
        """Which one it is."""
        return "bit_operations" if self.bytes is None else "bytes"

    @property
    def amount(self) -> float:
        """The number as it stands in params.yaml."""
        amount: float = getattr(self, self.measure)
        return amount

    def limit(self, whole: int) -> int:
        """Return the most that is allowed, where `whole` is what the teacher has."""
        return int(self.amount * whole if self.amount < 1 else self.amount)


class Mixed(Section):
    """Give each layer a width of its own: those that cost the answers least, within a budget for all.

    The cost of a layer at a width is how far the outputs are from the unrounded network's (of classes the KL
    divergence of the logits, else the squared error over the outputs' variance), on
    `images` validation images, when that layer alone is rounded so. The sum of the costs is least, exactly.
    Costs a rounding and a pass over the images for each layer and width.

    Does not help where layers hardly differ, as at 6 bits and more, nor where one layer holds nearly all
    weights: there is nothing to trade. At 2 bits everywhere the sum says little, as errors add up otherwise.

    References:
        Yao et al., HAWQ-V3, 2020 (sensitivities and bit operations in an integer programme).
        https://arxiv.org/abs/2011.10680
        Chen et al., Towards Mixed-Precision Quantization of Neural Networks via Constrained Optimization,
        2021 (the same as a knapsack problem). https://arxiv.org/abs/2110.06554
    """

    budget: WidthBudget
    bits: Annotated[tuple[Bits, ...], Field(min_length=2)] = (2, 3, 4, 5, 6, 8)
    images: ValidationImages = 1000

    @field_validator("bits")
    @classmethod
    def _distinct(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(bits)) < len(bits):
            raise ValueError(f"names each width once, got {[*bits]}")
        return tuple(sorted(bits))
