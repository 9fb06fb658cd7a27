"""Recipes as YAML to copy, and the budgets that they set."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML

from tasks.pipeline.lineages import TEACHER

COUNTED = {"bytes": "size_bytes", "nonzeros": "nonzeros", "macs": "macs"}
"""The metric that a budget of this name bounds, by a count or by a share of what the teacher has."""

KIB, FLOAT = 1024, 4
"""Bytes of a KiB, and of a parameter in float32."""


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

    What has no column, such as bit operations, has no limit here, and neither has a sparsity, which is met
    exactly.

    Args:
        name: The model's.
        block: Its block in params.yaml.
        teacher: All numbers of the teacher, its times by `time:<processor>`: some budgets are shares of them.
    """
    return [
        {"model": name, "metric": metric, "value": limit, "label": f"{name}: {place}.{key} {amount}"}
        for place, budget in _budgets(block)
        for key, amount in budget.items()
        if isinstance(amount, int | float) and not isinstance(amount, bool)
        for metric, limit in _limits(str(key), float(amount), teacher)
        if 0 < limit < math.inf
    ]


def _limits(key: str, amount: float, teacher: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Yield each metric that a budget bounds, and the limit."""
    if key in COUNTED:
        metric = COUNTED[key]
        yield metric, amount if amount >= 1 else amount * teacher.get(metric, 0)
    elif key == "kib":
        yield "parameters", amount * KIB / FLOAT
        yield "size_bytes", amount * KIB
    elif key == "latency":
        yield from ((each, amount * s) for each, s in teacher.items() if each.startswith("time:"))
    elif key == "drift":
        yield "logit_drift", amount


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
