"""What a student is trained to match: hard labels, a teacher's soft targets, or a mixture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from decant.costs.divergence import softened_kl
from decant.lazy import torch
from decant.schema import Fraction, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor, nn


class Softmax(Section):
    """Soft targets at temperature 1: the divergence from the teacher's plain class probabilities.

    Helps little where the teacher is nearly certain of every training image: its probabilities are then the
    hard labels over again, and a temperature above 1 shows more of what it knows.

    References:
        Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014. https://arxiv.org/abs/1312.6184
    """

    kind: Literal["softmax"] = "softmax"
    hard: Fraction = 0.0

    def __call__(
        self, student: Tensor, teacher: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Return `hard` times cross entropy plus the rest times the divergence; shape [], in nats."""
        hard = torch.nn.functional.cross_entropy(student, labels, label_smoothing=label_smoothing)
        return self.hard * hard + (1 - self.hard) * softened_kl(student, teacher, 1.0)


class Temperature(Section):
    """Soft targets at temperature T, scaled by T^2, mixed with hard labels.

    Does not help a student of very few bits: the temperature that is best for a float student can be the
    worst for a 3-bit one, as `warning` says.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015. https://arxiv.org/abs/1503.02531
    """

    kind: Literal["temperature"] = "temperature"
    temperature: Positive = 4.0
    hard: Fraction = 0.1

    def __call__(
        self, student: Tensor, teacher: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Return `hard` times cross entropy plus the rest times the divergence; shape [], in nats."""
        hard = torch.nn.functional.cross_entropy(student, labels, label_smoothing=label_smoothing)
        return self.hard * hard + (1 - self.hard) * softened_kl(student, teacher, self.temperature)


SoftTargets = Annotated[Softmax | Temperature, Field(discriminator="kind")]


FEW_BITS = 3
HOT = 2.0
"""The temperature up to which soft targets suit students of few bits as well."""


def warning(loss: SoftTargets | None, bits: int) -> str | None:
    """Return a warning that soft targets do not suit weights of so few bits; None where they do.

    A student of few bits cannot follow all that a high temperature shows it: the one that was best for a
    float student (T = 5, 93.2 %) was the worst for a 3-bit one (80.0 %).

    Args:
        loss: None for labels, which suit any width.
        bits: Width of the narrowest weights.
    """
    if not isinstance(loss, Temperature) or loss.temperature <= HOT or bits > FEW_BITS:
        return None
    return (
        f"loss.temperature: {loss.temperature:g} is more than {bits}-bit weights can follow; try 1 to {HOT:g}"
    )


def against_teacher(
    loss: SoftTargets, teacher: nn.Module, label_smoothing: float = 0.0
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the loss over (inputs, logits, labels) for which the teacher answers each batch as augmented.

    It answers in eval mode and stays as it was given.
    """
    teacher = copy.deepcopy(teacher).eval()

    def batch_loss(inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            targets = teacher(inputs)
        return loss(logits, targets, labels, label_smoothing)

    return batch_loss
