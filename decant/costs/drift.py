"""How far a model's outputs are from those of a reference model."""

from __future__ import annotations

from collections.abc import Callable

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs.divergence import distance
from decant.examples import Batch
from decant.networks.execution import predict

ModelCost = Callable[[Checkpoint], float]


def drift_from(reference: Checkpoint, images: Batch) -> ModelCost:
    """Return the cost of being `distance` away from the outputs of a reference model on a batch.

    Of classes: KL(reference || model) of the logits, mean over the images, in nats.
    """
    expected, apart = predict(reference.module, images).double(), distance(reference.classes)
    return lambda model: apart(predict(model.module, images), expected)
