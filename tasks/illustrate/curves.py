"""Deletion curves in long form, for `dvc plots`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from tasks.illustrate.reasons import Method, Shown

COLUMNS = ("model", "ranking", "removed", "left")


def curves_csv(found: Sequence[Shown]) -> str:
    """Return what is left of the answer by model, method and share of features that are removed, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in found:
        writer.writerows((each.reasons.model, *line) for line in _lines(each.reasons.methods))
    return text.getvalue()


def _lines(methods: dict[str, Method]) -> Iterator[tuple[str, float, float]]:
    curves = {name: each.deletion for name, each in methods.items()}
    random = next((each.random_deletion for each in methods.values()), None)
    curves |= {} if random is None else {"random": random}
    for name, curve in curves.items():
        for at, left in enumerate(curve):
            yield name, round(at / (len(curve) - 1), 4), left
