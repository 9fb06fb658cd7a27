"""Counts of a network: its parameters, its zeros, and its multiplications for one input."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decant.networks.architectures import Shape
from decant.networks.structure import compressible


def parameters(module: nn.Module) -> int:
    """Return the number of parameters, zeros included."""
    return sum(parameter.numel() for parameter in module.parameters())


def nonzeros(module: nn.Module) -> int:
    """Return the number of parameters that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in module.parameters())


def sparsity(module: nn.Module) -> float:
    """Return the fraction in [0, 1] of zeros among the weights of convolutions and linear layers."""
    weights = compressible(module).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(1, sum(weight.numel() for weight in weights))


def macs(module: nn.Module, shape: Shape) -> int:
    """Return the multiplications of convolutions and linear layers for one input of `shape` [C, H, W].

    Zeros count as much as any other weight: a kernel that skips single zeros is the exception.
    """
    return sum(layer_macs(module, shape).values())


def layer_macs(module: nn.Module, shape: Shape) -> dict[str, int]:
    """Return the multiplications of each convolution and linear layer, by the name of its weight."""
    weights = compressible(module)
    counts = dict.fromkeys(weights, 0)

    def count(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        counts[name] += output.numel() // weights[name].shape[0] * weights[name].numel()

    handles = [
        module.get_submodule(name.removesuffix(".weight")).register_forward_hook(partial(count, name))
        for name in weights
    ]
    with torch.no_grad():
        module(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return counts
