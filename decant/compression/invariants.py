"""Part of what was tasks.ledger."""

from __future__ import annotations

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.compression.surgery import Kept, removed
from decant.errors import DecantError


def check_invariants(parent: Checkpoint, child: Checkpoint, kept: Kept | None = None) -> None:
    """Hold that whatever the parent's weights and inputs satisfied, the child's satisfy too, of what is left.

    Raises:
        DecantError: An 80 % mask is no longer an 80 % mask, or the like; names the weight.
    """
    parent = removed(parent, kept) if kept else parent
    broken = [
        f"{name}: {words}"
        for name, earlier in parent.constraints.items()
        for words in earlier.broken_by(child.module.get_parameter(name), child.constraints.get(name, FREE))
    ]
    broken += [
        f"{name}: its inputs are no longer cut to the {clamp.describe()}"
        for name, clamp in parent.clamps.items()
        if name not in child.clamps or not child.clamps[name].within(clamp)
    ]
    broken += [
        f"{name}: its inputs are no longer rounded as they were"
        for name, grid in parent.grids.items()
        if child.grids.get(name) != grid
    ]
    if broken:
        raise DecantError("The operation broke what an earlier one did:\n  " + "\n  ".join(broken))
