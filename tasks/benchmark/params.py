"""The section `benchmark` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from decant.networks.devices import Device
from decant.schema import Positive, Section


class BenchmarkParams(Section):
    """How latency is measured; no model depends on it.

    Attributes:
        device: The GPU that models are timed on, in the place of the processor.
    """

    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    rounds: Annotated[int, Field(ge=3, le=10_000)] = 20  # in each, every model has its turn
    seconds: Positive = 25.0  # no further round begins after these
    device: Device = "cpu"
