"""What stability/<model>.json and its details say: pure functions of answers, labels and modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from decant.errors import DecantError
from decant.examples import Examples
from decant.targets import Tokens
from tasks.pipeline.metrics import STABILITY
from tasks.stability.corrupted import Cell
from tasks.stability.damage import Corrupted
from tasks.stability.sample import RULE
from tasks.stability.scales import Row, Scale, finite, kind_of

Content = dict[str, Any]


def of_corruptions(scale: Scale, found: Corrupted) -> Row:
    """Return the metrics of corrupted examples; none where no corruption fits."""
    if not found.kinds:
        return {}
    row = {f"corruption_{key}": fmean(each[key] for each in found.rows) for key in scale.keys}
    if "cosine" in scale.keys:
        row["corruption_cosine_least"] = min(each["cosine"] for each in found.rows)
    ratios = {
        "mean_corruption_error": found.errors(),
        "relative_corruption_error": found.errors(added=True),
    }
    return row | {key: fmean(each.values()) for key, each in ratios.items() if each}


def details_of_corruptions(found: Corrupted, every: Sequence[Cell]) -> Content:
    """Return what the details say of corrupted examples."""
    strengths = {(cell.corruption.kind, cell.level): cell.strength for cell in every}
    return {
        "sample": {"corrupted": min((len(cell.indices) for cell in every), default=0), "rule": RULE},
        "corruptions": {
            kind: [
                {"strength": level, "amount": strengths[kind, level], **row}
                for level, (row, _) in enumerate(each.rows, start=1)
            ]
            for kind, each in found.kinds.items()
        },
        "corruption_errors": found.errors(),
        "mean_corruption_error": _with_verdict(found),
        "relative_corruption_errors": found.errors(added=True),
    }


def _with_verdict(found: Corrupted) -> Content | None:
    """Return the mean corruption error, its interval, and whether it is beyond chance; None if none is."""
    if not (errors := found.errors()) or (interval := found.interval()) is None:
        return None
    low, high = interval
    verdict = (
        "less stable than the teacher"
        if low > 1
        else "more stable than the teacher"
        if high < 1
        else "no difference from the teacher beyond chance"
    )
    return {"value": fmean(errors.values()), "low": low, "high": high, "verdict": verdict}


def written(target: str, row: Row) -> Row:
    """Return metrics in the order of the table, of six digits.

    Raises:
        DecantError: One is out of its range.
    """
    found = {}
    for metric in STABILITY[target]:
        if metric.key not in row:
            if metric.always:
                raise DecantError(f"{metric.key} is missing among what was measured, {', '.join(row)}")
            continue
        value = rounded(row[metric.key])
        if not metric.least <= value <= metric.most:
            raise DecantError(
                f"{metric.key} came out as {value}, expected {metric.least:g} to {metric.most:g}: the "
                " model's outputs or weights may be NaN or infinite; make it anew"
            )
        found[metric.key] = value
    return found


def rounded(content: Any) -> Any:
    """Return the same with every fraction, wherever it stands, at six significant digits."""
    if isinstance(content, float):
        return float(f"{content:.6g}") + 0.0
    if isinstance(content, Mapping):
        return {key: rounded(value) for key, value in content.items()}
    return [rounded(value) for value in content] if isinstance(content, list | tuple) else content


def check(test: Examples, model: Tensor, teacher: Tensor) -> None:
    """Refuse answers that cannot be compared.

    Raises:
        DecantError: Model and teacher answer in other shapes, or with NaN or infinity.
    """
    if model.shape != teacher.shape:
        raise DecantError(
            f"The model answers {model.shape[1]:,} numbers for each row, the teacher {teacher.shape[1]:,}: "
            "they tell other classes apart, and cannot be compared; make the model from this teacher"
        )
    for name, outputs in (("model", model), ("teacher", teacher)):
        if not finite(outputs):
            raise DecantError(
                f"The {name} answers NaN or infinity on the {len(test):,} test rows; make it anew, with a "
                "lower learning rate where it was trained"
            )


def left_out(test: Examples) -> list[str]:
    """Return what is not measured with a target, and why, sentences."""
    kind = kind_of(test.target, test.labels is not None)
    if kind == "classes":
        return []
    what = "flips, accuracy per class, reliability and McNemar's test"
    reason = (
        "next tokens are many classes for each row"
        if isinstance(test.target, Tokens)
        else {
            "same": "there are no labels",
            "numbers": "numbers are no classes",
            "labels": "several labels at once are no classes",
        }[kind]
    )
    return [f"{what}: {reason}"]
