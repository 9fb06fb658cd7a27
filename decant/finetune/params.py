"""The block of a model with `op: finetune`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from decant.networks.devices import Device
from decant.schema import Block, Index
from decant.training.losses import SoftTargets
from decant.training.recipe import Training


class Further(Training):
    """A training that may have no epoch: statistics alone are estimated then."""

    epochs: Index


class FinetuneParams(Block):
    """How the model is trained further; with `loss`, on the soft targets of `teacher`.

    With `statistics` and no epochs those of batch norms are estimated anew on training images, and no weight
    is changed.

    Attributes:
        device: Where it is trained, or its statistics are estimated.
    """

    op: Literal["finetune"]
    training: Further
    loss: SoftTargets | None = None
    statistics: bool = False
    device: Device = "cpu"

    @model_validator(mode="after")
    def _fitting(self) -> FinetuneParams:
        if self.statistics and self.training.epochs:
            raise ValueError("a training estimates statistics: take epochs: 0, or leave out statistics")
        if not self.statistics and not self.training.epochs:
            raise ValueError("epochs: 0 trains nothing: take more, or statistics: true")
        if wrong := self.training.unsuited(self.device):
            raise ValueError(wrong)
        if self.loss is not None and not self.training.epochs:
            raise ValueError("loss is for a training, and there are no epochs: leave it out")
        return self
