"""Put the figures of the default run into docs/evidence.md: python -m benchmarks.evidence"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.readme import line, put
from tasks.pipeline.metrics import STABILITY
from tasks.report.stability import SURE

PAGE, STABLE, METRICS = Path("docs/evidence.md"), Path("stability"), Path("metrics")
BEGIN, END = "<!-- stability: python -m benchmarks.evidence -->", "<!-- /stability -->"
COLUMNS = ("corruption_agreement", "negative_flips", "logit_drift", "classes_worse")
HEAD = ("model", "accuracy %", "less than the teacher", "mCE")


@dataclass(frozen=True)
class Found:
    """What is known of a model.

    Attributes:
        name: The model's.
        accuracy: On the test split, in [0, 1].
        row: stability/<name>.json.
        details: stability/<name>.details.json.
    """

    name: str
    accuracy: float
    row: dict[str, float]
    details: dict[str, Any]

    @property
    def kept(self) -> bool:
        """Whether its accuracy is the teacher's, as far as the test split can tell."""
        return self.row["mcnemar_p"] > SURE

    @property
    def lost(self) -> bool:
        """Whether corruptions cost it more than they cost the teacher, beyond chance."""
        return bool(self.details["mean_corruption_error"]["low"] > 1)


def read(root: Path) -> list[Found]:
    """Return all models of classes with what the stages wrote of them, the most accurate first."""
    return sorted(_read(root), key=lambda found: (-found.accuracy, found.name))


def _read(root: Path) -> Iterator[Found]:
    for path in sorted((root / STABLE).glob("*.details.json")):
        name = path.name.removesuffix(".details.json")
        details, row, metrics = (
            json.loads(each.read_text(encoding="utf-8"))
            for each in (path, root / STABLE / f"{name}.json", root / METRICS / f"{name}.json")
        )
        yield Found(name, metrics["accuracy"], row, details)


def block(every: Sequence[Found]) -> str:
    """Return the table, and which models kept and lost what, as the page has them."""
    metrics = {metric.key: metric for metric in STABILITY["classes"]}
    head = [*HEAD, *(metrics[key].title for key in COLUMNS)]
    lines = [line(head), line(["---", *["---:"] * (len(head) - 1)])]
    lines += [line(_cells(each, [metrics[key].text(each.row[key]) for key in COLUMNS])) for each in every]
    return "\n".join([*lines, "", *_verdicts([each for each in every if each.name != "teacher"])]) + "\n"


def _cells(found: Found, rest: list[str]) -> list[str]:
    error = found.details["mean_corruption_error"]
    lost = -100 * found.details["difference"]["accuracy"]
    difference = "no more than chance" if found.kept else f"{lost:.2f} points"
    interval = f"{error['value']:.3f} ({error['low']:.3f} to {error['high']:.3f})"
    if found.name == "teacher":
        difference, interval = "", "1"
    return [found.name, f"{100 * found.accuracy:.2f}", difference, interval, *rest]


def _verdicts(every: Sequence[Found]) -> Iterator[str]:
    """Yield what the figures say of all models, a line each."""
    kept = [each for each in every if each.kept]
    yield f"- Accuracy kept, as far as this test set can tell: {_names(kept)}."
    yield f"- Of these less stable under corruptions than the teacher: {_names([e for e in kept if e.lost])}."
    worse = [each for each in kept if each.row["classes_worse"]]
    yield f"- Of these worse on one class or more, which the mean hides: {_names(worse)}."
    stable = [each for each in every if not each.kept and not each.lost]
    yield f"- Accuracy lost, errors under corruptions as many as the teacher's: {_names(stable)}."
    yield f"- Accuracy lost, and stability as well: {_names([e for e in every if not e.kept and e.lost])}."
    least = sorted(100 * each.row["smallest_difference"] for each in every)
    yield f"- Smallest difference in accuracy that could be shown: {least[0]:.2f} to {least[-1]:.2f} points."


def _names(every: Sequence[Found]) -> str:
    return ", ".join(f"`{each.name}`" for each in every) or "none"


if __name__ == "__main__":
    put(PAGE, BEGIN, block(read(Path())), END)
