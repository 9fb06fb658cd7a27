"""One sentence where a stage is started by a Python that lacks packages, or is ended while it loads them."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it needs a package that may be what is missing
    from decant.errors import Message

OURS = ("decant", "tasks")
OLDEST = (3, 11)


def explain_missing_packages() -> None:
    """Replace the stack trace of a missing package by a sentence, in a process that runs a stage.

    And that of a person's Ctrl-C while torch is imported, which takes a second or two, by a word.

    `dvc` runs `python -m tasks.…` with the first `python` of the path, which need not be the one that DVC
    itself runs with. While Python looks for the module after `-m`, `sys.argv[0]` is `-m`; a process that
    imports a stage for another purpose keeps its traces.
    """
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _explain


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exit with a sentence where this Python is not the pipeline's, else print the stack trace."""
    if issubclass(kind, KeyboardInterrupt):  # Python ends itself by the signal once this returns
        print("interrupted", file=sys.stderr)
        return
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
