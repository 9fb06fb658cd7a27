"""Counts of a network: its parameters, its zeros, and its multiplications for one row."""

from __future__ import annotations

import torch
from torch import nn

from decant.networks.record import record_of
from decant.networks.structure import compressible


def parameters(module: nn.Module) -> int:
    """Return the number of parameters, zeros included."""
    return sum(parameter.numel() for parameter in module.parameters())


def nonzeros(module: nn.Module) -> int:
    """Return the number of parameters that are not zero."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in module.parameters())


def sparsity(module: nn.Module) -> float:
    """Return the fraction in [0, 1] of zeros among the weights that the network multiplies by.

    These are weights of linear, convolutional, recurrent and attention layers, and parameters that functions
    multiply by; a tensor of several names counts once. Embeddings are looked up, and are not among them.
    """
    weights = compressible(module).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(1, sum(weight.numel() for weight in weights))


def macs(module: nn.Module) -> int:
    """Return the multiplications for one row of what the network is known to take.

    They are those of convolutions, matrices, recurrences, and the products of attention; tables, norms and
    additions have none. Zeros count as much as any other weight: a kernel that skips single zeros is the
    exception.
    """
    return record_of(module).macs
