"""Second moments of what layers receive: the Hessian of a layer's squared output error, up to a factor of 2.

Pruning (OBS) and rounding (GPTQ) both need them, and both read them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Batch, arguments
from decant.networks.devices import CPU, device_of, moved
from decant.networks.layer_inputs import layer_of, patches, received
from decant.networks.structure import observable

BATCH = 250
"""Images that go through the network at once: fixed, as the last bits of a sum depend on it."""

FLOATS = 2**25
"""Numbers of one layer's patches that are in memory at once, so that large pictures do not fill it."""


Passed = Callable[[nn.Module, Sequence[str], int, tuple[Tensor, ...]], Mapping[str, tuple[Tensor, ...]]]
"""Of a network, names of weights, the number of a batch and the batch: what the layers receive."""


@dataclass(frozen=True)
class InputHessian:
    """Means of products of a layer's inputs, for each of its groups by itself.

    They are over images, positions and all calls of the layer.

    Inputs are in the order of `weight.flatten(1)`. With x̂ what the layer receives and x what the same layer
    of the reference network receives:

    Attributes:
        hessian: Mean of x̂ x̂ᵀ [G, d, d], float64; G is 1 but for grouped convolutions.
        cross: Mean of x̂ xᵀ [G, d, d], float64; None without a reference.
        count: How many x̂ there were: images times positions times calls.
    """

    hessian: Tensor
    cross: Tensor | None
    count: int


def moments(
    module: nn.Module,
    names: Sequence[str],
    images: Batch,
    reference: nn.Module | None = None,
    passed: Passed | None = None,
) -> dict[str, InputHessian]:
    """Return the Hessian of the inputs of each named weight's layer.

    Products are summed in float32 within some hundreds of images and in float64 from there on: in float32
    alone, the ten thousandth batch would lose four digits against the sum, and in float64 alone it takes
    twice as long for digits that a sample of images does not determine.

    Args:
        module: The network, in eval mode, as it is now.
        names: Weights of linear layers and convolutions, such as `head.weight`.
        images: Pixels [N, C, H, W], uint8.
        reference: A network of the same layers, in eval mode, whose inputs `cross` is taken with.
        passed: Returns what `received` returns, given the number of a batch as well; that where None.

    Returns:
        By weight, on the device where the networks lie.

    Raises:
        ValueError: There are no images.
        DecantError: The network does not run one of the layers; or one receives NaN or infinity.
    """
    sums: dict[str, list[Tensor]] = {}
    counts = dict.fromkeys(names, 0)
    passed = passed or _whole_pass
    for batch, inputs in enumerate(_batches(images, device_of(module))):
        now = passed(module, names, batch, inputs)
        then = now if reference is None else passed(reference, names, batch, inputs)
        for name in names:
            for part in _parts(layer_of(module, name), now[name], then[name], reference is not None):
                counts[name] += part.count
                found = [part.hessian] if part.cross is None else [part.hessian, part.cross]
                sums[name] = (
                    [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
                )
    for name, total in sums.items():
        if not all(torch.isfinite(each).all() for each in total):
            raise DecantError(f"inputs of {name.removesuffix('.weight')} hold NaN or infinity")
    return {
        name: InputHessian(
            total[0] / counts[name], total[1] / counts[name] if total[1:] else None, counts[name]
        )
        for name, total in sums.items()
    }


def all_moments(module: nn.Module, names: Sequence[str], images: Batch) -> dict[str, InputHessian]:
    """Return the same of many layers, on the processor: where the network lies elsewhere, one at a time.

    So that no more than one layer's are there at once, at the price of a pass for each.
    """
    if device_of(module).type == CPU:
        return moments(module, names, images)
    return {name: moved(moments(module, [name], images)[name], CPU) for name in names}


def norms(module: nn.Module, images: Batch, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return the size of each input of each layer, ‖x_j‖₂ over images, positions and calls, by the weight.

    Args:
        module: The network, in eval mode.
        images: Pixels [N, C, H, W], uint8.
        names: The weights; all of linear layers and convolutions whose inputs can be seen where None.

    Returns:
        Float32 [O, d] by weight, in the order of `weight.flatten(1)`; rows of one group are the same.

    Raises:
        ValueError: There are no images.
        DecantError: The network does not run one of the layers.
    """
    names = list(observable(module)) if names is None else names
    squares: dict[str, Tensor] = {}
    for inputs in _batches(images, device_of(module)):
        for name, calls in received(module, names, inputs).items():
            layer = layer_of(module, name)
            for part in (part for call in calls for part in _pieces(layer, call)):
                total = patches(layer, part).square().sum(1).double()
                squares[name] = squares[name] + total if name in squares else total
    return {
        name: total.sqrt().float().repeat_interleave(len(layer_of(module, name).weight) // len(total), dim=0)
        for name, total in squares.items()
    }


def _whole_pass(
    module: nn.Module, names: Sequence[str], _: int, inputs: tuple[Tensor, ...]
) -> Mapping[str, tuple[Tensor, ...]]:
    return received(module, names, inputs)


def _batches(images: Batch, device: torch.device) -> Iterable[tuple[Tensor, ...]]:
    if not len(images):
        raise ValueError("There are no images to take moments of")
    return (moved(arguments(batch), device) for batch in images.split(BATCH))


def _pieces(layer: Any, inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the inputs in parts whose patches fit in memory, split along images."""
    inputs = inputs if inputs.dim() >= layer.weight.dim() else inputs[None]
    positions = inputs[0].numel() // (layer.in_features if isinstance(layer, nn.Linear) else inputs.shape[1])
    depth = layer.weight[0].numel() * getattr(layer, "groups", 1)
    return inputs.split(max(1, FLOATS // max(1, positions * depth)))


def _parts(
    layer: nn.Module, now: Sequence[Tensor], then: Sequence[Tensor], crossed: bool
) -> Iterable[InputHessian]:
    """Yield sums (not means) over parts of a batch, of all calls of a layer."""
    pieces = ([part for call in calls for part in _pieces(layer, call)] for calls in (now, then))
    for first, second in zip(*pieces, strict=True):
        rows = patches(layer, first)
        cross = (rows.mT @ patches(layer, second)).double() if crossed else None
        yield InputHessian((rows.mT @ rows).double(), cross, rows.shape[1])
