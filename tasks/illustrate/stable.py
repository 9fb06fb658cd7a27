"""What the stage `stability` wrote of each model, as far as it is drawn: corruptions and confidence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from decant.schema import Section, mistakes
from decant.sealed import parsed, read_bytes, reading
from tasks.illustrate.reasons import TEACHER

STABILITY = Path("stability")


class Step(Section):
    """The examples of one interval of confidence."""

    confidence: float
    accuracy: float
    count: int


class Point(Section, extra="allow"):
    """One strength of a corruption: what stands beside it are the measures of these examples."""

    __pydantic_extra__: dict[str, float]
    strength: int
    amount: float

    @property
    def measures(self) -> dict[str, float]:
        """By their keys, such as `accuracy`."""
        return self.__pydantic_extra__


class Stable(Section):
    """Some entries of stability/<model>.details.json.

    Attributes:
        model: Its name.
        corruptions: By the corruption, a point for each strength.
        reliability: Empty where no classes are predicted.
    """

    model: str
    corruptions: dict[str, list[Point]] = Field(default_factory=dict)
    reliability: list[Step] = Field(default_factory=list)


def read(names: Iterable[str]) -> list[Stable]:
    """Return what is known of models, in their order.

    Raises:
        DecantError: A file is missing, or is not the one that `stability` wrote.
    """
    return [_details(name) for name in names]


def _details(name: str) -> Stable:
    path = STABILITY / f"{name}.details.json"
    stage = "stability-teacher" if name == TEACHER else f"stability@{name}"
    with reading(path, f"run `dvc repro {stage}`"):
        content = {
            key: value for key, value in parsed(read_bytes(path)).items() if key in Stable.model_fields
        }
        if wrong := mistakes(content, Stable):
            raise ValueError("; ".join(wrong))
    return Stable.model_validate(content)
