"""Recipes as YAML to copy, and the budgets that they set."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML

from tasks.pipeline.lineages import TEACHER

BUDGETS = {"bytes": "size_bytes", "nonzeros": "nonzeros", "macs": "macs"}
"""The metric that a budget of this name bounds."""


def as_yaml(name: str, block: Any) -> str:
    """Return a model's block as it would stand in params.yaml, below `models:` or at its top."""
    writer = YAML()
    writer.default_flow_style = None  # leaves on one line, as people write them
    writer.width = 100
    text = io.StringIO()
    writer.dump({name: block}, text)
    return text.getvalue()


def settings(block: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of a block by its dotted place, for two recipes to be compared."""
    if isinstance(block, Mapping) and block:
        for key, inner in block.items():
            yield from settings(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, str(block)


def budgets(name: str, block: Any, teacher: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the limits that a recipe sets, in the unit of the metric that they bound.

    Args:
        name: The model's.
        block: Its block in params.yaml.
        teacher: The teacher's metrics: a number below 1 is a share of what it has.
    """
    found: list[dict[str, Any]] = []
    for place, budget in _budgets(block):
        for key, metric in BUDGETS.items():
            amount = budget.get(key)
            if not isinstance(amount, int | float) or isinstance(amount, bool) or amount <= 0:
                continue
            if amount >= 1:
                found.append({"model": name, "place": place, "metric": metric, "value": float(amount)})
            elif metric in teacher:
                limit = float(amount * teacher[metric])
                found.append({"model": name, "place": place, "metric": metric, "value": limit})
    return found


def _budgets(block: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(block, Mapping):
        return
    for key, inner in block.items():
        there = f"{place}.{key}" if place else str(key)
        if key == "budget" and isinstance(inner, Mapping):
            yield there, inner
        else:
            yield from _budgets(inner, there)


def block_of(name: str, params: Mapping[str, Any]) -> Any:
    """Return a model's block in params.yaml; None where there is none."""
    models = params.get("models")
    if name == TEACHER:
        return params.get(TEACHER)
    return models.get(name) if isinstance(models, Mapping) else None
