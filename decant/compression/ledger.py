"""What an operation did to each layer, and what it left alone and why: printed, stored, and never empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.compression.surgery import Kept, removed
from decant.errors import DecantError
from decant.networks.record import record_of
from decant.networks.roles import roles, unusual
from decant.networks.structure import axis_of, compressible


@dataclass(frozen=True)
class Entry:
    """What happened to one parameter.

    Attributes:
        name: The parameter, such as `stages.0.conv1.weight`.
        count: Its elements.
        weight: Whether it is a weight that the network multiplies by, or one with constraints: not a bias, a
            norm, or a table that is left as it is.
        changed: How many of its elements have another value than before.
        zeros: How many are zero now.
        holds: The constraints on it from now on; empty where there are none.
        untouched: Why the operation left it alone; empty where it did not.
        chosen: The kind that was taken where several were tried; empty where none were.
        tried: What each of them costs: the distance of the outputs from the parent's, of classes in nats, on
            held-out training images, or None where it could not be applied.
        removed: How many of the parent's elements it has no more, as channels were taken out.
        channels: The parent's outputs and these, such as `64 → 48 channels`; or its inputs, where it has lost
            only of those; empty where it has lost neither.
        role: What it is, as `roles`, where that is neither a layer's weight nor a bias nor a batch norm.
    """

    name: str
    weight: bool
    count: int
    changed: int
    zeros: int
    holds: str
    untouched: str
    chosen: str = ""
    tried: Mapping[str, float | None] = field(default_factory=dict)
    removed: int = 0
    channels: str = ""
    role: str = ""


def compare(
    parent: Checkpoint,
    child: Checkpoint,
    untouched: Mapping[str, str],
    kept: Kept | None = None,
    *,
    statistics: bool = False,
) -> list[Entry]:
    """Return one entry for each parameter of the child, whose architecture is the parent's.

    Args:
        parent: What the operation was given.
        child: What it made.
        untouched: Why it left each other parameter alone. Of biases and batch norms no longer true where they
            have changed all the same, in a training say, and left out then.
        kept: What it left of the parent's tensors, where it removed channels. What is changed is counted in
            the channels that are left.
        statistics: Whether it is enough that the statistics of batch norms have changed.

    Raises:
        DecantError: Nothing changed: no weight, no levels, no mask, no rounding of inputs. A range that
            cuts nothing is no change.
    """
    left = removed(parent, kept) if kept else parent
    before, weights = dict(left.module.named_parameters()), compressible(child.module)
    every = roles(child.module)
    changed = {name: int((p != before[name]).sum()) for name, p in child.module.named_parameters()}
    accounted = {*(kept or {}), *(name for name, count in changed.items() if count and name not in weights)}
    entries = [
        Entry(
            name=name,
            weight=name in weights or name in child.constraints,
            count=parameter.numel(),
            changed=changed[name],
            zeros=int((parameter == 0).sum()),
            holds=_holds(child, name),
            untouched="" if name in accounted else untouched.get(name, ""),
            removed=parent.module.get_parameter(name).numel() - parameter.numel(),
            channels=_channels(parent.module, name, parameter.shape),
            role=unusual(every, name),
        )
        for name, parameter in child.module.named_parameters()
    ]
    if not (
        any(entry.changed or entry.removed for entry in entries)
        or _binds(left, child)
        or (statistics and _estimates(left, child))
    ):
        raise DecantError(
            "The operation changed nothing: no weight has another value, no new levels, no new zero held; "
            "ask for more (a higher sparsity, a narrower range, fewer bits) or remove the model's block"
        )
    return entries


def created(child: Checkpoint) -> list[Entry]:
    """Return one entry for each parameter of a network that was trained from fresh weights."""
    weights, every = compressible(child.module), roles(child.module)
    return [
        Entry(
            name=name,
            weight=name in weights,
            count=p.numel(),
            changed=p.numel(),
            zeros=int((p == 0).sum()),
            holds="",
            untouched="",
            role=unusual(every, name),
        )
        for name, p in child.module.named_parameters()
    ]


Tables = Mapping[str, tuple[str, Mapping[str, float | None]]]
"""The kind that was chosen for a parameter, by its name, and what each kind that was tried costs."""


def merged(parts: Sequence[Tables]) -> Tables:
    """Return several tables as one: what each says of a parameter, one after the other."""
    together: dict[str, tuple[str, Mapping[str, float | None]]] = {}
    for part in parts:
        for name, (kind, tried) in part.items():
            before, earlier = together.get(name, ("", {}))
            together[name] = ("; ".join(filter(None, (before, kind))), {**earlier, **tried})
    return together


def chosen(entries: Sequence[Entry], tables: Tables) -> list[Entry]:
    """Return the entries with what was chosen and what was tried, by the parameter's name."""
    return [
        replace(entry, chosen=tables[entry.name][0], tried=tables[entry.name][1])
        if entry.name in tables
        else entry
        for entry in entries
    ]


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the entries for `ledger.json`; the last five keys stand only where there is anything."""
    rare = ("chosen", "tried", "removed", "channels", "role")
    return [
        {key: value for key, value in asdict(entry).items() if value or key not in rare} for entry in entries
    ]


def lines(title: str, entries: Sequence[Entry]) -> list[str]:
    """Return the ledger to print: a line for each touched weight, one for the rest, one for each reason."""
    touched = [entry for entry in entries if not entry.untouched]
    weights = [entry for entry in touched if entry.weight]
    width = max((len(entry.name) for entry in weights), default=0)
    text = [title, *(_line(entry, width) for entry in weights)]
    if others := [entry for entry in touched if not entry.weight]:
        changed, count = sum(entry.changed for entry in others), sum(entry.count for entry in others)
        gone = sum(entry.removed for entry in others)
        kinds = "other parameters" if any(entry.role for entry in others) else "biases and batch norms"
        text.append(
            f"  {kinds:{width}}  {changed:>8,} of {count:>8,} changed"
            + (f"  {gone:,} removed" if gone else "")
        )
    for reason in dict.fromkeys(entry.untouched for entry in entries if entry.untouched):
        left = [entry for entry in entries if entry.untouched == reason]
        names = ", ".join(entry.name for entry in left[:3]) + (" …" if len(left) > 3 else "")
        total = sum(entry.count for entry in left)
        text.append(f"  untouched: {len(left)} ({total:,} parameters), {reason}: {names}")
    return text


def _line(entry: Entry, width: int) -> str:
    return (
        f"  {entry.name:{width}}  {entry.changed:>8,} of {entry.count:>8,} changed"
        f"  {entry.zeros / entry.count:>7.2%} zero  {entry.holds}".rstrip()
        + (f"  {entry.role}" if entry.role else "")
        + (f"  {entry.channels}" if entry.channels else "")
        + (f"  (chosen: {entry.chosen})" if entry.chosen else "")
    )


def _binds(parent: Checkpoint, child: Checkpoint) -> bool:
    """Say whether the child is bound where the parent was free, though no weight has another value."""
    if child.grids != parent.grids or child.clamps != parent.clamps:
        return True
    for name, held in child.constraints.items():
        earlier = parent.constraints.get(name, FREE)
        if held.levels is not None and not held.levels.equals(earlier.levels):
            return True
        if held.mask is not None and bool(
            (~held.mask if earlier.mask is None else earlier.mask & ~held.mask).any()
        ):
            return True
    return False


def _estimates(parent: Checkpoint, child: Checkpoint) -> bool:
    """Say whether any statistic of a batch norm is another."""
    before = dict(parent.module.named_buffers())
    return any(not torch.equal(buffer, before[name]) for name, buffer in child.module.named_buffers())


def _channels(module: nn.Module, name: str, after: Sequence[int]) -> str:
    """Return what a parameter of the parent has lost: of its outputs, or of its inputs alone."""
    before, axis = module.get_parameter(name).shape, axis_of(module, name)
    if before == after:
        return ""
    if before[axis] != after[axis]:
        return f"{before[axis]} → {after[axis]} channels"
    return f"{before[1 - axis]} → {after[1 - axis]} inputs"


def _holds(checkpoint: Checkpoint, name: str) -> str:
    parts = [checkpoint.constraints.get(name, FREE).describe()]
    weight = record_of(checkpoint.module).weights.get(name)
    for layer in sorted({each.rpartition(".")[0] for each in weight.names} if weight else ()):
        if (clamp := checkpoint.clamps.get(layer)) is not None:
            parts.append(f"inputs in {clamp.describe()}")
        if (grid := checkpoint.grids.get(layer)) is not None:
            parts.append(f"inputs in {grid.describe()}")
    return ", ".join(part for part in parts if part)
