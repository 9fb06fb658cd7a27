"""What a training's curve is measured by: labels, or where there are none the outputs of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from decant.costs.divergence import squared_error
from decant.costs.likeness import cosines
from decant.errors import DecantError
from decant.examples import Examples
from decant.networks.next_tokens import scoring
from decant.networks.record import record_of
from decant.targets import NO_TOKEN, Classes, Target, Tokens

Network = Callable[..., Any]
"""A network, or a function of as many tensors."""


class Goal(Protocol):
    """What the outputs on the validation examples should be."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the curve's columns, in order."""

    def check(self, module: nn.Module, answered: Callable[[], Tensor]) -> None:
        """Refuse a network whose outputs are not of the form that is needed.

        Args:
            module: The network.
            answered: Returns what it answers to some of the validation examples [N, M].

        Raises:
            DecantError: Names the shapes.
        """

    def reduced(self, network: Network) -> Network:
        """Return a network whose outputs are what `loss` and `measures` take of this one's."""

    def first(self, count: int) -> Goal:
        """Return what the outputs on the first `count` validation examples should be."""

    def loss(self, outputs: Tensor) -> float:
        """Return how far outputs [N, M] are from it; 0 at best."""

    def measures(self, outputs: Tensor) -> dict[str, float]:
        """Return the curve's numbers of outputs [N, M], the loss first."""

    def spread(self, outputs: Tensor) -> float:
        """Return a loss that outputs [N, M] would have if they were moved by as much as they vary."""


@dataclass(frozen=True)
class OfTarget:
    """The loss of a target against its labels, and the number that goes with it.

    Attributes:
        labels: Of the validation examples, [N] or [N, K].
        target: What they are.
    """

    labels: Tensor
    target: Target

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the curve's columns, in order."""
        return ("epoch", "loss", "learning_rate", "validation_loss", f"validation_{self.target.watched}")

    def check(self, module: nn.Module, answered: Callable[[], Tensor]) -> None:
        """Refuse outputs of another number than a row of labels has."""
        if (found := answered().shape[1]) != self.target.width:
            raise DecantError(
                f"A {type(module).__name__} returns {found:,} numbers for a row, and the labels have "
                f"{self.target.width:,}; give it one output for each"
            )

    def reduced(self, network: Network) -> Network:
        """Return the network itself."""
        return network

    def first(self, count: int) -> Goal:
        """Return the same of the first labels."""
        return replace(self, labels=self.labels[:count])

    def loss(self, outputs: Tensor) -> float:
        """Return the target's loss."""
        return self.target.loss(outputs, self.labels).item()

    def measures(self, outputs: Tensor) -> dict[str, float]:
        """Return the target's loss and what it watches beside."""
        watched = self.target.watch(outputs, self.labels)
        return {"validation_loss": self.loss(outputs), f"validation_{self.target.watched}": watched}

    def spread(self, outputs: Tensor) -> float:
        """Return 1, the unit of a loss over the deviation; of logits, one nat."""
        return 1.0


@dataclass(frozen=True)
class OfClasses(OfTarget):
    """Cross entropy against classes, in nats, and accuracy, of training images too.

    Attributes:
        classes: Logits that there have to be at least.
    """

    classes: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the curve's columns, in order."""
        epoch, loss, *others = super().columns
        return (epoch, loss, self.target.watched, *others)

    def check(self, module: nn.Module, answered: Callable[[], Tensor]) -> None:
        """Refuse what are no logits [N, K] of as many classes."""
        outputs = record_of(module).outputs
        if len(outputs) != 1 or len(outputs[0]) != 2 or outputs[0][1] < self.classes:
            found = " and ".join(str([*shape]) for shape in outputs) or "nothing"
            raise DecantError(
                f"A {type(module).__name__} returns {found}, and training on labels needs logits [N, K] with "
                f"K of at least {self.classes}: let its forward return those, or compress it without a "
                "training"
            )

    def spread(self, outputs: Tensor) -> float:
        """Return the standard deviation of the logits."""
        return outputs.std().item()


@dataclass(frozen=True)
class OfTokens(OfTarget):
    """Cross entropy against the next token, in nats, and the share of those that are predicted rightly.

    Logits of all places and tokens of many texts would not fit into memory: batches are reduced to `scored`.
    """

    def check(self, module: nn.Module, answered: Callable[[], Tensor]) -> None:
        """Refuse what are no logits of each token at each place."""
        assert isinstance(self.target, Tokens)
        if wrong := self.target.misfit(answered().shape[1], self.labels.shape[1]):
            raise DecantError(f"A {type(module).__name__} returns {wrong}")

    def reduced(self, network: Network) -> Network:
        """Return what gives `scored` [N, 2 L] of token ids and masks [N, L]."""
        return scoring(network)

    def loss(self, outputs: Tensor) -> float:
        """Return the cross entropy of scores [N, 2 L], mean over the places with a label."""
        losses = outputs[:, : self.labels.shape[1]].double()
        return losses.sum().item() / int((self.labels != NO_TOKEN).sum())

    def measures(self, outputs: Tensor) -> dict[str, float]:
        """Return the cross entropy and the share of tokens that are predicted rightly."""
        labels = self.labels
        right = (outputs[:, labels.shape[1] :] == labels)[labels != NO_TOKEN]
        share = right.float().mean().item()
        return {"validation_loss": self.loss(outputs), f"validation_{self.target.watched}": share}


@dataclass(frozen=True)
class OfOutputs:
    """The squared error from a teacher's outputs over their variance, and the mean cosine to them.

    Attributes:
        expected: What the teacher answers on the validation examples [N, M].
    """

    expected: Tensor
    columns = ("epoch", "loss", "learning_rate", "validation_loss", "validation_cosine")

    def check(self, module: nn.Module, answered: Callable[[], Tensor]) -> None:
        """Refuse outputs of another number than the teacher's."""
        found, expected = answered().shape[1], self.expected.shape[1]
        if found != expected:
            raise DecantError(
                f"A {type(module).__name__} returns {found:,} numbers for a row, and the teacher "
                f"{expected:,}; a network that is trained on a teacher's outputs needs the same"
            )

    def reduced(self, network: Network) -> Network:
        """Return the network itself."""
        return network

    def first(self, count: int) -> Goal:
        """Return the same of the teacher's first outputs."""
        return replace(self, expected=self.expected[:count])

    def loss(self, outputs: Tensor) -> float:
        """Return the squared error over the variance."""
        return squared_error(outputs, self.expected).item()

    def measures(self, outputs: Tensor) -> dict[str, float]:
        """Return the squared error and the mean cosine."""
        return {
            "validation_loss": self.loss(outputs),
            "validation_cosine": cosines(outputs, self.expected).mean().item(),
        }

    def spread(self, outputs: Tensor) -> float:
        """Return 1, the unit of the loss."""
        return 1.0


def goal_of(train: Examples, validation: Examples, teacher: Callable[[], Tensor] | None) -> Goal:
    """Return what a training on these examples is measured by.

    Args:
        train: To learn from.
        validation: For the curve.
        teacher: Returns its outputs on the validation examples; asked where there are no labels.

    Raises:
        DecantError: There are neither labels nor a teacher, or labels on one side alone.
    """
    if (train.labels is None) != (validation.labels is None):
        raise DecantError("Training and validation examples need labels both, or none; leave out the others")
    if train.labels is not None and validation.labels is not None:
        if isinstance(train.target, Tokens):
            return OfTokens(validation.labels, train.target)
        if not isinstance(train.target, Classes):
            return OfTarget(validation.labels, train.target)
        most = int(train.labels.max()) + 1 if len(train) else 1
        return OfClasses(validation.labels, train.target, most)
    if teacher is None:
        raise DecantError(
            "These examples have no labels and there is no teacher whose outputs could be learned instead: "
            "start from weights that there are, or give labels"
        )
    return OfOutputs(teacher())
