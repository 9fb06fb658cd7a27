"""The check that a model still satisfies the constraints of the model that it was made from."""

from __future__ import annotations

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.compression.surgery import Kept, removed
from decant.errors import DecantError


def check_invariants(parent: Checkpoint, child: Checkpoint, kept: Kept | None = None) -> None:
    """Check that the child satisfies all constraints of the parent on what is left of weights and inputs.

    Raises:
        DecantError: An 80 % mask is no longer an 80 % mask, or the like; names the weight.
    """
    parent = removed(parent, kept) if kept else parent
    broken = [
        f"{name}: {reason}"
        for name, earlier in parent.constraints.items()
        for reason in earlier.broken_by(child.module.get_parameter(name), child.constraints.get(name, FREE))
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
