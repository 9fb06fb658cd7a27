"""Masks for a budget: which units of which layers go, and how many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.costs.drift import ModelCost, drift_from
from decant.errors import DecantError
from decant.examples import Batch
from decant.networks.structure import axis_of
from decant.prune.allocations import Allocation, Counts, Probe
from decant.prune.budgets import PruningBudget, bracket
from decant.prune.structures import Masked, NOfM, mask_along, zeros_after
from decant.prune.targets import Target

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Candidates:
    """The weights that may be pruned, and their scores.

    Attributes:
        structure: What goes together.
        allocation: How the layers share.
        scores: By weight, in its shape; minus infinity where it is zero already and stays so.
        probe: What it costs to remove so many units of some layers.
        axes: Which dimension of a weight its output channels are, where that is not the first.
    """

    structure: Masked
    allocation: Allocation
    scores: Mapping[str, Tensor]
    probe: Probe
    axes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def gone(self) -> int:
        """Units that were removed earlier."""
        return sum(int(torch.isinf(units).sum()) for units in self._units.values())

    @cached_property
    def most(self) -> int:
        """Units that can be removed with one left in each layer that has any."""
        return sum(self._smallest.values())

    def removed(self, sparsity: float) -> int:
        """Return the number of zeros at a sparsity over all these weights, rounded.

        Raises:
            DecantError: A layer or more would be left with nothing, or there are more zeros already.
        """
        total = sum(score.numel() for score in self.scores.values())
        count, least, most = round(sparsity * total), self.zeros({}), self.zeros(self._smallest)
        if count > most:
            raise DecantError(
                f"budget: sparsity {sparsity} leaves less than one unit for each of {len(self.scores)} "
                f"layers; the nearest possible is {most / total:.6g}"
            )
        if count < least:
            raise DecantError(
                f"budget: sparsity {sparsity} is exceeded already: {least:,} of the {total:,} weights are "
                f"zero, which is {least / total:.6g}; ask for a higher sparsity, or prune an ancestor"
            )
        return count

    def counts(self, removed: int) -> Counts:
        """Return how many units each layer loses; an N:M pattern has one answer."""
        if isinstance(self.structure, NOfM):
            return {name: self.structure.fixed(score.shape) for name, score in self._oriented.items()}
        shapes = {name: score.shape for name, score in self.scores.items()}
        return self.allocation.counts(self._units, shapes, max(removed, self.gone), self.probe)

    def reaching(self, zeros: int) -> Counts:
        """Return the fewest units that each layer loses so that there are so many zeros in all, or just more.

        Just more is by less than a unit, and none where units are single weights; those of an earlier pruning
        count, wherever they are.
        """
        size = self.structure.size
        if size == 1:
            return self.counts(zeros)
        partly = self.zeros({}) - size * self.gone  # zeros in units of which something is left
        _, units = bracket(
            lambda tried: self.zeros(self.counts(tried)) >= zeros,
            -(-(zeros - partly) // size) - 1,
            min(-(-zeros // size), self.most),
        )
        return self._trimmed(self.counts(units), zeros)

    def zeros(self, counts: Mapping[str, int]) -> int:
        """Return how many weights are zero once so many units are removed, those from earlier included."""
        return sum(int(after[counts.get(name, 0)]) for name, after in self._zeros.items())

    def masks(self, counts: Mapping[str, int]) -> Masks:
        """Return the masks, by weight, that remove these numbers of units."""
        return {
            name: mask_along(self.structure, self.scores[name], count, self.axes.get(name, 0))
            for name, count in counts.items()
        }

    def check(self, counts: Mapping[str, int]) -> None:
        """Refuse to empty a layer.

        Raises:
            DecantError: Names the layers.
        """
        if emptied := [name for name, count in counts.items() if count > self._smallest[name]]:
            names = ", ".join(name.removesuffix(".weight") for name in emptied)  # as skip has them
            raise DecantError(
                f"Nothing would be left of {names}, and of the network's answers no more than the biases "
                "after it; ask for less, put the layer into skip, or take the allocation layer, erk or lamp"
            )

    @cached_property
    def _oriented(self) -> Masks:
        """The scores with the output channels in front."""
        return {name: score.movedim(self.axes.get(name, 0), 0) for name, score in self.scores.items()}

    @cached_property
    def _units(self) -> Masks:
        return {name: self.structure.pool(score) for name, score in self._oriented.items()}

    @cached_property
    def _zeros(self) -> Masks:
        return {name: zeros_after(self.structure, score) for name, score in self._oriented.items()}

    @cached_property
    def _smallest(self) -> Counts:
        """How many units each layer can lose: all but one, or what it has lost already."""
        return {
            name: max(len(units) - 1, int(torch.isinf(units).sum())) for name, units in self._units.items()
        }

    def _trimmed(self, counts: Counts, zeros: int) -> Counts:
        """Return the counts with units given back while there is a whole one too many.

        Allocations that share by layer round each layer, so that one unit more may be two here and one less
        there.
        """
        counts = dict(counts)
        while self.zeros(counts) - zeros >= self.structure.size:
            last = {n: int(self._zeros[n][c] - self._zeros[n][c - 1]) for n, c in counts.items() if c}
            if not any(last.values()):  # what is too much was there before
                break
            counts[max(last, key=last.__getitem__)] -= 1
        return counts


def ranked(scores: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> Masks:
    """Return scores in double precision, minus infinity where a weight is removed already.

    Args:
        scores: By weight.
        earlier: By weight, for those of which something is removed: True survives.

    Raises:
        DecantError: A score is NaN; names the layer.
    """
    for name, score in scores.items():
        if torch.isnan(score).any():
            raise DecantError(
                f"The scores of {name} hold NaN: a weight or a gradient there is not finite; rebuild the "
                "model that is pruned with a lower learning rate"
            )
    return {
        name: torch.where(earlier[name], score.double(), -math.inf) if name in earlier else score.double()
        for name, score in scores.items()
    }


def masks_of(parent: Checkpoint) -> Masks:
    """Return the masks that a model has already."""
    return {name: held.mask for name, held in parent.constraints.items() if held.mask is not None}


def masked(parent: Checkpoint, masks: Mapping[str, Tensor]) -> Checkpoint:
    """Return the model with these masks beside the constraints that it has already."""
    return parent.narrowed({n: parent.constraints.get(n, FREE).narrow(mask=m) for n, m in masks.items()})


def probe_of(
    parent: Checkpoint, structure: Masked, scores: Mapping[str, Tensor], images: Callable[[], Batch]
) -> Probe:
    """Return the drift of removing so many units of some layers; images are read when needed."""
    drift: list[ModelCost] = []
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def probe(counts: Mapping[str, int]) -> float:
        if (key := tuple(counts.items())) not in known:
            if not drift:
                drift.append(drift_from(parent, images()))
            axes = {name: axis_of(parent.module, name) for name in counts}
            kept = {n: mask_along(structure, scores[n], c, axes[n]) for n, c in counts.items()}
            known[key] = drift[0](masked(parent, kept))
        return known[key]

    return probe


def smallest(parent: Checkpoint, structure: Masked, names: list[str]) -> Checkpoint:
    """Return the model with one unit left in each layer, whichever: what no budget can go below."""
    earlier, masks = masks_of(parent), {}
    for name in names:
        weight = parent.module.get_parameter(name)
        score = ranked({name: weight.detach().abs()}, earlier)[name]
        axis = axis_of(parent.module, name)
        units = len(structure.pool(score.movedim(axis, 0)))
        masks[name] = mask_along(structure, score, units - 1, axis)
    return masked(parent, masks)


def search(
    candidates: Candidates,
    budget: PruningBudget | None,
    target: Target | None,
    make: Callable[[Counts], Checkpoint],
    width: int = 1,
) -> Counts:
    """Return how many units each layer loses so that the budget is met and no more is lost.

    Args:
        candidates: What may be removed.
        budget: None for a pattern that is its own budget.
        target: The budget as a cost; None for a sparsity.
        make: The model that has lost so many units.
        width: How near the search comes to the best number of units.

    Raises:
        DecantError: The drift allowed is less than that of the first removal.
    """
    if budget is None:
        return candidates.counts(0)
    if target is None:
        return candidates.reaching(candidates.removed(budget.amount))
    if target.measure == "drift":
        fits, _ = bracket(
            lambda n: not target.met_by(make(candidates.counts(n))),
            candidates.gone,
            candidates.most + 1,
            width,
        )
        if fits == candidates.gone:
            nearest = target.cost(make(candidates.counts(candidates.gone + width)))
            raise DecantError(
                f"budget: drift {target.limit:.4g} allows no removal: {width} of the least important "
                f"already moves the outputs by {nearest:.4g}, the nearest possible"
            )
        return candidates.counts(fits)
    _, met = bracket(
        lambda n: target.met_by(make(candidates.counts(n))), candidates.gone, candidates.most, width
    )
    return candidates.counts(met)
