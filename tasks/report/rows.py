"""What is compared: one row for each model, from the files that other stages wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.checkpoints.lineage import read_beside, read_lineage
from decant.errors import DecantError, Message
from decant.sealed import parsed, read_bytes, reading
from tasks.pipeline.metrics import Metric, MetricSet, set_of
from tasks.report.stability import chance_of

METRICS = Path("metrics")
MODELS = Path("models")
TEACHER = "teacher"
LARGEST = 1 << 63
"""No count of anything here is larger."""


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        name: As in params.yaml, or `teacher`.
        operations: What made it, from the teacher's training to the last step.
        metrics: All of one set, fractions in [0, 1], bytes, nats, bits; and what `stability` says of the
            accuracy's difference from the teacher's, where there is such.
    """

    name: str
    operations: tuple[str, ...]
    metrics: dict[str, float]

    @property
    def measured(self) -> MetricSet:
        """The set that the metrics are of."""
        return set_of(self.metrics)

    @property
    def quality(self) -> float:
        """What is drawn against the size: the accuracy, or what takes its place."""
        return self.metrics[self.measured.quality]

    @property
    def operation(self) -> str:
        """The last step; what colours the picture."""
        return self.operations[-1]

    @property
    def chain(self) -> str:
        """Every step, such as `teacher → prune → quantize`."""
        return " → ".join(self.operations)


def read_rows(names: Iterable[str]) -> list[ModelRow]:
    """Return a row for each model, the largest first; equal ones by name.

    Raises:
        DecantError: A model has no metrics or no lineage, or they lack a number; or models are measured by
            different things.
    """
    rows = [ModelRow(name, _operations(name), read_metrics(name) | chance_of(name)) for name in names]
    by_quality = {row.measured.quality: row.name for row in rows}
    if len(by_quality) > 1:
        found = ", ".join(f"{name} by its {quality}" for quality, name in by_quality.items())
        raise DecantError(
            f"Models are measured by different things: {found}; run `dvc repro` for all of them"
        )
    return sorted(rows, key=lambda row: (-row.metrics["size_bytes"], row.name != TEACHER, row.name))


def read_curves(names: Iterable[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the epochs of every model that was trained, one after another, numbers as they were written.

    Args:
        names: Of the models.
        columns: What is read of each.

    Raises:
        DecantError: A curve is not the one that was written, or lacks a column.
    """
    curves = []
    for name in names:
        text = read_beside(MODELS / name, "curve.csv")
        if text is None:  # clipped, pruned or quantized: nothing was trained
            continue
        lines = list(csv.DictReader(text.splitlines()))
        missing = [column for column in columns if not all(line.get(column) for line in lines)]
        if missing:
            path = MODELS / name / "curve.csv"
            raise DecantError(f"{path} lacks the columns {', '.join(missing)}; {_rebuild(name)}")
        curves += [{"model": name, **{column: line[column] for column in columns}} for line in lines]
    return curves


def pareto_front(rows: Sequence[ModelRow]) -> set[str]:
    """Return the names of the models that no other beats in quality and size.

    Beaten is whoever meets another that is at least as accurate and at most as large, and not equal in both.
    """
    points = {row.name: (row.quality, -row.metrics["size_bytes"]) for row in rows}
    return {
        name
        for name, (quality, smallness) in points.items()
        if not any(
            q >= quality and s >= smallness and (q, s) != (quality, smallness) for q, s in points.values()
        )
    }


def read_metrics(name: str) -> dict[str, float]:
    """Return all numbers of a model.

    Raises:
        DecantError: There are none, or one is missing or out of its range.
    """
    path = METRICS / f"{name}.json"
    with reading(path, _reevaluate(name)):
        content = parsed(read_bytes(path))
    found = content if isinstance(content, dict) else {}
    metrics = set_of(found).of(found)
    wrong = [
        m.key for m in metrics if not (isinstance(content, dict) and _is_possible(m, content.get(m.key)))
    ]
    if wrong:
        raise DecantError(f"{path} has no number in its range for {', '.join(wrong)}; {_reevaluate(name)}")
    return {metric.key: content[metric.key] for metric in metrics}


def _operations(name: str) -> tuple[str, ...]:
    operations = tuple(step.get("op") for step in read_lineage(MODELS / name).lineage.steps)
    if not operations or not all(isinstance(operation, str) for operation in operations):
        path = MODELS / name / "lineage.json"
        raise DecantError(f"{path} does not name the steps that made the model; {_rebuild(name)}")
    return tuple(map(str, operations))


def _is_possible(metric: Metric, value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if metric.key == "ratio" and value == 0:  # it is printed, and drawn, as a ratio
        return False
    return metric.least <= value <= min(metric.most, LARGEST)


def _reevaluate(name: str) -> Message:
    stage = "evaluate-teacher" if name == TEACHER else f"evaluate@{name}"
    return f"run `dvc repro {stage}`"


def _rebuild(name: str) -> Message:
    stage = TEACHER if name == TEACHER else f"compress@{name}"
    return f"run `dvc repro -f {stage}`"
