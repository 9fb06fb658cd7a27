"""Members of a crossing that say little more than others: they run with the tests that take minutes."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return the values for one name of `parametrize`, all of them slow but the quick ones."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def every_second(values: Iterable[Any]) -> list[Any]:
    """Return the values for one name of `parametrize`, each second one slow."""
    values = list(values)
    return slow_but(values[::2], values)


def chessboard(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Return all pairs for two names of `parametrize`: as on a chessboard, each second one is slow."""
    columns = list(columns)
    return [
        pytest.param(row, column, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
