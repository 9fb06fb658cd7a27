"""Batch norms folded into the layers before them: the same function with fewer numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from decant.checkpoints.activations import attach_, detach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels, Range, project_
from decant.examples import Batch
from decant.networks.architectures import OWN
from decant.networks.calls import Example
from decant.networks.execution import predict, tensors_of
from decant.networks.record import example_of, record_of
from decant.networks.structure import along, axis_of, drop_norms_
from decant.networks.tracing import every_layer_called

TINY = 1e-30
"""In place of a factor or a scale of 0, by which nothing can be divided again."""

UNMOVED = 1e-9
"""By which share of the largest the outputs may move, in float64, once a batch norm is folded."""


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same function without the batch norms that may be folded; the given checkpoint is untouched.

    With f = gamma / sqrt(variance + eps) for each output channel, the weight becomes f w and the bias
    beta + (b - mean) f. The weight's constraints go with it: codes stay what they are, and their scale is
    multiplied by f instead; zeros stay zeros. The outputs move by the rounding of their type alone.

    Which batch norm belongs to which layer is what the network's record shows. Networks of other people are
    folded in float64 on trial besides: a pair that moves the outputs there stays as it is, and so does one
    whose constraints cannot be scaled; `unfolded` says why.

    Folding does not help what is trained afterwards: batch norms keep a training of few bits steady.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, 2017, section 3.2. https://arxiv.org/abs/1712.05877
    """
    folds = foldable(checkpoint)
    if not folds:
        return checkpoint
    module = copy.deepcopy(checkpoint.module)
    factors = _fold_(module, folds)
    constraints = dict(checkpoint.constraints)
    for name in constraints.keys() & folds.keys():
        constraints[name] = _scaled(constraints[name], factors[name])
    project_(module, constraints)
    attach_(module, checkpoint.grids, checkpoint.clamps)
    own = isinstance(checkpoint.architecture, OWN)
    pairs = True if own else {**_pairs(checkpoint), **folds}
    return replace(checkpoint, module=module, constraints=constraints, folded=pairs)


def unfolded(checkpoint: Checkpoint) -> dict[str, str]:
    """Return why batch norms of a checkpoint are left as they are, by their names."""
    record, folds = record_of(checkpoint.module), foldable(checkpoint)
    others = {
        norm: _unscalable(checkpoint, name)
        or f"without it {record.weights[name].layer} is another function, or float64 cannot tell"
        for name, norm in record.folds.items()
        if name not in folds
    }
    return {**record.unfolded, **others}


def _pairs(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Return what is folded already, as names."""
    return {} if isinstance(checkpoint.folded, bool) else checkpoint.folded


def foldable(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names of the batch norms that `folded` folds, by the weights that they become part of."""
    found = record_of(checkpoint.module).folds
    folds = {name: norm for name, norm in found.items() if not _unscalable(checkpoint, name)}
    if not folds or isinstance(checkpoint.architecture, OWN) or _is_same(checkpoint, folds):
        return folds
    return {name: norm for name, norm in folds.items() if _is_same(checkpoint, {name: norm})}


def _unscalable(checkpoint: Checkpoint, name: str) -> str:
    """Return why the channels of a weight cannot be multiplied; empty where they can."""
    weight = checkpoint.module.get_parameter(name)
    held = checkpoint.constraints.get(name)
    if (
        held is not None
        and held.levels is not None
        and held.levels.group
        and axis_of(checkpoint.module, name)
    ):
        return f"groups of {name} run over its output channels, which folding would scale one by one"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"{name} is of {str(weight.dtype).removeprefix('torch.')}, too coarse to fold into"
    return ""


def _is_same(checkpoint: Checkpoint, folds: Mapping[str, str]) -> bool:
    """Say whether a network with these batch norms folded answers the same in float64, nothing rounded."""
    before = copy.deepcopy(checkpoint.module)
    detach_(before, {**checkpoint.grids, **checkpoint.clamps})
    after = copy.deepcopy(before.double())
    _fold_(after, folds)
    example = drawn_like(example_of(checkpoint.module))
    try:
        with torch.no_grad(), every_layer_called():
            answers = [tensors_of(each(*copy.deepcopy(example))) for each in (before, after)]
    except RuntimeError:  # its forward mixes float64 with types of its own: nothing is proven
        return False
    return all(
        bool((one - other).abs().max() <= UNMOVED * one.abs().max().clamp(min=1))
        for one, other in zip(*answers, strict=True)
        if one.is_floating_point() and one.numel()
    )


def drawn_like(example: Example) -> Example:
    """Return arguments with float64 fractions, drawn from a seed where the example has nothing but zeros."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor.double() if tensor.any() else drawn

    found: Example = tree_map_only(Tensor, draw, example)
    return found


def _fold_(module: nn.Module, folds: Mapping[str, str]) -> dict[str, Tensor]:
    """Fold these batch norms, in place; return what each weight was multiplied by."""
    norms: dict[str, Any] = {name: module.get_submodule(norm) for name, norm in folds.items()}
    weights = record_of(module).weights
    layers: dict[str, Any] = {name: module.get_submodule(weights[name].layer) for name in folds}
    biases = {name: layer.bias for name, layer in layers.items()}
    axes = {name: axis_of(module, name) for name in folds}
    drop_norms_(module, folds)
    factors = {}
    with torch.no_grad():
        for name, layer in layers.items():
            factor, bias = _affine(biases[name], norms[name])
            factors[name] = along(axes[name], layer.weight, factor)
            layer.weight.copy_(layer.weight.double() * factors[name].double())
            layer.bias.copy_(bias)
    return factors


def moved(before: Checkpoint, after: Checkpoint, images: Batch) -> tuple[float, float]:
    """Return how far any logit moves between two forms of one function, and the logits' standard deviation.

    Args:
        before: One form.
        after: The other.
        images: uint8 [N, C, H, W].
    """
    expected = predict(before.module, images)
    return (predict(after.module, images) - expected).abs().max().item(), expected.std().item()


def _affine(given: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Return factor and bias [O] of a layer with this bias and its batch norm; no factor is 0."""
    kind = norm.running_var.dtype
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = 1 / deviation if norm.weight is None else norm.weight.double() / deviation
    beta = torch.zeros_like(factor) if norm.bias is None else norm.bias.double()
    shift = norm.running_mean.double() if given is None else norm.running_mean.double() - given.double()
    factor = torch.where(factor.abs() < TINY, TINY, factor).to(kind)
    return factor, (beta - shift * factor.double()).to(kind)


def _scaled(held: Constraints, factor: Tensor) -> Constraints:
    """Return a weight's constraints once it is multiplied by `factor`, which broadcasts over it."""
    levels, bounds = held.levels, held.range
    if levels is not None:
        each = factor.flatten(1) if levels.group is not None else factor
        scale = levels.scale * each
        scale = torch.where(scale == 0, TINY, scale)  # the product of two tiny numbers
        zero_point = None if levels.zero_point is None else levels.zero_point.expand_as(scale).contiguous()
        levels = Levels(levels.values, scale, zero_point, levels.group)
    if bounds is not None:
        ends = torch.stack([torch.as_tensor(end) * factor for end in (bounds.low, bounds.high)])
        bounds = Range(ends.amin(0), ends.amax(0))
    return Constraints(bounds, levels, held.mask)
