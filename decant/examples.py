"""Labelled images as tensors, and the two splits that compression may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decant.errors import DecantError
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Images and their labels.

    Attributes:
        images: Pixels [N, C, H, W], uint8 in [0, 255].
        labels: Classes [N], int64 in [0, len(classes)).
        classes: The classes' names.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Examples:
        """Return the first `count` examples; they are a fair sample only where the order is random.

        Raises:
            DecantError: There are not as many.
        """
        if count > len(self):
            raise DecantError(f"{count:,} images are asked for, and there are {len(self):,}; ask for fewer")
        return self.at_most(count)

    def at_most(self, count: int) -> Examples:
        """Return the first `count` examples, or all where there are fewer."""
        return Examples(self.images[:count], self.labels[:count], self.classes)


@dataclass(frozen=True)
class Splits:
    """What an operation may look at; the test split is for the final measurement alone.

    Attributes:
        train: Examples to learn from and to calibrate with, in random order.
        validation: Examples for curves, early stopping and the choice between candidates.
    """

    train: Examples
    validation: Examples

    @property
    def sizes(self) -> dict[str, int]:
        """How many examples each split has, by its name."""
        return {"training": len(self.train), "validation": len(self.validation)}


def pixels(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], which is what every model takes."""
    return images.to(torch.float32) / 255
