"""The page and the picture of benchmarks/quantization.py, from its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.pruning_page import inline, spread, table
from tasks.report.pictures import SETTINGS, STYLES, save

Rows = Sequence[Mapping[str, Any]]
Results = Mapping[str, Any]

NETWORKS = ("default", "lenet-300-100")
OURS: dict[str, dict[str, Any]] = {
    **{f"decant, {kind}": {"bits": 8, "range": {"kind": kind}} for kind in ("min-max", "percentile", "mse")},
    "decant, min-max, weights of 7 bits": {"bits": 7},
}
"""Our ways of static 8 bits; the first is the default."""

MINE = next(iter(OURS))
WIDTHS = ("4 bits", "3 bits", "2 bits", "ternary", "binary", "4 bits, inputs 4 bits", "binary, inputs 1 bit")


def page(results: Results) -> str:
    """Return the whole page; a part that was not run yet is left out."""
    lines = [
        "# Quantization, side by side",
        "",
        "Written by `python -m benchmarks.quantization --write`.",
        "",
    ]
    lines += [
        "Accuracies are on the test split. Where there are several seeds, each has a teacher of its own, and "
        "what is shown is the mean over seeds and, where they differ, the deviation. Changes are in points "
        "from the teacher of the same seed.",
        "",
    ]
    if promises := promised(results):
        columns = ("promise", "network", "processor", "found", "held")
        lines += ["## Promised and found", "", *table(columns, promises), ""]
    for part, section in SECTIONS.items():
        if part in results:
            lines += section(results)
    return "\n".join(lines)


def promised(results: Results) -> list[list[str]]:
    """Return, for each promise, network and processor, what was found and whether it holds."""
    judges: dict[str, Callable[[Rows], list[tuple[str, str, bool]]]] = {
        "int8": _eight,
        "trained": _few,
        "bytes": _least,
    }
    found = []
    for part, judge in judges.items():
        for network, processor, rows in _groups(results, part):
            found += [[words, network, processor, cell, _held(held)] for words, cell, held in judge(rows)]
    return found


def _eight(rows: Rows) -> list[tuple[str, str, bool]]:
    """Return the promises on int8: against float32, then against each way of the peer."""
    mine, plain = _where(rows, way=MINE), _where(rows, way="float32")
    if not (mine and plain):
        return []
    change = statistics.mean(row["accuracy"] for row in mine) - statistics.mean(r["accuracy"] for r in plain)
    found = [("int8 static within 0.1 points of float32", f"{change:+.3f}", change >= -0.1)]
    theirs = [r for r in rows if r["way"].startswith("onnxruntime") and r["accuracy"] is not None]
    if not theirs:
        return found
    ways = dict.fromkeys(row["way"] for row in theirs)
    best = max(statistics.mean(r["accuracy"] for r in _where(theirs, way=way)) for way in ways)
    accuracy = statistics.mean(row["accuracy"] for row in mine)
    found.append(
        (
            "no less accurate than the best of ONNX Runtime's own",
            f"{accuracy:.3f} against {best:.3f} %",
            accuracy >= best,
        )
    )
    size, least = mine[0]["bytes"], min(row["bytes"] for row in theirs)
    found.append(("its file no larger", f"{size:,} against {least:,} bytes", size <= least))
    for batch in mine[0]["latency"]:
        faster = statistics.mean(row["latency"][batch]["over float32"][1] for row in mine)
        found.append((f"faster than float32 at {batch}", f"{faster:.2f} times at least", faster > 1))
        ratios = [row["latency"][batch]["over peer"] for row in mine if "over peer" in row["latency"][batch]]
        if ratios:
            middle, high = (statistics.mean(ratio[i] for ratio in ratios) for i in (0, 2))
            # A ratio whose 90th percentile over rounds is below 1 is slower by more than the spread.
            found.append((f"no slower at {batch}", f"{middle:.2f} times as fast", high >= 1))
    return found


LIMITS = {
    "4 bits": ("4-bit weights", 0.3),
    "ternary": ("ternary weights", 1.0),
    "binary": ("binary weights", 1.5),
    "binary, inputs 1 bit": ("binary weights and inputs", 5.0),
}


def _few(rows: Rows) -> list[tuple[str, str, bool]]:
    """Return the promises on trained models of few bits: the best of the ways that all seeds have."""
    found = []
    for width, (words, limit) in LIMITS.items():
        ways = _changes(rows, width)
        most = max((len(values) for values in ways.values()), default=0)
        whole = {way: statistics.mean(values) for way, values in ways.items() if len(values) == most}
        if whole:
            way = max(whole, key=lambda name: whole[name])
            change = whole[way]
            found.append(
                (f"trained {words} within {limit} points", f"{change:+.2f} ({way})", change >= -limit)
            )
    return found


def _least(rows: Rows) -> list[tuple[str, str, bool]]:
    """Return the promise on bytes, for a network of many parameters: the width that is furthest off."""
    large = [row for row in rows if row["parameters"] > 100_000]
    if not large:
        return []
    most = max(large, key=lambda row: row["bytes"] / row["least"])
    cell = f"{most['bytes'] / most['least'] - 1:.2%} ({most['width']})"
    return [("bytes at most 3 % over the least, at any width", cell, most["bytes"] <= 1.03 * most["least"])]


def int8(results: Results) -> list[str]:
    """Return the tables of eight bits: ours and the peer's, accuracy, file and speed."""
    lines = [
        "## Eight bits, static",
        "",
        "`python -m benchmarks.quantization --part int8 --write`. Every row is an ONNX file that ONNX "
        f"Runtime runs on one thread, calibrated on the same 1,000 training images; {_machines(results)}. "
        "ONNX Runtime's own quantizer makes QDQ with weights per channel. Speed-ups are medians over "
        "rounds with the 10th and the 90th percentile, the calls interleaved, over float32 and over its "
        "quantizer with min-max. `other answers` are images of the test split that the deployed file classes "
        "otherwise than the evaluated model; `in a plain session` the same without the option that "
        "processors without VNNI need for exact sums (docs/quantization.md).",
        "",
    ]
    for title, rows in _titled(results, "int8"):
        lines += [title, ""]
        batches = next((list(row["latency"]) for row in rows if row.get("latency")), [])
        columns = ["", "accuracy %", "change", "file, bytes", "other answers", "in a plain session"]
        columns += [f"{batch}, over {over}" for batch in batches for over in ("float32", "peer")]
        cells = []
        for way in dict.fromkeys(row["way"] for row in rows):
            mine = _where(rows, way=way)
            if any(row["accuracy"] is None for row in mine):
                cells.append([way, mine[0]["note"], *["-"] * (len(columns) - 2)])
                continue
            cells.append(
                [
                    way,
                    spread([row["accuracy"] for row in mine]),
                    _points([row["change"] for row in mine]),
                    f"{round(statistics.mean(row['bytes'] for row in mine)):,}",
                    *(_listed(mine, key) for key in ("differing", "plain")),
                    *(
                        _ratio([row["latency"][batch].get(f"over {over}") for row in mine])
                        for batch in batches
                        for over in ("float32", "peer")
                    ),
                ]
            )
        lines += [*table(columns, cells), ""]
    return lines


def _listed(rows: Rows, key: str) -> str:
    return ", ".join(str(row[key]) for row in rows if key in row) or "-"


def widths(results: Results) -> list[str]:
    """Return the tables of what each way loses at each width without a training."""
    lines = [
        "## Fewer bits, after training",
        "",
        "`python -m benchmarks.quantization --part widths --write`. Change of the accuracy in points; "
        "weights alone, but where inputs are named. Scales are per output channel unless groups are named. "
        "Codebooks are per layer and may take another number of bytes. Mixed widths take no more "
        "bytes than the plain way at that width. `range searched` is `search: 8`, from min-max on. "
        "What is empty or not there was not measured on that processor.",
        "",
        "![Change of accuracy against bits](quantization.svg)",
        "",
    ]
    for title, rows in _titled(results, "widths"):
        lines += [title, "", *_by_width(rows), ""]
    return lines


def trained(results: Results) -> list[str]:
    """Return the tables of what each way of training on levels loses at each width, and the recipes."""
    lines = ["## Fewer bits, trained", "", "`python -m benchmarks.quantization --part trained --write`.", ""]
    for title, rows in _titled(results, "trained"):
        lines += [title, "", *_by_width(rows), "", *_recipes(rows)]
    return lines


def _by_width(rows: Rows) -> list[str]:
    """Return a table with a line for each way and a column for each width."""
    present = [width for width in WIDTHS if _where(rows, width=width)]
    ways = dict.fromkeys(row["way"] for row in rows)
    cells = [[way, *(_cell(_where(rows, way=way, width=width)) for width in present)] for way in ways]
    return table(("", *present), cells)


def _recipes(rows: Rows) -> list[str]:
    """Return the recipes of what was trained, in the words of params.yaml."""
    recipes: dict[str, str] = {}
    for row in rows:
        train = {key: value for key, value in row["recipe"]["train"].items() if key != "kind"}
        recipes.setdefault(inline(train), row["width"])
    words = "; ".join(f"`{recipe}` (such as {width})" for recipe, width in recipes.items())
    return [f"Trained rows start from the teacher: {words}.", ""]


def peers(results: Results) -> list[str]:
    """Return the tables of the other tools."""
    versions = {k: v for row in results["peers"]["rows"] for k, v in row["versions"].items() if v}
    lines = [
        "## Other tools",
        "",
        "`pip install '.[peers]'` into an environment of its own, and there "
        "`python -m benchmarks.quantization --part peers --write`. The same "
        "teachers and calibration images; what is trained has the recipe of our own rows. The bytes are of "
        "the file as the tool saves it. "
        + (f"Versions: {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}." if versions else ""),
        "",
    ]
    for title, rows in _titled(results, "peers"):
        cells = []
        for way in dict.fromkeys(row["way"] for row in rows):
            mine = _where(rows, way=way)
            known = [row for row in mine if row["accuracy"] is not None]
            size = f"{round(statistics.mean(row['bytes'] for row in known)):,}" if known else "-"
            cells.append([way, _cell(mine), size, mine[0].get("note") or mine[0]["words"]])
        lines += [title, "", *table(("", "change", "bytes", ""), cells), ""]
    return lines


def bytes_on_disk(results: Results) -> list[str]:
    """Return the tables of bytes."""
    lines = [
        "## Bytes on disk",
        "",
        "`python -m benchmarks.quantization --part bytes --write`. What rebuilds the function, weights and "
        "description, with the width in every layer. The least: the bits of each weight, 4 bytes for every "
        "other number that the function needs (biases, scales, entries of codebooks) and one for a zero "
        "point. Three levels count log2(3) bits. The last column is against the bits times all "
        "parameters, as if biases and scales cost nothing else.",
        "",
    ]
    for network, _, rows in _groups(results, "bytes"):
        cells = [
            [
                row["width"],
                f"{row['bytes']:,}",
                f"{row['least']:,.0f}",
                f"{row['bytes'] / row['least'] - 1:.2%}",
                f"{4 * row['parameters'] / row['bytes']:.1f}",
                f"{row['bytes'] / row['flat'] - 1:.1%}",
            ]
            for row in rows
        ]
        columns = ("in every layer", "bytes", "the least", "over", "times smaller", "over bits x parameters")
        lines += [f"### {network}, {rows[0]['parameters']:,} parameters", "", *table(columns, cells), ""]
    return lines


SECTIONS: dict[str, Callable[[Results], list[str]]] = {
    "int8": int8,
    "widths": widths,
    "trained": trained,
    "peers": peers,
    "bytes": bytes_on_disk,
}


def draw(results: Results, path: Path) -> None:
    """Write the picture, where there is something to draw."""
    if panels := _panels(results):
        save(picture(panels), path)


PLACES = {"4 bits": 0, "3 bits": 1, "2 bits": 2, "ternary": 3, "binary": 4}
CURVES = ("nearest, min-max", "nearest, mse", "gptq, mse", "gptq, range searched", "nearest", "trained")
_CUT = 30.0
"""Points lost, below which a network is broken and how much does not matter."""


def _panels(results: Results) -> dict[str, Rows]:
    """Return what was measured of few bits, trained or not, by the words above a panel."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for part in ("widths", "trained"):
        for network, processor, rows in _groups(results, part):
            panels.setdefault(f"{network}, {processor}", []).extend(rows)
    return dict(sorted(panels.items()))


def picture(panels: Mapping[str, Rows]) -> Figure:
    """Return points lost against the width for some ways, a panel for each network; the best trained one."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(5.5 * columns, 4 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for blank in axes[len(panels) :]:
            blank.set_axis_off()
        for panel, (title, rows) in zip(axes, panels.items(), strict=False):
            for (colour, marker), way in zip(STYLES, CURVES, strict=False):
                points = [
                    (place, lost) for width, place in PLACES.items() for lost in _lost(rows, way, width)
                ]
                if points:
                    panel.plot(
                        *zip(*points, strict=True), color=colour, marker=marker, linewidth=1.2, label=way
                    )
            panel.set_yscale("symlog", linthresh=1)
            panel.set_ylim(-_CUT, 1)
            panel.set_xticks(list(PLACES.values()), list(PLACES))
            panel.set(title=title, ylabel="change of accuracy, points")
            panel.axhline(0, color="#000000", linewidth=0.8, linestyle=":")
            panel.legend(frameon=False, fontsize=8)
        return figure


def _lost(rows: Rows, way: str, width: str) -> list[float]:
    """Return the mean change of a way at a width, or of the best trained one, cut; nothing if unknown."""
    trained = way == "trained"
    ways = _changes([row for row in rows if row["trained"] is trained], width)
    means = {name: statistics.mean(values) for name, values in ways.items()}
    found = max(means.values(), default=None) if trained else means.get(way)
    return [] if found is None else [max(found, -_CUT)]


def _changes(rows: Rows, width: str) -> dict[str, list[float]]:
    """Return the changes of each way at a width, one for each seed."""
    changes: dict[str, list[float]] = {}
    for row in _where(rows, width=width):
        if row["accuracy"] is not None:
            changes.setdefault(row["way"], []).append(row["change"])
    return changes


def _groups(results: Results, part: str) -> Iterable[tuple[str, str, Rows]]:
    """Yield network and processor of what a part has rows of: another processor trains another teacher."""
    every = results.get(part, {}).get("rows", [])
    for network in NETWORKS:
        for processor in dict.fromkeys(row["processor"] for row in every):
            if rows := _where(every, network=network, processor=processor):
                yield network, processor, rows


def _titled(results: Results, part: str) -> Iterable[tuple[str, Rows]]:
    """Yield heading and rows of each table of a part."""
    for network, processor, rows in _groups(results, part):
        yield f"### {network}, {_teacher(rows)}, {processor}", rows


def _where(rows: Rows, **fixed: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row.get(key) == value for key, value in fixed.items())]


def _teacher(rows: Rows) -> str:
    whole = {row["seed"]: row["teacher"] for row in rows}
    return f"teacher {spread(list(whole.values()))} %, seeds {', '.join(map(str, sorted(whole)))}"


def _cell(rows: Rows) -> str:
    """Return the change of a way in points, or in short why it has none."""
    known = [row["change"] for row in rows if row["accuracy"] is not None]
    if known:
        return _points(known) + (f" (seeds: {len(known)})" if len(known) < len(rows) else "")
    if not rows:
        return ""
    note = rows[0]["note"]
    return "not installed" if "not installed" in note else "fails" if "fails" in note else "refused"


def _points(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):+.2f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _ratio(ratios: Sequence[Sequence[float] | None]) -> str:
    """Return a speed-up with its percentiles, the means over seeds."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return "-"
    middle, low, high = (statistics.mean(ratio[i] for ratio in known) for i in range(3))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _machines(results: Results) -> str:
    """Return where int8 was measured, in words."""
    return "; ".join(
        f"{name}, {machine['cores']} cores, onnxruntime {machine['onnxruntime']}, torch {machine['torch']}"
        for name, machine in results["int8"]["machines"].items()
    )


def _held(held: bool) -> str:
    return "yes" if held else "**no**"
