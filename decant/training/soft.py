"""What all losses on a teacher's answers have: what they see of a batch, and how labels are mixed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from decant.schema import Section
from decant.targets import CLASSES, NO_TOKEN, Target, Tokens, by_place
from decant.training.ramps import Ramp, at

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NO_LAYERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Link:
    """What one layer of the student gave, and what a layer of the teacher gave, of one batch.

    Attributes:
        student: Features [N, ...], float32.
        teacher: The same; without gradient.
        learner: What of the loss is trained or remembered for these two; None where nothing is.
    """

    student: Tensor
    teacher: Tensor
    learner: nn.Module | None = None


@dataclass(frozen=True)
class Answers:
    """What a loss sees of one batch.

    Attributes:
        student: Outputs [N, M].
        teacher: Outputs [N, M]; no gradient flows into them.
        labels: As the target has them; None where there are none.
        progress: How much of the training is done, in [0, 1].
        links: The features that each part of the loss compares; empty where it compares outputs.
        rows: Which training examples these are, [N].
        generator: Draws for this step as the recipe's seed says; on the processor.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor | None = None
    progress: float = 0.0
    links: tuple[tuple[Link, ...], ...] = ()
    rows: Tensor | None = None
    generator: torch.Generator | None = None


def by_token(answers: Answers, target: Target) -> Answers:
    """Return answers with a row for each token that has a label, where the target is the next one.

    What is soft is then a mean over tokens, as the target's own loss is; places behind a text count nothing.
    """
    if not isinstance(target, Tokens) or answers.labels is None:
        return answers
    there = answers.labels != NO_TOKEN
    student, teacher = (by_place(each, there.shape[1])[there] for each in (answers.student, answers.teacher))
    return replace(answers, student=student, teacher=teacher, labels=answers.labels[there])


class Soft(Section):
    """What is learned from a teacher's answers, mixed with the target's own loss against labels.

    Attributes:
        hard: The share of the labels.
        of_classes: Whether it compares probabilities, so that outputs have to be logits of classes or tokens.
        of_labels: Whether it needs labels, whatever their share is.
    """

    if TYPE_CHECKING:  # each kind declares them where they stand in its recipe
        kind: str
        hard: float | Ramp
    of_classes: ClassVar[bool] = False
    of_labels: ClassVar[bool] = False

    def soft(self, answers: Answers) -> Tensor:
        """Return how far the student is from the teacher; shape [], 0 where the student says the same."""
        raise NotImplementedError

    def total(self, answers: Answers, label_smoothing: float = 0.0, target: Target = CLASSES) -> Tensor:
        """Return `hard` times the target's loss plus the rest times what is soft; shape []."""
        if answers.labels is None:
            return self.soft(answers)
        share = at(self.hard, answers.progress)
        hard = target.loss(answers.student, answers.labels, smoothing=label_smoothing)
        return share * hard + (1 - share) * self.soft(by_token(answers, target))

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        label_smoothing: float = 0.0,
        target: Target = CLASSES,
    ) -> Tensor:
        """Return `total` for outputs [N, M] alone; shape []."""
        return self.total(Answers(student, teacher, labels), label_smoothing, target)

    def members(self) -> tuple[Soft, ...]:
        """Return the losses that it is mixed from."""
        return (self,)

    def terms(self, answers: Answers) -> list[Tensor]:
        """Return what `soft` is the sum of: a number [] for each of `members`, weighted."""
        return [self.soft(answers)]
