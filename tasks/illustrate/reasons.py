"""What is drawn: each model's explanations of the first examples, as the stage `explain` wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from decant.schema import Section, mistakes
from decant.sealed import parsed, read_bytes, reading

EXPLAIN, TEACHER = Path("explain"), "teacher"

Numbers = list[float]


class Method(Section):
    """What is known of one method on one model."""

    kept: float
    floor: float
    top_k: float
    top_k_floor: float
    deletion: Numbers
    insertion: Numbers
    random_deletion: Numbers
    random_insertion: Numbers


class Example(Section):
    """One example: where it stands in the test split, what is explained of it, and by which features."""

    row: int
    attributions: dict[str, Numbers]
    label: str = Field("", alias="class")
    image: list[Numbers] = Field(default_factory=list)


class Reasons(Section):
    """explain/<model>.details.json."""

    model: str
    methods: dict[str, Method]
    examples: list[Example]
    unexplained: str = ""
    runtime: str = ""
    examples_explained: int = 0
    features: int = 0
    above_floor: dict[str, float] = Field(default_factory=dict)
    layout: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Shown:
    """One model.

    Attributes:
        reasons: Its explanations.
        kept: How far they are the teacher's, in [-1, 1]; None where there are none.
    """

    reasons: Reasons
    kept: float | None


def read(names: Iterable[str]) -> list[Shown]:
    """Return the explanations of models: the teacher's first, then by how far they are the teacher's.

    Raises:
        DecantError: A file is missing, or is not the one that `explain` wrote.
    """
    found = [Shown(_details(name), _kept(name)) for name in names]
    return sorted(
        found, key=lambda each: (each.reasons.model != TEACHER, -(each.kept or 0), each.reasons.model)
    )


def _details(name: str) -> Reasons:
    path = EXPLAIN / f"{name}.details.json"
    with reading(path, _remedy(name)):
        content = parsed(read_bytes(path))
        if wrong := mistakes(content, Reasons):
            raise ValueError("; ".join(wrong))
    return Reasons.model_validate(content)


def _kept(name: str) -> float | None:
    path = EXPLAIN / f"{name}.json"
    with reading(path, _remedy(name)):
        content: Any = parsed(read_bytes(path))
        found = content.get("explanations_kept")
        return None if found is None else float(found)


def _remedy(name: str) -> str:
    return f"run `dvc repro {'explain-teacher' if name == TEACHER else f'explain@{name}'}`"
