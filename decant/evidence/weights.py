"""Norms of a network's weights, and how much its answers can move for a step of its inputs at most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decant.evidence.lipschitz import expansion, unbounded
from decant.lazy import torch
from decant.lowering.folding import folded
from decant.networks.calls import Kind, Record
from decant.networks.record import record_of
from decant.networks.structure import compressible

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decant.checkpoints.checkpoint import Checkpoint

EXACT = 1024
"""The shorter side of a matrix up to which its spectral norm is computed, and bounded from there on."""


@dataclass(frozen=True)
class LayerNorms:
    """What the weights of one layer amount to, batch norms folded into them.

    Attributes:
        l1: Sum of their sizes.
        l2: Root of the sum of their squares.
        spectral: Largest singular value of the weight as a matrix of output channels and all else; an upper
            bound of it where both sides are longer than `EXACT`.
        lipschitz: Upper bound of the length of the layer's answer, less its bias, over that of its input.
    """

    l1: float
    l2: float
    spectral: float
    lipschitz: float


@dataclass(frozen=True)
class Norms:
    """What the weights of a network amount to.

    Attributes:
        layers: By the weight's name, in the order in which they run.
        lipschitz: Upper bound of the network's; None where none is known.
        why: Why there is none, a sentence; empty where there is.
    """

    layers: Mapping[str, LayerNorms]
    lipschitz: float | None
    why: str = ""

    @property
    def l1(self) -> float:
        """Sum of the sizes of all weights."""
        return sum(each.l1 for each in self.layers.values())

    @property
    def l2(self) -> float:
        """Root of the sum of the squares of all weights."""
        return math.sqrt(sum(each.l2**2 for each in self.layers.values()))


def norms(model: Checkpoint) -> Norms:
    """Return the norms of a model's weights, which multiply; tables that are looked up are none of these.

    Batch norms are folded first, so that a model with and one without them compare.
    """
    module = folded(model).module
    record = record_of(module)
    layers = {name: _norms(module, record, name, weight) for name, weight in compressible(module).items()}
    why = unbounded(module, record)
    bounds = {name: each.lipschitz for name, each in layers.items()}
    return Norms(layers, None if why else expansion(module, record, bounds), why)


def _norms(module: nn.Module, record: Record, name: str, weight: Tensor) -> LayerNorms:
    values = weight.detach().double()
    axis, layer = record.weights[name].axis, record.weights[name].layer
    outer = values.movedim(axis, 0).flatten(1) if values.dim() > 1 else values[None]
    spectral = spectral_norm(outer)
    return LayerNorms(
        values.abs().sum().item(),
        values.square().sum().sqrt().item(),
        spectral,
        _stretch(values, module.get_submodule(layer) if layer else None, record.weights[name].kind, spectral),
    )


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value of a matrix [A, B], or an upper bound where both are above `EXACT`.

    It is the root of the largest eigenvalue of the matrix times its transpose. The bound is
    sqrt(largest sum of sizes of a row x the same of a column).
    """
    if min(matrix.shape) > EXACT:
        sizes = matrix.abs()
        return math.sqrt(sizes.sum(0).max().item() * sizes.sum(1).max().item())
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    return math.sqrt(max(torch.linalg.eigvalsh(wide @ wide.T)[-1].item(), 0.0))


def _stretch(weight: Tensor, layer: Any, kind: Kind, spectral: float) -> float:
    """Return an upper bound of how much a layer stretches its inputs."""
    if kind not in (Kind.CONVOLUTION, Kind.TRANSPOSED):
        return spectral
    groups, strides = getattr(layer, "groups", 1), getattr(layer, "stride", (1,) * (weight.dim() - 2))
    return max(convolution_bound(part, strides) for part in weight.chunk(groups))


def convolution_bound(kernel: Tensor, strides: tuple[int, ...]) -> float:
    """Return an upper bound of the spectral norm of a convolution, zeros around its inputs or none.

    It is the least of what is known: the kernel as a matrix of outputs and all else, times the root of how
    many patches an input is in at most; the same of inputs and all else, and, in two dimensions, of outputs
    and rows against inputs and columns, and the other way, times the root of the kernel's area.

    Args:
        kernel: [O, I, ...], one group; [I, O, ...] of a transposed convolution, which has the same norm.
        strides: One for each dimension of the kernel.

    References:
        Singla and Feizi, Fantastic Four: Differentiable and Efficient Bounds on Singular Values of
        Convolution Layers, 2021, theorem 1. https://arxiv.org/abs/1911.10258
        Tsuzuku, Sato and Sugiyama, Lipschitz-Margin Training, 2018, on patches.
        https://arxiv.org/abs/1802.04034
    """
    sides = kernel.shape[2:]
    patches = math.prod(-(-side // stride) for side, stride in zip(sides, strides, strict=True))
    area = math.sqrt(math.prod(sides))
    bounds = [math.sqrt(patches) * spectral_norm(kernel.flatten(1))]
    bounds.append(area * spectral_norm(kernel.transpose(0, 1).flatten(1)))
    if len(sides) == 2:
        for order in ((0, 2, 1, 3), (0, 3, 1, 2)):
            bounds.append(area * spectral_norm(kernel.permute(order).flatten(2).flatten(0, 1)))
    return min(bounds)
