"""The models of params.yaml, each in its folder under models/: read only where they are what it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load
from decant.checkpoints.lineage import read_lineage
from decant.errors import DecantError
from decant.schema import did_you_mean
from tasks.pipeline.lineages import MODELS, SEEDS, TEACHER, check_lineages, parents
from tasks.pipeline.networks import network_of
from tasks.pipeline.params import PARAMS, read_yaml


def load_model(name: str) -> Checkpoint:
    """Return the model of that name, one of params.yaml's or `teacher`.

    Raises:
        DecantError: As `load_models`.
    """
    return load_models(name)[name]


def load_seeds(name: str) -> list[Checkpoint]:
    """Return what other seeds made by the recipe of a model, in order; none where it asks for one.

    Raises:
        DecantError: One is missing, broken, or was made otherwise than the model.
    """
    params = read_yaml()
    count = int(params["models"][name].get(SEEDS, 1)) if name in params["models"] else 1
    folders = [MODELS / name / SEEDS / str(number) for number in range(2, count + 1)]
    made = _unseeded(MODELS / name)
    for folder in folders:
        if _unseeded(folder) != made:
            raise DecantError(
                f"{folder} was made otherwise than {MODELS / name}; run `dvc repro -f -s compress@{name}`"
            )
    return [load(folder, build=network_of(name, params)) for folder in folders]


def _unseeded(folder: Path) -> list[dict[str, Any]]:
    """Return the steps of a lineage, the last without its seed and what was found out on the way."""
    *before, last = read_lineage(folder).lineage.steps
    return [*before, {key: last.get(key) for key in ("name", "op", "threads", "params", "parents", "data")}]


def load_models(*names: str, with_parents: bool = False, data: str | None = None) -> dict[str, Checkpoint]:
    """Return models by name, which fit params.yaml and each other.

    Args:
        names: Those of params.yaml, or `teacher`.
        with_parents: Whether the models that these were made from lie here as they are now, and are compared
            as well; so they do where a stage depends on them.
        data: The sum of the training images that they must have seen, where the stage depends on these.

    Raises:
        DecantError: params.yaml has no such model; one is missing, broken, or another one than it describes.
    """
    params = read_yaml()
    known = [TEACHER, *map(str, blocks if isinstance(blocks := params.get("models"), dict) else ())]
    for name in names:
        if name not in known:
            raise DecantError(f"{PARAMS} has no model {name!r}{did_you_mean(name, known)}")
    compared = [*names, *(parent for name in names if with_parents for parent in parents(name, params))]
    check_lineages({name: read_lineage(MODELS / name) for name in compared}, params, data)
    return {name: load(MODELS / name, build=network_of(name, params)) for name in names}
