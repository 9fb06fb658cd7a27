"""Put the default run's explanations into docs/evidence.md: python -m benchmarks.explanations"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.readme import line, put
from tasks.pipeline.metrics import EXPLANATIONS
from tasks.report.stability import SURE

PAGE, EXPLAIN = Path("docs/evidence.md"), Path("explain")
BEGIN, END = "<!-- explanations: python -m benchmarks.explanations -->", "<!-- /explanations -->"
COLUMNS = ("explanations_kept", "explanations_top", "explanations_deletion", "explanations_insertion")


@dataclass(frozen=True)
class Found:
    """What is known of a model.

    Attributes:
        name: The model's.
        accuracy: On the test split, in [0, 1].
        kept: Whether that is the teacher's, as far as the test split can tell.
        row: explain/<name>.json.
        details: explain/<name>.details.json.
    """

    name: str
    accuracy: float
    kept: bool
    row: dict[str, float]
    details: dict[str, Any]

    @property
    def side(self) -> int:
        """1 where its reasons are nearer to the teacher's than another draw is, -1 where farther, else 0."""
        above = self.details["above_floor"]
        return int(above["low"] > 0) - int(above["high"] < 0)


def read(root: Path) -> list[Found]:
    """Return all models with what the stages wrote of them, the nearest to the teacher's reasons first."""
    return sorted(_read(root), key=lambda found: (-found.row["explanations_kept"], found.name))


def _read(root: Path) -> Iterator[Found]:
    for path in sorted((root / EXPLAIN).glob("*.details.json")):
        name = path.name.removesuffix(".details.json")
        files = (path, *(root / folder / f"{name}.json" for folder in ("explain", "metrics", "stability")))
        details, row, metrics, stability = (json.loads(each.read_text(encoding="utf-8")) for each in files)
        yield Found(name, metrics["accuracy"], stability["mcnemar_p"] > SURE, row, details)


def block(every: Sequence[Found]) -> str:
    """Return the tables, and which models kept and lost what, as the page has them."""
    metrics = {metric.key: metric for metric in EXPLANATIONS}
    head = ["model", "accuracy %", *(metrics[key].title for key in COLUMNS), "above the floor"]
    lines = [line(head), line(["---", *["---:"] * (len(head) - 1)])]
    for each in every:
        numbers = [metrics[key].text(each.row[key]) for key in COLUMNS]
        lines.append(line([each.name, f"{100 * each.accuracy:.2f}", *numbers, _interval(each)]))
    teacher = next(each for each in every if each.name == "teacher")
    compressed = [each for each in every if each.name != "teacher"]
    return "\n".join([*lines, "", *_methods(teacher), "", *_verdicts(compressed)]) + "\n"


def _interval(found: Found) -> str:
    above = found.details["above_floor"]
    return f"{above['value']:+.3f} ({above['low']:+.3f} to {above['high']:+.3f})"


def _methods(teacher: Found) -> Iterator[str]:
    """Yield a table of what the methods are worth on the teacher."""
    yield line(["method", "floor", "floor of the top", "deletion", "insertion"])
    yield line(["---", "---:", "---:", "---:", "---:"])
    for name, each in teacher.details["methods"].items():
        areas = [_area(each[f"random_{way}"]) - _area(each[way]) for way in ("deletion", "insertion")]
        numbers = [each["floor"], each["top_k_floor"], areas[0], -areas[1]]
        yield line([name.replace("_", " "), *(f"{number:.3f}" for number in numbers)])


def _area(curve: Sequence[float]) -> float:
    return (sum(curve) - (curve[0] + curve[-1]) / 2) / (len(curve) - 1)


def _verdicts(every: Sequence[Found]) -> Iterator[str]:
    """Yield what the figures say of all models, a line each."""
    for kept, words in ((True, "Accuracy kept"), (False, "Accuracy lost")):
        some = [each for each in every if each.kept == kept]
        yield f"- {words}, reasons kept as far as another draw keeps them: {_names(some, (0, 1))}."
        yield f"- {words}, reasons lost, beyond chance: {_names(some, (-1,))}."


def _names(every: Sequence[Found], sides: tuple[int, ...]) -> str:
    return ", ".join(f"`{each.name}`" for each in every if each.side in sides) or "none"


if __name__ == "__main__":
    put(PAGE, BEGIN, block(read(Path())), END)
