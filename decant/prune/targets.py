"""A budget as something that can be measured on a model, and whether it can be met at all."""

from __future__ import annotations

from dataclasses import dataclass

from decant.checkpoints.checkpoint import Checkpoint
from decant.costs import counts
from decant.costs.drift import ModelCost, drift_from
from decant.costs.size import stored
from decant.errors import DecantError
from decant.examples import Batch
from decant.prune.budgets import PruningBudget


@dataclass(frozen=True)
class Target:
    """A cost that must not be above a limit.

    Attributes:
        measure: Its name in params.yaml.
        limit: The most that is allowed, in the measure's own unit.
        cost: What a model has of it.
    """

    measure: str
    limit: float
    cost: ModelCost

    def met_by(self, model: Checkpoint) -> bool:
        """Say whether the model keeps to the limit."""
        return self.cost(model) <= self.limit

    def toward(self, limit: float) -> Target:
        """Return the same target with another limit."""
        return Target(self.measure, limit, self.cost)


def nonzeros(model: Checkpoint) -> float:
    """Return the number of parameters that are not zero."""
    return counts.nonzeros(model.module)


def unmasked(model: Checkpoint) -> float:
    """Return the number of parameters that no mask holds at zero: a training may move any other off it."""
    masks = [held.mask for held in model.constraints.values() if held.mask is not None]
    return counts.parameters(model.module) - sum(int((~mask).sum()) for mask in masks)


def macs(model: Checkpoint) -> float:
    """Return the multiplications for one image."""
    return counts.macs(model.module)


COSTS: dict[str, ModelCost] = {"nonzeros": nonzeros, "bytes": stored, "macs": macs}


def target_of(budget: PruningBudget, parent: Checkpoint, teacher: Checkpoint, images: Batch) -> Target:
    """Return the target of a budget in nonzeros, bytes, MACs or drift.

    Args:
        budget: What may be left.
        parent: The unpruned model, from which drift is measured.
        teacher: What shares are of.
        images: uint8 [N, C, H, W], on which drift is measured.
    """
    if budget.measure == "drift":
        return Target("drift", budget.amount, drift_from(parent, images))
    cost = COSTS[budget.measure]
    return Target(budget.measure, budget.limit(cost(teacher)), cost)


def check_possible(target: Target, parent: Checkpoint, smallest: Checkpoint) -> None:
    """Refuse a target that removing all but the least cannot meet, or that is met already.

    Args:
        target: In nonzeros, bytes, MACs or latency; drift has no smallest model.
        parent: The unpruned model.
        smallest: The model with the least that the structure leaves.

    Raises:
        DecantError: Names what was asked and the nearest that is possible.
    """
    nearest, now = target.cost(smallest), target.cost(parent)
    if nearest > target.limit:
        raise DecantError(
            f"budget: {target.measure} {formatted(target.limit)} cannot be met: the least that can be left "
            f"has {formatted(nearest)}; ask for that or more, or skip fewer layers"
        )
    if now <= target.limit:
        raise DecantError(
            f"budget: {target.measure} {formatted(target.limit)} is met already: the model to prune has "
            f"{formatted(now)}; ask for less than that"
        )


def formatted(amount: float) -> str:
    """Return a number as a person writes it."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.4g}"
