"""Curves in long form, for `dvc plots`: the same columns whatever is predicted."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from tasks.illustrate.reasons import Method, Shown
from tasks.illustrate.stable import Stable

DELETION = ("model", "ranking", "removed", "left")
CORRUPTIONS = ("model", "corruption", "measure", "strength", "value")
RELIABILITY = ("model", "confidence", "accuracy", "count")

Line = tuple[str | float, ...]


def deletion_csv(found: Sequence[Shown]) -> str:
    """Return what is left of the answer by model, method and share of features that are removed, as CSV."""
    return _csv(
        DELETION, ((each.reasons.model, *line) for each in found for line in _deletion(each.reasons.methods))
    )


def corruptions_csv(found: Sequence[Stable]) -> str:
    """Return each measure of corrupted examples by model, corruption and strength from 1 to 5, as CSV."""
    return _csv(CORRUPTIONS, (line for each in found for line in _corruptions(each)))


def reliability_csv(found: Sequence[Stable]) -> str:
    """Return accuracy and number of examples by model and mean confidence, as CSV; none but of classes."""
    rows = (
        (each.model, step.confidence, step.accuracy, step.count)
        for each in found
        for step in each.reliability
    )
    return _csv(RELIABILITY, rows)


def _csv(columns: Sequence[str], rows: Iterable[Line]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _deletion(methods: dict[str, Method]) -> Iterator[tuple[str, float, float]]:
    curves = {name: each.deletion for name, each in methods.items()}
    random = next((each.random_deletion for each in methods.values()), None)
    curves |= {} if random is None else {"random": random}
    for name, curve in curves.items():
        for at, left in enumerate(curve):
            yield name, round(at / (len(curve) - 1), 4), left


def _corruptions(found: Stable) -> Iterator[Line]:
    for kind, points in found.corruptions.items():
        for point in points:
            for measure, value in point.measures.items():
                yield found.model, kind, measure, point.strength, value
