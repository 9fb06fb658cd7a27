"""One picture: a row for each example, a column for each model, the features that speak for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from decant.outputs import replacing
from tasks.illustrate.reasons import Example, Reasons, Shown

METHOD = "kernel_shap"
"""The method that is drawn: its numbers add up to the answer."""

WIDTH, HEIGHT = 1.05, 1.15
"""Inches of one cell."""

MOST = 40
"""Compressed models that are drawn, those whose reasons are the most the teacher's: a picture has an end."""

SETTINGS: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 6.5}


def draw(found: Sequence[Shown]) -> Figure:
    """Return the picture: blue speaks for the answer, red against it, each cell on a scale of its own.

    Args:
        found: The teacher first; its examples have the pictures where there are any. Of more than `MOST`
            other models the last ones are only counted.
    """
    found, more = found[: MOST + 1], len(found) - MOST - 1
    with mpl.rc_context(SETTINGS):
        examples = found[0].reasons.examples
        rows, columns = max(len(examples), 1), len(found) + 1
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.4), layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False)
        for axes in cells.flat:
            axes.set_xticks([])
            axes.set_yticks([])
        for at, example in enumerate(examples):
            _input(cells[at][0], example)
            for each, axes in zip(found, cells[at][1:], strict=True):
                _cell(axes, each.reasons, at, example)
        for each, axes in zip(found, cells[0][1:], strict=True):
            axes.set_title(_title(each))
        if more > 0:
            figure.supxlabel(f"and {more:,} more models, whose reasons are less the teacher's")
        if not examples:
            figure.suptitle(found[0].reasons.unexplained or "No explanation fits")
        return figure


def save(figure: Figure, path: Path) -> None:
    """Write the picture without a date or the name of the program: the same bytes for the same numbers."""
    with mpl.rc_context(SETTINGS), replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110, metadata={"Software": None})


def _title(each: Shown) -> str:
    name = (
        each.reasons.model.replace("-ft", "\n-ft", 1) if len(each.reasons.model) > 12 else each.reasons.model
    )
    return name if each.kept is None else f"{name}\n{each.kept:.2f}"


def _input(axes: Axes, example: Example) -> None:
    """Draw the example itself where it is a picture, and name what is explained."""
    axes.set_ylabel(example.label or f"row {example.row}")
    if example.image:
        axes.imshow(np.array(example.image), cmap="gray", vmin=0, vmax=1)
    else:
        axes.axis("off")


def _cell(axes: Axes, reasons: Reasons, at: int, example: Example) -> None:
    """Draw one model's attributions over the example."""
    values = reasons.examples[at].attributions.get(METHOD) if at < len(reasons.examples) else None
    if values is None:
        axes.axis("off")
        return
    shape = reasons.layout
    most = max(map(abs, values)) or 1.0
    height, width = (len(example.image), len(example.image[0])) if example.image else (shape[0], shape[1])
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    alpha = 0.65 if example.image else 1.0
    if example.image:
        axes.imshow(np.array(example.image), cmap="gray", vmin=0, vmax=1)
    axes.imshow(
        np.array(values[: shape[0] * shape[1]]).reshape(shape),
        cmap="RdBu",
        vmin=-most,
        vmax=most,
        alpha=alpha,
        extent=extent,
        aspect="auto" if not example.image else "equal",
    )
