"""Linear layers with zeros of the pattern 2:4 as GPUs multiply them: packed, in float16.

A GPU of compute capability 8.0 has instructions that leave out two of each four neighbours in a row of a
weight. torch has them as semi-structured tensors, for weights of linear layers alone.

References:
    Mishra et al., Accelerating Sparse Deep Neural Networks, 2021. https://arxiv.org/abs/2104.08378
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from decant.errors import DecantError, Message
from decant.networks.devices import place_, without_patterns

ROWS, COLUMNS = 32, 64
"""What the sides of a weight are multiples of, so that all of torch's kernels for the pattern take it."""


def two_of_four(weight: Tensor) -> bool:
    """Say whether each four neighbouring inputs of a weight [O, I, ...] hold two zeros, and some no zero."""
    rows = weight.detach().movedim(1, -1)
    if rows.shape[-1] % 4 or not bool(rows.any()):
        return False
    return bool((rows.unflatten(-1, (-1, 4)).count_nonzero(-1) <= 2).all())


def packable(module: nn.Module) -> list[str]:
    """Return the linear layers of a network whose weights can be packed, by name, in order."""
    return [
        name
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear
        and layer.out_features % ROWS == layer.in_features % COLUMNS == 0
        and two_of_four(layer.weight)
    ]


def unpackable(module: nn.Module) -> Message:
    """Return why no layer of a network can be packed; empty where one can."""
    if packable(module):
        return ""
    layers = dict(module.named_modules())
    found = [
        (name, layers[name.rpartition(".")[0]], weight)
        for name, weight in module.named_parameters()
        if weight.dim() > 1 and two_of_four(weight)
    ]
    if not found:
        return (
            "no weight has two zeros in each four neighbours of a row; prune with structure: {kind: n-of-m}"
        )
    shown = ", ".join(
        f"{name} ({type(layer).__name__}, {' x '.join(map(str, weight.shape))})"
        for name, layer, weight in found
    )
    return (
        f"the pattern 2:4 is in {shown}, and torch has kernels for weights of Linear whose rows are a "
        f"multiple of {ROWS} and whose columns are one of {COLUMNS}"
    )


def in_float16(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a network on a device, with weights and sums of float16; takes inputs of float16."""
    return place_(copy.deepcopy(module).half(), device)


def packed(module: nn.Module, device: torch.device) -> tuple[nn.Module, list[str]]:
    """Return a copy of a network in float16 whose 2:4 layers are packed, and their names.

    It answers as `in_float16` but for the order in which a GPU adds up.

    Args:
        module: The network, on the processor, in eval mode; it stays as it is.
        device: A GPU.

    Raises:
        DecantError: The device has no such instructions, or no layer of the network can be packed.
    """
    if wrong := without_patterns(device) or unpackable(module):
        raise DecantError(wrong)
    names, copied = packable(module), in_float16(module, device)
    for name in names:
        layer = copied.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        kept: Tensor = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(kept, requires_grad=False)
    return copied, names
