"""The table of all models in Markdown, and the same numbers for `dvc plots`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tasks.pipeline.metrics import Metric, MetricSet, interval
from tasks.report.rows import TEACHER, ModelRow
from tasks.report.stability import CHANCE, MEANING, is_by_chance, smallest_of

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


def columns_of(measured: MetricSet) -> list[Column]:
    """Return the columns of a table of models that are measured so."""
    columns = []
    for metric in (measured.by_key[key] for key in measured.columns):
        best: Literal["highest", "lowest"] = "highest" if metric.better == "higher" else "lowest"
        text = partial(_text, metric)
        columns.append(
            Column(metric.title, text, metric.meaning, metric.key, best if metric.ranked else None)
        )
        if metric.key == measured.quality:
            columns.append(Column("95 % interval", partial(_ends, metric), measured.surely))
            columns += (
                [Column("change", partial(_change, metric), _meaning(measured))] if measured.change else []
            )
    return columns


def _meaning(measured: MetricSet) -> str:
    return f"{measured.change}; {MEANING}" if measured.quality == "accuracy" else measured.change


def _text(metric: Metric, model: Metrics, teacher: Metrics) -> str:
    return metric.text(model[metric.key])


def _ends(metric: Metric, model: Metrics, teacher: Metrics) -> str:
    return " to ".join(metric.text(model[end]) for end in interval(metric.key))


def _change(metric: Metric, model: Metrics, teacher: Metrics) -> str:
    change = f"{metric.times * (model[metric.key] - teacher[metric.key]):+.2f}"
    return change + (CHANCE if model != teacher and is_by_chance(model) else "")


def table(rows: Sequence[ModelRow], front: Collection[str]) -> str:
    """Return the table; per column the best compressed models are bold, and those on the front have a star.

    Args:
        rows: The models in the table's order, the teacher among them.
        front: Names of the models on the Pareto front.
    """
    teacher = next(row.metrics for row in rows if row.name == TEACHER)
    columns = columns_of(rows[0].measured)
    cells = {row.name: [column.text(row.metrics, teacher) for column in columns] for row in rows}
    compressed = [row for row in rows if row.name != TEACHER]
    for index, column in enumerate(columns):
        best = _best_text(column, compressed, teacher)
        for row in compressed:
            if cells[row.name][index] == best:
                cells[row.name][index] = f"**{best}**"
    lines = [
        _line("model", "made by", *[column.title for column in columns]),
        _line("---", "---", *["---:"] * len(columns)),
        *[_line(row.name + (" ★" if row.name in front else ""), row.chain, *cells[row.name]) for row in rows],
    ]
    return "\n".join(lines)


def readme(rows: Sequence[ModelRow], front: Collection[str]) -> str:
    """Return the page: picture, table, what stands in each column."""
    measured = rows[0].measured
    columns = columns_of(measured)
    smallest = smallest_of(row.metrics for row in rows if row.name != TEACHER)
    on_front = ", ".join(row.name for row in rows if row.name in front)
    return "\n".join(
        [
            "# Models compared",
            "",
            f"![{measured.quality.capitalize()} against size of every model](tradeoff.svg)",
            "",
            table(rows, front),
            "",
            "The largest come first. **Bold** is the best of the compressed models in its column. "
            f"★ is on the Pareto front: no other model is at least as {measured.good} and at most as large.",
            "",
            f"On the front, from large to small: {on_front}.",
            "",
            *([smallest, ""] if smallest else []),
            "- **made by**: the operations from the teacher to the model;",
            *[f"- **{column.title}**: {column.meaning};" for column in columns[:-1]],
            f"- **{columns[-1].title}**: {columns[-1].meaning}.",
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
            **{key: row.metrics[key] for key in _plotted(row.measured)},
        }
        for row in rows
    ]


def _plotted(measured: MetricSet) -> list[str]:
    """Return the keys of a point: what it is drawn by, and what is shown of it beside."""
    drawn = ["size_bytes", measured.quality, *interval(measured.quality)]
    return drawn + [key for key in measured.headline if key not in drawn]


def curves_csv(curves: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Return the curves as CSV in long form, one line for each model and epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("model", *columns), lineterminator="\n")
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
