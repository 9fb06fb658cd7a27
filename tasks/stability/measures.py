"""What stability/<model>.json and its details say: pure functions of answers, labels and modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from decant.errors import DecantError
from decant.evidence.resampling import Errors, ratio_interval
from decant.examples import Examples
from decant.targets import Tokens
from tasks.pipeline.metrics import STABILITY
from tasks.stability.corrupted import Cell
from tasks.stability.sample import RULE
from tasks.stability.scales import Row, Scale, finite, kind_of

Content = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What one model answers.

    Attributes:
        clean: To the test split [N, M].
        corrupted: To all cells, one behind the other [sum of n, M].
    """

    clean: Tensor
    corrupted: Tensor


@dataclass(frozen=True)
class Corrupted:
    """What a model and its teacher make of corrupted examples.

    Attributes:
        model: What is measured of each strength, by the corruption.
        teacher: The same of the teacher.
        sums: Each example's errors, summed over strengths, by the corruption: the model's and the teacher's
            [n]; empty where an error is no mean over examples.
        clean: What is measured on the same examples without the corruption, by the corruption: the model's
            and the teacher's.
        left_out: What was not measured and why, sentences.
    """

    model: Mapping[str, list[Row]]
    teacher: Mapping[str, list[Row]]
    clean: Mapping[str, tuple[Row, Row]]
    sums: Mapping[str, tuple[Errors, Errors]]
    left_out: tuple[str, ...] = ()

    def mean(self, key: str) -> float:
        """Return the mean of one of the measures over corruptions and strengths."""
        return fmean(row[key] for rows in self.model.values() for row in rows)

    def errors(self, scale: Scale) -> dict[str, float]:
        """Return the model's error over the teacher's, summed over strengths, by the corruption.

        Corruptions under which the teacher makes no error are left out.

        References:
            Hendrycks and Dietterich, 2019, section 4.2.
        """
        return {kind: ratio for kind in self.model if (ratio := self._ratio(scale, kind, False)) is not None}

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean of `errors`; None where none is known."""
        pairs = [pair for pair in self.sums.values() if pair[1].any()]
        return ratio_interval(pairs) if pairs else None

    def added_errors(self, scale: Scale) -> dict[str, float]:
        """Return the same of what a corruption adds to the error on clean examples; at least 0.

        Corruptions that add nothing to the teacher's are left out.
        """
        return {kind: ratio for kind in self.model if (ratio := self._ratio(scale, kind, True)) is not None}

    def _ratio(self, scale: Scale, kind: str, added: bool) -> float | None:
        if scale.error is None:
            return None
        totals = []
        for rows, clean in zip((self.model[kind], self.teacher[kind]), self.clean[kind], strict=True):
            base = scale.error(clean) if added else 0.0
            totals.append(sum(scale.error(row) - base for row in rows))
        found, expected = totals
        return max(found, 0.0) / expected if expected > 0 else None


def compare(
    scale: Scale, every: Sequence[Cell], model: Answers, teacher: Answers, labels: Tensor | None
) -> Corrupted:
    """Return what corruptions do to a model and to its teacher."""
    ours: dict[str, list[Row]] = {}
    theirs: dict[str, list[Row]] = {}
    clean: dict[str, tuple[Row, Row]] = {}
    sums: dict[str, tuple[Errors, Errors]] = {}
    broken = dict[str, None]()
    sizes = [len(cell.indices) for cell in every]
    pairs = zip(every, model.corrupted.split(sizes), teacher.corrupted.split(sizes), strict=True)
    for cell, found, expected in pairs:
        kind, truth = cell.corruption.kind, None if labels is None else labels[cell.indices]
        if scale.finite and not (finite(found) and finite(expected)):
            broken[kind] = None
        ours.setdefault(kind, []).append(scale.measure(found, expected, truth))
        theirs.setdefault(kind, []).append(scale.measure(expected, expected, truth))
        if scale.each is not None and truth is not None:
            pair = (scale.each(found, truth).numpy(), scale.each(expected, truth).numpy())
            sums[kind] = (sums[kind][0] + pair[0], sums[kind][1] + pair[1]) if kind in sums else pair
        if kind not in clean:
            before, after = teacher.clean[cell.indices], model.clean[cell.indices]
            clean[kind] = scale.measure(after, before, truth), scale.measure(before, before, truth)
    for kind in broken:
        del ours[kind], theirs[kind], clean[kind]
        sums.pop(kind, None)
    sentences = (
        f"{kind}: the model or its teacher answers NaN or infinity to such inputs" for kind in broken
    )
    return Corrupted(ours, theirs, clean, sums, tuple(sentences))


def of_corruptions(scale: Scale, found: Corrupted) -> Row:
    """Return the metrics of corrupted examples; none where no corruption fits."""
    if not found.model:
        return {}
    row = {f"corruption_{key}": found.mean(key) for key in scale.keys}
    if "cosine" in scale.keys:
        row["corruption_cosine_least"] = min(each["cosine"] for rows in found.model.values() for each in rows)
    ratios = {
        "mean_corruption_error": found.errors(scale),
        "relative_corruption_error": found.added_errors(scale),
    }
    return row | {key: fmean(each.values()) for key, each in ratios.items() if each}


def details_of_corruptions(scale: Scale, found: Corrupted, every: Sequence[Cell]) -> Content:
    """Return what the details say of corrupted examples."""
    strengths = {(cell.corruption.kind, cell.level): cell.strength for cell in every}
    return {
        "sample": {"corrupted": min((len(cell.indices) for cell in every), default=0), "rule": RULE},
        "corruptions": {
            kind: [
                {"strength": level, "amount": strengths[kind, level], **row}
                for level, row in enumerate(rows, start=1)
            ]
            for kind, rows in found.model.items()
        },
        "corruption_errors": found.errors(scale),
        "mean_corruption_error": _with_verdict(found, scale),
        "relative_corruption_errors": found.added_errors(scale),
    }


def _with_verdict(found: Corrupted, scale: Scale) -> Content | None:
    """Return the mean corruption error, its interval, and whether it is beyond chance; None if none is."""
    if not (errors := found.errors(scale)) or (interval := found.interval()) is None:
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
