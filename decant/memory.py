"""Too little memory, whoever says so: Python, NumPy, Arrow, torch, or the system."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from decant.errors import DecantError, Message

_REFUSED = re.compile("out of memory|can(no|')t allocate memory|std::bad_alloc", re.IGNORECASE)


def ran_out(error: BaseException) -> bool:
    """Say whether an error is that there was too little memory, of a GPU or of the processor."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and _REFUSED.search(str(error)) is not None


@contextmanager
def telling_too_little_memory() -> Iterator[None]:
    """Turn too little memory into a sentence, where nothing closer to it has told what to try.

    Raises:
        DecantError: There was.
    """
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise DecantError(_sentence(error)) from None


def _sentence(error: Exception) -> Message:
    """Return what a user reads of it."""
    first = str(error).partition("\n")[0].rpartition("] ")[2] or type(error).__name__
    return (
        f"There is not enough memory ({first}); end other programs, raise a limit (`ulimit -v`), or take a "
        "machine with more, and run again: what had finished is kept"
    )
