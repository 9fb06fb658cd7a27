"""Prune a model once to a budget, where whole channels are taken out of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.channel_scores import ChannelScores, by_weights, refitted
from decant.compression.coupling import ChannelGroup, groups_of, proven
from decant.compression.promises import Promise
from decant.compression.surgery import Kept
from decant.costs.drift import drift_from
from decant.costs.layers import all_plain, layers_of, macs
from decant.examples import Examples
from decant.networks.devices import CPU, moved
from decant.networks.structure import compressible
from decant.prune.allocations import Probe
from decant.prune.channels.ladder import (
    ChannelPlan,
    Ladder,
    PlanCost,
    floors_of,
    ladder_of,
    shrink,
    shrink_to_drift,
    smallest,
)
from decant.prune.channels.latency import Table, best_step, check_latency, read_table, shrink_to_latency
from decant.prune.channels.structure import Channels
from decant.prune.criteria import OfChannels, Reconstruction
from decant.prune.mask_pruning import MaskPruning, Pruned
from decant.prune.masks import masks_of, ranked
from decant.prune.origins import fresh
from decant.prune.structures import lowest
from decant.prune.targets import Target, check_possible

BOUND = "its channels are inputs or outputs of the network, skipped, or bound to what cannot be cut"
UNPROVEN = "its channels are coupled in a way that was not found: without them it is another function"

CHECKED = 500
"""Training images on which the network with zeros and the one without the channels have to agree."""


@dataclass(frozen=True)
class ChannelPruning(MaskPruning):
    """One round of removing channels: what is asked, and what may be looked at."""

    @property
    def channels(self) -> Channels:
        """What a number of channels may be."""
        assert isinstance(self.block.structure, Channels)
        return self.block.structure

    @cached_property
    def names(self) -> list[str]:
        """All weights: what makes a channel goes with what reads it."""
        return list(compressible(self.parent.module))

    @property
    def untouched(self) -> dict[str, str]:
        """Why each parameter that keeps all its channels does."""
        owned = {name for group in self.groups for name, _, _ in group.members}
        _, unproven = proven(self.parent, self.block.skip)
        makers = {name.partition("#")[0] for name in unproven}
        return {
            name: UNPROVEN if name.rpartition(".")[0] in makers else BOUND
            for name, _ in self.parent.module.named_parameters()
            if name not in owned
        }

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """The channels that can be removed.

        Raises:
            DecantError: There are none.
        """
        return groups_of(self.parent, self.block.skip)

    @cached_property
    def table(self) -> Table:
        """The times that were measured on this machine."""
        return read_table()

    @cached_property
    def round_to(self) -> int:
        """What each number of channels is a multiple of."""
        asked = self.channels.round_to
        return best_step(self.table, self.parent, self.channels.batch) if asked == "auto" else asked

    @cached_property
    def target(self) -> Target | None:
        """The budget as a cost, checked to be possible; of a latency and a sparsity there is none here.

        Raises:
            DecantError: The budget cannot be met, or is met already.
        """
        least = smallest(self.parent, self.groups, self.round_to, self.channels.minimum)
        assert self.block.budget is not None
        if self.block.budget.measure == "latency":
            limit, batch = self.block.budget.amount, self.channels.batch
            check_latency(self.table, least.model, self.parent, self.teacher, limit, batch)
            return None
        target = self.target_of_budget()
        if target is not None and target.measure != "drift":
            check_possible(target, self.parent, least.model)
        return target

    def pruned(self) -> Pruned:
        """Return the model without its least important channels.

        Raises:
            DecantError: The budget cannot be met, a score is NaN, or the model does not compute what it does
                with zeros in the place of the channels.
        """
        target = self.target  # before any scoring
        plan, facts = self._planned(self._ladder(self._scores()), target)
        plan = self._repaired(plan)
        plan.check(self.train.at_most(CHECKED).images)
        return Pruned(plan.model, plan.kept, facts)

    def promises(self, result: Pruned) -> list[Promise]:
        """Return what the recipe promises of what was made of the parent."""
        return [self.met, lambda model: self._numbered(kept_counts(self.groups, result.kept))]

    def _numbered(self, left: Mapping[str, int]) -> list[str]:
        """Return which numbers of channels may not be, by group and in all."""
        least = floors_of(self.groups, self.round_to, self.channels.minimum)
        wrong = [
            f"{group.name}: {left[group.name]} channels are left, which is neither all nor a multiple of "
            f"{self.round_to} from {least[group.name]} on; build the model anew"
            for group in self.groups
            if left[group.name] != group.count
            and (left[group.name] % self.round_to or left[group.name] < least[group.name])
        ]
        budget, total, found = self.block.budget, sum(g.count for g in self.groups), sum(left.values())
        if budget is None or budget.measure != "sparsity":
            return wrong
        limit = total - round(budget.amount * total)
        if found > limit or (self.round_to == 1 and found != limit):
            wrong.append(f"budget: {limit:,} of {total:,} channels are to be left, and {found:,} are")
        return wrong

    def _planned(self, ladder: Ladder, target: Target | None) -> tuple[ChannelPlan, dict[str, Any]]:
        budget, facts = self.block.budget, {"round_to": self.round_to}
        assert budget is not None
        if budget.measure == "latency":
            batch = self.channels.batch
            plan, ratio = shrink_to_latency(ladder, self.table, self.teacher, budget.amount, batch)
            return plan, facts | {"latency": ratio, "batch": batch}
        if target is not None and target.measure == "drift":
            drift = drift_from(self.parent, self.drift_images)
            return shrink_to_drift(ladder, lambda p: drift(self._repaired(p).model), target.limit), facts
        return shrink(ladder, *self._cost(target), budget.measure), facts

    def _cost(self, target: Target | None) -> tuple[PlanCost, float]:
        """Return what a plan costs, without cutting a network where shapes say it, and the limit."""
        if target is None:
            assert self.block.budget is not None
            total = sum(group.count for group in self.groups)
            return lambda plan: plan.channels, total - round(self.block.budget.amount * total)
        if target.measure == "macs" and all_plain(self.parent.module):
            layers = layers_of(self.parent.module)
            return lambda plan: macs(layers, plan.shapes), target.limit
        return lambda plan: target.cost(plan.model), target.limit

    def _scores(self) -> ChannelScores:
        criterion = self.block.criterion
        if isinstance(criterion, OfChannels):
            return criterion.channel_scores(self.parent, self.groups, self.train, self.block.device)
        module = fresh(self.parent, self.train) if criterion.fresh else self.parent.module
        with self.placed(module) as (there, _):
            scores = moved(criterion.scores(there, self.train, self.seed), CPU)
        return by_weights(self.groups, ranked(scores, masks_of(self.parent)))

    def _ladder(self, scores: ChannelScores) -> Ladder:
        shapes = {g.name: self.parent.module.get_parameter(f"{g.layer}.weight").shape for g in self.groups}
        probe = _probe(self.parent, self.groups, scores, self.validation)
        return ladder_of(
            self.parent,
            self.groups,
            scores,
            lambda removed: self.block.allocation.counts(scores, shapes, removed, probe),
            round_to=self.round_to,
            minimum=self.channels.minimum,
        )

    def _repaired(self, plan: ChannelPlan) -> ChannelPlan:
        """Return the plan on a parent whose layers make up for the channels, if the criterion does that."""
        criterion = self.block.criterion
        if not isinstance(criterion, Reconstruction):
            return plan
        images = self.train.first(criterion.images).images
        weights = refitted(
            self.parent.module,
            self.groups,
            plan.gone,
            images,
            criterion.damping,
            self.parent.constraints,
            self.block.device,
        )
        module = copy.deepcopy(self.parent.module)
        with torch.no_grad():
            for name, weight in weights.items():
                module.get_parameter(name).copy_(weight)
        return ChannelPlan(replace(self.parent, module=module), self.groups, plan.gone)


def kept_counts(groups: Sequence[ChannelGroup], kept: Kept) -> dict[str, int]:
    """Return how many channels of each group are left, given what is left of the tensors."""
    left = {}
    for group in groups:
        name, dim, indices = group.members[0]
        whole = name not in kept or dim not in kept[name]
        left[group.name] = group.count if whole else int(torch.isin(indices, kept[name][dim]).all(1).sum())
    return left


def _probe(
    parent: Checkpoint, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], validation: Examples
) -> Probe:
    """Return the drift on validation images of removing so many channels of some groups."""
    known: dict[tuple[tuple[str, int], ...], float] = {}
    drift = drift_from(parent, validation.images)

    def probe(counts: Mapping[str, int]) -> float:
        if (key := tuple(counts.items())) not in known:
            gone = {g.name: lowest(scores[g.name], counts.get(g.name, 0)) for g in groups}
            known[key] = drift(ChannelPlan(parent, groups, gone).model)
        return known[key]

    return probe
