"""What layers do to their inputs, in ONNX's operators: cut them to a range, round them to a grid."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from decant.checkpoints.activations import NOTHING, DynamicGrid, Grid, InputGrid, RecurrentGrid
from decant.checkpoints.constraints import Range
from decant.export.graph import Graph
from decant.lowering.integers import MIDDLE, TOP

BYTE = 8
"""Bits of the integers that ONNX Runtime multiplies."""

MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose")
"""Operators that give some of their inputs, elsewhere: rounding before and after them is the same."""


def cut(graph: Graph, source: str, clamp: Range | None, grid: Grid | None) -> str:
    """Write a clamp, where it is not one that the grid after it makes anyway; return its result."""
    if clamp is None or _idle(clamp, grid):
        return source
    return graph.once((source, clamp), lambda: _clamped(graph, source, clamp))


def quantized(graph: Graph, source: str, grid: InputGrid) -> str:
    """Write the rounding to a grid as integers and back, once for each tensor and grid.

    ONNX Runtime merges QuantizeLinear and DequantizeLinear with the layers around them into layers of
    integers, if these have integer weights. If not, it would round them by itself, to eight bits of its own
    choice: for these there is `rounded`.
    """

    def write() -> str:
        step, zero = graph.number(grid.scale), graph.number(grid.zero_point, np.uint8)
        codes = graph.emit("QuantizeLinear", source, step, zero)
        if grid.bits < BYTE:
            codes = graph.emit("Clip", codes, "", graph.number(2**grid.bits - 1, np.uint8))
        return graph.emit("DequantizeLinear", codes, step, zero)

    return graph.once((source, grid), write)


def quantized_by_batch(graph: Graph, source: str) -> tuple[str, str, str]:
    """Write the rounding to 8 bits over the range of the batch; return codes, step and zero point."""

    def write() -> tuple[str, str, str]:
        names = (f"{source}/codes", f"{source}/step", f"{source}/zero")
        graph.nodes.append(helper.make_node("DynamicQuantizeLinear", [source], names))
        return names

    return graph.once((source, "batch"), write)


def quantized_by_rows(graph: Graph, source: str) -> tuple[str, str]:
    """Write the rounding of rows to 8 bits, 128 for 0; return codes, and the largest input of each row."""

    def write() -> tuple[str, str]:
        largest = _largest(graph, source)
        codes = graph.emit("Mul", source, graph.emit("Div", graph.number(MIDDLE - 1), largest))
        return graph.emit("QuantizeLinear", codes, graph.number(1.0), graph.number(MIDDLE, np.uint8)), largest

    return graph.once((source, "rows"), write)


def _largest(graph: Graph, source: str) -> str:
    last = graph.constant("last", torch.tensor([-1]))
    return graph.emit(
        "Max", graph.emit("ReduceMax", graph.emit("Abs", source), last, keepdims=1), graph.number(NOTHING)
    )


def rounded(graph: Graph, source: str, grid: Grid | None) -> str:
    """Write the rounding to any grid in float32, to the bit as PyTorch does; return its result."""
    if grid is None or isinstance(grid, RecurrentGrid):  # rounds within
        return source
    if isinstance(grid, InputGrid):
        return graph.once((source, grid, "float"), lambda: _rounded(graph, source, grid))
    if grid.rows:
        return graph.once((source, grid), lambda: _rounded_by_rows(graph, source, grid))
    write = _rounded_by_bytes if grid.bits == BYTE else _rounded_by_batch
    return graph.once((source, grid), lambda: write(graph, source, grid))


def is_rounded(graph: Graph, name: str, returned: Collection[str] = ()) -> bool:
    """Say whether a result is rounded to a grid before anything else is made of it, and drop idle clamps.

    What a rectifier or a clamp cuts off first is no matter where the grid ends there as well. ONNX Runtime
    would keep such a clamp wherever float32 puts the two ends a bit apart, and multiply in float32 before it.
    What is `returned` is read by whoever runs the model.
    """
    low, high, clamps = -math.inf, math.inf, list[onnx.NodeProto]()
    while True:
        readers = [node for node in graph.nodes if name in node.input]
        if len(readers) != 1 or readers[0].op_type not in ("QuantizeLinear", "Relu", "Clip", *MOVING):
            return False
        if name in returned:
            return False
        (node,) = readers
        if node.op_type == "QuantizeLinear":
            if found := _ends_within(graph, node, low, high):
                for clamp in clamps:
                    graph.drop(clamp)
            return found
        if node.op_type == "Relu":
            low = max(low, 0.0)
        if node.op_type == "Clip":
            if not set(node.input[1:]) <= {"", *graph.constants}:
                return False
            first, last = [*node.input[1:], "", ""][:2]
            low = max(low, graph.value(first)) if first else low
            high = min(high, graph.value(last)) if last else high
            clamps.append(node)
        name = node.output[0]


def _ends_within(graph: Graph, node: onnx.NodeProto, low: float, high: float) -> bool:
    """Say whether all codes of a QuantizeLinear stand for numbers from `low` to `high`, but for rounding."""
    step, zero = (graph.value(each) for each in node.input[1:])
    (reader,) = [each for each in graph.nodes if node.output[0] in each.input][:1]
    top = graph.value(reader.input[2]) if reader.op_type == "Clip" else TOP  # of fewer bits
    return round(max(low / step, -TOP)) + zero <= 0 and round(min(high / step, TOP)) + zero >= top


def _idle(clamp: Range, grid: Grid | None) -> bool:
    """Say whether both ends of the range go to the ends of the grid, so that rounding alone cuts alike."""
    if not isinstance(grid, InputGrid):
        return False
    inverse = 1 / torch.tensor(grid.scale)
    low, high = (
        torch.round(torch.as_tensor(end) * inverse) + grid.zero_point for end in (clamp.low, clamp.high)
    )
    return bool((low <= 0).all() and (high >= 2**grid.bits - 1).all())


def _clamped(graph: Graph, source: str, clamp: Range) -> str:
    if isinstance(clamp.low, Tensor) and isinstance(clamp.high, Tensor):
        below = graph.emit("Max", source, graph.constant(f"{source}/low", clamp.low))
        return graph.emit("Min", below, graph.constant(f"{source}/high", clamp.high))
    low, high = (graph.number(end) if math.isfinite(end) else "" for end in clamp.ends())
    return graph.emit("Clip", source, low, high)


def _rounded(graph: Graph, source: str, grid: InputGrid) -> str:
    inverse = graph.number((1 / torch.tensor(grid.scale)).item())
    steps = graph.emit("Round", graph.emit("Mul", source, inverse))
    low, high = graph.number(-grid.zero_point), graph.number(2**grid.bits - 1 - grid.zero_point)
    return graph.emit("Mul", graph.emit("Clip", steps, low, high), graph.number(grid.scale))


def _rounded_by_bytes(graph: Graph, source: str, _: DynamicGrid) -> str:
    """Write the rounding to 8 bits; not with DequantizeLinear, beside which weights would be rounded."""
    codes, step, zero = quantized_by_batch(graph, source)
    codes, zero = (graph.emit("Cast", each, to=TensorProto.FLOAT) for each in (codes, zero))
    return graph.emit("Mul", graph.emit("Sub", codes, zero), step)


def _rounded_by_rows(graph: Graph, source: str, grid: DynamicGrid) -> str:
    largest, top = _largest(graph, source), graph.number(2 ** (grid.bits - 1) - 1)
    steps = graph.emit("Round", graph.emit("Mul", source, graph.emit("Div", top, largest)))
    return graph.emit("Mul", steps, graph.emit("Div", largest, top))


def _rounded_by_batch(graph: Graph, source: str, grid: DynamicGrid) -> str:
    none, one, top = graph.number(0), graph.number(1), graph.number(2**grid.bits - 1)
    low = graph.emit("Min", graph.emit("ReduceMin", source, keepdims=0), none)
    high = graph.emit("Max", graph.emit("ReduceMax", source, keepdims=0), none)
    width = graph.emit("Div", graph.emit("Sub", high, low), top)
    step = graph.emit("Where", graph.emit("Greater", width, none), width, one)
    zero = graph.emit("Clip", graph.emit("Round", graph.emit("Div", graph.emit("Neg", low), step)), none, top)
    steps = graph.emit("Add", graph.emit("Round", graph.emit("Div", source, step)), zero)
    return graph.emit("Mul", graph.emit("Sub", graph.emit("Clip", steps, none, top), zero), step)
