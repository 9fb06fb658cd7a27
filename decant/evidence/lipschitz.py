"""How much a network can stretch a step of its inputs: the bounds of its layers along all ways through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from decant.networks.calls import Kind, Record
from decant.networks.layers import Normalize

BOUNDED = (Kind.CONVOLUTION, Kind.TRANSPOSED, Kind.LINEAR)
POOLS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
"""Maximum pools, by how many dimensions they pool."""

STEEPEST: dict[type[nn.Module], float] = {nn.GELU: 1.13, nn.SiLU: 1.1, nn.Mish: 1.09, nn.Hardswish: 1.5}
"""Activations that are steeper than 1 somewhere: their steepest slope, rounded up."""

CALM = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, nn.LogSigmoid),
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Softmax),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers that move no more than their inputs, and those whose weights say by how much."""


def unbounded(module: nn.Module, record: Record) -> str:
    """Return why no bound of a network is known, a sentence; empty where one is."""
    kinds = sorted({weight.kind for weight in record.weights.values() if weight.kind not in BOUNDED})
    if kinds:
        return f"no bound is known of its {' and '.join(f'{kind} weights' for kind in kinds)}"
    if any(not call.weight for call in record.calls):
        return "it multiplies what it computes, as attention does, which has no bound"
    if unknown := next(_unknown(module, record), None):
        return f"{unknown} may stretch its inputs, and no bound of it is known"
    if loose := [weight.name for weight in record.weights.values() if not weight.layer]:
        return f"{loose[0]} belongs to no layer, so what stands around it is not known"
    if again := [weight.name for weight in record.weights.values() if weight.calls > 1]:
        return f"{again[0]} is used more than once"
    if not record.weights:
        return "it has no layer that multiplies"
    if any(not side for sides in record.sums for side in sides):
        return "it adds its own inputs to what it computes"
    return ""


def expansion(module: nn.Module, record: Record, bounds: Mapping[str, float]) -> float:
    """Return the sum, over all ways from the inputs to the outputs, of the product of the layers' bounds.

    It is an upper bound of the Lipschitz constant in the Euclidean norm, if what lies between the layers
    moves no more than its inputs do: rectifiers, additions, averages. Maximum pools that overlap and steep
    activations are counted where they are modules, and so is the division of pixels by their deviation.
    Rounding of inputs of layers is left out: it moves by half a step, however small the step of the inputs.

    Args:
        module: The network.
        record: Of it.
        bounds: Of each layer, by the weight's name, in the order in which they run.

    References:
        Szegedy et al., Intriguing Properties of Neural Networks, 2013, section 4.3.
        https://arxiv.org/abs/1312.6199
    """
    found: dict[str, float] = {}
    for name, bound in bounds.items():
        before = [first for first, second in record.feeds if second == name]
        found[name] = bound * (sum(found[first] for first in before) if before else 1.0)
    return sum(found[name] for name in _last(record)) * math.prod(_stretches(module))


def _last(record: Record) -> set[str]:
    """Return the weights whose results leave the network with no other weight behind them."""
    inner = {first for first, _ in record.feeds}
    last = {name for name in record.weights if name not in inner}
    added = {
        name
        for sides in record.sums
        if last.intersection(*[{*sides[0], *sides[1]}])
        for name in sides[0] + sides[1]
    }
    return last | added


def _unknown(module: nn.Module, record: Record) -> Iterator[str]:
    """Yield each innermost module at work of which nothing is known, and what it is."""
    for name, layer in module.named_modules():
        inner = name in record.called and not any(True for _ in layer.children())
        if inner and not isinstance(layer, (Normalize, *CALM, *POOLS, *STEEPEST)):
            yield f"{name or 'the network'} ({type(layer).__name__})"


def _stretches(module: nn.Module) -> Iterator[float]:
    """Yield by how much each pool and activation stretches at most.

    A maximum pool does by the root of how many of its windows a place is in.
    """
    for layer in module.modules():
        yield next((slope for kind, slope in STEEPEST.items() if isinstance(layer, kind)), 1.0)
        if isinstance(layer, Normalize):
            yield 1 / layer.deviation.min().item()
        if isinstance(layer, tuple(POOLS)):
            dimensions = next(count for kind, count in POOLS.items() if isinstance(layer, kind))
            yield math.sqrt(math.prod(_windows(layer, dimensions)))


def _windows(pool: Any, dimensions: int) -> Iterator[int]:
    """Yield in how many windows of a pool a place is at most, along each dimension."""
    for side, stride in zip(_each(pool.kernel_size, dimensions), _each(pool.stride, dimensions), strict=True):
        yield -(-side // stride)


def _each(size: Any, dimensions: int) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple | list) else (size,) * dimensions
