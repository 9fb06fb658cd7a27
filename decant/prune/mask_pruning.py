"""Prune a model once, to a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.promises import Promise
from decant.compression.selection import select
from decant.compression.surgery import Kept
from decant.costs import counts
from decant.errors import DecantError
from decant.examples import Batch, Examples, Splits
from decant.networks.devices import A_PASS, CPU, computing_on, find, moved, placed
from decant.networks.record import record_of
from decant.networks.structure import axis_of, compressible, tables, unordered
from decant.prune.allocations import Counts
from decant.prune.budgets import PruningBudget
from decant.prune.criteria import Asked, Obs
from decant.prune.masks import Candidates, Masks, masked, masks_of, probe_of, ranked, search, smallest
from decant.prune.origins import fresh
from decant.prune.params import PruneParams
from decant.prune.schedules import OneShot, Rounds
from decant.prune.structures import Masked, Weights, split, zeros_after
from decant.prune.targets import Target, check_possible, formatted, target_of, unmasked
from decant.reconstruction.obs import Choose, reconstruct
from decant.training.trainee import EpochMetrics

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
            DecantError: The structure fits none of them, or the criterion can score none.
        """
        chosen, _ = select(self.parent.module, self.block.skip, self._possible)
        if names := [name for name in chosen if name not in self._refused]:
            return names
        first = chosen[0]
        raise DecantError(
            f"No layer can be pruned with structure {self.structure.kind} and criterion "
            f"{self.block.criterion.kind}: {first}: {self._refused[first]}"
        )

    @property
    def untouched(self) -> dict[str, str]:
        """Why each other parameter is left alone."""
        _, untouched = select(self.parent.module, self.block.skip, self._possible)
        return self._refused | untouched

    @property
    def _possible(self) -> list[str]:
        """The weights that the recipe is about, embeddings only where it says so."""
        module = self.parent.module
        return [*compressible(module), *(tables(module) if self.block.embeddings else ())]

    @cached_property
    def _refused(self) -> dict[str, str]:
        """Why a weight cannot be pruned so."""
        module, possible = self.parent.module, self._possible
        unscored = self.block.criterion.unscored(module)
        shapes = {n: module.get_parameter(n).movedim(axis_of(module, n), 0).shape for n in possible}
        _, refused = split(self.structure, shapes)
        if not isinstance(self.structure, Weights):
            refused |= unordered(module)
        return {name: why for name, why in (unscored | refused).items() if name in possible}

    @property
    def drift_images(self) -> Batch:
        """Images that drift is measured on."""
        return self.train.images[-DRIFT_IMAGES:]

    def target_of_budget(self) -> Target | None:
        """Return the budget as a cost, unchecked; None where units are counted directly."""
        budget = self.block.budget
        if budget is None or budget.measure == "sparsity":
            return None
        target = target_of(budget, self.parent, self.teacher, self.drift_images)
        moving = self.block.logits is not None or not isinstance(self.block.schedule, OneShot)
        return replace(target, cost=unmasked) if budget.measure == "nonzeros" and moving else target

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
    def zeros(self) -> int:
        """How many weights masks hold in the end, where they change in a training: known before any score.

        Raises:
            DecantError: The budget cannot be met, or is met already.
        """
        if (budget := self.block.budget) is None:
            return 0
        blank = {n: torch.zeros_like(self.parent.module.get_parameter(n)) for n in self.names}
        candidates = self.candidates(ranked(blank, masks_of(self.parent)))
        if budget.measure == "sparsity":
            return candidates.removed(budget.amount)
        assert self.target is not None
        # All biases counted, and what masks hold in other layers: training may move anything else off zero.
        elsewhere = sum(
            int((~mask).sum()) for name, mask in masks_of(self.parent).items() if name not in self.names
        )
        return counts.parameters(self.parent.module) - math.floor(self.target.limit) - elsewhere

    def budgets(self, schedule: Rounds) -> list[PruningBudget]:
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
        """Return the scores of the prunable weights, minus infinity where they are zero and stay so."""
        criterion = self.block.criterion
        scored = module or (fresh(self.parent, self.train) if criterion.fresh else self.parent.module)
        with self.placed(scored) as (there, masks):
            every = criterion.scores(there, self.train, self.seed, Asked(masks, self.names))
            every = moved(dict(every), CPU)
        return ranked({name: every[name].detach() for name in self.names}, self._alive)

    @contextmanager
    def placed(self, module: nn.Module) -> Iterator[tuple[nn.Module, Masks]]:
        """Yield a network that is scored, and the parent's masks, where the recipe has them be."""
        masks = masks_of(self.parent)
        there = find(self.block.device if self.block.criterion.runs else CPU)
        record_of(module)
        with computing_on(there, A_PASS):
            yield placed(module, there), moved(masks, there)

    @property
    def _moves(self) -> bool:
        """Whether survivors get other values, so that only what a mask holds is sure to be zero."""
        moves = self.block.criterion.repairs or self.block.logits is not None
        return moves or not isinstance(self.block.schedule, OneShot)

    @property
    def _alive(self) -> Masks:
        """What is left of each weight: not masked and, where nothing moves it off zero later, not zero."""
        if self._moves:
            return masks_of(self.parent)
        return {name: self.parent.module.get_parameter(name).detach() != 0 for name in self.names}

    def candidates(self, scores: Mapping[str, Tensor]) -> Candidates:
        """Return what may be removed, with these scores."""
        allocation = self.block.allocation
        count = getattr(allocation, "images", 0)
        probe = probe_of(self.parent, self.structure, scores, lambda: self.validation.first(count).images)
        axes = {name: axis_of(self.parent.module, name) for name in scores}
        return Candidates(self.structure, allocation, scores, probe, axes)

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

    def promises(self, result: Pruned) -> list[Promise]:
        """Return what the recipe promises of what was made of the parent."""
        return [self.met, self._sparse, self._patterned]

    def met(self, model: Checkpoint) -> list[str]:
        """Return by how much a budget is exceeded in the end, whatever a training did to the free weights."""
        if self.target is None or self.target.met_by(model):
            return []
        return [
            f"budget: {self.target.measure} {formatted(self.target.limit)} was met before the training "
            f"and is not after it: {formatted(self.target.cost(model))}; ask for less"
        ]

    def _sparse(self, model: Checkpoint) -> list[str]:
        """Return that there are fewer zeros than asked, or more by a whole unit."""
        budget = self.block.budget
        if budget is None or budget.measure != "sparsity":
            return []
        weights = {name: model.module.get_parameter(name) for name in self.names}
        total = sum(weight.numel() for weight in weights.values())
        asked, masks = round(budget.amount * total), masks_of(model)
        held = {n: masks.get(n, w == w) if self._moves else w != 0 for n, w in weights.items()}
        zeros = total - sum(int(survives.sum()) for survives in held.values())
        if asked <= zeros < asked + self.structure.size:
            return []
        return [
            f"budget: sparsity {budget.amount} is {asked:,} zeros of {total:,} weights, and {zeros:,} are "
            f"held at zero; build the model anew, and report this if it happens again"
        ]

    def _patterned(self, model: Checkpoint) -> list[str]:
        """Return the weights whose masks are not as the structure has them."""
        masks, earlier, wrong = masks_of(model), masks_of(self.parent), {}
        for name in self.names:
            if (mask := masks.get(name)) is not None:
                axis, before = axis_of(model.module, name), earlier.get(name, torch.ones_like(mask))
                wrong[name] = self.structure.broken_by(mask.movedim(axis, 0), before.movedim(axis, 0))
        return [f"{name}: {reason}; build the model anew" for name, reason in wrong.items() if reason]

    def made(self, candidates: Candidates, counts: Counts) -> Checkpoint:
        """Return the model that has lost so many units of each layer."""
        if not isinstance(criterion := self.block.criterion, Obs):
            return self._masked(candidates, counts)
        zeros = {
            name: int((~mask | torch.isinf(candidates.scores[name])).sum())
            for name, mask in candidates.masks(counts).items()
        }
        solved = reconstruct(
            self.parent.module,
            zeros,
            self._choosers({name: self.parent.module.get_parameter(name).shape for name in zeros}),
            self.train.first(criterion.images).images,
            held=self.parent.constraints,
            damping=criterion.damping,
            rounds=criterion.rounds,
            device=self.block.device,
        )
        return repaired(self.parent, solved)

    def _masked(self, candidates: Candidates, counts: Counts) -> Checkpoint:
        return masked(self.parent, candidates.masks(counts))

    def _choosers(self, shapes: Mapping[str, torch.Size]) -> dict[str, Choose]:
        """Return the choice of each layer's zeros among scores [rows, d], by the structure.

        Where units are partly zero already, a layer may come to a few zeros more than it was given; layers
        that are solved later have as many fewer.
        """
        more: dict[str, int] = {}
        criterion = self.block.criterion
        assert isinstance(criterion, Obs)
        costs = criterion.row_costs(self.parent.module, list(shapes), self.train)

        def choose(scores: Tensor, zeros: int, name: str) -> Tensor:
            whole = (scores * costs[name][:, None]).reshape(shapes[name]).double()
            wanted = zeros - sum(extra for other, extra in more.items() if other != name)
            after = zeros_after(self.structure, whole)
            units = min(int(torch.searchsorted(after, wanted)), len(after) - 1)
            more[name] = int(after[units]) - zeros
            return self.structure.mask(whole, units).reshape(scores.shape)

        return {name: partial(choose, name=name) for name in shapes}


def repaired(parent: Checkpoint, solved: Mapping[str, tuple[Tensor, Tensor]]) -> Checkpoint:
    """Return the model with these masks and weights; its earlier constraints hold."""
    child = masked(parent, {name: mask for name, (mask, _) in solved.items()})
    with torch.no_grad():
        for name, (_, weight) in solved.items():
            child.module.get_parameter(name).copy_(child.constraints[name].project(weight))
    return child
