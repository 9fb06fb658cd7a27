"""The section `data` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from decant.schema import Section, did_you_mean
from tasks.prepare.sources import SOURCES


class PrepareParams(Section):
    """Which images, and how many of them are held out for validation.

    Attributes:
        source: A name in `SOURCES`.
        validation: Number of training images held out, drawn by the seed; the others are trained on.
    """

    source: str
    validation: Annotated[int, Field(ge=1, le=100_000_000)]

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in SOURCES:
            raise ValueError(f"unknown source {source!r}{did_you_mean(source, SOURCES)}")
        return source
