"""The block of a model with `op: distill`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from decant.distill.students import Student
from decant.networks.augmentation import Augmentation
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
        cache: Whether teachers answer all training examples once, before the first epoch, and no batch;
            images must not be augmented, and nothing inside of the teacher be looked at.
        start: What the student's weights are before the training: `fresh`, or the teacher's where shapes
            allow, cut to the channels that pruning by reconstruction would keep.
        device: Where the student is trained, and its teacher answers.
    """

    op: Literal["distill"]
    student: Student
    loss: SoftTargets
    training: Training
    ensemble: bool = Field(default=False, exclude_if=lambda both: not both)
    cache: bool = Field(default=False, exclude_if=lambda cache: not cache)
    start: Literal["fresh", "teacher"] = Field(default="fresh", exclude_if=lambda start: start == "fresh")
    device: Device = "cpu"

    @model_validator(mode="after")
    def _fitting(self) -> DistillParams:
        if wrong := self.training.unsuited(self.device):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _cacheable(self) -> DistillParams:
        if self.cache and self.training.augmentation != Augmentation():
            raise ValueError(
                "cache: augmentation changes images in each epoch, so no answer can be kept; leave one out"
            )
        if self.cache and any(getattr(part, "layers", None) for part in self.loss.members()):
            raise ValueError(
                "cache: keeps outputs, and this loss looks at layers of the teacher; leave it out"
            )
        return self
