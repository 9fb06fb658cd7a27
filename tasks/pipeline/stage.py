"""A stage's command line: its arguments, and an exit status and a sentence where it fails."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from decant.errors import DecantError, LostProcessError
from decant.memory import telling_too_little_memory
from decant.outputs import telling_full_disks
from decant.schema import Name, mistakes
from tasks.pipeline.environment import raise_interrupts

MODEL = "model"
"""What an argument is called that names a model."""

LOST = 75
"""The exit status, that of `EX_TEMPFAIL`, where another process ended."""


def run(main: Callable[..., None]) -> NoReturn:
    """Call `main` with the command line's arguments; exit with 0, 1 after an error, 130 if interrupted."""
    names = list(inspect.signature(main).parameters)
    module = getattr(sys.modules["__main__"].__spec__, "parent", None) or main.__module__
    usage = " ".join(["usage: python -m", module, *(f"<{name}>" for name in names)])
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(usage)
        sys.exit(0)
    if len(sys.argv) - 1 != len(names):
        sys.exit(usage)
    raise_interrupts()
    with report_errors():
        for name, word in zip(names, sys.argv[1:], strict=True):
            if name == MODEL:
                check_model(word)
        main(*sys.argv[1:])
    sys.exit(0)


def check_model(word: str) -> None:
    """Refuse what no model can be called, before it becomes a part of a path.

    Raises:
        DecantError: It is no name.
    """
    if wrong := mistakes(word, Name, MODEL):
        raise DecantError(wrong[0])


@contextmanager
def report_errors() -> Iterator[None]:
    """Exit with 1 and the error's message, or with 130 where a person interrupts, without a stack trace.

    With 75 where another process of the same training ended, which has told or will be told why.
    """
    try:
        with telling_full_disks(), telling_too_little_memory():
            yield
    except LostProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(LOST)
    except DecantError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
