"""The block of a model with `op: clip`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from decant.calibration.ranges import Cut, Span
from decant.networks.devices import Device, idle
from decant.schema import Block, TrainImages


class ClipParams(Block):
    """Where each layer's weights, or its inputs, are cut, and the layers that are left out.

    `images` counts the training images, from the first on, that the ranges of inputs are taken from; ranges
    of weights need none. With `statistics` those of batch norms are estimated anew once all is cut. Both run
    the network on the `device`.
    """

    op: Literal["clip"]
    cut: Cut
    target: Literal["weights", "activations"] = "weights"
    images: TrainImages = 1000
    skip: tuple[str, ...] = ()
    statistics: bool = False
    device: Device = "cpu"

    @model_validator(mode="after")
    def _fitting(self) -> ClipParams:
        if self.target == "activations" and not isinstance(self.cut, Span):
            raise ValueError(
                f"{self.cut.kind!r} holds weights at zero, and activations are other ones for each image; "
                f"take a range such as 'percentile', or target weights"
            )
        if self.target == "weights" and not self.statistics and (wrong := idle(self.device)):
            raise ValueError(wrong)
        return self
