"""Weights in the file as the integers that they are: as small as they are packed, floats once it is opened.

The file holds codes, scales, and for weights that are zero one bit for each; a few operators between them and
the layer make the float32 numbers, to the bit as they were. All of their inputs are constants, so that ONNX
Runtime computes them once, when it opens the file, and runs the layer as it runs any other. DequantizeLinear
would say the same in one operator, but ONNX Runtime leaves it in the graph: it then runs each time, and keeps
convolutions from their fast layout (half the speed for one image, a tenth for many, in ONNX Runtime 1.32).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from decant.checkpoints.constraints import Constraints, Levels
from decant.export.graph import Graph

BYTE = 8

WORD = 32
"""Bits of the words that codes of fewer than 7 bits are packed into, as many as fit, the first one lowest."""


def stored(graph: Graph, name: str, weight: Tensor, held: Constraints) -> str:
    """Write a weight, and return the name of its float32 numbers: packed where that takes fewer bytes.

    Args:
        graph: What is written so far.
        name: Of the weight.
        weight: Its numbers, which the constraints hold for.
        held: Its levels and its mask say how it is packed.
    """
    if weight.dtype == torch.float32 and _is_exact(weight, held):
        floats = weight.numel() * weight.element_size()
        if packed := graph.attempt(lambda: _packed(graph, name, weight, held), floats):
            return packed
    return graph.constant(name, weight)


def looked_up(graph: Graph, name: str, weight: Tensor, held: Constraints, places: str, result: str) -> bool:
    """Write a look into a table [V, D] of which the codes stay integers in memory, if it can be written so.

    Args:
        graph: What is written so far.
        name: Of the table.
        weight: Its numbers.
        held: Its levels say which integers they are.
        places: The name of the rows that are looked up.
        result: The name for what is found.

    Returns:
        Whether it is written; nothing is where the table has no levels, a mask, or scales of another form.
    """
    levels = held.levels
    if levels is None or held.mask is not None or levels.group is not None or not _is_exact(weight, held):
        return False
    if levels.scale.dim() > 0 and tuple(levels.scale.shape) != (len(weight), 1):
        return False
    codes = _integers(graph, name, levels.codes(weight).flatten(), levels)
    codes = graph.emit("Cast", codes, to=TensorProto.UINT8) if levels.bits < BYTE - 1 else codes
    shape = graph.constant(f"{name}/shape", np.array(weight.shape, np.int64))
    found = graph.emit("Gather", graph.emit("Reshape", codes, shape), places)
    values = _values(graph, name, found, levels)

    def each(part: str, numbers: Tensor) -> str:
        constant = graph.constant(f"{name}/{part}", numbers)
        return constant if numbers.dim() == 0 else graph.emit("Gather", constant, places)

    if levels.zero_point is not None:
        zero = each("zero", levels.zero_point.to(torch.uint8))
        values = graph.emit("Sub", values, graph.emit("Cast", zero, to=TensorProto.FLOAT))
    graph.emit("Mul", values, each("scale", levels.scale), result=result)
    return True


def _is_exact(weight: Tensor, held: Constraints) -> bool:
    """Say whether levels or a mask make the weight out of less, to the bit."""
    if held.levels is None:
        return held.mask is not None and not bool(weight[~held.mask].any())
    decoded = held.levels.decode(held.levels.codes(weight))
    return torch.equal(decoded if held.mask is None else torch.where(held.mask, decoded, 0.0), weight)


def _packed(graph: Graph, name: str, weight: Tensor, held: Constraints) -> str:
    levels, mask = held.levels, held.mask
    if mask is not None and bool(mask.all()):
        mask = None
    if mask is not None and not bool(mask.any()):
        return graph.emit("Expand", graph.number(0), _shape(graph, name, weight))
    numbers = weight.flatten() if levels is None else levels.codes(weight).flatten()
    kept = numbers if mask is None else numbers[mask.flatten()]
    if levels is None:
        values = graph.constant(name, kept)
    else:
        values = _values(graph, name, _integers(graph, name, kept, levels), levels)
    here = "" if mask is None else _unpacked(graph, f"{name}/mask", mask.flatten().long(), 1)
    if here:
        values = _spread(graph, values, here)
    values = graph.emit("Reshape", values, _shape(graph, name, weight))
    if levels is not None:
        values = _scaled(graph, name, values, levels, weight)
    if not here:
        return values
    where = graph.emit("Reshape", graph.emit("Cast", here, to=TensorProto.BOOL), _shape(graph, name, weight))
    return graph.emit("Where", where, values, graph.number(0))


def _shape(graph: Graph, name: str, weight: Tensor) -> str:
    return graph.constant(f"{name}/shape", np.array(weight.shape, np.int64))


def _integers(graph: Graph, name: str, codes: Tensor, levels: Levels) -> str:
    """Write the indices of levels [n], whole numbers of some type; or in int8 the levels themselves."""
    if levels.bits < BYTE - 1:
        return _unpacked(graph, name, codes, levels.bits)
    if levels.integers is not None and _signed(levels):
        return graph.constant(name, (codes + levels.integers[0]).to(torch.int8))
    return graph.constant(name, codes.to(torch.uint8))


def _signed(levels: Levels) -> bool:
    """Say whether integers are written as they are, in int8."""
    first, last = levels.integers or (0, 0)
    return levels.bits >= BYTE - 1 and -128 <= first < 0 and last <= 127


def _unpacked(graph: Graph, name: str, codes: Tensor, bits: int) -> str:
    """Write whole numbers [n] below 2^bits in words, and what takes them out again, as uint32."""
    each = WORD // bits
    count = -(-len(codes) // each)
    filled = torch.zeros(count * each, dtype=torch.long)
    filled[: len(codes)] = codes
    shifts = torch.arange(each) * bits
    words = (filled.reshape(count, each) << shifts).sum(1, keepdim=True).numpy().astype(np.uint32)
    places = graph.constant(f"shifts/{bits}", shifts[None].numpy().astype(np.uint32))
    shifted = graph.emit("BitShift", graph.constant(name, words), places, direction="RIGHT")
    lowest = graph.emit("BitwiseAnd", shifted, graph.number(2**bits - 1, np.uint32))
    flat = graph.emit("Reshape", lowest, graph.constant("flat", np.array([-1], np.int64)))
    if count * each == len(codes):
        return flat
    return graph.emit("Slice", flat, graph.integers(0), graph.integers(len(codes)))


def _values(graph: Graph, name: str, codes: str, levels: Levels) -> str:
    """Write the levels of codes, as float32."""
    if levels.integers is None:
        table = graph.constant(f"{name}/levels", levels.values)
        return graph.emit("Gather", table, graph.emit("Cast", codes, to=TensorProto.INT32))
    first = levels.integers[0]
    values = graph.emit("Cast", codes, to=TensorProto.FLOAT)
    return values if first == 0 or _signed(levels) else graph.emit("Add", values, graph.number(first))


def _spread(graph: Graph, values: str, here: str) -> str:
    """Write the survivors at their places; elsewhere stands one of them."""
    axis, one = graph.number(0, np.int32), graph.number(1, np.int32)
    counted = graph.emit("CumSum", graph.emit("Cast", here, to=TensorProto.INT32), axis)
    place = graph.emit("Max", graph.emit("Sub", counted, one), graph.number(0, np.int32))
    return graph.emit("Gather", values, place)


def _scaled(graph: Graph, name: str, values: str, levels: Levels, weight: Tensor) -> str:
    """Write `(values - zero point) * scale`."""

    def each(part: str, numbers: Tensor, change: Callable[[str], str]) -> str:
        if levels.group is None:
            return change(graph.constant(f"{name}/{part}", numbers))
        return _by_group(
            graph, change(graph.constant(f"{name}/{part}", numbers[..., None])), name, levels, weight
        )

    if levels.zero_point is not None:
        zero = each(
            "zero",
            levels.zero_point.to(torch.uint8),
            lambda name: graph.emit("Cast", name, to=TensorProto.FLOAT),
        )
        values = graph.emit("Sub", values, zero)
    return graph.emit("Mul", values, each("scale", levels.scale, str))


def _by_group(graph: Graph, numbers: str, name: str, levels: Levels, weight: Tensor) -> str:
    """Write numbers of groups [O, G, 1] so that each weight has its own."""
    assert levels.group is not None
    rows, width = len(weight), math.prod(weight.shape[1:])
    size, count = min(levels.group, width), levels.scale.shape[1]
    wide = graph.emit("Expand", numbers, graph.integers(rows, count, size))
    flat = graph.emit("Reshape", wide, graph.integers(rows, count * size))
    if count * size != width:
        flat = graph.emit("Slice", flat, *(graph.integers(number) for number in (0, width, 1)))
    return graph.emit("Reshape", flat, _shape(graph, name, weight))
