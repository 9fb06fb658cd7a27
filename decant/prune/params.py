"""The block of a model with `op: prune`: four independent choices, and what may be left."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from decant.networks.devices import Device, idle
from decant.prune.allocations import Allocation, Global
from decant.prune.budgets import PruningBudget
from decant.prune.channels.structure import Channels
from decant.prune.criteria import Criterion
from decant.prune.logit_rounds import LogitRounds
from decant.prune.schedules import (
    During,
    Gradual,
    Iterative,
    OneShot,
    Rewind,
    Rigl,
    Schedule,
    Surgery,
    Trained,
)
from decant.prune.structures import NOfM, Structure, Weights
from decant.schema import Block


class PruneParams(Block):
    """What to remove and how much of it.

    Attributes:
        criterion: What is scored.
        allocation: How layers share the budget.
        structure: What goes together.
        schedule: When.
        budget: How much may be left; a pattern of N in M has its own.
        skip: Layers that are left alone.
        embeddings: Whether tables are pruned too, by the size of their numbers; `blocks` of one row and as
            many columns as a table has remove whole rows.
        statistics: Estimate the statistics of batch norms anew on training images, once all is pruned.
        logits: Bring the answers near to the parent's once all is pruned, or after each of several rounds.
        device: Where criteria run the network, layers are solved, and a schedule trains; not where answers
            are brought near.
    """

    op: Literal["prune"]
    criterion: Criterion
    allocation: Allocation = Global()
    structure: Structure = Weights()
    schedule: Schedule = OneShot()
    budget: PruningBudget | None = None
    skip: tuple[str, ...] = ()
    embeddings: bool = False
    statistics: bool = False
    logits: Annotated[LogitRounds | None, Field(exclude_if=lambda given: given is None)] = None
    device: Device = "cpu"

    @model_validator(mode="after")
    def _fitting(self) -> PruneParams:
        """Refuse choices that do not go together, each with what to take instead."""
        checks = (self._budget(), self._criterion(), self._schedule(), self._logits())
        if wrong := [message for message in checks if message]:
            raise ValueError("; ".join(wrong))
        return self

    def _budget(self) -> str:
        structure, measure = self.structure, self.budget.measure if self.budget else None
        if isinstance(structure, NOfM):
            return f"a budget is not for n-of-m, whose sparsity is 1 - n/m, got {measure}" if measure else ""
        if measure is None:
            return "budget is missing, such as {sparsity: 0.8}"
        if measure in ("macs", "latency") and not isinstance(structure, Channels):
            return (
                f"budget {measure} needs structure channels: zeros are multiplied like other weights, "
                f"structure {structure.kind} saves nothing of it"
            )
        return ""

    def _criterion(self) -> str:
        criterion, structure = self.criterion, self.structure
        if criterion.accumulates and not isinstance(self.schedule, Gradual | Surgery):
            return f"criterion {criterion.kind} scores what a training does: take schedule gradual or surgery"
        if criterion.structures and structure.kind not in criterion.structures:
            known = " or ".join(criterion.structures)
            return f"criterion {criterion.kind} needs structure {known}, got {structure.kind}"
        return ""

    def _logits(self) -> str:
        if self.logits is None:
            return ""
        measure, several = self.budget.measure if self.budget else None, self.logits.rounds > 1
        if not isinstance(self.schedule, OneShot):
            return f"schedule {self.schedule.kind} trains, which comes further: leave out logits"
        if measure == "drift":
            return "budget drift is measured before logits brings answers nearer: take another budget"
        if several and measure is None:
            return "logits.rounds come nearer to a budget, n-of-m has none: leave out rounds"
        if several and isinstance(self.structure, Channels) and measure in ("sparsity", "latency"):
            return f"budget {measure} of channels is met at once: in logits.rounds take macs"
        return ""

    def _schedule(self) -> str:
        schedule, structure = self.schedule, self.structure
        inside = isinstance(schedule, During)
        busy = self.criterion.runs or self.statistics or not isinstance(schedule, OneShot)
        if not busy and (wrong := idle(self.device)):
            return wrong
        if isinstance(schedule, Trained) and (wrong := schedule.training.unsuited(self.device)):
            return f"schedule.{wrong}"
        if self.statistics and not isinstance(schedule, OneShot):
            return f"schedule {schedule.kind} trains, which estimates statistics: leave out statistics"
        if inside and isinstance(structure, Channels):
            return (
                f"schedule {schedule.kind} changes masks in a training, channels are removed: take iterative"
            )
        if isinstance(schedule, Rewind) and schedule.weights and isinstance(structure, Channels):
            return "rewind of channels keeps the weights, those of then do not fit: add weights: false"
        if isinstance(schedule, Rigl) and not isinstance(structure, Weights):
            return f"schedule rigl moves single weights, got structure {structure.kind}"
        if inside and self.criterion.repairs:
            return f"criterion {self.criterion.kind} repairs what training would: take one-shot or iterative"
        if isinstance(schedule, Iterative) and self.budget is None:
            return "schedule iterative needs a budget to come nearer to, n-of-m has none: take gradual"
        if self.budget and inside and self.budget.measure not in ("sparsity", "nonzeros"):
            return (
                f"budget {self.budget.measure} is known only when masks stand still: "
                f"with schedule {schedule.kind} take sparsity or nonzeros"
            )
        rounds = isinstance(schedule, Iterative) and isinstance(structure, Channels)
        if self.budget and rounds and self.budget.measure in ("sparsity", "latency"):
            return f"budget {self.budget.measure} of channels is met at once: in rounds take macs"
        if self.budget and self.budget.measure == "drift" and not isinstance(schedule, OneShot):
            return "budget drift compares with the unpruned model, which a training leaves: take one-shot"
        return ""
