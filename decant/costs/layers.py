"""What each layer of a network computes: its multiplications, and all that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from decant.networks.calls import Call, Kind, Record
from decant.networks.record import record_of
from decant.networks.shapes import Shapes, depthwise

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


def layers_of(module: nn.Module) -> list[LayerShape]:
    """Return the convolutions and linear layers in the order in which one row meets them, by calls.

    Other layers, such as recurrent ones, and what functions multiply have no such shape and are left out.
    """
    record = record_of(module)
    return [
        _layer(call, record.rows, module.get_submodule(record.weights[call.weight].layer))
        for call in record.calls
        if _plain(record, call)
    ]


def all_plain(module: nn.Module) -> bool:
    """Say whether all that a network multiplies is in `layers_of`."""
    record = record_of(module)
    return all(_plain(record, call) for call in record.calls if call.macs)


def _plain(record: Record, call: Call) -> bool:
    weight = record.weights.get(call.weight)
    return bool(weight and weight.layer and call.kind in (Kind.CONVOLUTION, Kind.LINEAR))


def reshaped(layers: list[LayerShape], shapes: Shapes) -> list[LayerShape]:
    """Return the layers with weights of these shapes; what they look at stays as large."""
    return [layer.of(shapes[layer.name]) for layer in layers]


def macs(layers: list[LayerShape], shapes: Shapes) -> int:
    """Return the multiplications for one image when the weights have these shapes."""
    return sum(layer.macs for layer in reshaped(layers, shapes))


def _layer(call: Call, rows: int, layer: Any) -> LayerShape:
    weight = tuple(layer.weight.shape)
    places = prod(call.outputs) // weight[0] // rows
    if not isinstance(layer, Conv):
        return LayerShape(call.weight, weight, call.inputs[1:-1], places)
    # The paddings stand from the last dimension on, twice each; strings such as `same` are numbers there.
    padding = tuple(layer._reversed_padding_repeated_twice[-2::-2])
    numbers = (tuple(layer.stride), padding, tuple(layer.dilation), layer.groups, depthwise(layer))
    return LayerShape(call.weight, weight, call.inputs[2:], places, *numbers)


def _times(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _one(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else _times(numbers)
