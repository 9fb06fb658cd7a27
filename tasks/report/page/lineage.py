"""The models as a graph: who was made from whom, by which step, and what that step cost.

Columns are generations, from the left to the right. A row begins where a model has more than one child: the
first one stands in its parent's row, so that a chain is a straight line. Lengths are pixels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from tasks.pipeline.lineages import TEACHER
from tasks.report.page.columns import Column
from tasks.report.page.models import Model

LONGEST = 28
"""Letters of a name that are drawn at most."""

LETTER, SMALL = 7.4, 6.2
"""The width of a letter of a name, and of a label, on the average and rounded up."""

LINE, BOX, TRUNK, BUS = 13, 24, 12, 21
"""A line of labels; a model's box; how far behind a box edges turn; how far above a row answers come."""


@dataclass(frozen=True)
class Node:
    """A model in the graph, and the step to it.

    Attributes:
        model: The model.
        label: Its name, the end left out where it is long.
        told: All that the graph says of it, as a sentence.
        costs: What the step to it changed, such as `-0.61 points`; empty for the root.
        x: The left edge of its box.
        y: The middle of its box.
        width: Of its box.
        step_x: Where the labels of the step begin.
        edge: The way from the parent, as SVG writes it; empty for the root.
        answers: The way from a second teacher, whose answers it was trained on; empty where it has none.
    """

    model: Model
    label: str
    told: str
    costs: tuple[str, ...]
    x: int
    y: int
    width: int
    step_x: int
    edge: str
    answers: str


@dataclass(frozen=True)
class Graph:
    """All models.

    Attributes:
        nodes: Parents before their children.
        width: Of the drawing.
        height: Of the drawing.
    """

    nodes: tuple[Node, ...]
    width: int
    height: int

    @property
    def answers(self) -> bool:
        """Whether one of them has a second teacher."""
        return any(node.answers for node in self.nodes)


def graph(
    models: Sequence[Model], values: Mapping[str, Mapping[str, float]], columns: Sequence[Column]
) -> Graph:
    """Return the teacher with all that descends from it, siblings in the order of params.yaml.

    Args:
        models: The teacher first.
        values: Every number of each model, by name and key.
        columns: Whose differences are told, where both ends of a step have the number.
    """
    return _Layout(models, {each.name: _costs(each, values, columns) for each in models}).drawn()


@dataclass(frozen=True)
class _Layout:
    """Where each model stands."""

    models: Sequence[Model]
    costs: Mapping[str, tuple[str, ...]]

    def drawn(self) -> Graph:
        by_name = {model.name: model for model in self.models}
        nodes = tuple(self._node(by_name[name]) for name in self.rows)
        right = self.lefts[-1] + self.widths[-1] + 1
        return Graph(nodes, right, max(node.y for node in nodes) + self.below)

    @cached_property
    def rows(self) -> dict[str, int]:
        return _rows(self.models)

    @cached_property
    def widths(self) -> list[int]:
        """Of the boxes of each generation."""
        wide = [(len(each.chain), _letters(_shortened(each.name))) for each in self.models]
        return [round(2 * LINE + LETTER * most) for most in _most(wide)]

    @cached_property
    def gaps(self) -> list[int]:
        """What is before the boxes of each generation, where labels of edges stand."""
        labels = [
            (len(each.chain), _letters(text))
            for each in self.models
            for text in (each.operation, *self.costs[each.name])
        ]
        return [0, *(round(TRUNK + 2 * LINE + SMALL * most) for most in _most(labels)[1:])]

    @cached_property
    def lefts(self) -> list[int]:
        """Where the boxes of each generation begin."""
        boxes = accumulate(self.widths[:-1], initial=1)
        return [box + gap for box, gap in zip(boxes, accumulate(self.gaps), strict=True)]

    @cached_property
    def below(self) -> int:
        """What is below the middle of a row."""
        return max(LINE * max(map(len, self.costs.values())), BOX // 2) + LINE

    def _end(self, name: str) -> tuple[int, int]:
        """Return the middle of the right side of a model's box."""
        depth = self._depths[name]
        return self.lefts[depth] + self.widths[depth], self._y(name)

    @cached_property
    def _depths(self) -> dict[str, int]:
        return {model.name: len(model.chain) - 1 for model in self.models}

    def _y(self, name: str) -> int:
        return BUS + self.rows[name] * (BUS + self.below)

    def _node(self, model: Model) -> Node:
        depth, y, second = self._depths[model.name], self._y(model.name), second_teacher(model)
        left, width, costs = self.lefts[depth], self.widths[depth], self.costs[model.name]
        return Node(
            model=model,
            label=_shortened(model.name),
            told=_told(model, second, costs),
            costs=costs,
            x=left,
            y=y,
            width=width,
            step_x=left - self.gaps[depth] + TRUNK + LINE // 2,
            edge=_edge(*self._end(model.parent), left, y) if model.parent else "",
            answers=_bus(*self._end(second), left + width // 2, y) if second else "",
        )


def second_teacher(model: Model) -> str | None:
    """Return the model beside its parent whose answers a model was trained on; None where there is none."""
    block = model.block if isinstance(model.block, Mapping) else {}
    if model.parent in (None, TEACHER):
        return None
    distilled = model.operation == "distill"  # from its parent, and a loss of any other step asks the teacher
    asked = _with_teacher(block.get("ensemble")) if distilled else any(_soft_targets(block))
    return TEACHER if asked else None


def _with_teacher(ensemble: Any) -> bool:
    """Say whether an ensemble has the teacher in it; others of it lie on the way to the model."""
    named = ensemble.get("teachers") if isinstance(ensemble, Mapping) else ensemble
    return ensemble is True or (isinstance(named, Mapping | list) and TEACHER in named)


def _soft_targets(block: Mapping[str, Any]) -> Iterator[bool]:
    """Yield True for each loss in a block that asks a teacher: label smoothing asks none."""
    for key, inner in block.items():
        if isinstance(inner, Mapping):
            if key == "loss":
                yield inner.get("kind") != "smoothing"
            else:
                yield from _soft_targets(inner)


def _rows(models: Sequence[Model]) -> dict[str, int]:
    """Return the row of each model by its name, each with all that descends from it before the next."""
    children: dict[str | None, list[str]] = {}
    for model in models:
        children.setdefault(model.parent, []).append(model.name)
    found: dict[str, int] = {}
    left, lowest = [(models[0].name, 0)], 0
    while left:
        name, row = left.pop()
        found[name] = row = row if row >= 0 else lowest + 1
        lowest = max(lowest, row)
        first, *others = children.get(name, ()) or (None,)
        left += [(other, -1) for other in reversed(others) if other]
        left += [(first, row)] if first else []
    return found


def _most(lengths: Iterable[tuple[int, int]]) -> list[int]:
    """Return the most of each group of numbers; groups are counted from 1, and none is left out."""
    found: dict[int, int] = {}
    for group, length in lengths:
        found[group] = max(found.get(group, 0), length)
    return [found.get(group, 0) for group in range(1, max(found) + 1)]


def _letters(text: str) -> int:
    """Return how many letters wide a text is: some take the place of two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _edge(x: int, y: int, to_x: int, to_y: int) -> str:
    """Return a way from the right side of a box to the left one of another, which is never above it."""
    if y == to_y:
        return f"M{x} {y}H{to_x}"
    return f"M{x} {y}H{x + TRUNK - 6}q6 0 6 6V{to_y - 6}q0 6 6 6H{to_x}"


def _bus(x: int, y: int, to_x: int, to_y: int) -> str:
    """Return a way from the right side of a box to the upper one of another, above the labels of its row."""
    over = to_y - BUS
    bend = f"V{over - 6}q0 6 6 6" if over > y + 12 else f"V{over}"
    return f"M{x} {y + 6}h{TRUNK // 2}{bend}H{to_x}V{to_y - BOX // 2}"


def _told(model: Model, second: str | None, costs: Sequence[str]) -> str:
    if not model.parent:
        return model.name
    said = f"{model.name}: made from {model.parent} by {model.operation}"
    said += f", with the answers of {second}" if second else ""
    return f"{said}; {', '.join(costs)}" if costs else said


def _costs(
    model: Model, values: Mapping[str, Mapping[str, float]], columns: Sequence[Column]
) -> tuple[str, ...]:
    if not model.parent:
        return ()
    before, after = values[model.parent], values[model.name]
    common = [column for column in columns if column.key in before and column.key in after]
    return tuple(_difference(column, after[column.key] - before[column.key]) for column in common)


def _difference(column: Column, difference: float) -> str:
    """Return a difference with its unit: points for per cent, else what the title has behind its comma."""
    name, _, unit = column.title.partition(", ")
    if column.key.startswith("time:"):
        unit = "ms"
    elif name.endswith(" %"):
        unit = "points"
    return f"{column.difference(difference)} {unit or name}"
