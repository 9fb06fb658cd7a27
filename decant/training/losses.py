"""What a network is trained to match: labels, a teacher's soft targets or outputs, or a mixture."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from decant.costs.divergence import softened_kl, squared_error
from decant.errors import DecantError
from decant.lazy import torch
from decant.networks.devices import CPU, computing_on, find, place_
from decant.networks.execution import as_rows
from decant.schema import Fraction, Positive, Section
from decant.targets import CLASSES, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decant.examples import Examples
    from decant.training.recipe import Loss, Training


class _Mixed(Section):
    """What is learned from a teacher's outputs, mixed with the target's own loss against labels.

    Attributes:
        hard: The share of the labels.
    """

    if TYPE_CHECKING:  # each kind declares them where they stand in its recipe
        kind: str
        hard: float

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return how far outputs [N, M] are from the teacher's; shape []."""
        raise NotImplementedError

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        label_smoothing: float = 0.0,
        target: Target = CLASSES,
    ) -> Tensor:
        """Return `hard` times the target's loss plus the rest times what is soft; shape []."""
        if labels is None:
            return self.soft(student, teacher)
        hard = target.loss(student, labels, smoothing=label_smoothing)
        return self.hard * hard + (1 - self.hard) * self.soft(student, teacher)


class Softmax(_Mixed):
    """Soft targets at temperature 1: the divergence from the teacher's plain class probabilities.

    Helps little where the teacher is nearly certain of every training image: its probabilities are then the
    hard labels over again, and a temperature above 1 shows more of what it knows.

    References:
        Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014. https://arxiv.org/abs/1312.6184
    """

    kind: Literal["softmax"] = "softmax"
    hard: Fraction = 0.0

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of logits [N, C]; shape [], in nats."""
        return softened_kl(student, teacher, 1.0)


class Temperature(_Mixed):
    """Soft targets at temperature T, scaled by T^2, mixed with hard labels.

    Does not help a student of very few bits: the temperature that is best for a float student can be the
    worst for a 3-bit one, as `warning` says.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015. https://arxiv.org/abs/1503.02531
    """

    kind: Literal["temperature"] = "temperature"
    temperature: Positive = 4.0
    hard: Fraction = 0.1

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of logits [N, C], times T^2; shape [], in nats."""
        return softened_kl(student, teacher, self.temperature)


class Outputs(_Mixed):
    """The teacher's outputs themselves, as numbers: the mean squared error over their variance in the batch.

    What is trained where there are no labels, and the only kind for outputs that are no logits of classes,
    such as embeddings. Of classes it matches logits, whose common offset means nothing to a softmax: there it
    does not help a student that is much smaller than its teacher.

    References:
        Kim et al., Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
        Distillation, 2021. https://arxiv.org/abs/2105.08919
    """

    kind: Literal["outputs"] = "outputs"
    hard: Fraction = 0.0

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return `squared_error`; shape [], 1 where it is as large as the outputs vary."""
        return squared_error(student, teacher)


SoftTargets = Annotated[Softmax | Temperature | Outputs, Field(discriminator="kind")]


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


def loss_of(
    soft: SoftTargets | None,
    training: Training,
    teacher: nn.Module,
    examples: Examples,
    classes: int,
    device: str = CPU,
) -> Loss:
    """Return what a training minimizes: a recipe's soft targets, else labels, else the teacher's outputs.

    Args:
        soft: What the recipe asks for; None where it asks for nothing.
        training: Says how labels are smoothed.
        teacher: The network that answers.
        examples: What is trained on.
        classes: How many the network tells apart; 0 where its outputs are no logits.
        device: Where it is trained, and the teacher answers.

    Raises:
        DecantError: The loss needs labels or classes, and there are none.
    """
    if soft is None and examples.labels is not None:
        return training.hard_loss(examples.target)
    soft = soft or Outputs()
    if not classes and not isinstance(soft, Outputs):
        raise DecantError(
            f"loss.kind: {soft.kind} compares probabilities of classes, and this network's outputs are no "
            "logits of classes; take loss: {kind: outputs}"
        )
    if soft.hard and examples.labels is None:
        raise DecantError(
            f"loss.hard: {soft.hard:g} of the loss is against labels, and these examples have "
            "none; take hard: 0"
        )
    return against_teacher(soft, teacher, training.label_smoothing, examples.target, device)


def against_teacher(
    loss: SoftTargets,
    teacher: nn.Module,
    label_smoothing: float = 0.0,
    target: Target = CLASSES,
    device: str = CPU,
) -> Loss:
    """Return the loss over (inputs, logits, labels) for which the teacher answers each batch as augmented.

    It answers in eval mode and stays as it was given.

    Raises:
        DecantError: The device is not there, or has no room for it.
    """
    with computing_on(there := find(device), ("the teacher that answers each batch", "cpu")):
        teacher = place_(copy.deepcopy(teacher).eval(), there)

    def batch_loss(inputs: tuple[Tensor, ...], logits: Tensor, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            targets = as_rows(teacher(*inputs), len(logits)).float()
        return loss(logits, targets, labels, label_smoothing, target)

    return batch_loss
