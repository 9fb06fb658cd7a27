"""The block of a model with `op: distill`."""

from __future__ import annotations

from typing import Literal

from tasks.losses import SoftTargets
from tasks.models import Architecture
from tasks.params import Block
from tasks.training import Training


class DistillParams(Block):
    """The student, what it has to match, and how it is trained; its teacher is the model in `from`."""

    op: Literal["distill"]
    student: Architecture
    loss: SoftTargets
    training: Training
