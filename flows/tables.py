"""A comparison as a page in the terminal, as GitHub's Markdown and as JSON."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.judgement import Change, Comparison, Verdict
from tasks.pipeline.metrics import BETTER_HIGHER

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

HEADS = ("model", "metric", "there", "here", "change", "allowed", "verdict")
COLUMNS = 80
"""What the tables fit into, on a terminal and where there is none."""
MARKS = {
    Verdict.REGRESSION: ("✗", "bold red"),
    Verdict.NOISE: ("~", "yellow"),
    Verdict.BETTER: ("", "green"),
    Verdict.TOLERATED: ("", ""),
    Verdict.WORSE: ("", ""),
}
NOTHING = "—"


def summary(comparison: Comparison) -> str:
    """Return the outcome in one or two sentences."""
    failed = len(comparison.having(Verdict.REGRESSION))
    if not comparison.gates:
        outcome = "No gates in params.yaml, so none can fail"
    elif failed:
        outcome = f"{failed} of {_count(comparison.gates, 'gate')} failed"
    else:
        outcome = "The gate holds" if comparison.gates == 1 else f"All {comparison.gates} gates hold"
    parts = [f"{len(comparison.changed)} changed", f"{len(comparison.unchanged)} unchanged"]
    parts += [f"new: {', '.join(comparison.new)}"] if comparison.new else []
    parts += [f"removed: {', '.join(comparison.removed)}"] if comparison.removed else []
    return f"{outcome}. {_count(len(comparison.models), 'model')} compared: {'; '.join(parts)}."


def staleness(comparison: Comparison) -> str:
    """Return what to do about numbers that are out of date."""
    return (
        f"Out of date: {_named(comparison.stale)}. params.yaml has other values now than those that the "
        "numbers were made with, says dvc.lock; run `dvc repro` and commit what it writes."
    )


def _named(models: Sequence[str]) -> str:
    """Return the names of a few models, or how many there are."""
    return ", ".join(models) if len(models) <= 5 else _count(len(models), "model")


def elsewhere(comparison: Comparison) -> str:
    """Return what numbers of models that were made on other devices differ by."""
    sides = Counter(comparison.devices.values())
    names = {pair: [m for m, each in comparison.devices.items() if each == pair] for pair in sides}
    told = [f"{_named(models)} ({there} there, {here} here)" for (there, here), models in names.items()]
    return (
        f"Made on other devices: {'; '.join(told)}. Their numbers may differ by rounding, which a training "
        "multiplies."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cells(change: Change) -> tuple[str, ...]:
    """Return the cells of one change, as `HEADS` has them without the model."""
    verdict = f"{MARKS[change.verdict][0]} {change.verdict.value}".strip()
    if change.verdict is Verdict.NOISE:
        verdict = f"~ noise ±{change.noise:.2g}"
    return (
        change.metric,
        number(change.old),
        number(change.new),
        _difference(change),
        _allowed(change),
        verdict,
    )


def number(value: float) -> str:
    """Return a count with commas; another number, or one of more than eight digits, with six digits."""
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**8 else f"{value:.6g}"


def _difference(change: Change) -> str:
    """Return a gain in the unit of the gate; without one, counts as a share and others as they are."""
    relative = change.tolerance.relative if change.tolerance else isinstance(change.old, int)
    if relative and change.old:
        return f"{change.difference / abs(change.old):+.2%}"
    return f"{change.difference:+,.6g}"


def _allowed(change: Change) -> str:
    if change.tolerance is None:
        return NOTHING
    return f"{'-' if BETTER_HIGHER[change.metric] else '+'}{change.tolerance}"


def _setting(sides: Mapping[str, Any], side: str) -> str:
    return json.dumps(sides[side], ensure_ascii=False) if side in sides else NOTHING


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print the comparison as tables, regressions in red, in eighty columns where there is no terminal."""
    from rich.console import Console  # a tenth of a second that Markdown and JSON do without

    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = COLUMNS
    console.print(f"Against {comparison.revision} ({comparison.commit[:7]})", style="bold", markup=False)
    if comparison.settings:
        console.print()
        console.print(_settings_table(comparison))
    if comparison.changed:
        console.print()
        console.print(*_lines(comparison), sep="\n")
    console.print()
    console.print(summary(comparison), style="" if comparison.passed else "bold red", markup=False)
    if comparison.devices:
        console.print(elsewhere(comparison), style="yellow", markup=False)
    if comparison.stale:
        console.print(staleness(comparison), style="bold red", markup=False)


def _settings_table(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("params.yaml", "there", "here", box=None, pad_edge=False)
    for place, sides in comparison.settings.items():
        table.add_row(*map(Text, (place, _setting(sides, "old"), _setting(sides, "new"))))
    return table


def _lines(comparison: Comparison) -> Iterator[Text]:
    """Yield the table of changes; a model's name has a line of its own, for it may be long."""
    from rich.text import Text

    rows = {model: [cells(change) for change in changes] for model, changes in comparison.changed.items()}
    columns = zip(HEADS[1:], *(row for found in rows.values() for row in found), strict=True)
    widths = [max(map(len, column)) for column in columns]

    def line(row: Sequence[str]) -> str:
        name, *numbers, verdict = row
        middle = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        return " ".join(["", name.ljust(widths[0]), *middle, verdict])

    yield Text(line(HEADS[1:]), "bold")
    for model, changes in comparison.changed.items():
        yield Text(model, "bold")
        for change, row in zip(changes, rows[model], strict=True):
            yield Text(line(row), MARKS[change.verdict][1])


def markdown(comparison: Comparison) -> str:
    """Return the comparison for a pull request: what failed in the open, the rest folded."""
    mark = "✅" if comparison.passed else "❌"
    name, commit = _escaped(comparison.revision), comparison.commit[:7]
    parts = [f"### {mark} Models against {name}", f"{_escaped(summary(comparison))} ({commit})"]
    parts += [f"**{_escaped(staleness(comparison))}**"] if comparison.stale else []
    parts += [_escaped(elsewhere(comparison))] if comparison.devices else []
    urgent = (Verdict.REGRESSION, Verdict.NOISE)
    if rows := [
        [model, *cells(change)] for verdict in urgent for model, change in comparison.having(verdict)
    ]:
        parts.append(_table(HEADS, rows))
    if rows := [
        [model, *cells(change)] for model, changes in comparison.changed.items() for change in changes
    ]:
        parts.append(_folded(f"All {_count(len(rows), 'number')} that differ", _table(HEADS, rows)))
    if comparison.new:
        rows = [[model, *map(number, row.values())] for model, row in comparison.new.items()]
        heads = ["model", *next(iter(comparison.new.values()))]
        parts.append(_folded(f"{_count(len(rows), 'new model')}", _table(heads, rows)))
    if comparison.settings:
        rows = [
            [place, _setting(sides, "old"), _setting(sides, "new")]
            for place, sides in comparison.settings.items()
        ]
        title = f"{_count(len(rows), 'difference')} in params.yaml"
        parts.append(_folded(title, _table(("place", "there", "here"), rows)))
    return "\n\n".join(parts) + "\n"


def _folded(title: str, content: str) -> str:
    """GitHub reads Markdown inside of HTML only after an empty line."""
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _table(heads: Sequence[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too: a `|` would begin another cell."""
    flat = " ".join(html.escape(text, quote=False).split())
    return re.sub(r"([\\`*\[\]|~]|\b_|_\b)", r"\\\1", flat)


def as_json(comparison: Comparison) -> str:
    """Return all of it as strict JSON; `old` or `new` is missing where that side has no such setting."""
    states = {model: "changed" if changes else "unchanged" for model, changes in comparison.models.items()}
    states |= dict.fromkeys(comparison.new, "new") | dict.fromkeys(comparison.removed, "removed")
    content = {
        "revision": comparison.revision,
        "commit": comparison.commit,
        "passed": comparison.passed,
        "gates": comparison.gates,
        "stale": comparison.stale,
        "devices": {m: {"old": old, "new": new} for m, (old, new) in comparison.devices.items()},
        "models": states,
        "metrics": {
            model: {change.metric: _plain(change) for change in changes}
            for model, changes in comparison.changed.items()
        },
        "new": comparison.new,
        "params": comparison.settings,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _plain(change: Change) -> dict[str, Any]:
    return {
        "old": change.old,
        "new": change.new,
        "difference": change.difference,
        "verdict": change.verdict.value,
        "tolerance": None if change.tolerance is None else str(change.tolerance),
        "noise": change.noise,
    }


def apology(revision: str, error: str, style: str | None) -> str:
    """Return, in the style that was asked for, that there is no verdict; nothing for a terminal."""
    if style == "json":
        return json.dumps({"revision": revision, "passed": None, "error": error}, indent=1) + "\n"
    if style == "md":
        lines = "\n".join(f"    {line}" for line in error.splitlines())
        return f"### ❌ Models against {_escaped(revision)}\n\nCould not be compared:\n\n{lines}\n"
    return ""
