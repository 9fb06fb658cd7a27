"""What other stages say of a model beside its metrics: stability/ and explain/, where they have run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decant.errors import DecantError
from decant.sealed import parsed, read_bytes, reading
from tasks.pipeline.lineages import TEACHER

STABILITY, EXPLAIN = Path("stability"), Path("explain")
QUALITIES = {"classes": "accuracy", "labels": "micro_f1", "numbers": "mae", "same": "cosine"}
"""What stability measures of corrupted examples, by the kind of target."""

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


@dataclass(frozen=True)
class Table:
    """A small table of a card: its title, its heads, and its rows of texts."""

    title: str
    heads: tuple[str, ...]
    rows: list[list[str]]


def read_evidence(folder: Path, name: str) -> Evidence:
    """Return what a stage wrote of a model; nothing where it has not run."""
    figures, details = folder / f"{name}.json", folder / f"{name}.details.json"
    try:
        return Evidence(_numbers(_mapping(figures, name)), _mapping(details, name))
    except DecantError as error:
        return Evidence(problem=str(error))


def corruptions(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a point for each corruption and strength, in long form, where both are numbers.

    Its value is the one of `QUALITIES` that the details have.
    """
    key, found = quality(details), details.get("corruptions")
    return [
        {"corruption": str(name), "strength": point["strength"], "value": point[key]}
        for name, points in (found.items() if isinstance(found, dict) else ())
        for point in (points if isinstance(points, list) else ())
        if _has_numbers(point, "strength", key)
    ]


def quality(details: Mapping[str, Any]) -> str:
    """Return which quality the details have of corrupted examples: that of the target."""
    kind = details.get("target")
    return QUALITIES.get(kind, "accuracy") if isinstance(kind, str) else "accuracy"


def reliability(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the bins of the reliability curve that hold examples."""
    found = details.get("reliability")
    return [
        {"confidence": point["confidence"], "accuracy": point["accuracy"], "count": point["count"]}
        for point in (found if isinstance(found, list) else ())
        if _has_numbers(point, "confidence", "accuracy", "count") and point["count"]
    ]


def deletion(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is left of the answer while features are removed, by method, and by chance as `random`."""
    curves: dict[str, Any] = {}
    for name, method in _methods(details).items():
        curves[name] = method.get("deletion")
        curves["random"] = method.get("random_deletion")
    return [
        {"method": name, "share": index / (len(curve) - 1), "answer": answer}
        for name, curve in curves.items()
        if isinstance(curve, list) and len(curve) > 1 and all(map(is_number, curve))
        for index, answer in enumerate(curve)
    ]


def verdicts(details: Mapping[str, Any]) -> list[str]:
    """Return what stability says of differences from the teacher: a sentence each, chance considered."""
    titles = {"difference": "Accuracy", "mean_corruption_error": "Under corruptions", "seeds": "Over seeds"}
    found = {title: details.get(key) for key, title in titles.items()}
    return [
        f"{title}: {each['verdict']}."
        for title, each in found.items()
        if isinstance(each, dict) and isinstance(each.get("verdict"), str)
    ]


def notes(details: Mapping[str, Any]) -> list[str]:
    """Return what a stage says that it left out, and why."""
    found = details.get("left_out")
    every = [*(found if isinstance(found, list) else ()), details.get("unexplained")]
    return [each for each in every if isinstance(each, str)]


def methods(details: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each method of explanation: its name and its numbers, as `METHOD` names them."""
    return table([{"method": name, **method} for name, method in _methods(details).items()], METHOD)


def table(rows: Any, keys: Mapping[str, str]) -> list[list[str]]:
    """Return rows of a list of mappings as texts, where they have all of the keys.

    Args:
        rows: Of a file of details.
        keys: Which entries, and how each number is written; an empty form is for words.
    """
    return [
        [format(row[key], form) if form else str(row[key]) for key, form in keys.items()]
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict)
        and all(is_number(row.get(key)) if form else key in row for key, form in keys.items())
    ]


METHOD = {"method": "", "kept": ".3f", "floor": ".3f", "top_k": ".3f", "top_k_floor": ".3f"}
CLASSES = {"class": "", "teacher": ".2%", "accuracy": ".2%", "low": ".2%", "high": ".2%", "p": ".2g"}
FLIPS = {"from": "", "to": "", "count": ",.0f"}
EXAMPLES = {"index": ".0f", "label": "", "teacher": "", "model": "", "kl": ".3f"}
MOST_ROWS = 10
"""Of flips and of examples that changed most."""


def tables(stability: Mapping[str, Any], explanations: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Return the tables of a card: of stability, and of explanations; those without rows are left out."""
    found = {
        "stability": [
            Table(
                "Classes",
                ("class", "teacher", "here", "from", "to", "p (Holm)"),
                table(stability.get("classes"), CLASSES),
            ),
            Table("Flips", ("from", "to", "examples"), table(stability.get("flips"), FLIPS)[:MOST_ROWS]),
            Table(
                "Examples that changed most",
                ("index", "label", "teacher", "here", "KL"),
                table(stability.get("examples"), EXAMPLES)[:MOST_ROWS],
            ),
        ],
        "explanations": [
            Table("Methods", ("method", "kept", "floor", "top k", "its floor"), methods(explanations)),
        ],
    }
    return {kind: [each for each in listed if each.rows] for kind, listed in found.items()}


def _methods(details: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = details.get("methods")
    return (
        {str(name): each for name, each in found.items() if isinstance(each, dict)}
        if isinstance(found, dict)
        else {}
    )


def _mapping(path: Path, name: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    with reading(path, f"run `dvc repro {path.parent}{'-' if name == TEACHER else '@'}{name}`"):
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
