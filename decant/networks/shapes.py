"""Shapes of a network's tensors, and a network whose layers take on other ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from decant.networks.ties import put_, ties

Shapes = dict[str, tuple[int, ...]]
"""The shape of each parameter and buffer, by name."""


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of the parameters, and of the buffers that are more than one number."""
    every = module.state_dict().items()  # with extra state, which may be anything
    return {name: tuple(each.shape) for name, each in every if isinstance(each, Tensor) and each.dim()}


def differing(module: nn.Module, built: nn.Module) -> Shapes:
    """Return the shapes in which a network is not what its architecture builds."""
    expected = shapes_of(built)
    return {name: shape for name, shape in shapes_of(module).items() if shape != expected[name]}


def reshape_(module: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the named tensors other shapes, filled with zeros, and tell their layers, in place.

    Raises:
        AttributeError: There is no tensor of a name.
        ValueError: Not one whole number for each dimension that the tensor has.
    """
    zeros = {}
    for name, shape in shapes.items():
        tensor = _tensor(module, name)
        if len(shape) != tensor.dim() or min(shape) < 1:
            raise ValueError(f"{name} of {tensor.dim()} dimensions cannot have the shape {[*shape]}")
        zeros[name] = torch.zeros(*shape, dtype=tensor.dtype)
    replace_(module, zeros)


def replace_(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of any size in the place of the named ones, and tell their layers, in place.

    A tensor of several names is replaced under all of them.
    """
    owners: dict[str, tuple[nn.Module, bool]] = {}
    for name, tensor in tensors.items():
        old = _tensor(module, name)
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        for each in next(names for names in ties(module).values() if name in names):
            path = each.rpartition(".")[0]
            owner = module.get_submodule(path)
            # Depthwise is read off the old numbers, before they change.
            owners.setdefault(path, (owner, depthwise(owner)))
            put_(module, each, tensor)
    for owner, each_alone in owners.values():
        _tell_(owner, each_alone)


def depthwise(layer: nn.Module) -> bool:
    """Say whether each input channel of a convolution makes one output channel, apart from all others."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and (
        1 < layer.groups == layer.in_channels == layer.out_channels
    )


def _tensor(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor = getattr(module.get_submodule(path), attribute)
    if not isinstance(tensor, Tensor):
        raise AttributeError(f"{name} is no tensor")
    return tensor


def _tell_(layer: nn.Module, each: bool) -> None:
    """Set the numbers that a layer keeps beside its tensors to what these say, in place."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        layer.out_channels = layer.weight.shape[0]
        if each:
            layer.groups = layer.out_channels
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        sized = layer.weight if layer.affine else layer.running_mean
        if sized is not None:
            layer.num_features = len(sized)
