"""The block of a model with `op: distill`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from decant.networks.architectures import Architecture
from decant.networks.devices import Device, untrue
from decant.schema import Block
from decant.training.losses import SoftTargets
from decant.training.recipe import Training


class DistillParams(Block):
    """The student, what it has to match, and how it is trained; its teacher is the model in `from`.

    Attributes:
        device: Where the student is trained, and its teacher answers.
    """

    op: Literal["distill"]
    student: Architecture
    loss: SoftTargets
    training: Training
    device: Device = "cpu"

    @model_validator(mode="after")
    def _fitting(self) -> DistillParams:
        if wrong := untrue(self.device, self.training.precision):
            raise ValueError(wrong)
        return self
