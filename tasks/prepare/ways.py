"""Which row goes into which split, as the section `data` of params.yaml says it: one class for each way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from decant.schema import Fraction, Section

SPLITS = ("train", "validation", "test")

Column = Annotated[str, Field(min_length=1, max_length=200)]


class ByShares(Section):
    """Rows drawn by the seed.

    Attributes:
        validation: Share of the rows, or of the groups' rows, that are held out.
        test: Share of the test rows.
        groups: A column whose equal values stay together, such as a patient's number.
        stratified: Whether each class has its share in each split.
    """

    kind: Literal["shares"] = "shares"
    validation: Annotated[Fraction, Field(gt=0, lt=1)]
    test: Annotated[Fraction, Field(gt=0, lt=1)]
    groups: Column | None = None
    stratified: bool = False

    @model_validator(mode="after")
    def _possible(self) -> ByShares:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation and test take {self.validation + self.test:g} of the rows, which leaves none "
                "to train on; together they must be below 1"
            )
        if self.groups is not None and self.stratified:
            raise ValueError("groups stay whole, so classes cannot have their share too; take one of the two")
        return self


class ByColumn(Section):
    """Rows go where a column says: `train`, `validation` or `test`."""

    kind: Literal["column"] = "column"
    column: Column


class ByFolder(Section):
    """Pictures go where they lie: `<folder>/train/<class>/`, `validation` and `test` beside it."""

    kind: Literal["folders"] = "folders"


AnySplit = ByShares | ByColumn | ByFolder


def sorting(split: AnySplit) -> tuple[str, ...]:
    """Return the columns that say which split a row goes into."""
    if isinstance(split, ByColumn):
        return (split.column,)
    return (split.groups,) if isinstance(split, ByShares) and split.groups is not None else ()
