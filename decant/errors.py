"""The one error that a user can cause and mend; everything else is a defect and keeps its traceback."""

from __future__ import annotations

from typing import TypeAlias

Message: TypeAlias = str
"""A sentence for an error or the screen, never for a result: other words of it are the same code."""


class DecantError(Exception):
    """A user's mistake or a broken file: says what was expected, what was found and what to do."""


class LostProcessError(DecantError):
    """Another process, which trains the same network, is gone: it says itself what ended it."""
