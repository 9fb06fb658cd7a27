"""Whether what an operation is given goes together: the model, and the examples to compress it with."""

from __future__ import annotations

from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError, Message
from decant.examples import Splits
from decant.networks.architectures import Takes
from decant.networks.copying import uncopied
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
    if parent.architecture is None and (wrong := uncopied(parent.module, example_of(parent.module))):
        raise DecantError(f"The model is a network that operations cannot change: {wrong}")
    for name, examples in (("training", splits.train), ("validation", splits.validation)):
        if wrong := _misfit(parent.shape, examples.shape):
            raise DecantError(f"The {name} examples are not what the model takes: {wrong}; give it its own")


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


def _misfit(takes: Takes, given: Takes) -> Message:
    """Return why a network that takes the first cannot take the second; empty where it can."""
    if isinstance(takes, tuple) and isinstance(given, tuple):
        return "" if takes == given else f"pictures of {_size(given)}, expected {_size(takes)}"
    if isinstance(takes, tuple) or isinstance(given, tuple):
        return f"{_named(given)}, expected {_named(takes)}"
    if [*takes] != [*given]:
        return f"the tensors {_named(given)}, expected {_named(takes)}"
    for name, each in given.items():
        row = tuple(length for length in each.shape if isinstance(length, int))
        expected = takes[name]
        if each.dtype != expected.dtype or (len(row) == len(each.shape) and not expected.fits(row)):
            return (
                f"{name} is {[*each.shape]} of {each.dtype}, expected {[*expected.shape]} of {expected.dtype}"
            )
    return ""


def _named(takes: Takes) -> str:
    return f"pictures of {_size(takes)}" if isinstance(takes, tuple) else ", ".join(takes)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
