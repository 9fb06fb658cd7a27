"""The section `benchmark` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from decant.schema import Section


class BenchmarkParams(Section):
    """How latency is measured; no model depends on it."""

    threads: PositiveInt = 1
    rounds: Annotated[int, Field(ge=3)] = 20  # in each, every model has its turn
    seconds: PositiveFloat = 25.0  # no further round begins after these
