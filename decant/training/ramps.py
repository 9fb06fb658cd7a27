"""Numbers of a recipe that change while a network is trained: a temperature, a weight, a share."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from decant.schema import Fraction, NotNegative, Positive, Section


class Ramp(Section):
    """A number that goes from `start` to `end` while a network is trained, and stays there.

    Attributes:
        until: The share of all steps after which it is at its end.
        shape: `linear`, or `cosine`, which is slow at both ends.
    """

    start: NotNegative
    end: NotNegative
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """Return the number at `progress` in [0, 1] of all steps."""
        share = min(progress / self.until, 1.0)
        share = (1 - math.cos(math.pi * share)) / 2 if self.shape == "cosine" else share
        return self.start + share * (self.end - self.start)


def _positive(ramp: Ramp) -> Ramp:
    if not min(ramp.start, ramp.end):
        raise ValueError(f"start and end must be greater than 0, got {ramp.start:g} and {ramp.end:g}")
    return ramp


def _fraction(ramp: Ramp) -> Ramp:
    if max(ramp.start, ramp.end) > 1:
        raise ValueError(f"start and end must be at most 1, got {ramp.start:g} and {ramp.end:g}")
    return ramp


def _form(value: Any) -> str:
    return "ramp" if isinstance(value, dict | Ramp) else "number"


PositiveOrRamp = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Ramp, AfterValidator(_positive), Tag("ramp")],
    Discriminator(_form),
]
WeightOrRamp = Annotated[
    Annotated[NotNegative, Tag("number")] | Annotated[Ramp, Tag("ramp")], Discriminator(_form)
]
FractionOrRamp = Annotated[
    Annotated[Fraction, Tag("number")] | Annotated[Ramp, AfterValidator(_fraction), Tag("ramp")],
    Discriminator(_form),
]


def at(number: float | Ramp, progress: float) -> float:
    """Return a number of a recipe at `progress` in [0, 1] of all steps."""
    return number.at(progress) if isinstance(number, Ramp) else number


def largest(number: float | Ramp) -> float:
    """Return the largest value that a number of a recipe takes."""
    return max(number.start, number.end) if isinstance(number, Ramp) else number
