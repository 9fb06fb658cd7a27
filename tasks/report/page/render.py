"""The page as one text: the same bytes for the same files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.metrics import MetricSet, interval
from tasks.report.page import charts
from tasks.report.page.against import Against
from tasks.report.page.columns import COUNTED, Column, columns_of, half_width
from tasks.report.page.evidence import (
    corruptions,
    deletion,
    is_number,
    notes,
    quality,
    reliability,
    tables,
    verdicts,
)
from tasks.report.page.lineage import Graph, graph
from tasks.report.page.models import Model
from tasks.report.page.recipes import as_yaml, budgets, settings
from tasks.report.page.times import Times
from tasks.report.rows import pareto_front
from tasks.report.stability import CHANCE, is_by_chance

FOLDER = Path(__file__).parent
VEGA_LITE = "6.4"
"""The version that altair writes specifications for; vl-convert has its runtime."""


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    Attributes:
        models: The teacher first.
        columns: Of the table; the axes of the chart.
        values: Every number of each model, by name and key.
        front: Names of the models that no other one beats in quality and size.
        times: What was timed.
        problems: A sentence for each file that is about no model in particular and cannot be read.
    """

    models: tuple[Model, ...]
    columns: tuple[Column, ...]
    values: dict[str, dict[str, float]]
    front: frozenset[str]
    times: tuple[Times, ...]
    problems: tuple[str, ...]

    @property
    def texts(self) -> dict[str, dict[str, str]]:
        """Every number as it is read, by name and key."""
        return {
            name: {
                column.key: column.text(row[column.key]) + self._mark(name, column)
                for column in self.columns
                if column.key in row
            }
            for name, row in self.values.items()
        }

    def _mark(self, name: str, column: Column) -> str:
        """Return what stands behind a change that is no more than chance."""
        is_change = column.key == "change" and name != TEACHER
        return CHANCE if is_change and is_by_chance(self.values[name]) else ""

    @property
    def fullest(self) -> Times | None:
        """The table of times that has the most models, the first of several."""
        return max(self.times, key=lambda each: len(each.seconds), default=None)

    @property
    def measured(self) -> MetricSet | None:
        """What models are measured by: the teacher's set, or the first that there is."""
        return next((model.measured for model in self.models if model.measured), None)


def collect(models: Sequence[Model], times: Sequence[Times], problems: Sequence[str] = ()) -> Content:
    """Return what the page shows of models and times."""
    sets = list({each.target: each for each in (model.measured for model in models) if each}.values())
    teacher = next((model.values for model in models if model.name == TEACHER), {})
    others = {key for model in models for key in (*model.stability.figures, *model.explanations.figures)}
    columns = columns_of(sets, times, sorted(others), teacher)
    values = {model.name: _values(model, teacher, times) for model in models}
    present = [column for column in columns if any(column.key in row for row in values.values())]
    rows = [model.row for model in models if model.row and model.measured is sets[0]]
    front = frozenset(pareto_front(rows))
    return Content(tuple(models), tuple(present), values, front, tuple(times), tuple(problems))


def render(content: Content, against: Against | None = None) -> str:
    """Return the page.

    Args:
        content: What it shows.
        against: What differs from a revision; None where nobody asked.
    """
    operations = tuple(dict.fromkeys([TEACHER, *(model.operation for model in content.models)]))
    runtime, script = _in_script(_runtime()), _in_script(_file("page.js"))
    return _template().render(
        policy=_policy(runtime, script),
        style=Markup(_file("page.css")),
        runtime=Markup(runtime),
        script=Markup(script),
        data=Markup(_in_json(_data(content, operations))),
        summary=_summary(content),
        models=content.models,
        columns=content.columns,
        titles={column.key: column.title for column in content.columns},
        texts=content.texts,
        front=content.front,
        times=content.times,
        problems=content.problems,
        operations=operations,
        colours={operation: colour for operation, (colour, _) in charts.styles(operations).items()},
        lineage=_lineage(content),
        timed=content.fullest,
        recipes={model.name: as_yaml(model.name, model.block) for model in content.models},
        against=against and {**asdict(against), "changed": len({change.model for change in against.changes})},
        count=_count,
        rest=partial(_rest, content),
        corruptions=corruptions,
        deletion=deletion,
        notes=notes,
        tables=tables,
        reliability=reliability,
        verdicts=verdicts,
    )


def _values(model: Model, teacher: Mapping[str, float], times: Sequence[Times]) -> dict[str, float]:
    """Return every number of a model that a column can show."""
    values = {key: value for key, value in model.values.items() if is_number(value)}
    if model.row and (measured := model.measured):
        if measured.quality in teacher:
            values["change"] = values[measured.quality] - teacher[measured.quality]
        if (half := half_width(values, measured)) is not None:
            values["interval"] = half
    return values | {
        f"time:{each.key}": each.seconds[model.name] for each in times if model.name in each.seconds
    }


def _lineage(content: Content) -> Graph:
    measured = content.measured
    times = content.fullest
    told = [measured.quality if measured else "", "size_bytes", f"time:{times.key}" if times else ""]
    columns = [column for key in told for column in content.columns if column.key == key]
    return graph(content.models, content.values, columns)


def _summary(content: Content) -> str:
    """Return the sentences below the head."""
    counted = _count(len(content.models) - 1, "compressed model", "compressed models")
    measured = content.measured
    if measured is None:
        return f"{counted}; none has been measured: `dvc repro` does it."
    texts = content.texts.get(TEACHER, {})
    by_key = {column.key: column for column in content.columns}
    parts = [
        _with_unit(by_key[key].title, texts[key]) for key in (measured.quality, "size_bytes") if key in texts
    ]
    teacher = f" The teacher: {', '.join(parts)}." if parts else ""
    front = ", ".join(sorted(content.front, key=lambda name: (-content.values[name]["size_bytes"], name)))
    return f"{counted}.{teacher} On the front of quality against size: {front}."


def _with_unit(title: str, text: str) -> str:
    """Return a number behind its name, with the unit that stands in the title."""
    name, comma, unit = title.partition(", ")
    if not comma and title.endswith(" %"):
        name, unit = title.removesuffix(" %"), "%"
    return f"{name} {text} {unit}".strip()


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _rest(content: Content, model: Model, total: int) -> str:
    """Return what the files hold beside the numbers of layers."""
    size = content.values[model.name].get("size_bytes")
    return f"and {size - total:,.0f} bytes that describe them" if size and size >= total else ""


def _data(content: Content, operations: tuple[str, ...]) -> dict[str, Any]:
    """Return what the page's code reads, as plain values."""
    measured = content.measured
    teacher = content.values.get(TEACHER, {})
    point = measured.point if measured else 0
    quality = measured.quality if measured else ""
    return {
        "quality": quality,
        "axes": {"x": "size_bytes", "y": quality},
        "columns": [
            {
                "key": column.key,
                "title": column.title,
                "better": column.better,
                "factor": column.factor,
                "digits": column.digits,
                "significant": column.significant,
                "counted": column.key in COUNTED,
                "point": point if column.key == quality else 0,
            }
            for column in content.columns
        ],
        "models": [_entry(model, content) for model in content.models],
        "limits": [each for model in content.models for each in budgets(model.name, model.block, teacher)],
        "specs": {
            "tradeoff": charts.tradeoff(operations),
            "curve": charts.curve(),
            "corruption": charts.corruption(),
            "reliability": charts.reliability(),
            "deletion": charts.deletion(),
        },
    }


def _entry(model: Model, content: Content) -> dict[str, Any]:
    values, measured = content.values[model.name], model.measured
    ends = [values.get(end) for end in interval(measured.quality)] if measured else [None]
    keys = [column.key for column in content.columns if column.key in values]
    texts = content.texts[model.name]
    return {
        "name": model.name,
        "operation": model.operation,
        "chain": model.chain,
        "front": model.name in content.front,
        "values": {key: values[key] for key in keys},
        "texts": {key: texts[key] for key in keys},
        "ends": None if None in ends else ends,
        "settings": dict(settings(model.block)),
        "layers": {layer.name: [layer.bytes, layer.zeros] for layer in model.layers},
        "curve": model.curve,
        "corruptions": corruptions(model.stability.details),
        "quality": quality(model.stability.details).replace("_", " "),
        "reliability": reliability(model.stability.details),
        "deletion": deletion(model.explanations.details),
    }


def _policy(*scripts: str) -> str:
    """Return what a browser may do on the page: run these scripts alone, and ask no host for anything."""
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _in_json(content: Any) -> str:
    """Return strict JSON that no text can end: HTML's own signs are written as escapes."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _in_script(code: str) -> str:
    """Return code without what ends a script or begins a comment there; strings alone hold such."""
    return re.sub(r"<(?=!--|/?script)", r"\\x3c", code.replace("\r\n", "\n"), flags=re.IGNORECASE)


@cache
def _template() -> Template:
    """Return the page's template, which escapes all that is put into it."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


@cache
def _runtime() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).strip()


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").strip()
