"""The models of params.yaml, each in its folder under models/: read only where they are what it describes."""

from __future__ import annotations

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load
from decant.checkpoints.lineage import read_lineage
from tasks.pipeline.lineages import MODELS, check_lineages, parents
from tasks.pipeline.networks import network_of
from tasks.pipeline.params import read_yaml


def load_model(name: str) -> Checkpoint:
    """Return the model of that name, one of params.yaml's or `teacher`.

    Raises:
        DecantError: As `load_models`.
    """
    return load_models(name)[name]


def load_models(*names: str, with_parents: bool = False, data: str | None = None) -> dict[str, Checkpoint]:
    """Return models by name, which fit params.yaml and each other.

    Args:
        names: Those of params.yaml, or `teacher`.
        with_parents: Whether the models that these were made from lie here as they are now, and are compared
            as well; so they do where a stage depends on them.
        data: The sum of the training images that they must have seen, where the stage depends on these.

    Raises:
        DecantError: A model is missing, broken, or another one than params.yaml describes.
    """
    params = read_yaml()
    compared = [*names, *(parent for name in names if with_parents for parent in parents(name, params))]
    check_lineages({name: read_lineage(MODELS / name) for name in compared}, params, data)
    return {name: load(MODELS / name, build=network_of(name, params)) for name in names}
