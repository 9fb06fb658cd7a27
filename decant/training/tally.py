"""Losses and hits of an epoch, which stay on the device for some steps before they are read.

Reading a number waits until a GPU has done all that it was asked, and while the next step is asked for it has
nothing to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decant.networks.devices import CPU, moved


class NoNumberError(Exception):
    """A loss is NaN or infinite; says which.

    Args:
        loss: The number that is none.
        step: Of the epoch, from 0.
    """

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(str(loss))
        self.step = step


@dataclass
class Tally:
    """The mean loss and accuracy of the images of an epoch so far.

    Attributes:
        told: Whether there are labels of classes to compare with.
        room: How many steps are read at once.
        loss: Sum over the images that were read.
        hits: The like of those that the network told right.
        seen: How many these images are.
        steps: How many steps were read.
        waiting: Steps that were not read: the loss, the hits, and the number of images.
    """

    told: bool
    room: int
    loss: float = 0.0
    hits: int = 0
    seen: int = 0
    steps: int = 0
    waiting: list[tuple[Tensor, Tensor | None, int]] = field(default_factory=list)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        """Add a step, and read what waits once there is no more room.

        Args:
            loss: The mean over its images, [].
            logits: Of its images [N, C].
            labels: Of its images [N]; None where there are none.

        Raises:
            NoNumberError: A loss is NaN or infinite.
        """
        right = (logits.argmax(1) == labels).sum() if self.told and labels is not None else None
        self.waiting.append((loss, right, len(logits)))
        if len(self.waiting) == self.room:
            self.read()

    def read(self) -> None:
        """Add up what waits.

        Raises:
            NoNumberError: A loss is NaN or infinite.
        """
        waiting, self.waiting = self.waiting, []
        for loss, (_, _, count) in zip(_numbers([each for each, _, _ in waiting]), waiting, strict=True):
            if not math.isfinite(loss):
                raise NoNumberError(loss, self.steps)
            self.loss += loss * count
            self.seen += count
            self.steps += 1
        self.hits += int(sum(_numbers([right for _, right, _ in waiting if right is not None])))

    def means(self) -> dict[str, float]:
        """Return the mean loss, and the accuracy where there are labels, of the images that were read."""
        return {"loss": self.loss / self.seen} | ({"accuracy": self.hits / self.seen} if self.told else {})


def _numbers(scalars: list[Tensor]) -> list[float]:
    """Return the numbers of tensors [], read at once."""
    if len(scalars) == 1:
        return [scalars[0].item()]
    found: list[float] = moved(torch.stack(scalars), CPU).tolist() if scalars else []
    return found
