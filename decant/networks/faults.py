"""Errors of a network's own code, told in a sentence with the place where they happen."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from decant.errors import DecantError, Message
from decant.memory import ran_out


def where(error: BaseException) -> Message:
    """Return an error in a line, with the innermost place that is not torch's own."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    theirs = [frame for frame in frames if "/decant/" not in frame.filename] or frames[-1:]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {text}{place}"


@contextmanager
def told_in_training() -> Iterator[None]:
    """Tell what a network's forward raises in training mode, which may take other ways than in eval mode.

    Raises:
        DecantError: In the place of any error of the network.
    """
    try:
        yield
    except Exception as error:
        if _is_told(error):
            raise
        raise DecantError(f"The network fails when it is trained: {where(error)}") from error


@contextmanager
def told_of_gradients() -> Iterator[None]:
    """Tell what keeps torch from taking gradients through a network.

    Raises:
        DecantError: In the place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_told(error):
            raise
        raise DecantError(
            f"There are no gradients through the network ({str(error).splitlines()[0]}); its forward may "
            "change nothing in place that is needed again, nor use no_grad, and what shall be learned needs "
            "requires_grad"
        ) from error


def _is_told(error: BaseException) -> bool:
    """Say whether an error is a sentence, or `devices.training_on` makes one of it."""
    if isinstance(error, DecantError) or ran_out(error):
        return True
    return isinstance(error, RuntimeError) and "deterministic" in str(error)
