"""One sentence where a stage is started by a Python that lacks the pipeline's packages."""

from __future__ import annotations

import sys
from types import TracebackType

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


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exit with a sentence where this Python is not the pipeline's, else print the stack trace."""
    here = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    remedy = "activate the pipeline's environment (. .venv/bin/activate) or run `make repro`"
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise SystemExit(f"error: stages need Python {oldest} or newer, this is {here}: {remedy}")
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in OURS:
        raise SystemExit(f"error: {here} has no module {error.name!r}: {remedy}")
    sys.__excepthook__(kind, error, trace)
