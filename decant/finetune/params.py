"""The block of a model with `op: finetune`."""

from __future__ import annotations

from typing import Literal

from decant.schema import Block
from decant.training.losses import SoftTargets
from decant.training.recipe import Training


class FinetuneParams(Block):
    """How the model is trained further; with `loss`, on the soft targets of `teacher`."""

    op: Literal["finetune"]
    training: Training
    loss: SoftTargets | None = None
