"""What of an example may be removed, by the type of a network's inputs: a class each.

A perturbation method asks what a network answers without some features. Which parts of an example are
features, and what stands in the place of one that is removed, is all that differs between pictures, numbers
and text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from decant.examples import Batch, Rows, arguments
from decant.inputs import IDS, MASK

BANDS = 5
"""In how many rows and columns of patches a picture is divided."""

MOST = 64
"""Features of an example: more numbers or tokens than that are taken in runs, side by side."""

TYPICAL = 1000
"""Examples whose mean stands in the place of what is removed."""


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


@dataclass(frozen=True)
class Places:
    """The tokens of texts, or runs of them where a text has more than `MOST`; the first one always stays.

    The first is what many tokenizers begin each text with, and no network has to answer to a text of nothing.
    A text without some of its tokens is the others, closed up, with padding behind.

    Attributes:
        tensors: By name, [N, L] or [N, ...]; `IDS` and `MASK` among them.
        filler: The token that stands for those that are removed; None where the others close up.
    """

    tensors: Mapping[str, Tensor]
    filler: int | None = None

    @staticmethod
    def fits(images: Batch) -> bool:
        """Say whether these are tokens of texts."""
        return isinstance(images, Rows) and {IDS, MASK} <= set(images.tensors)

    @classmethod
    def of(cls, images: Batch, sample: Tensor) -> Places:
        """Return the tokens of some of the texts."""
        assert isinstance(images, Rows)
        return cls(dict(zip(images.tensors, arguments(images[sample]), strict=True)))

    @property
    def _lengths(self) -> Tensor:
        """How many tokens each text has [N], without the first."""
        return (self.tensors[MASK] != 0).sum(1).clamp(min=1) - 1

    @property
    def counts(self) -> Tensor:
        """How many features each text has."""
        return self._lengths.clamp(max=MOST)

    @property
    def most(self) -> int:
        """The most that one of them has, at least 1."""
        return max(int(self.counts.max()), 1)

    @property
    def layout(self) -> tuple[int, int]:
        """One row of them."""
        return 1, self.most

    @property
    def gradients(self) -> bool:
        """Tokens are no numbers."""
        return False

    @property
    def _where(self) -> Tensor:
        """The feature of each place [N, L]; `most` of the first token and behind the text, which stay."""
        places = torch.arange(self.tensors[IDS].shape[1])[None] - 1
        lengths, counts = self._lengths[:, None], self.counts[:, None]
        found = places * counts // lengths.clamp(min=1)
        return torch.where((places >= 0) & (places < lengths), found, self.most)

    def masked(self, rows: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Return the texts [P, L], and whatever else the network takes."""
        always = torch.ones(len(rows), 1, dtype=torch.bool)
        stays = torch.cat([kept, always], dim=1).gather(1, self._where[rows])
        chosen = {name: each[rows] for name, each in self.tensors.items()}
        if self.filler is not None:
            chosen[IDS] = torch.where(stays, chosen[IDS], self.filler)
            return tuple(chosen.values())
        text = chosen[MASK] != 0
        order = (~(stays & text)).long().argsort(dim=1, stable=True)
        left = torch.arange(order.shape[1]) < (stays & text).sum(1, keepdim=True)
        return tuple(closed_up(each, order, left, name in (IDS, MASK)) for name, each in chosen.items())

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the texts."""
        return tuple(self.tensors.values())

    def baselines(self) -> tuple[Tensor, ...]:
        """Return the first token of each text."""
        rows = torch.arange(len(self.counts))
        return self.masked(rows, torch.zeros(len(rows), self.most, dtype=torch.bool))

    def summed(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sums over the tokens of each feature, of numbers [N, L] in the first part."""
        sums = torch.zeros(len(parts[0]), self.most + 1, dtype=torch.float64)
        return sums.scatter_add_(1, self._where, parts[0].double())[:, : self.most]

    def shifted(self) -> Places:
        """Return the same with the commonest token in the place of what is removed."""
        shown = self.tensors[IDS][self.tensors[MASK] != 0]
        return replace(self, filler=int(shown.mode().values) if len(shown) else 0)

    def aligned(self, values: Tensor) -> Tensor:
        """Return the attributions as they are."""
        return values

    def rebased(self) -> Places:
        """Return the same as `shifted`."""
        return self.shifted()


def closed_up(tensor: Tensor, order: Tensor, left: Tensor, text: bool) -> Tensor:
    """Return a tensor of texts in another order of places [P, L], 0 where none is left; others as they are.

    Args:
        tensor: [P, L], or of another shape.
        order: Which place comes where.
        left: True where a token is left.
        text: Whether it is the tokens, or the mask.
    """
    if tensor.shape[1:] != order.shape[1:]:
        return tensor
    moved = tensor.gather(1, order)
    return torch.where(left, moved, torch.zeros_like(moved)) if text else moved


def bands(length: int, count: int, shift: float = 0.0) -> Tensor:
    """Return the band of each of `length` places [length]: `count` even ones, moved by a share of a band."""
    count = min(count, length)
    return ((torch.arange(length) + 0.5) * count / length + shift).floor().long()


def summed_by(values: Tensor, where: Tensor, count: int) -> Tensor:
    """Return the sums [N, count] of values [N, D] whose feature is `where` [D], float64."""
    sums = torch.zeros(len(values), count, dtype=torch.float64)
    return sums.index_add_(1, where, values.double())


def typical(examples: Tensor) -> Tensor:
    """Return the mean of fractions [n, ...] -> [...], the commonest of others; 0 where there is one alone."""
    if len(examples) < 2:
        return torch.zeros_like(examples[0])
    if examples.is_floating_point():
        return examples.double().mean(0).to(examples.dtype)
    return commonest(examples)


def middle(examples: Tensor) -> Tensor:
    """Return the median of fractions [n, ...] -> [...], the least of others; 1 where there is one alone."""
    if len(examples) < 2:
        return torch.ones_like(examples[0])
    if examples.is_floating_point():
        return examples.double().median(0).values.to(examples.dtype)
    return examples.amin(0)


def commonest(examples: Tensor) -> Tensor:
    """Return the value that stands most often at each place [n, ...] -> [...]; the least of several."""
    return examples.long().mode(0).values.to(examples.dtype)


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
