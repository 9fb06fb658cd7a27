"""What other stages say of a model beside its metrics: stability/ and explain/, where they have run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decant.errors import DecantError
from decant.sealed import parsed, read_bytes, reading

STABILITY, EXPLAIN = Path("stability"), Path("explain")
LARGEST = 1 << 26
"""Most bytes of a file of details."""


@dataclass(frozen=True)
class Evidence:
    """The figures of one stage on one model.

    Attributes:
        figures: Flat numbers by their keys, as `dvc metrics` has them.
        details: Curves and tables; empty where there are none.
        problem: A sentence where a file is there and cannot be read.
    """

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_evidence(folder: Path, name: str) -> Evidence:
    """Return what a stage wrote of a model; nothing where it has not run."""
    figures, details = folder / f"{name}.json", folder / f"{name}.details.json"
    try:
        return Evidence(_numbers(_mapping(figures, name)), _mapping(details, name))
    except DecantError as error:
        return Evidence(problem=str(error))


def corruptions(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a point for each corruption and strength, in long form, where both are numbers."""
    found = details.get("corruptions")
    return [
        {"corruption": str(name), "strength": point["strength"], "accuracy": point["accuracy"]}
        for name, points in (found.items() if isinstance(found, dict) else ())
        for point in (points if isinstance(points, list) else ())
        if _has_numbers(point, "strength", "accuracy")
    ]


def reliability(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the bins of the reliability curve that hold examples."""
    found = details.get("reliability")
    return [
        {"confidence": point["confidence"], "accuracy": point["accuracy"], "count": point["count"]}
        for point in (found if isinstance(found, list) else ())
        if _has_numbers(point, "confidence", "accuracy", "count") and point["count"]
    ]


def _mapping(path: Path, name: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    with reading(path, f"run `dvc repro {path.parent}@{name}`"):
        content = parsed(read_bytes(path, LARGEST))
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, found {type(content).__name__}")
        return content


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in content.items() if is_number(value)}


def is_number(value: Any) -> bool:
    """Say whether it is one that JSON can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _has_numbers(point: Any, *keys: str) -> bool:
    return isinstance(point, dict) and all(is_number(point.get(key)) for key in keys)
