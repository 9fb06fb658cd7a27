"""What every operation ends with: the model is checked against what it was made from, its changes listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.invariants import check_invariants
from decant.compression.ledger import Entry, Tables, chosen, compare, created
from decant.compression.promises import Promise, check_promises, nothing_lost, untrained
from decant.compression.surgery import Kept
from decant.lowering.integers import exact_sums, settled


@dataclass(frozen=True)
class Result:
    """What an operation made.

    Attributes:
        model: The new model; the parent is untouched.
        ledger: What happened to each parameter.
        curve: One row for each epoch of its training; empty where nothing was trained.
        facts: What the lineage should say beside the recipe.
        notes: What else its user should know.
        promises: What has to be so of the model, also when it is read back from disk.
    """

    model: Checkpoint
    ledger: Sequence[Entry]
    curve: Sequence[Mapping[str, float]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    promises: Sequence[Promise] = ()


def finished(
    parent: Checkpoint,
    child: Checkpoint,
    untouched: Mapping[str, str],
    *,
    curve: Sequence[Mapping[str, float]] = (),
    tables: Tables | None = None,
    kept: Kept | None = None,
    facts: Mapping[str, Any] | None = None,
    note: str = "",
    promises: Sequence[Promise] = (),
    statistics: bool = False,
) -> Result:
    """Check the child against its parent and its recipe, and return it with its ledger.

    Biases are settled as integer kernels add them, so that what is measured from now on is what is deployed.

    Args:
        parent: The model before, in the form that the child is compared with.
        child: What the operation made of it.
        untouched: Why each other parameter was left alone, by its name.
        curve: Of the training, where there was one.
        tables: What was chosen for parameters, and what was tried.
        kept: What is left of the parent's tensors, where channels were removed.
        facts: What the lineage should say beside the recipe.
        note: What else its user should know.
        promises: What the recipe promises of the child.
        statistics: Whether it is enough that the statistics of batch norms have changed.

    Raises:
        DecantError: Nothing changed, what an earlier operation did no longer holds, nothing is left of a
            layer, or the child is not what the recipe promises.
    """
    child = settled(child)
    check_invariants(parent, child, kept)
    promises = (nothing_lost(parent), *promises)
    check_promises(child, promises)
    ledger = chosen(compare(parent, child, untouched, kept, statistics=statistics), tables or {})
    notes = [message for message in (note, exact_sums(child)) if message]
    return Result(child, ledger, curve, facts or {}, notes, promises)


def begun(
    model: Checkpoint, curve: Sequence[Mapping[str, float]], facts: Mapping[str, Any] | None = None
) -> Result:
    """Return a model that was trained from fresh weights, with its ledger.

    Raises:
        DecantError: The training left nothing of a layer.
    """
    promises = (nothing_lost(untrained(model)),)
    check_promises(model, promises)
    return Result(model, created(model), curve, facts or {}, promises=promises)
