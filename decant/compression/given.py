"""Whether what an operation is given goes together: the model, and the examples to compress it with."""

from __future__ import annotations

from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Splits
from decant.inputs import TensorInput
from decant.networks.architectures import Takes
from decant.networks.copying import check_copies
from decant.networks.record import example_of


def check_given(parent: Checkpoint, splits: Splits, teacher: Checkpoint | None = None) -> None:
    """Refuse what is no model or no splits, and examples that the model does not take.

    Raises:
        DecantError: One of these is so; says what was expected.
    """
    _check_model("model", parent)
    if teacher is not None:
        _check_model("teacher", teacher)
    _check_splits(splits)
    if parent.architecture is None:
        place = "The model is a network that operations cannot change"
        check_copies(parent.module, example_of(parent.module), place)
    for split, examples in (("training", splits.train), ("validation", splits.validation)):
        if len(examples):  # what looks at no example needs none
            _check_taken(split, parent.shape, examples.shape)


def _check_model(who: str, given: Any) -> None:
    """Refuse an argument of another kind, as a network itself is."""
    if not isinstance(given, Checkpoint):
        raise DecantError(
            f"The {who} is a {type(given).__name__}, expected a decant.Checkpoint: of a network as it is, "
            "decant.Checkpoint(None, (C, H, W), names, network.eval()); or adopt it"
        )


def _check_splits(splits: Any) -> None:
    if not isinstance(splits, Splits):
        raise DecantError(
            f"The examples are {type(splits).__name__}, expected decant.Splits(train, validation), both "
            "decant.Examples"
        )


def _check_taken(split: str, takes: Takes, given: Takes) -> None:
    """Refuse examples that a network which takes something else cannot take."""
    if wrong := misfit(takes, given):
        found, expected = wrong
        raise DecantError(
            f"The {split} examples are not what the model takes: {found}, expected {expected}; give it others"
        )


def misfit(takes: Takes, given: Takes) -> tuple[str, str] | None:
    """Return what is given and what a network takes, where these differ; None where it can take it.

    Args:
        takes: What the network is called with.
        given: What there is; lengths that are free fit any.
    """
    if isinstance(takes, tuple) or isinstance(given, tuple):
        return None if takes == given else (_named(given), _named(takes))
    if [*takes] != [*given]:
        return _named(given), _named(takes)
    for name, each in given.items():
        row = tuple(length for length in each.shape if isinstance(length, int))
        expected, free = takes[name], len(row) < len(each.shape)
        if each.dtype != expected.dtype or not (free or expected.fits(row)):
            return f"{name} {_row(each)}", _row(expected)
    return None


def _row(takes: TensorInput) -> str:
    return f"[{', '.join(map(str, takes.shape))}] of {takes.dtype}"


def _named(takes: Takes) -> str:
    if isinstance(takes, tuple):
        return f"pictures of {' x '.join(map(str, takes))}"
    return f"the tensors {', '.join(takes)}"
