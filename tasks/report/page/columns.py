"""The columns of the page's table, which are the axes of its chart too: metrics, times, and other figures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.pipeline import metrics
from tasks.pipeline.metrics import COST_COLUMNS, Metric, MetricSet, interval
from tasks.report.page.times import Times
from tasks.report.stability import MEANING

MINUS = "\N{MINUS SIGN}"
COUNTED = frozenset(metric.key for metric in metrics.COSTS)
"""What is counted, and not judged from a sample: any difference of it is one."""
UNTITLED = {"parameters": "parameters", "nonzeros": "nonzeros"}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Of the model's number, such as `accuracy` or `time:amd-epyc-avx2`.
        title: Its head, with the unit.
        meaning: A sentence.
        better: Which end is the better one; None where neither is.
        shown: How a number is written, once it is multiplied by `factor`.
        factor: From the stored number to the one that is read, such as 100 for per cent.
        default: Whether it is shown at first.
    """

    key: str
    title: str
    meaning: str
    better: Literal["higher", "lower"] | None
    shown: str
    factor: float
    default: bool = False

    def text(self, value: float) -> str:
        """Return a number as it is read."""
        return _with_minus(format(self.factor * value, self.shown))

    def difference(self, change: float) -> str:
        """Return a difference of two numbers as it is read, with its sign."""
        form = f"+,.{self.digits}{'g' if self.significant else 'f'}"
        return _with_minus(format(self.factor * change, form))

    @property
    def digits(self) -> int:
        """How many digits a difference is written with: behind the point, or in all where `significant`."""
        found = re.search(r"\.(\d+)", self.shown)
        return int(found[1]) if found else 0

    @property
    def significant(self) -> bool:
        """Whether numbers are written with so many digits in all, whatever their size."""
        return self.shown.endswith("g")


def columns_of(
    sets: Sequence[MetricSet], times: Sequence[Times], others: Collection[str], teacher: Collection[str]
) -> list[Column]:
    """Return all columns: qualities first, then costs, times, and the figures of other stages.

    Args:
        sets: What the models are measured by; usually one.
        times: The tables of processors.
        others: Keys of flat figures that other stages wrote.
        teacher: Keys of the numbers that the teacher has: only from them can a change be told.
    """
    columns: dict[str, Column] = {}
    for each in sets:
        for column in _of_set(each, teacher):
            columns.setdefault(column.key, column)
    for table in times:
        meaning = f"milliseconds for one example in ONNX Runtime on {table.processor}, median over rounds"
        key, title = f"time:{table.key}", f"ms, {_short(table.processor)}"
        columns[key] = Column(key, title, meaning, "lower", ".3f", 1000)
    for key in others:
        columns.setdefault(key, _other(key))
    return list(columns.values())


def _of_set(measured: MetricSet, teacher: Collection[str]) -> Iterator[Column]:
    leading = [key for key in measured.columns if key not in COST_COLUMNS]
    decisive = {measured.quality, "size_bytes", "macs"}
    decisive |= {key for key in leading if key == "agreement"} or set(leading[1:2])
    keys = [*leading, *COST_COLUMNS, *[key for key in measured.keys if key not in measured.columns]]
    for key in keys:
        metric = measured.by_key[key]
        title = metric.title or UNTITLED.get(key, "")
        if title:
            yield _of_metric(metric, title, key in decisive)
        if key == measured.quality and key in teacher:
            yield _change(metric, measured)
            yield _width(metric)


def _of_metric(metric: Metric, title: str, default: bool) -> Column:
    better = metric.better if metric.ranked or metric.key == "sparsity" else None
    factor = metric.times / metric.over
    return Column(metric.key, title, metric.meaning or title, better, metric.shown or ",.0f", factor, default)


def _change(quality: Metric, measured: MetricSet) -> Column:
    meaning = measured.change or f"{quality.title} less the teacher's"
    meaning += f"; {MEANING}" if measured.quality == "accuracy" else ""
    digits = f"+.{Column('', '', '', None, quality.shown, 1).digits or 2}f"
    return Column("change", "change", meaning, "higher", digits, quality.times / quality.over, True)


def _width(quality: Metric) -> Column:
    meaning = f"half the width of the 95 % interval of {quality.title.removesuffix(' %')}"
    return Column("interval", "± 95 %", meaning, None, quality.shown, quality.times / quality.over)


def verdict(column: Column, here: Mapping[str, float], there: Mapping[str, float]) -> str:
    """Return whether a model is better here or worse, `intervals overlap`, or nothing where none can tell.

    Args:
        column: What is compared. Of what is measured only a quality has an interval; other numbers have none,
            and nobody knows whether their difference is more than chance.
        here: All numbers of the model, the ends of intervals among them.
        there: The like, of what it is compared with.
    """
    ends = [row[end] for row in (here, there) for end in interval(column.key) if end in row]
    if column.better is None or (column.key not in COUNTED and len(ends) < 4):
        return ""
    if column.key not in COUNTED and ends[0] <= ends[3] and ends[2] <= ends[1]:
        return "intervals overlap"
    return "better" if (here[column.key] > there[column.key]) == (column.better == "higher") else "worse"


def half_width(row: Mapping[str, float], measured: MetricSet) -> float | None:
    """Return half the width of the interval of a model's quality, where it has one."""
    low, high = (row.get(end) for end in interval(measured.quality))
    return None if low is None or high is None else (high - low) / 2


def _other(key: str) -> Column:
    """Return the column of a figure of another stage: by the one table of metrics where it stands there."""
    metric = known_metrics().get(key)
    if metric is None:
        return Column(key, key.replace("_", " "), key.replace("_", " "), None, ".4g", 1)
    return _of_metric(metric, metric.title or key.replace("_", " "), False)


def known_metrics() -> dict[str, Metric]:
    """Return every metric of the one table by its key: those of sets, and those in groups beside them."""
    own = (metric for each in metrics.SETS for metric in each.metrics)
    return {metric.key: metric for metric in [*_metrics_in(vars(metrics)), *own]}


def _metrics_in(content: object) -> Iterator[Metric]:
    """Yield the metrics that stand in tuples and mappings of the table's module."""
    if isinstance(content, Metric):
        yield content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            if not str(name).startswith("__"):
                yield from _metrics_in(value)
    elif isinstance(content, tuple):
        for value in content:
            yield from _metrics_in(value)


def _short(processor: str) -> str:
    """Return a processor's name without the words that all have."""
    return " ".join(processor.replace("(R)", "").replace("Processor", "").split())


def _with_minus(number: str) -> str:
    """Return a number with a minus sign instead of a hyphen before it."""
    return f"{MINUS}{number[1:]}" if number.startswith("-") else number
