"""Channels removed from a model: from its tensors, their constraints, and the ranges of layers' inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from decant.checkpoints.activations import attach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels, Range
from decant.errors import DecantError
from decant.networks.shapes import depthwise, replace_
from decant.networks.structure import weight_of

Kept = Mapping[str, Mapping[int, Tensor]]
"""What is left: indices [K], int64, ascending, by the name of a parameter or buffer and the dimension."""


def removed(checkpoint: Checkpoint, kept: Kept) -> Checkpoint:
    """Return the model without the channels that are not in `kept`; the given one is untouched.

    Masks, levels and ranges lose what their weight loses, and ranges of inputs what the layer's inputs lose.

    Args:
        checkpoint: Any model.
        kept: What stays of each tensor that loses something; whoever makes a channel and whoever reads it
            have to lose it together.
    """
    before, module = checkpoint.module, copy.deepcopy(checkpoint.module)
    cut_(module, kept)
    constraints = {
        name: _constraints(held, before.get_parameter(name).shape, kept[name]) if name in kept else held
        for name, held in checkpoint.constraints.items()
    }
    clamps = {
        name: _clamp(clamp, _inputs(before.get_submodule(name), kept.get(weight_of(before, name), {})))
        for name, clamp in checkpoint.clamps.items()
    }
    attach_(module, checkpoint.grids, clamps)
    return replace(checkpoint, module=module, constraints=constraints, clamps=clamps)


def cut_(module: nn.Module, kept: Kept) -> None:
    """Take out of a network, in place, what is not in `kept`."""
    tensors = module.state_dict()
    replace_(module, {name: _sliced(tensors[name], dims) for name, dims in kept.items()})


def composed(first: Kept, second: Kept) -> Kept:
    """Return what is left after both, where the indices of `second` count in what `first` left."""
    both = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        mine = both.setdefault(name, {})
        for dim, indices in dims.items():
            mine[dim] = mine[dim][indices] if dim in mine else indices
    return both


def _sliced(tensor: Tensor, dims: Mapping[int, Tensor], full: torch.Size | None = None) -> Tensor:
    """Return what is left of a tensor, or of one that broadcasts over a tensor of the size `full`."""
    full = full or tensor.shape
    for dim, indices in dims.items():
        if dim < tensor.dim() and tensor.shape[dim] == full[dim]:
            tensor = tensor.index_select(dim, indices)
    return tensor.contiguous()


def _constraints(held: Constraints, full: torch.Size, dims: Mapping[int, Tensor]) -> Constraints:
    levels, mask = held.levels, held.mask
    return Constraints(
        None if held.range is None else _range(held.range, full, dims),
        None if levels is None else _levels(levels, full, dims),
        None if mask is None else _sliced(mask, dims),
    )


def _levels(levels: Levels, full: torch.Size, dims: Mapping[int, Tensor]) -> Levels:
    """Return the levels of what is left.

    Raises:
        DecantError: The weight has a scale for each group of inputs, and loses inputs.
    """
    if levels.group is not None:
        if set(dims) != {0}:
            raise DecantError(
                f"A weight of {levels.scope} cannot lose inputs, its groups would shift: "
                f"remove channels first, and quantize what is left"
            )
        full = levels.scale.shape
    scale, zero_point = (
        None if each is None else _sliced(each, dims, full) for each in (levels.scale, levels.zero_point)
    )
    assert scale is not None
    return Levels(levels.values, scale, zero_point, levels.group)


def _range(bounds: Range, full: torch.Size, dims: Mapping[int, Tensor]) -> Range:
    if not (isinstance(bounds.low, Tensor) and isinstance(bounds.high, Tensor)):
        return bounds
    return Range(_sliced(bounds.low, dims, full), _sliced(bounds.high, dims, full))


def _clamp(clamp: Range, inputs: Tensor | None) -> Range:
    if inputs is None or not isinstance(clamp.low, Tensor):
        return clamp
    return _range(clamp, clamp.low.shape, {0: inputs})


def _inputs(layer: nn.Module, dims: Mapping[int, Tensor]) -> Tensor | None:
    """Return the input channels [K] that a layer keeps; None where it keeps all."""
    if depthwise(layer):
        return dims.get(0)
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
    if 1 not in dims or groups == 1:
        return dims.get(1)
    assert isinstance(layer.weight, Tensor)
    each = layer.weight.shape[1]  # of the inputs of each group, those at the same places stay
    return torch.cat([group * each + dims[1] for group in range(groups)])
