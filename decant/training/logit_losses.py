"""Losses on a teacher's outputs: each is one class, with its formula and its paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from decant.costs.divergence import softened_kl, squared_error
from decant.lazy import torch
from decant.schema import NotNegative, Positive
from decant.training.ramps import FractionOrRamp, PositiveOrRamp, at
from decant.training.soft import Answers, Soft

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_DEVIATION = 1e-7
"""Logits of one row that differ by less are all the same."""


class Softmax(Soft):
    """Soft targets at temperature 1: the divergence from the teacher's plain class probabilities.

    Helps little where the teacher is nearly certain of every training image: its probabilities are then the
    hard labels over again, and a temperature above 1 shows more of what it knows.

    References:
        Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014. https://arxiv.org/abs/1312.6184
    """

    kind: Literal["softmax"] = "softmax"
    hard: FractionOrRamp = 0.0
    of_classes: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return the divergence of logits [N, C]; shape [], in nats."""
        return softened_kl(answers.student, answers.teacher, 1.0)


class Temperature(Soft):
    """Soft targets at temperature T, scaled by T^2, mixed with hard labels.

    Does not help a student of very few bits: the temperature that is best for a float student can be the
    worst for a 3-bit one, as `warning` says.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015. https://arxiv.org/abs/1503.02531
    """

    kind: Literal["temperature"] = "temperature"
    temperature: PositiveOrRamp = 4.0
    hard: FractionOrRamp = 0.1
    of_classes: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return the divergence of logits [N, C], times T^2; shape [], in nats."""
        return softened_kl(answers.student, answers.teacher, at(self.temperature, answers.progress))


class Outputs(Soft):
    """The teacher's outputs themselves, as numbers: the mean squared error over their variance in the batch.

    What is trained where there are no labels, and the first choice for outputs that are no logits of classes,
    such as embeddings. Of classes it matches logits, whose common offset means nothing to a softmax: there it
    does not help a student that is much smaller than its teacher.

    References:
        Kim et al., Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
        Distillation, 2021. https://arxiv.org/abs/2105.08919
    """

    kind: Literal["outputs"] = "outputs"
    hard: FractionOrRamp = 0.0

    def soft(self, answers: Answers) -> Tensor:
        """Return `squared_error`; shape [], 1 where it is as large as the outputs vary."""
        return squared_error(answers.student, answers.teacher)


def standardized(logits: Tensor) -> Tensor:
    """Return logits [N, C], each row less its mean and over its deviation, that of C and not C - 1 numbers.

    A row whose logits are all the same is zero.
    """
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    return centred / variance.clamp(min=SMALLEST_DEVIATION**2).sqrt()


class Standardized(Soft):
    """Soft targets at temperature T of logits that are standardized first: each row to mean 0, deviation 1.

    The student then learns how its logits are related, and is free in their size, which a small one cannot
    copy. Does not help where the size says something that is to be kept, such as how certain an answer is:
    probabilities have to be calibrated after it.

    Attributes:
        temperature: Of deviations: 2 is the paper's.
        factor: What the divergence is multiplied by: logits of deviation 1 at that temperature have small
            gradients. With `hard` the default is the paper's 9 beside 0.1 of the labels.

    References:
        Sun et al., Logit Standardization in Knowledge Distillation, 2024. https://arxiv.org/abs/2403.01427
    """

    kind: Literal["standardized"] = "standardized"
    temperature: PositiveOrRamp = 2.0
    factor: Positive = 10.0
    hard: FractionOrRamp = 0.1
    of_classes: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return the divergence of standardized logits [N, C], times T^2 and `factor`; shape [], in nats."""
        student, teacher = standardized(answers.student), standardized(answers.teacher)
        return self.factor * softened_kl(student, teacher, at(self.temperature, answers.progress))


class MultiLevel(Soft):
    """Probabilities P [N, C] are matched row by row, and as relations of images and of classes.

    The sum over temperatures of `softened_kl`, of |P P' - Q Q'|^2 / N^2, how alike two images of the batch
    are, and of C |P' P - Q' Q|^2 / N^2, how alike two classes are; Q is the teacher's. The paper divides the
    squares by N and by C alone, which grows with the batch and falls with the classes: at its 64 images of
    100 classes both are small beside the divergence, and with 10 classes the last one is a hundred times
    that. The paper also feeds a second, stronger augmentation of each image, which is not done here. Does not
    help in small batches, of which relations say little.

    Attributes:
        temperatures: At each of which all three are taken.
        standardize: Whether the divergence is of standardized logits, as Sun et al. 2024 add it; relations
            are of the others.
        factor: What the sum is multiplied by. Gradients of standardized logits are small: there the paper's
            are 9 beside 0.1 of the labels, 10 with the default `hard`.

    References:
        Jin et al., Multi-Level Logit Distillation, 2023. https://openaccess.thecvf.com/content/CVPR2023/html/
        Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """

    kind: Literal["multi-level"] = "multi-level"
    temperatures: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=16)] = (2.0, 3.0, 4.0)
    standardize: bool = False
    factor: Positive = 1.0
    hard: FractionOrRamp = 0.1
    of_classes: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return `factor` times the sum over temperatures of the three terms; shape []."""
        student, teacher = answers.student, answers.teacher.detach()
        return (
            self.factor * torch.stack([self._at(student, teacher, each) for each in self.temperatures]).sum()
        )

    def _at(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
        images = (p @ p.T - q @ q.T).square().sum() / len(p) ** 2
        classes = (p.T @ p - q.T @ q).square().sum() * p.shape[1] / len(p) ** 2
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        return softened_kl(student, teacher, temperature) + images + classes


class Decoupled(Soft):
    """The divergence in two parts: how certain the label's class is, and what is said of all other classes.

    T^2 * (alpha * KL of the label's probability against the rest + beta * KL among the other classes). In
    `temperature` the second part is multiplied by how uncertain the teacher is, so that it is lost where the
    teacher knows best. Needs labels. Does not help with two classes, where the second part is zero.

    Attributes:
        alpha: Weight of the label's class.
        beta: Weight of the other classes.
        standardize: Whether logits are standardized first, as Sun et al. 2024 add it.

    References:
        Zhao et al., Decoupled Knowledge Distillation, 2022. https://arxiv.org/abs/2203.08679
    """

    kind: Literal["decoupled"] = "decoupled"
    temperature: PositiveOrRamp = 4.0
    alpha: NotNegative = 1.0
    beta: NotNegative = 8.0
    standardize: bool = False
    hard: FractionOrRamp = 0.5
    of_classes: ClassVar[bool] = True
    of_labels: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return both parts with their weights; shape [], in nats."""
        assert answers.labels is not None
        temperature, student, teacher = (
            at(self.temperature, answers.progress),
            answers.student,
            answers.teacher,
        )
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        own, others = (_split(z / temperature, answers.labels) for z in (student, teacher.detach()))
        target, rest = (softened_kl(a, b, 1.0) for a, b in zip(own, others, strict=True))
        return temperature**2 * (self.alpha * target + self.beta * rest)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the label and of all other classes [N, 2], and the others' logits."""
    marked = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    others = logits[~marked].reshape(len(logits), -1)
    whole = logits.logsumexp(1, keepdim=True)
    label = logits[marked][:, None] - whole
    return torch.cat([label, others.logsumexp(1, keepdim=True) - whole], 1), others


class Dist(Soft):
    """Probabilities are matched up to size and offset: 1 - Pearson's correlation, of rows and of columns.

    T^2 * (beta * (1 - mean correlation of rows, between classes) + gamma * (1 - mean correlation of columns,
    within a class over the batch)). What a strong teacher and a small student can agree on is the order and
    the relation of classes. Does not help in batches in which most classes have an image or none.

    Attributes:
        beta: Weight of relations between classes.
        gamma: Weight of relations within classes.

    References:
        Huang et al., Knowledge Distillation from A Stronger Teacher, 2022. https://arxiv.org/abs/2205.10536
    """

    kind: Literal["dist"] = "dist"
    temperature: PositiveOrRamp = 1.0
    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0
    hard: FractionOrRamp = 0.3
    of_classes: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return both parts with their weights; shape [], in [0, 2 T^2 (beta + gamma)]."""
        temperature = at(self.temperature, answers.progress)
        p = (answers.student / temperature).softmax(1)
        q = (answers.teacher.detach() / temperature).softmax(1)
        between, within = 1 - correlations(p, q).mean(), 1 - correlations(p.T, q.T).mean()
        return temperature**2 * (self.beta * between + self.gamma * within)


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation [N] of each row of [N, K] with the same row of another one."""
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (one, other))
    return torch.nn.functional.cosine_similarity(one, other, dim=1, eps=1e-8)


class Smoothing(Soft):
    """No teacher at all: labels, of which a share is spread over all classes. The control of the family.

    What a teacher teaches has to be more than this does. Needs labels. Does not help a network that is to
    teach others: it takes out of its logits what is between classes (Müller et al., 2019).

    Attributes:
        smoothing: The share that is spread.

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015, section 7.
        https://arxiv.org/abs/1512.00567
    """

    kind: Literal["smoothing"] = "smoothing"
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1
    hard: FractionOrRamp = 0.0
    of_classes: ClassVar[bool] = True
    of_labels: ClassVar[bool] = True

    def soft(self, answers: Answers) -> Tensor:
        """Return the divergence from smoothed labels; shape [], in nats, 0 where the student says them."""
        assert answers.labels is not None
        count = answers.student.shape[1]
        loss = torch.nn.functional.cross_entropy(
            answers.student, answers.labels, label_smoothing=self.smoothing
        )
        rest = self.smoothing / count
        first = 1 - self.smoothing + rest
        entropy = -(first * math.log(first) + (count - 1) * rest * math.log(rest))
        return loss - entropy
