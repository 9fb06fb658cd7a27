"""How answers to corrupted examples are held to the truth and to the teacher's: one way for each target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decant.costs.likeness import cosines
from decant.evidence.behaviour import NONE, predicted
from decant.targets import Classes, Target, Tokens, micro_f1

Row = dict[str, float]


@dataclass(frozen=True)
class Scale:
    """What is measured of one cell.

    Attributes:
        keys: Of what `measure` returns, in order; metrics have them behind `corruption_`.
        measure: Of the model's outputs, the teacher's [n, M] and the truth [n, ...], if there is one.
        error: Of what `measure` returns: grows as a model gets worse, 0 of one without a mistake; None if
            there is no truth.
        each: Of the outputs and the truth: the error of each example [n], of which `error` is the mean; None
            where it is no mean.
        finite: Whether outputs that are NaN or infinite leave nothing to be measured.
    """

    keys: tuple[str, ...]
    measure: Callable[[Tensor, Tensor, Tensor | None], Row]
    error: Callable[[Row], float] | None
    each: Callable[[Tensor, Tensor], Tensor] | None = None
    finite: bool = True


def _of_classes(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Row:
    assert labels is not None
    said, expected = predicted(outputs), predicted(teacher)
    agreed = (said == expected) & (said != NONE)
    return {"accuracy": _share(said == labels), "agreement": _share(agreed)}


def _of_labels(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Row:
    assert labels is not None
    said = outputs > 0
    return {"micro_f1": micro_f1(said, labels > 0), "agreement": _share(said == (teacher > 0))}


def _of_numbers(outputs: Tensor, teacher: Tensor, labels: Tensor | None) -> Row:
    assert labels is not None
    errors, apart = _deviations(outputs, labels), _deviations(outputs, teacher)
    return {"mae": errors.mean().item(), "from_teacher": apart.mean().item()}


def _of_outputs(outputs: Tensor, teacher: Tensor, _: Tensor | None) -> Row:
    return {"cosine": cosines(outputs, teacher).mean().item()}


def _mistakes(outputs: Tensor, labels: Tensor) -> Tensor:
    return (predicted(outputs) != labels).double()


def _deviations(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.double() - labels.double()).abs().mean(1)


CLASSES = Scale(
    ("accuracy", "agreement"), _of_classes, lambda row: 1 - row["accuracy"], _mistakes, finite=False
)
LABELS = Scale(("micro_f1", "agreement"), _of_labels, lambda row: 1 - row["micro_f1"])
NUMBERS = Scale(("mae", "from_teacher"), _of_numbers, lambda row: row["mae"], _deviations)
OUTPUTS = Scale(("cosine",), _of_outputs, None)


def scale_of(target: Target, labelled: bool) -> Scale | None:
    """Return how answers are measured; None of next tokens, whose truth a corruption would change."""
    if not labelled:
        return OUTPUTS
    if isinstance(target, Tokens):
        return None
    return CLASSES if isinstance(target, Classes) else {"labels": LABELS, "numbers": NUMBERS}[target.kind]


def kind_of(target: Target, labelled: bool) -> str:
    """Return the kind of target by which metrics are found."""
    return target.kind if labelled else "same"


def _share(marks: Tensor) -> float:
    return marks.double().mean().item()


def finite(outputs: Tensor) -> bool:
    """Say whether no output is NaN or infinite."""
    return bool(torch.isfinite(outputs).all())
