"""The page and the picture of benchmarks/pruning.py, from its results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tasks.report.pictures import SETTINGS, STYLES

Rows = Sequence[Mapping[str, Any]]
NETWORKS = ("lenet-300-100", "default")
TABLES = {
    "one-shot": "Without training",
    "pattern": "Two of four",
    "channels": "Channels at equal MACs",
    "cost": "Cost",
}
COLUMNS = {"one-shot": "one-shot", "tuned": "after fine-tuning"}


def page(results: Mapping[str, Any]) -> str:
    """Return the whole page; a part that was not run yet is left out."""
    networks = {name: results[name] for name in NETWORKS if name in results}
    lines = ["# Pruning, side by side", "", "Written by `python -m benchmarks.pruning --write`.", ""]
    lines += sparsity(networks) if networks else []
    for part, title in TABLES.items():
        if part in results:
            lines += [f"## {title}", "", results[part]["words"], ""]
            lines += [*table(results[part]["columns"], results[part]["rows"]), ""]
    if "cost" in results:
        lines += [*table(results["cost"]["layer columns"], results["cost"]["layer rows"]), ""]
    return "\n".join(lines)


def sparsity(networks: Mapping[str, Any]) -> list[str]:
    """Return a table for each network: criteria by ratio, one-shot and fine-tuned."""
    lines = [
        "## Criteria at equal sparsity",
        "",
        "Accuracy on the test split in percent, mean over seeds and, where they differ, deviation. The ratio "
        "is of prunable weights before over after. All criteria share each network's ERK allocation, "
        "teacher, images and fine-tuning; random is the control. One-shot, a criterion without chance gives "
        "the same model for every seed. Movement is scored in the training, so it has no one-shot model and "
        "is pruned inside the same epochs. SNIP scores the fresh network and here prunes the trained one, as "
        "all do. The default network is fine-tuned on half of the training images.",
        "",
        "![Accuracy against the ratio of weights, for each criterion](pruning.svg)",
        "",
    ]
    for network, result in networks.items():
        rows, whole = result["rows"], result["baseline"]["accuracy"]
        ratios = sorted({row["ratio"] for row in rows})
        seeds = sorted({row["seed"] for row in rows})
        lines += [
            f"### {network}, unpruned {whole:.2f} %",
            "",
            f"Fine-tuning: `{inline(result['tuning'])}`. Seeds {', '.join(map(str, seeds))}.",
            "",
        ]
        for key, words in COLUMNS.items():
            cells = " | ".join(f"{ratio}x" for ratio in ratios)
            lines += [f"| {words} | {cells} |", f"|---|{'---:|' * len(ratios)}"]
            for criterion in dict.fromkeys(row["criterion"] for row in rows):
                values = [accuracies(rows, criterion, ratio, key) for ratio in ratios]
                if any(values):
                    lines.append(f"| {criterion} | {' | '.join(map(spread, values))} |")
            lines.append("")
        lines += [*lost(rows, whole), ""]
    return lines


def lost(rows: Rows, whole: float) -> list[str]:
    """Return what OBS loses one-shot beside magnitude, ratio by ratio."""
    words = []
    for ratio in sorted({row["ratio"] for row in rows}):
        pair = [accuracies(rows, criterion, ratio, "one-shot") for criterion in ("obs", "magnitude")]
        if all(pair):
            mine, theirs = (whole - statistics.mean(values) for values in pair)
            words.append(
                f"{ratio}x {mine:.2f} against {theirs:.2f} ({mine / theirs:.0%})" if theirs > 0 else ""
            )
    return [f"Points lost one-shot, OBS against magnitude: {'; '.join(filter(None, words))}."]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a Markdown table; the first column is of words, the others are of numbers."""
    cells = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}", *cells]


def accuracies(rows: Rows, criterion: str, ratio: int, key: str) -> list[float]:
    """Return the accuracies of a criterion at a ratio, one for each seed that gave a model."""
    return [
        row[key]["accuracy"]
        for row in rows
        if (row["criterion"], row["ratio"]) == (criterion, ratio) and row[key] is not None
    ]


def spread(values: Sequence[float]) -> str:
    """Return mean and, where the values differ, deviation."""
    if not values:
        return "refused"
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def inline(recipe: Mapping[str, Any]) -> str:
    """Return a recipe in the words of params.yaml, on one line."""
    words = [
        f"{key}: {{{inline(v)}}}" if isinstance(v, Mapping) else f"{key}: {v}" for key, v in recipe.items()
    ]
    return ", ".join(words)


def picture(networks: Mapping[str, Any]) -> Figure:
    """Return accuracy against ratio for each criterion: a row for each network, one-shot and fine-tuned."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10, 4 * len(networks)), layout="constrained")
        panels = figure.subplots(len(networks), 2, squeeze=False)
        for line, (network, result) in enumerate(networks.items()):
            whole = result["baseline"]["accuracy"]
            for panel, (key, words) in zip(panels[line], COLUMNS.items(), strict=True):
                _curves(panel, result["rows"], key)
                panel.axhline(whole, color="#000000", linewidth=0.8, linestyle=":")
                panel.set(title=f"{network}, {words}", xlabel="times fewer weights", ylabel="accuracy, %")
        panels[0][0].legend(frameon=False, fontsize=8)
        return figure


def _curves(panel: Any, rows: Rows, key: str) -> None:
    ratios = sorted({row["ratio"] for row in rows})
    criteria = dict.fromkeys(row["criterion"] for row in rows)
    # A part that is still running has fewer criteria than there are styles.
    for (colour, marker), criterion in zip([*STYLES, ("#000000", "*")], criteria, strict=False):
        points = [(r, accuracies(rows, criterion, r, key)) for r in ratios]
        known = [(r, statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for r, v in points if v]
        if known:
            x, y, error = zip(*known, strict=True)
            panel.errorbar(
                x, y, error, color=colour, marker=marker, linewidth=1.2, capsize=2, label=criterion
            )
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(ratios))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(ratios, [f"{ratio}x" for ratio in ratios])
