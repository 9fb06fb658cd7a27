"""The network with the most channels that a budget allows, found among networks inside one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.coupling import UNFIT, ChannelGroup, kept_of, zeroed
from decant.compression.surgery import Kept, removed
from decant.errors import DecantError
from decant.examples import Batch
from decant.networks.execution import predict
from decant.networks.shapes import Shapes, shapes_of
from decant.prune.budgets import bracket
from decant.prune.structures import lowest
from decant.prune.targets import formatted
from decant.sealed import one_line

POINTS = 512
"""How often an allocation is asked, at most, between nothing removed and everything."""

TOLERANCE = 1e-4
"""How far the logits of the masked and of the cut network may be apart, as a share of the largest."""

UNSEEN = "one of these layers is coupled with others in a way that is not known: put it into skip"


@dataclass(frozen=True)
class ChannelPlan:
    """A network that has lost some channels, cut only where it is looked at.

    Attributes:
        parent: The network that it is made of.
        groups: The parent's channels.
        gone: By group, True [count] for each channel that is removed.
    """

    parent: Checkpoint
    groups: Sequence[ChannelGroup]
    gone: Mapping[str, Tensor]

    @property
    def channels(self) -> int:
        """How many channels are left, of those that could be removed."""
        return sum(group.count - int(self.gone[group.name].sum()) for group in self.groups)

    @cached_property
    def kept(self) -> Kept:
        """What is left of each tensor, for `compression.surgery` and for the ledger."""
        return kept_of(self.parent.module, self.groups, self.gone)

    @property
    def shapes(self) -> Shapes:
        """The shapes of the tensors, without a network that has them."""
        shapes = shapes_of(self.parent.module)
        for name, dims in self.kept.items():
            sizes = {dim: len(left) for dim, left in dims.items()}
            shapes[name] = tuple(sizes.get(dim, size) for dim, size in enumerate(shapes[name]))
        return shapes

    @cached_property
    def model(self) -> Checkpoint:
        """The network without the channels."""
        return removed(self.parent, self.kept)

    @cached_property
    def masked(self) -> nn.Module:
        """The network with zeros in the place of the channels."""
        return zeroed(self.parent.module, self.groups, self.gone)

    def check(self, images: Batch) -> None:
        """Check that the cut network computes what the one with zeros does, on uint8 images [N, C, H, W].

        Logits agree within float32's rounding, and the answers wherever two are not equal up to that. Where
        inputs are rounded, the last bit may become a step of the grid; there the mean difference has to be
        small beside the logits' spread.

        Raises:
            DecantError: They differ; says by how much.
        """
        expected, found = predict(self.masked, images), self._answers(images)
        tolerance = TOLERANCE * max(expected.abs().max().item(), 1e-6)
        gap = (found - expected).abs().max().item()
        if self.parent.grids:
            mean = (found - expected).abs().mean().item()
            same = mean <= 0.01 * expected.std().item()
        else:
            same = gap <= tolerance and not bool(_other_answers(expected, found, tolerance).any())
        if not same:
            raise DecantError(
                f"{self._said} does not compute what it does with zeros in their place: logits differ by up "
                f"to {gap:.3g}, allowed are {tolerance:.3g}; {UNSEEN}"
            )

    @property
    def _said(self) -> str:
        names = ", ".join(name for name, which in self.gone.items() if bool(which.any()))
        return f"The network without {sum(int(g.sum()) for g in self.gone.values())} channels of {names}"

    def _answers(self, images: Batch) -> Tensor:
        """Return what the cut network answers [N, M].

        Raises:
            DecantError: Its shapes no longer fit.
        """
        try:
            return predict(self.model.module, images)
        except UNFIT as error:
            raise DecantError(f"{self._said} cannot be called ({one_line(error)}); {UNSEEN}") from None


PlanCost = Callable[[ChannelPlan], float]
"""What a network has of what the budget counts; more channels never have less."""


@dataclass(frozen=True)
class Ladder:
    """The networks from the smallest to the whole one, a step of channels at a time, each inside the next.

    So the fewest removals that a budget allows are one rung of it, and a larger budget keeps all that a
    smaller one does.

    Attributes:
        parent: The whole network.
        groups: Its channels.
        scores: How important each is, by group [count]; the least go first, and of equals the later.
        floors: How many channels of each group the smallest network has.
        steps: The group that grows next, and the number of channels that it has then.
    """

    parent: Checkpoint
    groups: Sequence[ChannelGroup]
    scores: Mapping[str, Tensor]
    floors: Mapping[str, int]
    steps: Sequence[tuple[str, int]]

    def plan(self, taken: int) -> ChannelPlan:
        """Return the network after the first `taken` steps."""
        left = {**self.floors, **dict(self.steps[:taken])}
        gone = {g.name: lowest(self.scores[g.name], g.count - left[g.name]) for g in self.groups}
        return ChannelPlan(self.parent, self.groups, gone)


def smallest(
    parent: Checkpoint, groups: Sequence[ChannelGroup], round_to: int = 1, minimum: int = 1
) -> ChannelPlan:
    """Return the network with the fewest channels that there may be, whichever: no budget can go below it."""
    scores = {group.name: torch.zeros(group.count) for group in groups}
    return Ladder(parent, groups, scores, floors_of(groups, round_to, minimum), ()).plan(0)


def ladder_of(
    parent: Checkpoint,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    counts: Callable[[int], Mapping[str, int]],
    *,
    round_to: int = 1,
    minimum: int = 1,
) -> Ladder:
    """Return the networks between the smallest and the whole one, in the order that an allocation gives.

    Where it takes several channels at once, the most important come back first. What an allocation took and
    gives back later, though more are to be removed in all, stays removed.

    Args:
        parent: The whole network.
        groups: Its channels.
        scores: How important each is, by group [count].
        counts: How many channels each group loses when so many go in all.
        round_to: Each group keeps a multiple of this, rounded up, or all that it has.
        minimum: The fewest that a group may keep, rounded up like the rest.

    Raises:
        DecantError: A score is NaN; names the layer.
    """
    for name, score in scores.items():
        if torch.isnan(score).any():
            raise DecantError(f"The scores of the channels of {name} hold NaN: a weight there is not finite")
    floors, total = floors_of(groups, round_to, minimum), sum(group.count for group in groups)
    left, steps = dict(floors), []
    for number in [*range(total, 0, -max(1, total // POINTS)), 0]:
        lost = counts(number)
        grown = []
        for place, group in enumerate(groups):
            wanted = min(group.count, _up(group.count - lost[group.name], round_to))
            ranked = scores[group.name].double().sort(descending=True).values
            while left[group.name] < wanted:
                before = left[group.name]
                after = min(group.count, (before // round_to + 1) * round_to)
                grown.append((-ranked[before:after].mean().item(), place, after))
                left[group.name] = after
        steps += [(groups[place].name, after) for _, place, after in sorted(grown)]
    return Ladder(parent, groups, scores, floors, steps)


def floors_of(groups: Sequence[ChannelGroup], round_to: int, minimum: int) -> dict[str, int]:
    """Return the fewest channels that each group may keep."""
    return {group.name: min(group.count, _up(minimum, round_to)) for group in groups}


def shrink(ladder: Ladder, cost: PlanCost, limit: float, measure: str) -> ChannelPlan:
    """Return the network with the most channels whose cost is not above the limit.

    Args:
        ladder: Where to look.
        cost: Never less for more channels.
        limit: The most that is allowed.
        measure: What is counted, for the error.

    Raises:
        DecantError: The budget cannot be met, or is met by the whole network; names the nearest possible.
    """
    last = len(ladder.steps)
    if (nearest := cost(ladder.plan(0))) > limit:
        raise DecantError(
            f"budget: {measure} {formatted(limit)} cannot be met: with the fewest channels that may be left "
            f"there is {formatted(nearest)}, the nearest possible; ask for that or more, lower minimum or "
            "round_to, or skip fewer layers"
        )
    if (now := cost(ladder.plan(last))) <= limit:
        raise DecantError(
            f"budget: {measure} {formatted(limit)} is met already: the model to prune has {formatted(now)}; "
            "ask for less than that"
        )
    fitting, _ = bracket(lambda taken: cost(ladder.plan(taken)) > limit, 0, last)
    return ladder.plan(fitting)


def shrink_to_drift(ladder: Ladder, drift: PlanCost, limit: float) -> ChannelPlan:
    """Return the network with the fewest channels that drifts no further than the limit.

    Args:
        ladder: Where to look.
        drift: How far the logits are from the whole network's; never more for more channels.
        limit: The most that is allowed.

    Raises:
        DecantError: The first removal is too much already; names the nearest possible.
    """
    last = len(ladder.steps)
    if drift(ladder.plan(0)) <= limit:
        return ladder.plan(0)
    _, fitting = bracket(lambda taken: drift(ladder.plan(taken)) <= limit, 0, last)
    if fitting == last:
        nearest = drift(ladder.plan(last - 1))
        raise DecantError(
            f"budget: drift {formatted(limit)} allows no removal: the least important channels already move "
            f"the outputs by {formatted(nearest)}, the nearest possible"
        )
    return ladder.plan(fitting)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _other_answers(expected: Tensor, found: Tensor, tolerance: float) -> Tensor:
    """Return True [N] where the answers differ and the two are not as good as equal."""
    first, second = expected.argmax(1, keepdim=True), found.argmax(1, keepdim=True)
    return (expected.gather(1, first) - expected.gather(1, second)).flatten() > 2 * tolerance
