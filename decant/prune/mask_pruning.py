"""Prune a model once, to a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.selection import select
from decant.compression.surgery import Kept
from decant.costs import counts
from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.prune.allocations import Counts
from decant.prune.budgets import PruningBudget
from decant.prune.criteria import Obs
from decant.prune.masks import Candidates, Masks, masked, masks_of, probe_of, ranked, search, smallest
from decant.prune.obs import reconstruct
from decant.prune.origins import fresh
from decant.prune.params import PruneParams
from decant.prune.schedules import Iterative
from decant.prune.structures import Masked, split
from decant.prune.targets import Target, check_possible, formatted, target_of
from decant.training.fit import EpochMetrics

DRIFT_IMAGES = 1000
"""The last training images: those that drift is measured on; criteria look at the first ones."""

COARSE = 64
"""Where every layer is solved anew for each number tried, the search comes within 1/64 of the best only."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and what its ledger and lineage say of it.

    Attributes:
        model: The model.
        kept: What is left of the tensors of the model before, where channels were removed.
        facts: What the lineage should say beside the recipe.
        curve: Of the training, where there was one.
    """

    model: Checkpoint
    kept: Kept = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[EpochMetrics] = ()


@dataclass(frozen=True)
class MaskPruning:
    """One round of pruning with masks: what is asked, and what may be looked at.

    Attributes:
        block: The recipe.
        parent: The model to prune.
        teacher: What budgets that are shares refer to.
        splits: Images that criteria look at, and those that sensitivity is measured on.
        seed: For criteria that draw.
    """

    block: PruneParams
    parent: Checkpoint
    teacher: Checkpoint
    splits: Splits
    seed: int

    @property
    def train(self) -> Examples:
        """Training images."""
        return self.splits.train

    @property
    def validation(self) -> Examples:
        """Images that sensitivity is measured on."""
        return self.splits.validation

    @property
    def structure(self) -> Masked:
        """What goes together."""
        assert isinstance(self.block.structure, Masked)
        return self.block.structure

    @cached_property
    def names(self) -> list[str]:
        """The weights that may be pruned.

        Raises:
            DecantError: The structure fits none of them.
        """
        chosen, _ = select(self.parent.module, self.block.skip)
        names, refused = split(self.structure, {n: self.parent.module.get_parameter(n).shape for n in chosen})
        if not names:
            first, reason = next(iter(refused.items()))
            raise DecantError(
                f"No layer can be pruned with structure {self.structure.kind}: {first}: {reason}"
            )
        return names

    @property
    def untouched(self) -> dict[str, str]:
        """Why each other parameter is left alone."""
        chosen, untouched = select(self.parent.module, self.block.skip)
        _, refused = split(self.structure, {n: self.parent.module.get_parameter(n).shape for n in chosen})
        return untouched | refused

    @property
    def drift_images(self) -> Tensor:
        """Images that drift is measured on."""
        return self.train.images[-DRIFT_IMAGES:]

    def target_of_budget(self) -> Target | None:
        """Return the budget as a cost, unchecked; None where units are counted directly."""
        budget = self.block.budget
        if budget is None or budget.measure == "sparsity":
            return None
        return target_of(budget, self.parent, self.teacher, self.drift_images)

    @cached_property
    def target(self) -> Target | None:
        """The budget as a cost, checked to be possible; None where units are counted directly.

        Raises:
            DecantError: The budget cannot be met, or is met already.
        """
        target = self.target_of_budget()
        if target is not None and target.measure != "drift":
            check_possible(target, self.parent, smallest(self.parent, self.structure, self.names))
        return target

    @property
    def units(self) -> int:
        """How many units go in all, where the masks change in a training: known before there are scores.

        Raises:
            DecantError: The budget cannot be met, or is met already.
        """
        if (budget := self.block.budget) is None:
            return 0
        blank = {n: torch.zeros_like(self.parent.module.get_parameter(n)) for n in self.names}
        candidates = self.candidates(ranked(blank, masks_of(self.parent)))
        if budget.measure == "sparsity":
            return candidates.removed(budget.amount)
        assert (
            self.target is not None
        )  # non-zeros, all biases counted: training may move any of them off zero
        return -(-round(counts.parameters(self.parent.module) - self.target.limit) // self.structure.size)

    def budgets(self, schedule: Iterative) -> list[PruningBudget]:
        """Return the budget of each round, from what the model has to what is asked, in equal ratios."""
        budget = self.block.budget
        assert budget is not None
        if budget.measure == "sparsity":
            earlier = masks_of(self.parent)
            sizes = {n: self.parent.module.get_parameter(n).numel() for n in self.names}
            gone = sum(int((~earlier[n]).sum()) for n in self.names if n in earlier)
            start = 1 - gone / sum(sizes.values())
            ends = [schedule.part(r, start, 1 - budget.amount) for r in range(1, schedule.rounds)]
            return [*(PruningBudget(sparsity=1 - end) for end in ends), budget]
        assert self.target is not None
        start, end = self.target.cost(self.parent), self.target.limit
        parts = [schedule.part(r, start, end) for r in range(1, schedule.rounds)]
        return [*(PruningBudget(**{budget.measure: round(part)}) for part in parts), budget]

    def scores(self, module: nn.Module | None = None) -> Masks:
        """Return the scores of the prunable weights, minus infinity where they are removed already."""
        criterion = self.block.criterion
        scored = module or (fresh(self.parent, self.train) if criterion.fresh else self.parent.module)
        every = criterion.scores(scored, self.train, self.seed)
        return ranked({name: every[name].detach() for name in self.names}, masks_of(self.parent))

    def candidates(self, scores: Mapping[str, Tensor]) -> Candidates:
        """Return what may be removed, with these scores."""
        allocation = self.block.allocation
        count = getattr(allocation, "images", 0)
        probe = probe_of(self.parent, self.structure, scores, lambda: self.validation.first(count).images)
        return Candidates(self.structure, allocation, scores, probe)

    def pruned(self) -> Pruned:
        """Return the pruned model.

        Raises:
            DecantError: The budget cannot be met, a score is NaN, or a layer would be emptied.
        """
        target = self.target  # before any scoring
        candidates = self.candidates(self.scores())
        if target is not None and target.measure != "nonzeros" and self.block.criterion.repairs:
            make, width = self.made, max(1, candidates.most // COARSE)
        else:  # how many are not zero is known before the survivors are solved for
            make, width = self._masked, 1
        counts = search(candidates, self.block.budget, target, lambda tried: make(candidates, tried), width)
        candidates.check(counts)
        return Pruned(self.made(candidates, counts))

    def check(self, model: Checkpoint) -> None:
        """Check that the budget is met in the end, whatever a training did to the free weights.

        Raises:
            DecantError: It is not; says by how much.
        """
        if self.target is not None and not self.target.met_by(model):
            raise DecantError(
                f"budget: {self.target.measure} {formatted(self.target.limit)} was met before the training "
                f"and is not after it: {formatted(self.target.cost(model))}; ask for less"
            )

    def made(self, candidates: Candidates, counts: Counts) -> Checkpoint:
        """Return the model that has lost so many units of each layer."""
        if not isinstance(criterion := self.block.criterion, Obs):
            return self._masked(candidates, counts)
        zeros = {name: count * self.structure.size for name, count in counts.items()}
        solved = reconstruct(
            self.parent.module,
            zeros,
            {name: self._chooser(self.parent.module.get_parameter(name).shape) for name in zeros},
            self.train.first(criterion.images).images,
            masks=masks_of(self.parent),
            damping=criterion.damping,
            rounds=criterion.rounds,
        )
        return repaired(self.parent, solved)

    def _masked(self, candidates: Candidates, counts: Counts) -> Checkpoint:
        return masked(self.parent, candidates.masks(counts))

    def _chooser(self, shape: torch.Size) -> Callable[[Tensor, int], Tensor]:
        """Return the choice of a layer's zeros among scores [rows, d], by the structure."""

        def choose(scores: Tensor, zeros: int) -> Tensor:
            whole = scores.reshape(len(scores), *shape[1:])
            return self.structure.mask(whole, zeros // self.structure.size).reshape(scores.shape)

        return choose


def repaired(parent: Checkpoint, solved: Mapping[str, tuple[Tensor, Tensor]]) -> Checkpoint:
    """Return the model with these masks and weights; its earlier constraints hold."""
    child = masked(parent, {name: mask for name, (mask, _) in solved.items()})
    with torch.no_grad():
        for name, (_, weight) in solved.items():
            child.module.get_parameter(name).copy_(child.constraints[name].project(weight))
    return child
