"""Pictures, of which patches are removed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decant.examples import Batch, Rows, arguments
from decant.explanations.runs import TYPICAL, bands, middle, summed_by, typical

BANDS = 5
"""In how many rows and columns of patches a picture is divided."""


@dataclass(frozen=True)
class Patches:
    """Rectangular patches of pictures; the mean picture stands where one is removed.

    Attributes:
        images: [N, C, H, W], float32 in [0, 1].
        baseline: The mean picture [C, H, W].
        other: The median of each pixel, for another draw.
        down: The band of each row [H].
        across: The band of each column [W].
    """

    images: Tensor
    baseline: Tensor
    other: Tensor
    down: Tensor
    across: Tensor

    @staticmethod
    def fits(images: Batch) -> bool:
        """Say whether these are pictures."""
        return not isinstance(images, Rows)

    @classmethod
    def of(cls, images: Batch, sample: Tensor) -> Patches:
        """Return the patches of some of the pictures."""
        (chosen,), (usual,) = arguments(images[sample]), arguments(images[:TYPICAL])
        down, across = (bands(length, BANDS) for length in chosen.shape[2:])
        return cls(chosen, typical(usual), middle(usual), down, across)

    @property
    def layout(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return int(self.down.max()) + 1, int(self.across.max()) + 1

    @property
    def most(self) -> int:
        """How many patches there are."""
        return self.layout[0] * self.layout[1]

    @property
    def counts(self) -> Tensor:
        """The same for each picture."""
        return torch.full((len(self.images),), self.most)

    @property
    def gradients(self) -> bool:
        """Pixels may be any number."""
        return True

    @property
    def _where(self) -> Tensor:
        """The patch of each pixel [H, W]."""
        return self.down[:, None] * self.layout[1] + self.across

    def masked(self, rows: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Return the pictures [P, C, H, W]."""
        shown = kept[:, self._where.flatten()].reshape(len(rows), 1, *self.images.shape[2:])
        return (torch.where(shown, self.images[rows], self.baseline),)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the pictures."""
        return (self.images,)

    def baselines(self) -> tuple[Tensor, ...]:
        """Return the mean picture for each."""
        return (self.baseline.expand_as(self.images),)

    def summed(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sums over channels and pixels of each patch."""
        return summed_by(parts[0].sum(1).flatten(1), self._where.flatten(), self.most)

    def shifted(self) -> Patches:
        """Return patches that lie half a patch farther down and to the right."""
        height, width = self.images.shape[2:]
        return replace(self, down=bands(height, BANDS, 0.5), across=bands(width, BANDS, 0.5))

    def aligned(self, values: Tensor) -> Tensor:
        """Return attributions of shifted patches, spread evenly over their pixels, as sums over these."""
        where = self.shifted()._where.flatten()
        spread = values[:, where] / where.bincount()[where]
        return summed_by(spread, self._where.flatten(), self.most)

    def rebased(self) -> Patches:
        """Return the same with the median in the place of the mean."""
        return replace(self, baseline=self.other, other=self.baseline)
