"""What all sources of one's own have in common in the section `data` of params.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from decant.schema import Section
from tasks.prepare.asked import AnyAnswer, OfClasses, OfTokens, answers, measured
from tasks.prepare.ways import AnySplit, ByColumn, ByShares, Column

NUMBERS = "numbers"
"""What the input of a table's numbers is called."""

OWN = "data/own"
TABLES = (".csv", ".parquet", ".jsonl")
LINES = ".txt"

File = Annotated[str, Field(max_length=400)]
Words = Annotated[tuple[Column, ...], Field(max_length=10_000)]


class Own(Section):
    """What the sources have in common that read data of one's own.

    Attributes:
        target: What is to be predicted, by columns; what a teacher answers where it is left out.
        split: Which row goes where.
        leak: What to do where the same row is in two splits: `fail`, or `tell` how many there are.
    """

    target: AnyAnswer | OfTokens | None = None
    split: AnySplit
    leak: Literal["fail", "tell"] = "tell"

    @property
    def measured(self) -> str:
        """The kind of target that models are measured by; `same` where it is what the teacher answers."""
        return measured(self.target)


class OfRows(Own):
    """What the sources have in common whose rows have columns, or keys.

    Attributes:
        missing: Of numbers: `fail`, or `keep` them as NaN for a network that knows what to do.
    """

    target: AnyAnswer | None = None
    split: Annotated[ByShares | ByColumn, Field(discriminator="kind")]
    missing: Literal["fail", "keep"] = "fail"


def inside(path: str) -> str:
    """Return a path that DVC knows the changes of."""
    parts = Path(path).parts
    if parts[:2] != ("data", "own") or len(parts) < 3 or ".." in parts:
        raise ValueError(f"must lie in {OWN}/, of which DVC knows when it changes, got {path!r}")
    return path


def readable_table(file: str) -> str:
    """Return the path of a table that can be read."""
    if Path(file).suffix not in TABLES:
        raise ValueError(f"must end in {', '.join(TABLES)}, got {file!r}")
    return inside(file)


def check_unseen(seen: Sequence[str], target: AnyAnswer | None, split: AnySplit) -> None:
    """Refuse columns that the network must not see, and a split by what is not there."""
    if double := sorted({name for name in seen if seen.count(name) > 1}):
        raise ValueError(f"{double[0]} is named twice among numbers and categories; name it once")
    if both := sorted({*seen} & {*answers(target)}):
        raise ValueError(f"{both[0]} is what is to be predicted: the network must not see it")
    if isinstance(split, ByColumn) and split.column in (*seen, *answers(target)):
        raise ValueError(f"{split.column} says which split a row is in: the network must not see it")
    if isinstance(split, ByShares) and split.stratified and not isinstance(target, OfClasses):
        raise ValueError("split.stratified is of classes, and the target has none; leave it out")
