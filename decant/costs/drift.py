"""How far a model's logits are from those of a reference model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs.divergence import divergence
from decant.networks.execution import predict

ModelCost = Callable[[Checkpoint], float]


def drift_from(reference: Checkpoint, images: Tensor) -> ModelCost:
    """Return the cost KL(reference || model) of the logits, mean over uint8 images [N, C, H, W], in nats."""
    expected = predict(reference.module, images).double()
    return lambda model: divergence(predict(model.module, images), expected)
