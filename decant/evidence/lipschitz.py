"""How much a network can stretch a step of its inputs: the bounds of its layers along all ways through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from decant.networks.calls import Kind, Record

BOUNDED = (Kind.CONVOLUTION, Kind.TRANSPOSED, Kind.LINEAR)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def unbounded(module: nn.Module, record: Record) -> str:
    """Return why no bound of a network is known, a sentence; empty where one is."""
    kinds = sorted({weight.kind for weight in record.weights.values() if weight.kind not in BOUNDED})
    if kinds:
        return f"no bound is known of its {' and '.join(f'{kind} weights' for kind in kinds)}"
    if any(not call.weight for call in record.calls):
        return "it multiplies what it computes, as attention does, which has no bound"
    if record.unfolded:
        return f"{next(iter(record.unfolded))} is not part of a layer, and no bound of it is known"
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
    moves no more than its inputs do: rectifiers, additions, averages. Maximum pools that overlap are counted.
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
    return sum(found[name] for name in _last(record)) * math.prod(_overlaps(module))


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


def _overlaps(module: nn.Module) -> Iterator[float]:
    """Yield by how much each maximum pool stretches at most: the root of how many windows a place is in."""
    for layer in module.modules():
        if isinstance(layer, POOLS):
            sides, strides = (_each(size) for size in (layer.kernel_size, layer.stride))
            yield math.sqrt(
                math.prod(-(-side // stride) for side, stride in zip(sides, strides, strict=False))
            )


def _each(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple | list) else (size,) * 3
