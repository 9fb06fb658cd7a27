"""Which numbers belong to an older recipe: params.yaml against the values that dvc.lock has for them.

`dvc status` knows more, for it sees changed code and data too; but it needs DVC and every output, which a
machine that only compares has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.noise import TEACHER

ABSENT = object()


def stale_models(params: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    """Return the models of which a value in params.yaml, their own or an ancestor's, is not the locked one.

    Args:
        params: The whole of params.yaml.
        lock: The whole of dvc.lock; what it does not have is not known and counts as fresh.
    """
    moved = {stage for stage, entry in lock.get("stages", {}).items() if _has_moved(params, entry)}
    return [
        model
        for model in (TEACHER, *params["models"])
        if moved.intersection(_stages_behind(model, params["models"]))
    ]


def _stages_behind(model: str, models: Mapping[str, Any]) -> list[str]:
    """Return the stages whose params decide the numbers of a model."""
    found = ["prepare", "teacher"]
    for stage in ("evaluate", "stability", "explain"):
        found += [f"{stage}-teacher", f"{stage}@{model}"]
    seen = set()
    while model in models and model not in seen:  # a cycle is for the stage `validate` to tell
        seen.add(model)
        found.append(f"compress@{model}")
        block = models[model]
        model = str(block.get("from")) if isinstance(block, dict) else TEACHER
    return found


def _has_moved(params: Mapping[str, Any], entry: Any) -> bool:
    locked = _at(entry, "params", "params.yaml")
    return locked is not ABSENT and any(_at(params, *place.split(".")) != locked[place] for place in locked)


def _at(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key, ABSENT) if isinstance(content, dict) else ABSENT
    return content
