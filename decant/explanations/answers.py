"""Which of a network's answers to an example is explained: by the target, a class each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from decant.errors import DecantError
from decant.targets import Target


class Answer(Protocol):
    """What all of them have."""

    @property
    def width(self) -> int:
        """How many outputs a network has."""

    def scores(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the explained answer's score [P] of outputs [P, width] to the examples `rows` [P]."""

    def level(self, scores: Tensor) -> Tensor:
        """Return what curves draw of scores."""


@dataclass(frozen=True)
class Likeliest:
    """The log-probability of what the teacher says first, in nats; curves draw the probability.

    Attributes:
        said: Its number for each example [N].
        width: How many there are.
    """

    said: Tensor
    width: int

    @classmethod
    def of(cls, outputs: Tensor) -> Self:
        """Return the answers of a teacher whose logits are [N, C]."""
        return cls(outputs.argmax(1), outputs.shape[1])

    def level(self, scores: Tensor) -> Tensor:
        """Return the probabilities."""
        return scores.exp()


class OneClass(Likeliest):
    """Of classes, the one that the teacher predicts.

    Unlike a logit its log-probability says nothing of a constant that a model adds to all of an example's
    logits.
    """

    def scores(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the log-probabilities [P]."""
        check_width(outputs, self.width)
        return _at(self.said[rows], outputs.log_softmax(1))


class OneLabel(Likeliest):
    """Of several labels at once, the one that the teacher is surest of."""

    def scores(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the log-probabilities [P]."""
        check_width(outputs, self.width)
        return torch.nn.functional.logsigmoid(_at(self.said[rows], outputs))


@dataclass(frozen=True)
class OneNumber:
    """Of one number or several, the one in which the teacher's answer to the example is farthest from usual.

    Attributes:
        numbers: Which one for each example [N].
        width: How many there are.
    """

    numbers: Tensor
    width: int

    @classmethod
    def of(cls, outputs: Tensor) -> OneNumber:
        """Return the answers of a teacher whose outputs are [N, K]."""
        apart = (outputs - outputs.mean(0)).abs()
        return cls((apart / apart.mean(0).clamp(min=1e-30)).argmax(1), outputs.shape[1])

    def scores(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the numbers [P], in the target's own unit."""
        check_width(outputs, self.width)
        return _at(self.numbers[rows], outputs)

    def level(self, scores: Tensor) -> Tensor:
        """Return the numbers as they are."""
        return scores


@dataclass(frozen=True)
class Direction:
    """Where nothing is known but what the teacher answers: how far outputs go in its answer's direction.

    Attributes:
        directions: Unit vectors [N, M]; 0 where the teacher answers 0.
    """

    directions: Tensor

    @classmethod
    def of(cls, outputs: Tensor) -> Direction:
        """Return the answers of a teacher whose outputs are [N, M]."""
        return cls(torch.nn.functional.normalize(outputs.double(), dim=1))

    @property
    def width(self) -> int:
        """How many outputs there are."""
        return self.directions.shape[1]

    def scores(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the lengths [P], in the outputs' own unit."""
        check_width(outputs, self.width)
        return (outputs * self.directions[rows]).sum(1)

    def level(self, scores: Tensor) -> Tensor:
        """Return the lengths as they are."""
        return scores


BY_TARGET: dict[str, type[OneClass] | type[OneLabel] | type[OneNumber]] = {
    "classes": OneClass,
    "labels": OneLabel,
    "numbers": OneNumber,
}
"""By the kind of target; next tokens have an answer at each place, and no one to explain."""


def answer_of(outputs: Tensor, target: Target, labelled: bool) -> Answer | None:
    """Return what is explained of a teacher's outputs [N, M]; None where none of them is the answer.

    Args:
        outputs: What the teacher answers to the examples.
        target: What their labels are.
        labelled: Whether they have labels.

    Raises:
        DecantError: An output is NaN or infinite.
    """
    if not bool(torch.isfinite(outputs).all()):
        raise DecantError("The teacher answers NaN or infinity to examples; make it anew")
    if not labelled and target.kind == "classes":
        return Direction.of(outputs)
    kind = BY_TARGET.get(target.kind)
    return None if kind is None else kind.of(outputs)


def _at(places: Tensor, values: Tensor) -> Tensor:
    """Return of each row of values [P, M] the one at its place [P]."""
    return values.gather(1, places[:, None])[:, 0]


def check_width(outputs: Tensor, width: int) -> None:
    """Check that a network has as many outputs as the teacher whose answers are explained.

    Raises:
        DecantError: It has not.
    """
    if outputs.shape[1] != width:
        raise DecantError(
            f"The model answers {outputs.shape[1]:,} numbers for each example and its teacher {width:,}, so "
            "that there is no answer of both to explain; give both the same classes or target"
        )
