"""The one error that a user can cause and mend; everything else is a defect and keeps its traceback."""

from __future__ import annotations


class DecantError(Exception):
    """A user's mistake or a broken file: says what was expected, what was found and what to do."""
