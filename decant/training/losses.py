"""What a network is trained to match: labels, a teacher's soft targets, outputs or features, or a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from decant.errors import DecantError
from decant.lazy import torch
from decant.networks.devices import CPU
from decant.schema import Section
from decant.targets import CLASSES, Target, Tokens
from decant.training.feature_losses import Attention, Contrastive, Hints, Relational, Similarity
from decant.training.logit_losses import (
    Decoupled,
    Dist,
    MultiLevel,
    Outputs,
    Smoothing,
    Softmax,
    Standardized,
    Temperature,
)
from decant.training.ramps import FractionOrRamp, WeightOrRamp, at, largest
from decant.training.soft import Answers, Soft

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decant.examples import Examples
    from decant.training.ensemble import Mean
    from decant.training.recipe import Loss, Training
    from decant.training.teaching import Teaching

Kind = (
    Softmax
    | Temperature
    | Standardized
    | MultiLevel
    | Decoupled
    | Dist
    | Outputs
    | Hints
    | Attention
    | Relational
    | Similarity
    | Contrastive
    | Smoothing
)
"""All losses but their mixtures."""

OneLoss = Annotated[Kind, Field(discriminator="kind")]


class Part(Section):
    """One loss of several, and what it is multiplied by."""

    loss: OneLoss
    weight: WeightOrRamp = 1.0


DEFAULT_MIX = (Part(loss=Temperature()), Part(loss=Dist()))
"""Both compare outputs, so that they suit any network of classes."""


class Mix(Soft):
    """Several losses at once: the sum of each times its weight, and the share `hard` of the labels.

    Weights and the share may follow a schedule. Does not help where two parts say the same, such as two
    temperatures: their weights are then another learning rate and no more.

    Attributes:
        parts: The losses; their own `hard` is not used.

    References:
        Clark et al., BAM! Born-Again Multi-Task Networks for Natural Language Understanding, 2019, section
        3.2, which anneals from the teacher to the labels. https://arxiv.org/abs/1907.04829
    """

    kind: Literal["mix"] = "mix"
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=16)] = DEFAULT_MIX
    hard: FractionOrRamp = 0.1

    @field_validator("parts")
    @classmethod
    def _softly(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        for part in parts:
            if part.loss.hard != type(part.loss).model_fields["hard"].default:
                raise ValueError(f"hard of {part.loss.kind} is not used here: say it once, beside parts")
        return parts

    def soft(self, answers: Answers) -> Tensor:
        """Return the sum of all parts, each times its weight; shape []."""
        return torch.stack(self.terms(answers)).sum()

    def terms(self, answers: Answers) -> list[Tensor]:
        """Return each part times its weight; shape [] each."""
        return [
            at(part.weight, answers.progress)
            * part.loss.soft(replace(answers, links=answers.links[number : number + 1]))
            for number, part in enumerate(self.parts)
        ]

    def members(self) -> tuple[Soft, ...]:
        """Return the losses that it is mixed from."""
        return tuple(part.loss for part in self.parts)


SoftTargets = Annotated[Kind | Mix, Field(discriminator="kind")]


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
    hot = [
        temperature
        for part in (() if loss is None else loss.members())
        if isinstance(part, Temperature) and (temperature := largest(part.temperature)) > HOT
    ]
    if not hot or bits > FEW_BITS:
        return None
    return f"loss.temperature: {max(hot):g} is more than {bits}-bit weights can follow; try 1 to {HOT:g}"


def loss_of(
    soft: SoftTargets | None,
    training: Training,
    teacher: nn.Module,
    examples: Examples,
    classes: int,
    device: str = CPU,
    others: Sequence[nn.Module] = (),
    mean: Mean | None = None,
) -> Loss:
    """Return what a training minimizes: a recipe's soft targets, else labels, else the teacher's outputs.

    Args:
        soft: What the recipe asks for; None where it asks for nothing.
        training: Says how labels are smoothed.
        teacher: The network that answers.
        examples: What is trained on.
        classes: How many the network tells apart; 0 where its outputs are no logits.
        device: Where it is trained, and the teacher answers.
        others: Networks that answer too: a mean of all outputs is matched.
        mean: Which; that of logits, all of one weight, where None.

    Raises:
        DecantError: The loss needs labels or classes, and there are none; or the teacher's weights are NaN.
    """
    from decant.training.teaching import teaching

    if soft is None and examples.labels is not None:
        return training.hard_loss(examples.target)
    soft = soft or Outputs()
    for member in soft.members():
        logits = bool(classes) or isinstance(examples.target, Tokens)
        _check_possible(member, logits, examples.labels is not None)
    if largest(soft.hard) and examples.labels is None:
        raise DecantError(
            f"loss.hard: {largest(soft.hard):g} of the loss is against labels, and these examples have "
            "none; take hard: 0"
        )
    return teaching(soft, (teacher, *others), training.label_smoothing, examples.target, device, mean)


def _check_possible(loss: Soft, classes: bool, labels: bool) -> None:
    """Refuse a loss that compares classes, or needs labels, where there are none."""
    if loss.of_classes and not classes:
        raise DecantError(
            f"loss.kind: {loss.kind} compares probabilities of classes, and this network's outputs are no "
            "logits of classes; take loss: {kind: outputs}"
        )
    if loss.of_labels and not labels:
        raise DecantError(f"loss.kind: {loss.kind} needs labels, and these examples have none; take outputs")


def against_teacher(
    loss: SoftTargets,
    teacher: nn.Module,
    label_smoothing: float = 0.0,
    target: Target = CLASSES,
    device: str = CPU,
) -> Teaching:
    """Return the loss over (inputs, logits, labels) for which the teacher answers each batch as augmented.

    It answers in eval mode and stays as it was given.

    Raises:
        DecantError: The device is not there, or has no room for it; or a weight of the teacher is NaN or
            infinite.
    """
    from decant.training.teaching import teaching

    return teaching(loss, (teacher,), label_smoothing, target, device)
