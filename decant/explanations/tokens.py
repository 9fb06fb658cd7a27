"""Texts, of which tokens are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decant.examples import Batch, Rows, arguments
from decant.explanations.runs import MOST
from decant.inputs import IDS, MASK


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
