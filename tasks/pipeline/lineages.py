"""Whether models are what params.yaml describes: their lineages are compared with it, and with one another.

A model that was restored from a run cache, pulled, copied or mixed up is as whole as any other. What tells it
apart is the recipe of each of its steps, and the seals of the models that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from decant.checkpoints.lineage import Sealed
from decant.errors import DecantError, Message
from decant.sealed import one_line
from decant.seeds import derive_seed
from tasks.pipeline.params import PARAMS

MODELS = Path("models")
TEACHER = "teacher"
SEEDS = "seeds"
"""The folder in a model's own that has what other seeds made of the same recipe, by number."""

Params = Mapping[str, Any]


def written(name: str, params: Params) -> dict[str, Any]:
    """Return what params.yaml says of the step that makes a model, for its lineage.

    Raises:
        DecantError: params.yaml does not describe it.
    """
    block = _at(params, TEACHER) if name == TEACHER else _at(params, "models", name)
    op = TEACHER if name == TEACHER else str(_at(block, "op"))
    return {
        "name": name,
        "op": op,
        "seed": derive_seed(_at(params, "seed"), name),
        "threads": _at(params, "threads", op),
        "params": json.loads(json.dumps(block, default=str)),
    }


def parents(name: str, params: Params) -> tuple[str, ...]:
    """Return the models that a model is made from: the one that its block names, and the teacher."""
    return () if name == TEACHER else tuple(dict.fromkeys((_parent(name, params), TEACHER)))


def chain(name: str, params: Params) -> list[str]:
    """Return the models from the teacher to this one.

    Raises:
        DecantError: There is no such model, or it descends from itself.
    """
    names = [name]
    while names[0] != TEACHER:
        parent = _parent(names[0], params)
        if parent in names:
            raise DecantError(f"{PARAMS}: {name} descends from itself by {parent}")
        names.insert(0, parent)
    return names


def check_lineages(found: Mapping[str, Sealed], params: Params, data: str | None = None) -> None:
    """Check that models are what params.yaml describes, made from each other as they lie here.

    Args:
        found: The lineages of the models that are read together, by name.
        params: The content of params.yaml.
        data: The sum of the training images that they must have seen; None where that is not known.

    Raises:
        DecantError: One of them is another model; says which, and what differs.
    """
    for name in sorted(found, key=lambda name: len(chain(name, params))):
        _check_steps(name, found[name].lineage.steps, params)
        for step in found[name].lineage.steps if data else ():
            if step.get("data") != data:
                raise _other(name, f"{step['name']} was made of other training images than lie here")
        named = found[name].lineage.steps[-1].get("parents")
        for parent in parents(name, params):
            if parent in found and _of(named, parent) != found[parent].seal:
                raise _other(
                    name,
                    f"it was made from another {MODELS / parent} than lies here (expected the sum "
                    f"{found[parent].seal[:12]}…, found {str(_of(named, parent))[:12]}…)",
                )


def _check_steps(name: str, steps: tuple[dict[str, Any], ...], params: Params) -> None:
    """Compare each step of a lineage with params.yaml."""
    expected = chain(name, params)
    if (made := [str(step.get("name")) for step in steps]) != expected:
        raise _other(name, f"expected the steps {', '.join(expected)}, found {', '.join(made) or 'none'}")
    for model, step in zip(expected, steps, strict=True):
        described = written(model, params)
        for key, wanted, got in _differences(described, {key: step.get(key) for key in described}):
            raise _other(
                name,
                f"expected {key.removeprefix('params.')} of {model} to be {one_line(_text(wanted))}, "
                f"found {one_line(_text(got))}",
            )


def _differences(wanted: Any, got: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the place, what was wanted and what was found, for each difference between two JSON values."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        for key in {**wanted, **got}:
            there = f"{place}.{key}" if place else key
            yield from _differences(wanted.get(key, _NOTHING), got.get(key, _NOTHING), there)
    elif _text(wanted) != _text(got):
        yield place, wanted, got


_NOTHING = object()


def _text(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value)


def _other(name: str, why: Message) -> DecantError:
    stage = TEACHER if name == TEACHER else f"compress@{name}"
    return DecantError(
        f"{MODELS / name} is not the model that {PARAMS} describes: {why}; run "
        f"`dvc repro -f -s {stage}`, then `dvc repro`"
    )


def _parent(name: str, params: Params) -> str:
    return str(_at(params, "models", name, "from"))


def _at(params: Any, *keys: str) -> Any:
    for depth, key in enumerate(keys):
        if not isinstance(params, Mapping) or key not in params:
            raise DecantError(
                f"{PARAMS} has no {'.'.join(keys[: depth + 1])}, which a model on disk was made by"
            )
        params = params[key]
    return params


def _of(named: Any, parent: str) -> Any:
    return named.get(parent) if isinstance(named, dict) else None
