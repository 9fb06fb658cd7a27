"""Where a pruned model began: the recipe and the fresh weights of the training that it descends from."""

from __future__ import annotations

from pydantic import ValidationError
from torch import nn

from decant.checkpoints.checkpoint import Checkpoint, altered
from decant.errors import DecantError
from decant.examples import Examples
from decant.networks.architectures import build
from decant.networks.statistics import fit_statistics_
from decant.training.recipe import Training


def fresh(checkpoint: Checkpoint, train: Examples) -> nn.Module:
    """Return the network as it was before the teacher's training, from the recipe in the lineage.

    Args:
        checkpoint: A model that descends from it.
        train: The training images, which its normalization is fitted to.

    Raises:
        DecantError: The model does not descend from a network that was trained on labels from fresh weights.
    """
    _, seed = origin(checkpoint)
    module = build(checkpoint.built_by, checkpoint.shape, len(checkpoint.classes), seed)
    fit_statistics_(module, train)
    return module.eval()


def origin(checkpoint: Checkpoint) -> tuple[Training, int]:
    """Return recipe and seed of the training that a model began with, as its lineage has them.

    Raises:
        DecantError: The model does not descend from a network that was trained on labels from fresh weights.
    """
    first = checkpoint.lineage[0] if checkpoint.lineage else {}
    other = any(entry["op"] == "distill" for entry in checkpoint.lineage) or altered(checkpoint)
    try:
        if other:
            raise KeyError("training")
        return Training.model_validate(first["training"]), int(first["seed"])
    except (KeyError, ValidationError):
        raise DecantError(
            "snip and rewind go back to how the teacher began, so the model to prune must descend from it "
            "without distilling and have all its channels; its lineage.json has no such beginning"
        ) from None
