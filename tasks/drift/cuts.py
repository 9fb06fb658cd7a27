"""What a quantized or clipped model's ranges cut off: the share of a layer's inputs that lie outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from decant.checkpoints.activations import InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Batch
from decant.networks.execution import predict
from decant.networks.layer_inputs import first_of

Bounds = tuple[float | Tensor, float | Tensor]


def bounds(model: Checkpoint) -> dict[str, Bounds]:
    """Return what each layer's inputs are cut to, by the layer's name; none for layers without fixed ends.

    A grid cuts what lies more than half a step outside of its ends: the rest is rounded to an end.
    """
    found: dict[str, Bounds] = {name: (clamp.low, clamp.high) for name, clamp in model.clamps.items()}
    for name, grid in model.grids.items():
        if isinstance(grid, InputGrid) and name not in found:
            low, high = -grid.zero_point - 0.5, 2**grid.bits - 0.5 - grid.zero_point
            found[name] = (low * grid.scale, high * grid.scale)
    return found


def shares_cut(model: Checkpoint, images: Batch) -> dict[str, float]:
    """Return the share of each layer's inputs, in [0, 1], that its range cuts, by the layer's name.

    The layers before it cut and round what they do in use.
    """
    limits = bounds(model)
    outside, seen = dict.fromkeys(limits, 0), dict.fromkeys(limits, 0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def count(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            inputs, (low, high) = first_of(given, named), limits[name]
            outside[name] += int(((inputs < low) | (inputs > high)).sum())
            seen[name] += inputs.numel()

        return count

    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(
            watch(name), prepend=True, with_kwargs=True
        )
        for name in limits
    ]
    try:
        predict(model.module, images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: outside[name] / seen[name] for name in limits if seen[name]}
