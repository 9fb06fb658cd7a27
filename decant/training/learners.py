"""What of a loss is trained or remembered beside the student, and thrown away with the training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def channels(shape: Sequence[int]) -> int:
    """Return the channels of features [N, C, ...], or [N, T, C]."""
    return shape[-1] if len(shape) == 3 else shape[1]


class Adapter(nn.Module):
    """A linear map of channels, the same at each place: features of the student's shape to the teacher's.

    Args:
        student: Shape of the student's features, [N, C, ...] or [N, T, C].
        teacher: Of the teacher's.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(channels(student), channels(teacher))

    def forward(self, features: Tensor) -> Tensor:
        """Return features [N, D, ...], or [N, T, D]."""
        if features.dim() <= 3:
            return self.linear(features)
        return self.linear(features.movedim(1, -1)).movedim(-1, 1)


class Contrast(nn.Module):
    """The maps and memories of the loss `contrastive`.

    Args:
        student: Shape of the student's features, [N, ...]; maps are averaged over their places.
        teacher: Of the teacher's.
        count: How many training examples there are.
        width: Numbers that each is mapped to.
        momentum: The share of an old entry.

    Attributes:
        levels: Of either memory, the logarithm of the mean power e over the first batch's pairs, which stays:
            what noise-contrastive estimation divides by. Minus infinity until then.
    """

    students: Tensor
    teachers: Tensor
    levels: Tensor

    def __init__(
        self, student: Sequence[int], teacher: Sequence[int], count: int, *, width: int, momentum: float
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.of_student = nn.Linear(channels(student), width)
        self.of_teacher = nn.Linear(channels(teacher), width)
        for name in ("students", "teachers"):
            bound = 1 / math.sqrt(width / 3)
            self.register_buffer(name, torch.empty(count, width).uniform_(-bound, bound))
        self.register_buffer("levels", torch.full((2,), -math.inf))

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        rows: Tensor,
        *,
        negatives: int,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the loss of a batch against the memories as they are, then write its features there.

        Args:
            student: Features [N, ...].
            teacher: Features [N, ...]; no gradient flows into them, but into their map.
            rows: Which training examples these are, [N].
            negatives: Other examples for each.
            temperature: Of the critic.
            generator: Draws them, on the processor.
        """
        own, other = _mapped(self.of_student, student), _mapped(self.of_teacher, teacher.detach())
        drawn = self._drawn(rows, negatives, generator)
        picked = torch.cat([rows[:, None], drawn], 1)
        pairs = (own, self.teachers[picked]), (other, self.students[picked])
        scores = [similarities_to(anchors, entries) / temperature for anchors, entries in pairs]
        self._level_(scores)
        first, second = (critic_loss(*each) for each in zip(scores, self.levels, strict=True))
        self._remember_(rows, own, other)
        return first + second

    def _level_(self, scores: Sequence[Tensor]) -> None:
        """Set the levels by the first batch."""
        found = torch.stack([each.detach().logsumexp((0, 1)) - math.log(each.numel()) for each in scores])
        self.levels = torch.where(self.levels == -math.inf, found, self.levels)

    def _drawn(self, rows: Tensor, negatives: int, generator: torch.Generator | None) -> Tensor:
        """Return other examples than each row's own, [N, negatives]."""
        count = len(self.teachers)
        steps = torch.randint(1, count, (len(rows), negatives), generator=generator)
        return (rows[:, None] + steps.to(rows.device)) % count

    def _remember_(self, rows: Tensor, own: Tensor, other: Tensor) -> None:
        with torch.no_grad():
            for memory, seen in ((self.students, own), (self.teachers, other)):
                mixed = self.momentum * memory[rows] + (1 - self.momentum) * seen
                memory[rows] = F.normalize(mixed)


def similarities_to(anchors: Tensor, entries: Tensor) -> Tensor:
    """Return the products [N, 1 + m] of anchors [N, D] with entries [N, 1 + m, D], which have no gradient."""
    return torch.einsum("nd,nmd->nm", anchors, entries)


def critic_loss(scores: Tensor, level: Tensor) -> Tensor:
    """Return - log h of each row's first entry less the sum of log(1 - h) of its others; mean, shape [].

    Args:
        scores: [N, 1 + m].
        level: log z of h = e / (e + m z), where e = exp(score); shape [].
    """
    # h is the sigmoid of the score less the log of m z.
    odds = scores - level - math.log(scores.shape[1] - 1)
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()


def _mapped(linear: nn.Module, features: Tensor) -> Tensor:
    """Return features [N, C, ...] averaged over their places, mapped, and scaled to length 1: [N, D]."""
    if features.dim() == 3:
        features = features.mean(1)
    return F.normalize(linear(features.flatten(2).mean(2) if features.dim() > 2 else features))
