"""What each layer of a network computes: its multiplications, and all that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from decant.networks.architectures import Shape
from decant.networks.shapes import Shapes, depthwise
from decant.networks.structure import compressible

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class LayerShape:
    """A convolution or a linear layer as it is called for one image.

    Attributes:
        name: Its weight.
        weight: The weight's shape [O, I / groups, ...].
        size: Height and width, or the like, of the input; of a linear layer the rows before its features.
        places: How many times the weight is multiplied with: pixels of the output, or rows.
        stride: Of a convolution; empty for a linear layer, as are the next two.
        padding: At both ends of each dimension.
        dilation: Between the places of the kernel.
        groups: Of a convolution.
        each: Whether it is depthwise, so that there are as many groups as channels.
    """

    name: str
    weight: tuple[int, ...]
    size: tuple[int, ...]
    places: int
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    each: bool = False

    @property
    def macs(self) -> int:
        """Multiplications for one image."""
        return self.places * prod(self.weight)

    @property
    def inputs(self) -> int:
        """Input channels, or features."""
        return self.weight[1] * self.groups

    def of(self, weight: tuple[int, ...]) -> LayerShape:
        """Return the same layer with a weight of another shape."""
        return replace(self, weight=weight, groups=weight[0] if self.each else self.groups)

    def describe(self) -> str:
        """Return all that the time depends on as text, such as `64x32x3x3 on 14x14 stride 2 pad 1`."""
        parts = [_times(self.weight)]
        if not self.stride:
            return f"{parts[0]} on {prod(self.size)} rows"
        parts += [f"on {_times(self.size)}", f"stride {_one(self.stride)}", f"pad {_one(self.padding)}"]
        parts += [f"dilation {_one(self.dilation)}"] if set(self.dilation) != {1} else []
        parts += [f"groups {self.groups}"] if self.groups > 1 else []
        return " ".join(parts)


def layers_of(module: nn.Module, shape: Shape) -> list[LayerShape]:
    """Return the convolutions and linear layers in the order in which one image [C, H, W] meets them."""
    found: list[LayerShape] = []
    names = {module.get_submodule(name.removesuffix(".weight")): name for name in compressible(module)}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(_layer(names[layer], layer, inputs[0], output))

    handles = [layer.register_forward_hook(record) for layer in names]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return found


def reshaped(layers: list[LayerShape], shapes: Shapes) -> list[LayerShape]:
    """Return the layers with weights of these shapes; what they look at stays as large."""
    return [layer.of(shapes[layer.name]) for layer in layers]


def macs(layers: list[LayerShape], shapes: Shapes) -> int:
    """Return the multiplications for one image when the weights have these shapes."""
    return sum(layer.macs for layer in reshaped(layers, shapes))


def _layer(name: str, layer: Any, inputs: Tensor, output: Tensor) -> LayerShape:
    weight = tuple(layer.weight.shape)
    places = output.numel() // weight[0]
    if not isinstance(layer, Conv):
        return LayerShape(name, weight, tuple(inputs.shape[1:-1]), places)
    # The paddings stand from the last dimension on, twice each; strings such as `same` are numbers there.
    padding = tuple(layer._reversed_padding_repeated_twice[-2::-2])
    numbers = (tuple(layer.stride), padding, tuple(layer.dilation), layer.groups, depthwise(layer))
    return LayerShape(name, weight, tuple(inputs.shape[2:]), places, *numbers)


def _times(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _one(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else _times(numbers)
