"""The block of a model with `op: distill`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from decant.distill.students import Student
from decant.networks.devices import Device
from decant.schema import Block
from decant.training.losses import SoftTargets
from decant.training.recipe import Training


class DistillParams(Block):
    """The student, what it has to match, and how it is trained; its teacher is the model in `from`.

    Attributes:
        student: An architecture, or the budget that one of the teacher's family is proposed for.
        ensemble: Whether the mean of the outputs of `from` and of `teacher` is matched: a teacher assistant
            and its own teacher. Features are those of `from`.
        start: What the student's weights are before the training: `fresh`, or the first channels of the
            teacher's where shapes allow.
        device: Where the student is trained, and its teacher answers.
    """

    op: Literal["distill"]
    student: Student
    loss: SoftTargets
    training: Training
    ensemble: bool = Field(default=False, exclude_if=lambda both: not both)
    start: Literal["fresh", "teacher"] = Field(default="fresh", exclude_if=lambda start: start == "fresh")
    device: Device = "cpu"
