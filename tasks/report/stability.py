"""What the stage `stability` says of a difference in accuracy: whether it is more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from decant.sealed import parsed, read_bytes, reading
from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.metrics import set_of

STABILITY = Path("stability")
KEY, SMALLEST = "mcnemar_p", "smallest_difference"
SURE = 0.05
"""A p-value of at most this is a difference."""

CHANCE = " (chance)"
"""What stands behind a change that is none."""

MEANING = "(chance) is no more than chance explains (exact McNemar, p above 0.05)"


def smallest_of(rows: Iterable[Mapping[str, float]]) -> str:
    """Return how large a difference in accuracy shows, as a sentence; empty where nobody knows."""
    found = sorted(100 * row[SMALLEST] for row in rows if SMALLEST in row)
    if not found:
        return ""
    return (
        "The smallest difference from the teacher's accuracy that this test split shows in four of five "
        f"cases: {found[0]:.2f} to {found[-1]:.2f} points, model by model."
    )


def is_by_chance(row: Mapping[str, float]) -> bool:
    """Say whether the accuracy of a model differs from its teacher's by no more than chance explains.

    Args:
        row: All numbers of the model. Other measures than accuracy have no such test.
    """
    return row.get(KEY, 0.0) > SURE and set_of(row).quality == "accuracy"


def chance_of(name: str) -> dict[str, float]:
    """Return the p-value of a model's accuracy and the smallest difference that shows, where measured.

    Raises:
        DecantError: The file is not the one that `stability` wrote.
    """
    path = STABILITY / f"{name}.json"
    if not path.exists():
        return {}
    stage = f"stability-{TEACHER}" if name == TEACHER else f"stability@{name}"
    with reading(path, f"run `dvc repro {stage}`"):
        content: Any = parsed(read_bytes(path))
        return {key: float(content[key]) for key in (KEY, SMALLEST) if key in content}
