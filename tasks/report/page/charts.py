"""The charts as specifications of Vega-Lite, made by altair; the page puts the data in when it draws them.

Colours, axes' titles and scales that a reader chooses are set by page.js on these same specifications.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import altair as alt

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#3a9bdc", "#7f7f7f", "#9c6644")
"""Okabe and Ito's colours, the yellow and the light blue darker: they are seen on white and on black."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "wedge")
STAR = "M0-1L.29-.4L.95-.31L.48.15L.59.81L0 .5L-.59.81L-.48.15L-.95-.31L-.29-.4Z"
TEACHER_STYLE = ("#8a6d00", STAR)
MANY = alt.Legend(orient="top", title=None, columns=3)


@cache
def tradeoff(operations: tuple[str, ...]) -> dict[str, Any]:
    """Return the chart of one number of all models against another.

    Its data are `points` (name, x, y, low, high, operation, chain, on_front and texts), `front` (x, y), and
    the budgets `limits` of the horizontal number and `heights` of the vertical one (value, label).

    Args:
        operations: All last steps, the teacher's first; each has a colour and a shape.
    """
    x = alt.X("x:Q").scale(type="log", nice=False, padding=24).title("x").axis(grid=True, labelOverlap=True)
    y = alt.Y("y:Q").scale(zero=False, nice=False, padding=16, clamp=True).title("y")
    front = (
        alt.Chart(alt.NamedData("front"))
        .mark_line(interpolate="step-after", strokeWidth=1.5, opacity=0.55, color="gray")
        .encode(x=x, y=y)
    )
    limits = _budgets("limits").encode(x=alt.X("value:Q"))
    heights = _budgets("heights").encode(y=alt.Y("value:Q"))
    bars = (
        alt.Chart(alt.NamedData("points"))
        .mark_rule(opacity=0.5, clip=True)
        .encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=_colour(operations))
    )
    points = (
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=95, opacity=1, cursor="pointer", tooltip=True)
        .encode(x=x, y=y, color=_colour(operations), shape=_shape(operations), tooltip=_tooltip())
    )
    names = (
        alt.Chart(alt.NamedData("points"))
        .transform_filter("datum.named")
        .mark_text(align="left", baseline="bottom", dx=6, dy=-5, fontSize=11)
        .encode(x=x, y=y, text="name:N")
    )
    chart = alt.layer(limits, heights, front, bars, points, names).properties(width="container", height=400)
    return _plain(chart)


@cache
def curve() -> dict[str, Any]:
    """Return the chart of a training: `curve` has the columns epoch, value and series."""
    return _lines(
        alt.X("epoch:Q").axis(tickMinStep=1, format="d").title("epoch"),
        alt.Y("value:Q").scale(zero=False).title(None),
        _series("series:N", alt.Legend(orient="top", title=None)),
        ["series:N", "epoch:Q", alt.Tooltip("value:Q", format=".4g")],
        height=180,
    )


@cache
def corruption() -> dict[str, Any]:
    """Return the chart of a quality under corruptions: `curve` has corruption, strength and value."""
    return _lines(
        alt.X("strength:Q").title("strength").axis(tickMinStep=1),
        alt.Y("value:Q").scale(zero=False).title(None),
        _series("corruption:N", MANY),
        ["corruption:N", "strength:Q", alt.Tooltip("value:Q", format=".4~g")],
    )


@cache
def deletion() -> dict[str, Any]:
    """Return the chart of what is left of an answer: `curve` has method, share and answer."""
    return _lines(
        alt.X("share:Q").axis(format=".0%").title("features removed, those ranked first before others"),
        alt.Y("answer:Q").title("what is left of the answer"),
        _series("method:N", MANY),
        ["method:N", alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("answer:Q", format=".3f")],
    )


@cache
def reliability() -> dict[str, Any]:
    """Return the reliability curve: `curve` has confidence, accuracy and count, each a bin of confidence."""
    diagonal = (
        alt.Chart(alt.NamedData("diagonal"))
        .mark_line(strokeDash=[4, 4], color="gray", strokeWidth=1)
        .encode(x="confidence:Q", y="accuracy:Q")
    )
    bins = (
        alt.Chart(alt.NamedData("curve"))
        .mark_line(point=True, strokeWidth=1.5, color=PALETTE[0])
        .encode(
            x=alt.X("confidence:Q").axis(format=".0%").title("confidence"),
            y=alt.Y("accuracy:Q").axis(format=".0%").title("accuracy"),
            tooltip=[
                alt.Tooltip("confidence:Q", format=".1%"),
                alt.Tooltip("accuracy:Q", format=".1%"),
                alt.Tooltip("count:Q", title="examples"),
            ],
        )
    )
    return _plain(alt.layer(diagonal, bins).properties(width="container", height=200))


def _budgets(data: str) -> alt.Chart:
    """Return dashed lines, wide enough to be pointed at."""
    chart = alt.Chart(alt.NamedData(data)).mark_rule(strokeDash=[4, 4], strokeWidth=1.5, color="gray")
    return chart.encode(tooltip=alt.Tooltip("label:N", title="budget"))


def _lines(
    x: alt.X, y: alt.Y, color: alt.Color, tooltip: list[str | alt.Tooltip], height: int = 200
) -> dict[str, Any]:
    """Return a chart of `curve` with a line for each series."""
    chart = alt.Chart(alt.NamedData("curve")).mark_line(point=True, strokeWidth=1.5)
    drawn = chart.encode(x=x, y=y, color=color, tooltip=tooltip)
    return _plain(drawn.properties(width="container", height=height))


def _series(field: str, legend: alt.Legend) -> alt.Color:
    return alt.Color(field).scale(range=list(PALETTE)).legend(legend)


def styles(operations: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and shape by operation; a new operation needs no change here."""
    others = [operation for operation in operations if operation != "teacher"]
    chosen = {
        operation: (PALETTE[index % len(PALETTE)], SHAPES[index % len(SHAPES)])
        for index, operation in enumerate(others)
    }
    return {"teacher": TEACHER_STYLE, **chosen}


def _colour(operations: Sequence[str]) -> alt.Color:
    chosen = styles(operations)
    scale = alt.Scale(domain=[*chosen], range=[colour for colour, _ in chosen.values()])
    return alt.Color("operation:N").scale(scale).legend(orient="top", title=None, symbolOpacity=1)


def _shape(operations: Sequence[str]) -> alt.Shape:
    chosen = styles(operations)
    scale = alt.Scale(domain=[*chosen], range=[shape for _, shape in chosen.values()])
    return alt.Shape("operation:N").scale(scale).legend(orient="top", title=None, symbolOpacity=1)


def _tooltip() -> list[alt.Tooltip]:
    fields = {"name": "model", "chain": "made by", "x_text": "x", "y_text": "y", "interval": "95 %"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields.items()]


def _plain(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Return the specification without data and without altair's own theme."""
    spec: dict[str, Any] = chart.to_dict(validate=True)
    return {key: value for key, value in spec.items() if key not in ("config", "datasets")}
