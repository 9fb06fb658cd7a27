"""What of an example may be removed, by the type of a network's inputs: a class each.

A perturbation method asks what a network answers without some features. Which parts of an example are
features, and what stands in the place of one that is removed, is all that differs between pictures, numbers
and text.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from decant.examples import Batch
from decant.explanations.numbers import Numbers
from decant.explanations.patches import Patches
from decant.explanations.tokens import Places


class Features(Protocol):
    """What all of them have."""

    @property
    def counts(self) -> Tensor:
        """How many features each example has [N], int64."""

    @property
    def most(self) -> int:
        """M: the most that one of them has."""

    @property
    def layout(self) -> tuple[int, int]:
        """How M attributions are drawn: rows and columns."""

    @property
    def gradients(self) -> bool:
        """Whether a network's output has gradients by the inputs, as by numbers that may be any."""

    def masked(self, rows: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Return what a network is called with: examples `rows` [P] with the features where `kept` [P, M]."""

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the examples as they are."""

    def baselines(self) -> tuple[Tensor, ...]:
        """Return the examples with no feature."""

    def summed(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sums over each feature [N, M] of numbers that lie as the inputs do."""

    def shifted(self) -> Features:
        """Return other features of the same examples, for another draw of a method that draws nothing."""

    def aligned(self, values: Tensor) -> Tensor:
        """Return attributions of the shifted features [N, M'] as those of these ones [N, M]."""

    def rebased(self) -> Features:
        """Return the same features with something else in the place of what is removed."""


KINDS: tuple[type[Patches] | type[Places] | type[Numbers], ...] = (Patches, Places, Numbers)
"""The first that fits the inputs is taken."""


def features_of(images: Batch, sample: Tensor) -> Features | None:
    """Return the features of some examples, by the type of the inputs; None where none fits.

    Args:
        images: Of the whole split; the first `TYPICAL` of them say what is usual.
        sample: Which examples [N], int64.
    """
    kind = next((each for each in KINDS if each.fits(images)), None)
    return None if kind is None else kind.of(images, sample)
