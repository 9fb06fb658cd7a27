"""What a model has to be: checked of the model in memory, and of what was written and read back.

Every operation says what its recipe promises as functions of a model; what holds of every model stands here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint, blank, state
from decant.checkpoints.constraints import FREE, Constraints, Range
from decant.errors import DecantError
from decant.networks.ties import tied

if TYPE_CHECKING:
    from torch import nn

Promise = Callable[[Checkpoint], Iterable[str]]
"""Returns a sentence for each thing that a model was to have and has not; none where all is as asked."""


def check_promises(model: Checkpoint, promises: Sequence[Promise]) -> None:
    """Check what every model has to be, and what a recipe promises of this one.

    Raises:
        DecantError: Names all that is not so.
    """
    if broken := [sentence for promise in (satisfying, *promises) for sentence in promise(model)]:
        raise DecantError("The model is not what it has to be:\n  " + "\n  ".join(broken))


def check_written(model: Checkpoint, written: Checkpoint, promises: Sequence[Promise]) -> None:
    """Check what was read back from disk: it is the model, to the bit, and keeps what was promised of it.

    Raises:
        DecantError: Names all that is not so.
    """
    if other := list(_differences(model, written)):
        raise DecantError(
            f"What was written is not the model that was made: {', '.join(other)} read back otherwise; "
            f"nothing is kept. Check the disk, and report this if it happens again"
        )
    check_promises(written, promises)


def satisfying(model: Checkpoint) -> Iterator[str]:
    """Yield each weight that is off its own range, levels or mask."""
    for name, held in model.constraints.items():
        weight = model.module.get_parameter(name)
        if moved := int((held.project(weight) != weight).sum()):
            yield f"{name}: {moved:,} of {weight.numel():,} weights are off their range, levels or mask"


def nothing_lost(parent: Checkpoint) -> Promise:
    """Return the promise that something is left of each layer of which the parent has something.

    A weight of zeros alone, or of one value alone, passes on no more than the sum of its inputs; inputs that
    are cut to one value pass on nothing. Biases and batch norms may be zero.

    Args:
        parent: The model before, whose layers have the same names; or the network before its training.
    """

    def lost(model: Checkpoint) -> Iterator[str]:
        for name, weight in _weights(model):
            if _of_one_value(weight) and not _of_one_value(parent.module.get_parameter(name)):
                yield (
                    f"{name}: nothing is left of the layer, every weight is {weight.flatten()[0]:g}; ask for "
                    f"less (a smaller threshold, a wider range, more bits), or name the layer in skip"
                )
        for name, clamp in model.clamps.items():
            if _is_point(clamp) and not (name in parent.clamps and _is_point(parent.clamps[name])):
                yield (
                    f"{name}: all its inputs are cut to {clamp.ends()[0]:g}; take a wider range, or name the "
                    f"layer in skip"
                )

    return lost


def untrained(model: Checkpoint) -> Checkpoint:
    """Return a network of the model's architecture with weights that a training may begin with."""
    return replace(model, module=blank(model.built_by, model.shape, len(model.classes)))


def _weights(model: Checkpoint) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what a layer multiplies by: parameters of two dimensions or more, and those with constraints."""
    for name, parameter in model.module.named_parameters():
        if parameter.dim() > 1 or name in model.constraints:
            yield name, parameter


def _of_one_value(weight: Tensor) -> bool:
    """Say whether all elements are the same number, or the only one is zero."""
    first = weight.detach().flatten()[0]
    return bool((weight == first).all()) and (weight.numel() > 1 or not first)


def _is_point(clamp: Range) -> bool:
    low, high = torch.as_tensor(clamp.low), torch.as_tensor(clamp.high)
    return bool((low == high).all())


def _differences(model: Checkpoint, written: Checkpoint) -> Iterator[str]:
    """Yield the name of each part in which two models differ."""
    yield from (
        part
        for part in ("architecture", "shape", "classes", "folded", "grids", "clamps")
        if getattr(model, part) != getattr(written, part)
    )
    if _as_json(model) != _as_json(written):
        yield "lineage"
    before, after = state(model.module), state(written.module)
    yield from sorted(before.keys() ^ after.keys())
    yield from sorted(" and ".join(names) for names in tied(model.module) ^ tied(written.module))
    yield from (name for name in before if name in after and not _same_bits(before[name], after[name]))
    held, found = model.constraints, written.constraints
    yield from (
        f"the constraints on {name}"
        for name in {**held, **found}
        if not _same_constraints(held.get(name, FREE), found.get(name, FREE))
    )


def _as_json(model: Checkpoint) -> object:
    """Return the lineage as a file has it."""
    return json.loads(json.dumps(list(model.lineage)))


def _same_constraints(first: Constraints, second: Constraints) -> bool:
    levels = second.levels is None if first.levels is None else first.levels.equals(second.levels)
    return first.range == second.range and levels and _same_masks(first.mask, second.mask)


def _same_masks(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second if first is None or second is None else _same_bits(first, second)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors have the same type, shape and bytes: 0 is not -0."""
    alike = first.dtype == second.dtype and first.shape == second.shape
    return alike and torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
