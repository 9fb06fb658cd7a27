"""What a stage's process does before it loads anything: a missing package is a sentence, Ctrl-C ends it."""

from __future__ import annotations

import signal
import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it needs a package that may be what is missing
    from decant.errors import Message

OURS = ("decant", "tasks")
OLDEST = (3, 11)


def explain_missing_packages() -> None:
    """Replace the stack trace of a missing package by a sentence, in a process that runs a stage.

    `dvc` runs `python -m tasks.…` with the first `python` of the path, which need not be the one that DVC
    itself runs with. While Python looks for the module after `-m`, `sys.argv[0]` is `-m`; a process that
    imports a stage for another purpose keeps its traces.
    """
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _explain


def end_at_once() -> None:
    """Have Ctrl-C end a process that runs a stage, without an exception, until `raise_interrupts`.

    The second or two in which torch and NumPy are imported are no time for an exception: both go on from some
    places without what they were importing, and fail, or hang, later.
    """
    if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_interrupts() -> None:
    """Have Ctrl-C raise KeyboardInterrupt from now on, as Python does, where `end_at_once` has ended that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exit with a sentence where this Python is not the pipeline's, else print the stack trace."""
    if sys.version_info < OLDEST:
        raise SystemExit(_sentence(f"is older than the {'.'.join(map(str, OLDEST))} that stages need"))
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in OURS:
        raise SystemExit(_sentence(f"has no module {error.name!r}"))
    sys.__excepthook__(kind, error, trace)


def _sentence(problem: str) -> Message:
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"error: {sys.executable} (Python {version}) {problem}; activate the pipeline's environment "
        "(. .venv/bin/activate) or run `make repro`"
    )
