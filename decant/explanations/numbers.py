"""Rows of numbers, of which some are removed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decant.examples import Batch, Rows, arguments
from decant.explanations.runs import MOST, TYPICAL, bands, middle, summed_by, typical


@dataclass(frozen=True)
class Numbers:
    """Numbers of rows: each one, or runs of them where they are more than `MOST`, as in a recording.

    In the place of a fraction that is removed stands its mean, in that of a whole number the commonest one.

    Attributes:
        tensors: [N, ...] each.
        baseline: One row of each [...].
        other: Another one.
    """

    tensors: tuple[Tensor, ...]
    baseline: tuple[Tensor, ...]
    other: tuple[Tensor, ...]

    @staticmethod
    def fits(images: Batch) -> bool:
        """Say whether these are rows of tensors."""
        return isinstance(images, Rows)

    @classmethod
    def of(cls, images: Batch, sample: Tensor) -> Numbers:
        """Return the numbers of some of the rows."""
        usual = arguments(images[:TYPICAL])
        return cls(arguments(images[sample]), tuple(map(typical, usual)), tuple(map(middle, usual)))

    @property
    def _widths(self) -> list[int]:
        return [each[0].numel() for each in self.tensors]

    @property
    def _where(self) -> Tensor:
        """The feature of each number, over all tensors."""
        return bands(sum(self._widths), MOST)

    @property
    def most(self) -> int:
        """How many features there are."""
        return min(sum(self._widths), MOST)

    @property
    def counts(self) -> Tensor:
        """The same for each row."""
        return torch.full((len(self.tensors[0]),), self.most)

    @property
    def layout(self) -> tuple[int, int]:
        """One row of them."""
        return 1, self.most

    @property
    def gradients(self) -> bool:
        """Whether all are fractions."""
        return all(each.is_floating_point() for each in self.tensors)

    def masked(self, rows: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of each tensor."""
        shown = kept[:, self._where].split(self._widths, dim=1)
        return tuple(
            torch.where(show.reshape(len(rows), *each.shape[1:]), each[rows], base)
            for show, each, base in zip(shown, self.tensors, self.baseline, strict=True)
        )

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the rows."""
        return self.tensors

    def baselines(self) -> tuple[Tensor, ...]:
        """Return the baseline for each row."""
        return tuple(base.expand_as(each) for base, each in zip(self.baseline, self.tensors, strict=True))

    def summed(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sums over each run."""
        return summed_by(torch.cat([each.flatten(1) for each in parts], dim=1), self._where, self.most)

    def shifted(self) -> Numbers:
        """Return the same with the other baseline: a number is a feature, and cannot be shifted."""
        return self.rebased()

    def aligned(self, values: Tensor) -> Tensor:
        """Return the attributions as they are."""
        return values

    def rebased(self) -> Numbers:
        """Return the same with the other baseline."""
        return replace(self, baseline=self.other, other=self.baseline)
