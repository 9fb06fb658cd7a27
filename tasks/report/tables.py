"""The table of all models in Markdown, and the same numbers for `dvc plots`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.report.rows import CURVE, TEACHER, ModelRow

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: Its head, with the unit.
        text: What stands in the cell, from the model's metrics and the teacher's.
        meaning: A sentence for the list below the table.
        measure: The metric that decides which cell is best.
        best: Which end of that metric is the better one; None where neither is better in itself.
    """

    title: str
    text: Callable[[Metrics, Metrics], str]
    meaning: str
    measure: str = ""
    best: Literal["highest", "lowest"] | None = None


COLUMNS = (
    Column(
        "accuracy %",
        lambda m, _: f"{100 * m['accuracy']:.2f}",
        "share of test images whose class is predicted rightly",
        "accuracy",
        "highest",
    ),
    Column(
        "95 % interval",
        lambda m, _: f"{100 * m['accuracy_low']:.2f} to {100 * m['accuracy_high']:.2f}",
        "where the accuracy on all such images lies, judged from this many (Wilson). All models are tested "
        "on the same images, so the difference of two is surer than their intervals suggest",
    ),
    Column(
        "change",
        lambda m, t: f"{100 * (m['accuracy'] - t['accuracy']):+.2f}",
        "accuracy less the teacher's, in percentage points",
    ),
    Column(
        "agreement %",
        lambda m, _: f"{100 * m['agreement']:.2f}",
        "share of test images for which model and teacher predict the same class, right or wrong",
        "agreement",
        "highest",
    ),
    Column(
        "NLL",
        lambda m, _: f"{m['nll']:.3f}",
        "mean negative log likelihood of the right class, in nats; lower is better",
        "nll",
        "lowest",
    ),
    Column(
        "ECE %",
        lambda m, _: f"{100 * m['calibration_error']:.2f}",
        "expected calibration error, how far confidence is from accuracy, in points; lower is better",
        "calibration_error",
        "lowest",
    ),
    Column(
        "size, KB",
        lambda m, _: f"{m['size_bytes'] / 1000:,.1f}",
        "the files on disk that rebuild the model, 1 KB = 1000 bytes",
        "size_bytes",
        "lowest",
    ),
    Column(
        "ratio",
        lambda m, _: f"{m['ratio']:.1f}",
        "the teacher's weights in float32 over that size",
        "ratio",
        "highest",
    ),
    Column(
        "zeros %",
        lambda m, _: f"{100 * m['sparsity']:.1f}",
        "sparsity, the share of zeros among the weights of convolutions and linear layers",
    ),
    Column(
        "bits per weight",
        lambda m, _: f"{m['bits_per_weight']:.2f}",
        "size over the number of parameters, zeros included; a smaller network has fewer parameters instead",
    ),
    Column(
        "MMACs",
        lambda m, _: f"{m['macs'] / 1e6:.2f}",
        "million multiplications for one image, zeros multiplied like any other weight",
        "macs",
        "lowest",
    ),
)


def table(rows: Sequence[ModelRow], front: Collection[str]) -> str:
    """Return the table; per column the best compressed models are bold, and those on the front have a star.

    Args:
        rows: The models in the table's order, the teacher among them.
        front: Names of the models on the Pareto front.
    """
    teacher = next(row.metrics for row in rows if row.name == TEACHER)
    cells = {row.name: [column.text(row.metrics, teacher) for column in COLUMNS] for row in rows}
    compressed = [row for row in rows if row.name != TEACHER]
    for index, column in enumerate(COLUMNS):
        best = _best_text(column, compressed, teacher)
        for row in compressed:
            if cells[row.name][index] == best:
                cells[row.name][index] = f"**{best}**"
    lines = [
        _line("model", "made by", *[column.title for column in COLUMNS]),
        _line("---", "---", *["---:"] * len(COLUMNS)),
        *[_line(row.name + (" ★" if row.name in front else ""), row.chain, *cells[row.name]) for row in rows],
    ]
    return "\n".join(lines)


def readme(rows: Sequence[ModelRow], front: Collection[str]) -> str:
    """Return the page: picture, table, what stands in each column."""
    on_front = ", ".join(row.name for row in rows if row.name in front)
    return "\n".join(
        [
            "# Models compared",
            "",
            "![Accuracy against size of every model](tradeoff.svg)",
            "",
            table(rows, front),
            "",
            "The largest come first. **Bold** is the best of the compressed models in its column. "
            "★ is on the Pareto front: no other model is at least as accurate and at most as large.",
            "",
            f"On the front, from large to small: {on_front}.",
            "",
            "- **made by**: the operations from the teacher to the model;",
            *[f"- **{column.title}**: {column.meaning};" for column in COLUMNS[:-1]],
            f"- **{COLUMNS[-1].title}**: {COLUMNS[-1].meaning}.",
            "",
            "Written by `python -m tasks.report`; all of it is measured on the test split, and no time is.",
            "",
        ]
    )


def tradeoff(rows: Sequence[ModelRow], front: Collection[str]) -> list[dict[str, Any]]:
    """Return one point for each model, for `dvc plots`."""
    return [
        {
            "model": row.name,
            "operation": row.operation,
            "made_by": row.chain,
            "pareto": row.name in front,
            **{
                key: row.metrics[key]
                for key in (
                    "size_bytes",
                    "accuracy",
                    "accuracy_low",
                    "accuracy_high",
                    "agreement",
                    "nll",
                    "ratio",
                )
            },
        }
        for row in rows
    ]


def curves_csv(curves: Sequence[Mapping[str, str]]) -> str:
    """Return the curves as CSV in long form, one line for each model and epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("model", *CURVE), lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    return text.getvalue()


def _best_text(column: Column, rows: Sequence[ModelRow], teacher: Metrics) -> str | None:
    """Return what stands in the best cell, or None where no model is better than another.

    Cells are compared as they read, so that of two equal numbers never one alone is bold.
    """
    if column.best is None or len({column.text(row.metrics, teacher) for row in rows}) < 2:
        return None
    choose = max if column.best == "highest" else min
    best = choose(rows, key=lambda row: row.metrics[column.measure])
    return column.text(best.metrics, teacher)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
