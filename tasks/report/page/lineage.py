"""The models as a tree: who was made from whom, by which step, and what that step cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.report.page.columns import Column
from tasks.report.page.models import Model


@dataclass(frozen=True)
class Node:
    """A model in the tree.

    Attributes:
        model: The model.
        costs: What the step to it changed, such as `-0.61 points`; empty for the root.
        children: Those that were made from it.
    """

    model: Model
    costs: tuple[str, ...]
    children: tuple[Node, ...]


def tree(
    models: Sequence[Model], values: Mapping[str, Mapping[str, float]], columns: Sequence[Column]
) -> Node:
    """Return the teacher with all that descends from it, in the order of params.yaml.

    Args:
        models: The teacher first.
        values: Every number of each model, by name and key.
        columns: Whose differences are told, where both ends of a step have the number.
    """

    def node(model: Model) -> Node:
        children = tuple(node(each) for each in models if each.parent == model.name)
        costs = _costs(values[model.parent], values[model.name], columns) if model.parent else ()
        return Node(model, costs, children)

    return node(models[0])


def _costs(
    before: Mapping[str, float], after: Mapping[str, float], columns: Sequence[Column]
) -> tuple[str, ...]:
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
