"""Batch norms folded into the convolutions before them: the same function with fewer numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from decant.checkpoints.activations import attach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Levels, Range, project_
from decant.networks.execution import predict
from decant.networks.structure import drop_norms_, followers

TINY = 1e-30
"""In place of a factor or a scale of 0, by which nothing can be divided again."""


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same function without batch norms; the given checkpoint is untouched.

    With f = gamma / sqrt(variance + eps) for each output channel, the weight becomes f w and the bias
    beta + (b - mean) f. The weight's constraints go with it: codes stay what they are, and their scale is
    multiplied by f instead; zeros stay zeros. The logits move by float32's rounding alone.

    Folding does not help what is trained afterwards: batch norms keep a training of few bits steady.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, 2017, section 3.2. https://arxiv.org/abs/1712.05877
    """
    before, module = followers(checkpoint.module), copy.deepcopy(checkpoint.module)
    if not before:
        return checkpoint
    drop_norms_(module)
    constraints = dict(checkpoint.constraints)
    with torch.no_grad():
        for name, (_, norm) in before.items():
            layer = checkpoint.module.get_submodule(name.removesuffix(".weight"))
            factor, bias = _affine(layer, norm)
            target = module.get_submodule(name.removesuffix(".weight"))
            assert isinstance(target, nn.Conv2d) and target.bias is not None
            column = factor.reshape(-1, 1, 1, 1)
            target.weight.copy_(target.weight.double() * column.double())
            target.bias.copy_(bias)
            if name in constraints:
                constraints[name] = _scaled(constraints[name], column, target.weight.shape)
    project_(module, constraints)
    attach_(module, checkpoint.grids, checkpoint.clamps)
    return replace(checkpoint, module=module, constraints=constraints, folded=True)


def moved(before: Checkpoint, after: Checkpoint, images: Tensor) -> tuple[float, float]:
    """Return how far any logit moves between two forms of one function, and the logits' standard deviation.

    Args:
        before: One form.
        after: The other.
        images: uint8 [N, C, H, W].
    """
    expected = predict(before.module, images)
    return (predict(after.module, images) - expected).abs().max().item(), expected.std().item()


def _affine(layer: nn.Module, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return factor and bias [O] of a convolution and its batch norm, float32; no factor is 0."""
    assert norm.running_mean is not None and norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    factor = 1 / deviation if norm.weight is None else norm.weight.double() / deviation
    beta = torch.zeros_like(factor) if norm.bias is None else norm.bias.double()
    bias = getattr(layer, "bias", None)
    shift = norm.running_mean.double() if bias is None else norm.running_mean.double() - bias.double()
    factor = torch.where(factor.abs() < TINY, TINY, factor).float()
    return factor, (beta - shift * factor.double()).float()


def _scaled(held: Constraints, factor: Tensor, shape: torch.Size) -> Constraints:
    """Return a weight's constraints once its channels are multiplied by `factor` [O, 1, 1, 1]."""
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
