"""What is known of an example beside its inputs, and how outputs are held to it: one class for each kind.

A target says what is minimized and what a curve is measured by; `tasks.pipeline.metrics` has the numbers that
models of each are compared by, under the same kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, Field

from decant.lazy import torch
from decant.schema import Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

MOST_NAMES = 100_000


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(f"{name!r} stands there twice; name each once")
        seen.add(name)
    return names


Named = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
    Field(min_length=1, max_length=MOST_NAMES),
    AfterValidator(_distinct),
]
"""What numbers, labels or classes are called, in the order of the network's outputs."""

Reduction = Literal["mean", "sum"]


class Target(Protocol):
    """What all of them have."""

    @property
    def kind(self) -> str:
        """Its name in params.yaml."""

    @property
    def watched(self) -> str:
        """What a curve shows beside the loss."""

    @property
    def width(self) -> int | None:
        """How many numbers a row of labels has; None where it has one class."""

    def loss(
        self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return how far outputs [N, M] are from the labels, over all rows; shape []."""

    def watch(self, outputs: Tensor, labels: Tensor) -> float:
        """Return what the curve shows."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return its fields, as a file says them."""


class Classes(Section):
    """One of several classes: logits [N, C], labels [N] in [0, C), cross entropy.

    Attributes:
        balanced: Whether models are compared by the mean over classes, however rare each is, in the place of
            the mean over examples.
    """

    kind: Literal["classes"] = "classes"
    balanced: bool = False
    watched: ClassVar[str] = "accuracy"
    width: ClassVar[None] = None

    def loss(
        self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return the cross entropy, in nats."""
        return torch.nn.functional.cross_entropy(
            outputs, labels, label_smoothing=smoothing, reduction=reduction
        )

    def watch(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the share of rows whose largest logit is the label's."""
        return (outputs.argmax(1) == labels).float().mean().item()


class Squared(Section):
    """The squared error: its best constant is the mean."""

    kind: Literal["mse"] = "mse"

    def of(self, errors: Tensor) -> Tensor:
        """Return the loss of each error, in units of the target's deviation."""
        return errors.square()


class SmoothL1(Section):
    """The error's size, and below `beta` its square over 2 beta; less beta / 2, so that the two meet.

    Large errors weigh by their size and no more, so a long tail does not decide: its best constant is near
    the median.

    Attributes:
        beta: Where the two meet, in deviations of the target.

    References:
        Girshick, Fast R-CNN, 2015. https://arxiv.org/abs/1504.08083
    """

    kind: Literal["smooth-l1"] = "smooth-l1"
    beta: Positive = 0.1

    def of(self, errors: Tensor) -> Tensor:
        """Return the loss of each error, in units of the target's deviation."""
        sizes = errors.abs()
        return torch.where(sizes < self.beta, sizes.square() / (2 * self.beta), sizes - self.beta / 2)


NumbersLoss = Annotated[Squared | SmoothL1, Field(discriminator="kind")]


class Numbers(Section):
    """One number or several: outputs and labels [N, K] in the target's own units.

    Attributes:
        names: What each is called.
        scale: The deviation of each over the training examples, by which the loss divides errors: so one
            learning rate suits minutes and metres.
        penalty: What the loss makes of an error.
    """

    kind: Literal["numbers"] = "numbers"
    names: Named
    scale: tuple[Annotated[float, Field(gt=0)], ...]
    penalty: NumbersLoss = Squared()
    watched: ClassVar[str] = "mae"

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return len(self.names)

    def loss(
        self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return the penalty of errors over the scale, mean over a row's numbers; nothing is smoothed."""
        errors = (outputs - labels) / outputs.new_tensor(self.scale)
        return _reduced(self.penalty.of(errors), reduction)

    def watch(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the mean absolute error."""
        return (outputs - labels).abs().mean().item()


class Labels(Section):
    """Any number of labels at once: logits [N, L], marks [N, L] of 0 and 1, binary cross entropy.

    Attributes:
        names: What each label is called.
    """

    kind: Literal["labels"] = "labels"
    names: Named
    watched: ClassVar[str] = "micro_f1"

    @property
    def width(self) -> int:
        """How many labels there are."""
        return len(self.names)

    def loss(
        self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return the binary cross entropy in nats, mean over the labels; smoothing pulls marks to a half."""
        marks = labels * (1 - smoothing) + smoothing / 2
        losses = torch.nn.functional.binary_cross_entropy_with_logits(outputs, marks, reduction="none")
        return _reduced(losses, reduction)

    def watch(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the F1 score of all marks together: 2 hits over what is marked and what is said."""
        return micro_f1(outputs > 0, labels > 0)


class Tokens(Section):
    """The next token at each place of a text: logits [N, L * V], labels [N, L], cross entropy.

    A label is the token behind, and `NO_TOKEN` where there is none: at the last token of a text, and behind
    it. A loss and a measure count the places that have one.

    Attributes:
        vocabulary: How many tokens there are.
    """

    kind: Literal["tokens"] = "tokens"
    vocabulary: Annotated[int, Field(ge=2, le=1 << 24)]
    watched: ClassVar[str] = "token_accuracy"
    width: ClassVar[None] = None

    def loss(
        self, outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return the cross entropy in nats, mean over the places that have a label, or their sum."""
        return torch.nn.functional.cross_entropy(
            by_place(outputs, labels.shape[1]).flatten(0, 1),
            labels.flatten(),
            ignore_index=NO_TOKEN,
            label_smoothing=smoothing,
            reduction=reduction,
        )

    def watch(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the share of places whose largest logit is the label's."""
        right = by_place(outputs, labels.shape[1]).argmax(2) == labels
        return right[labels != NO_TOKEN].float().mean().item()

    def misfit(self, outputs: int, places: int) -> str:
        """Return what is wrong with so many outputs for a text of so many places; empty where nothing is."""
        if outputs % places or outputs // places < self.vocabulary:
            return (
                f"{outputs:,} numbers for a text of {places:,} tokens, expected a logit for each of "
                f"{self.vocabulary:,} tokens at each of them, [N, L, {self.vocabulary}]"
            )
        return ""


NO_TOKEN = -1
"""The label of a place behind which there is no token."""


def next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """Return the token behind each place [N, L], int64; `NO_TOKEN` where the mask lets none.

    Args:
        ids: Tokens [N, L].
        mask: 1 at a token and 0 behind a text [N, L].
    """
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1)).long()
    there = torch.nn.functional.pad(mask[:, 1:], (0, 1)) != 0
    return torch.where(there, shifted, NO_TOKEN)


def scored(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return what measures need of logits [N, L * V], beside each other [N, 2 L], float32.

    The first L are the negative log likelihood of the label in nats, 0 where there is none; the others the
    token of the largest logit.
    """
    logits = by_place(outputs, labels.shape[1]).float()
    chosen = logits.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    losses = torch.where(labels == NO_TOKEN, 0.0, logits.logsumexp(2) - chosen)
    return torch.cat([losses, logits.argmax(2).float()], dim=1)


def by_place(outputs: Tensor, places: int) -> Tensor:
    """Return outputs [N, L * V] as logits of each place [N, L, V]."""
    return outputs.reshape(len(outputs), places, -1)


def micro_f1(said: Tensor, true: Tensor) -> float:
    """Return F1, 2 hits over what is said and what is true, of all marks [N, L] together."""
    both = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / both if both else 1.0


def _reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean or the sum over rows of losses [N, K], of which a row's is the mean; shape []."""
    rows = losses.mean(1)
    return rows.mean() if reduction == "mean" else rows.sum()


AnyTarget = Annotated[Classes | Numbers | Labels | Tokens, Field(discriminator="kind")]
CLASSES = Classes()
