"""What is compared: one row for each model, from the files that other stages wrote."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import DecantError

METRICS = Path("metrics")
MODELS = Path("models")
TEACHER = "teacher"
MEASURES = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "nll",
    "calibration_error",
    "agreement",
    "size_bytes",
    "ratio",
    "parameters",
    "nonzeros",
    "macs",
    "sparsity",
    "bits_per_weight",
)
CURVE = ("epoch", "loss", "validation_loss", "accuracy", "validation_accuracy")


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        name: As in params.yaml, or `teacher`.
        operations: What made it, from the teacher's training to the last step.
        metrics: `MEASURES`, fractions in [0, 1], bytes, nats, bits.
    """

    name: str
    operations: tuple[str, ...]
    metrics: dict[str, float]

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
        DecantError: A model has no metrics or no lineage, or they lack a number.
    """
    rows = [ModelRow(name, _operations(name), _metrics(name)) for name in names]
    return sorted(rows, key=lambda row: (-row.metrics["size_bytes"], row.name != TEACHER, row.name))


def read_curves(names: Iterable[str]) -> list[dict[str, str]]:
    """Return the epochs of every model that was trained, one after another, numbers as they were written.

    Raises:
        DecantError: A curve lacks a column.
    """
    curves = []
    for name in names:
        path = MODELS / name / "curve.csv"
        if not path.exists():  # clipped, pruned or quantized: nothing was trained
            continue
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in CURVE if column not in (reader.fieldnames or ())]
            if missing:
                raise DecantError(f"{path} lacks the columns {', '.join(missing)}; {_rebuild(name)}")
            curves += [{"model": name, **{column: line[column] for column in CURVE}} for line in reader]
    return curves


def pareto_front(rows: Sequence[ModelRow]) -> set[str]:
    """Return the names of the models that no other beats in accuracy and size.

    Beaten is whoever meets another that is at least as accurate and at most as large, and not equal in both.
    """
    points = {row.name: (row.metrics["accuracy"], -row.metrics["size_bytes"]) for row in rows}
    return {
        name
        for name, (accuracy, smallness) in points.items()
        if not any(
            a >= accuracy and s >= smallness and (a, s) != (accuracy, smallness) for a, s in points.values()
        )
    }


def _metrics(name: str) -> dict[str, float]:
    path = METRICS / f"{name}.json"
    content = _read_json(path, _reevaluate(name))
    missing = [key for key in MEASURES if not (isinstance(content, dict) and _is_number(content.get(key)))]
    if missing:
        raise DecantError(f"{path} has no number for {', '.join(missing)}; {_reevaluate(name)}")
    return {key: content[key] for key in MEASURES}


def _operations(name: str) -> tuple[str, ...]:
    path = MODELS / name / "lineage.json"
    try:
        operations = tuple(str(step["op"]) for step in _read_json(path, _rebuild(name)))
    except (KeyError, TypeError):
        operations = ()
    if not operations:
        raise DecantError(f"{path} does not name the steps that made the model; {_rebuild(name)}")
    return operations


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DecantError(f"No {path}; {remedy}") from None
    except ValueError as error:
        raise DecantError(f"{path} is not JSON ({error}); {remedy}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _reevaluate(name: str) -> str:
    stage = "evaluate-teacher" if name == TEACHER else f"evaluate@{name}"
    return f"run `dvc repro {stage}`"


def _rebuild(name: str) -> str:
    stage = TEACHER if name == TEACHER else f"compress@{name}"
    return f"run `dvc repro -f {stage}`"
