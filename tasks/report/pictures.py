"""The picture of quality, such as accuracy, against size; the same bytes for the same rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from decant.outputs import replacing
from tasks.pipeline.metrics import interval
from tasks.report.rows import TEACHER, ModelRow

# Okabe and Ito's colours, which colour-blind readers can distinguish; the marker differs too.
STYLES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
    ("#7f7f7f", "X"),
)
TEACHER_STYLE = ("#000000", "*")
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "decant",  # else every id in the SVG is drawn anew
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}
METADATA: dict[str, dict[str, str | None]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
}


def draw(rows: Sequence[ModelRow], front: Collection[str]) -> Figure:
    """Return quality with its 95 % interval against size on a logarithmic axis, each model named.

    Where some models lost much more than the others, the axis is broken: they stand in a lower panel whose
    scale is coarse, and the rest keep a scale on which they can be told apart.
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(9, 6), layout="constrained")
        panels = _panels(figure, rows)
        for panel in panels:
            _front(panel, rows, front)
            _points(panel, rows)
        _scale(panels, rows)
        _labels(figure, panels, rows, front)
        return figure


def save(figure: Figure, path: Path) -> None:
    """Write the picture as its name's ending says, without a date or the name of the program."""
    with mpl.rc_context(SETTINGS), replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=METADATA[path.suffix])


def floor(rows: Sequence[ModelRow]) -> float | None:
    """Return the quality, as it is drawn, at which the axis is broken, or None where all fit on one scale.

    Shown at large is what lost at most three times as much as the median model, and at least two points.
    """
    point, drawn = rows[0].measured.point, sorted(_height(row) for row in rows)
    best, median = drawn[-1], drawn[len(drawn) // 2]
    reach = max(2.0 * point, 3 * (best - median))
    shown = [height for height in drawn if height >= best - reach]
    if shown[0] == drawn[0] or best - drawn[0] < 2 * reach:
        return None
    return point * math.floor((shown[0] - 0.05 * reach - 0.2 * point) / point)


def styles(rows: Sequence[ModelRow]) -> dict[str, tuple[str, str]]:
    """Return colour and marker by operation; a new operation needs no change here."""
    operations = sorted({row.operation for row in rows if row.name != TEACHER})
    chosen = {operation: STYLES[index % len(STYLES)] for index, operation in enumerate(operations)}
    return {TEACHER: TEACHER_STYLE, **chosen}


def _height(row: ModelRow, key: str | None = None) -> float:
    """Return a model's quality, or an end of its interval, in the unit of the axis."""
    quality = row.measured.by_key[row.measured.quality]
    return quality.times * row.metrics[key or quality.key]


def _bar(row: ModelRow) -> tuple[float, float, float]:
    """Return the interval's low end, the quality, and the high end, in the unit of the axis."""
    low, high = interval(row.measured.quality)
    return _height(row, low), _height(row), _height(row, high)


def _panels(figure: Figure, rows: Sequence[ModelRow]) -> list[Axes]:
    """Return the axes from top to bottom; with a cut there are two, and marks where the scale breaks."""
    cut = floor(rows)
    lowest, highest = min(_bar(row)[0] for row in rows), max(_bar(row)[2] for row in rows)
    measured = rows[0].measured
    least = measured.by_key[measured.quality].least
    bottom = cut if cut is not None else lowest - 0.08 * (highest - lowest or measured.point)
    if cut is None:
        upper = figure.subplots()
    else:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3.2, 1))
        point = measured.point
        lower.set_ylim(max(least, 10 * point * math.floor((lowest - 8 * point) / (10 * point))), cut)
        lower.set_ylabel("coarse scale")
        upper.spines["bottom"].set_visible(False)
        upper.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        mark = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "linestyle": "none", "color": "black"}
        upper.plot([0], [0], transform=upper.transAxes, clip_on=False, **mark)
        lower.plot([0], [1], transform=lower.transAxes, clip_on=False, **mark)
    upper.set_ylim(bottom, highest + 0.08 * (highest - bottom))
    upper.set_ylabel(measured.axis)
    return [upper] if cut is None else [upper, lower]


def _front(panel: Axes, rows: Sequence[ModelRow], front: Collection[str]) -> None:
    """Draw the best quality that each size allows."""
    panel.step(
        *zip(*_corners(rows, front), strict=True), where="post", color="#b0b0b0", linewidth=1.5, zorder=1
    )


def _corners(rows: Sequence[ModelRow], front: Collection[str]) -> list[tuple[float, float]]:
    """Return the front's sizes in KB and qualities, the smallest first."""
    return sorted((row.metrics["size_bytes"] / 1000, _height(row)) for row in rows if row.name in front)


def _points(panel: Axes, rows: Sequence[ModelRow]) -> None:
    """Draw the models whose quality lies within the panel."""
    chosen = styles(rows)
    for row in _inside(panel, rows):
        colour, marker = chosen[row.operation]
        low, middle, high = _bar(row)
        panel.errorbar(
            row.metrics["size_bytes"] / 1000,
            middle,
            yerr=[[middle - low], [high - middle]],
            color=colour,
            marker=marker,
            markersize=13 if row.name == TEACHER else 7,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=1,
            capsize=2.5,
            zorder=4 if row.name == TEACHER else 3,
        )


def _inside(panel: Axes, rows: Sequence[ModelRow]) -> list[ModelRow]:
    low, high = panel.get_ylim()
    return [row for row in rows if low <= _height(row) < high]


def _scale(panels: Sequence[Axes], rows: Sequence[ModelRow]) -> None:
    """Set the scale of sizes and the legend; leave room at both sides for names."""
    bottom = panels[-1]
    sizes = [row.metrics["size_bytes"] / 1000 for row in rows]
    bottom.set_xscale("log")
    bottom.set_xlim(min(sizes) / 1.45, max(sizes) * 1.45)
    bottom.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    bottom.xaxis.set_minor_formatter(NullFormatter())
    bottom.set_xlabel("size on disk, KB (logarithmic)")
    handles = [
        panels[0].plot([], [], color=colour, marker=marker, linestyle="none", label=operation)[0]
        for operation, (colour, marker) in styles(rows).items()
    ]
    handles += panels[0].plot([], [], color="#b0b0b0", linewidth=1.5, label="Pareto front (names bold)")
    panels[0].figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.2,
    )


def _labels(figure: Figure, panels: Sequence[Axes], rows: Sequence[ModelRow], front: Collection[str]) -> None:
    """Name every point where the name covers no marker and no other name, or the least of them."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout, on which all places below depend
    figure.set_layout_engine("none")
    for panel in panels:
        inside = _inside(panel, rows)
        taken = [box for row in inside for box in _marks(panel, row)] + _steps(panel, rows, front)
        coarse = panel is not panels[0]
        for row in sorted(inside, key=lambda row: (-row.quality, row.name)):
            text = f"{row.name}  {row.measured.rough.format(_height(row))}" if coarse else row.name
            taken.append(_label(canvas, panel, row, text, taken, bold=row.name in front))


def _label(
    canvas: FigureCanvasAgg, panel: Axes, row: ModelRow, text: str, taken: Sequence[Bbox], *, bold: bool
) -> Bbox:
    """Write the text at the best of many places around the point; return what they cover."""
    point = (row.metrics["size_bytes"] / 1000, _height(row))
    frame = panel.get_window_extent()
    best: tuple[float, Annotation] | None = None
    for rank, (place, alignment) in enumerate(_places()):
        label = panel.annotate(
            text,
            point,
            xytext=place,
            textcoords="offset points",
            ha=alignment,
            va="center",
            fontsize=8.5,
            fontweight="bold" if bold else "normal",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            if math.hypot(*place) > 14
            else None,
            zorder=5,
        )
        box = _text_box(label, canvas)
        cost = sum(_overlap(box, other) for other in taken) + 3 * (_area(box) - _overlap(box, frame))
        cost += rank * 1e-3 * _area(box)
        if best is not None and best[0] <= cost:
            label.remove()
            continue
        if best is not None:
            best[1].remove()
        best = (cost, label)
    assert best is not None
    return _text_box(best[1], canvas)


def _places() -> Iterator[tuple[tuple[float, float], str]]:
    """Yield offsets in points from near to far, with the alignment that makes the text grow away."""
    for distance in (9, 16, 26, 38, 52):
        for dx, dy in product((1, -1, 0), (0, 1, -1)):
            if (dx, dy) == (0, 0):
                continue
            scale = distance if dx == 0 or dy == 0 else 0.75 * distance
            yield (dx * scale, dy * scale), {1: "left", -1: "right", 0: "center"}[dx]


def _marks(panel: Axes, row: ModelRow) -> list[Bbox]:
    """Return what the point's marker and its error bar cover, in pixels."""
    x = row.metrics["size_bytes"] / 1000
    low, middle, high = (panel.transData.transform((x, height)) for height in _bar(row))
    return [
        Bbox.from_extents(middle[0] - 6, middle[1] - 6, middle[0] + 6, middle[1] + 6),
        Bbox.from_extents(low[0] - 2, low[1], high[0] + 2, high[1]),
    ]


def _steps(panel: Axes, rows: Sequence[ModelRow], front: Collection[str]) -> list[Bbox]:
    """Return what the front's line covers, in pixels: a level piece and an upright one for each step."""
    boxes = []
    for here, there in pairwise(panel.transData.transform(_corners(rows, front))):
        boxes.append(Bbox.from_extents(here[0], here[1] - 1, there[0], here[1] + 1))
        boxes.append(Bbox.from_extents(there[0] - 1, here[1], there[0] + 1, there[1]))
    return boxes


def _text_box(label: Annotation, canvas: FigureCanvasAgg) -> Bbox:
    """Return what the text covers, in pixels, without the line that leads to them."""
    label.update_positions(canvas.get_renderer())
    box = Text.get_window_extent(label, canvas.get_renderer())
    return Bbox.from_extents(box.x0 - 1, box.y0, box.x1 + 1, box.y1)


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else _area(common)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)
