"""The section `benchmark` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from decant.networks.devices import CPU, Device
from decant.schema import Positive, Section


class BenchmarkParams(Section):
    """How latency is measured; no model depends on it.

    Attributes:
        device: The GPU that models are timed on, in the place of the processor.
        semi_structured: Whether models with zeros of the pattern 2:4 are also timed in float16, dense and
            packed for the GPU's instructions for it. Does not help where layers are small.
    """

    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    rounds: Annotated[int, Field(ge=3, le=10_000)] = 20  # in each, every model has its turn
    seconds: Positive = 25.0  # no further round begins after these
    device: Device = "cpu"
    semi_structured: Annotated[bool, Field(exclude_if=lambda on: not on)] = False

    @model_validator(mode="after")
    def _on_a_gpu(self) -> BenchmarkParams:
        if self.semi_structured and self.device == CPU:
            raise ValueError(
                f"semi_structured: the kernels are of GPUs, and this runs on {CPU}: add device: cuda, or "
                "leave it out"
            )
        return self
