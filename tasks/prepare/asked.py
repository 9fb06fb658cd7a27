"""What is to be predicted, as the section `data` of params.yaml says it: one class for each kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from decant.schema import Section
from decant.targets import Named, NumbersLoss, Squared
from tasks.prepare.ways import Column


class ArrayOfClasses(Section):
    """Whole numbers [N] from 0.

    Attributes:
        balanced: Whether models are compared by the mean over classes.
    """

    kind: Literal["classes"] = "classes"
    balanced: bool = False


class ArrayOfNumbers(Section):
    """Numbers [N] or [N, K] that are to be predicted.

    Attributes:
        names: What each is called, in order; the array's own name, with a number where there are several,
            where they are left out.
        loss: What is minimized: `mse` or `smooth-l1`.
    """

    kind: Literal["numbers"] = "numbers"
    names: Named | None = None
    loss: NumbersLoss = Squared()


class ArrayOfLabels(Section):
    """Marks [N, L] of several labels at once, 0 or 1, of any type.

    Attributes:
        names: What each label is called, in order; their numbers where they are left out.
    """

    kind: Literal["labels"] = "labels"
    names: Named | None = None


ArrayTarget = Annotated[ArrayOfClasses | ArrayOfNumbers | ArrayOfLabels, Field(discriminator="kind")]


class OfClasses(Section):
    """A column of classes.

    Attributes:
        column: Its name.
        names: The classes, in the order of the network's outputs; sorted where they are left out.
        balanced: Whether models are compared by the mean over classes.
    """

    kind: Literal["classes"] = "classes"
    column: Column
    names: Named | None = None
    balanced: bool = False


class OfNumbers(Section):
    """Columns of numbers that are to be predicted.

    Attributes:
        columns: Their names, in the order of the network's outputs.
        loss: What is minimized: `mse` or `smooth-l1`.
    """

    kind: Literal["numbers"] = "numbers"
    columns: Named
    loss: NumbersLoss = Squared()


class OfLabels(Section):
    """A column of labels, several at once: a list, or words.

    Attributes:
        column: Its name.
        names: The labels, in the order of the network's outputs; sorted where they are left out.
        separator: What stands between two words.
    """

    kind: Literal["labels"] = "labels"
    column: Column
    names: Named | None = None
    separator: Annotated[str, Field(min_length=1, max_length=10)] = " "


class OfTokens(Section):
    """The next token at each place of a text."""

    kind: Literal["tokens"] = "tokens"


AnyAnswer = Annotated[OfClasses | OfNumbers | OfLabels, Field(discriminator="kind")]
TextTarget = Annotated[OfClasses | OfNumbers | OfLabels | OfTokens, Field(discriminator="kind")]
CLASSES = ("classes", "balanced")
"""What `measured` says where there are classes."""


def answers(target: AnyAnswer | OfTokens | None) -> tuple[str, ...]:
    """Return the columns that are to be predicted."""
    if target is None or isinstance(target, OfTokens):
        return ()
    return target.columns if isinstance(target, OfNumbers) else (target.column,)


def measured(target: AnyAnswer | OfTokens | ArrayTarget | None) -> str:
    """Return the kind of target that models are measured by; `same` where it is what the teacher answers."""
    if target is None:
        return "same"
    balanced = isinstance(target, OfClasses | ArrayOfClasses) and target.balanced
    return "balanced" if balanced else target.kind
