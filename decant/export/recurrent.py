"""Recurrent layers of torch as ONNX's own operators, which run all steps in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from decant.export.graph import MICROSOFT, Graph
from decant.lowering.integers import Whole

RECURRENT = "Recurrent"
"""An operator that stands for a whole recurrent layer of torch: of inputs [L, N, I] and the states given."""

LAYER = "layer"
"""Its attribute: the layer's name."""


BIASES = ("bias_ih", "bias_hh")
PROJECTION = "weight_hr"


@dataclass(frozen=True)
class Gates:
    """How an ONNX operator orders what torch computes in each step.

    Attributes:
        order: Where each of ONNX's gates stands among torch's.
        attributes: What makes the operator the one of torch.
    """

    order: Sequence[int]
    attributes: Mapping[str, int]


GATES: Mapping[type[nn.RNNBase], Gates] = {
    nn.LSTM: Gates((0, 3, 1, 2), {}),
    nn.GRU: Gates((1, 0, 2), {"linear_before_reset": 1}),
    nn.RNN: Gates((0,), {}),
}
"""By the layer, which has the operator's name; subclasses compute what they like."""


def open_recurrent_(module: nn.Module) -> None:
    """Have each recurrent layer that ONNX has an operator for, in place, be one in what is exported.

    Torch's own exporter writes the steps as a loop, and the example's length with it.
    """
    for name, layer in module.named_modules():
        if type(layer) in GATES and layer.weight_ih_l0.dtype == torch.float32:
            layer.forward = functools.partial(_symbolic, name, layer, layer.forward)


def _symbolic(name: str, layer: Any, forward: Callable[..., Any], input: Any, hx: Any = None) -> Any:
    """Return what a layer gives, by one operator that has its name."""
    if not isinstance(input, Tensor) or (layer.proj_size and hx is not None):
        return forward(input, hx)  # sequences packed together; projected states, which ONNX does not take
    pair = type(layer) is nn.LSTM
    states = () if hx is None else hx if pair else (hx,)
    single, turned = input.dim() == 2, layer.batch_first and input.dim() == 3
    if single:
        states = tuple(each.unsqueeze(1) for each in states)
    x = input.unsqueeze(1) if single else input.transpose(0, 1) if turned else input
    ways, width = 1 + layer.bidirectional, layer.proj_size or layer.hidden_size
    states_of = [(ways * layer.num_layers, x.shape[1], each) for each in (width, layer.hidden_size)]
    y, *last = torch.onnx.ops.symbolic_multi_out(
        f"decant::{RECURRENT}",
        (x, *states),
        {LAYER: name},
        dtypes=[x.dtype] * (2 + pair),
        shapes=[(*x.shape[:2], ways * width), *states_of[: 1 + pair]],
        version=1,
    )
    y = y.transpose(0, 1) if turned else y
    if single:
        y, last = y.squeeze(1), [each.squeeze(1) for each in last]
    return y, tuple(last) if pair else last[0]


def layer_of(name: str) -> int:
    """Return which of the layers that run one after another has a parameter, by its own name."""
    return int(name.removesuffix("_reverse").rpartition("_l")[2])


@dataclass(frozen=True)
class Parameters:
    """What a recurrent layer computes with.

    Attributes:
        names: Of the parameters in the network, by their own, such as `weight_ih_l0`.
        tensors: Their numbers.
        value: Gives a name for the float32 numbers of such a parameter.
        whole: Gives such a weight as integers, where what it is multiplied with is rounded.
    """

    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    value: Callable[[str], str]
    whole: Callable[[str], Whole | None]

    def values(self, parts: Iterable[str]) -> list[str]:
        """Return names for the float32 numbers of several parameters."""
        return [self.value(part) for part in parts]


def write_recurrent(
    graph: Graph, node: onnx.NodeProto, layer: Any, inputs: Sequence[str], own: Parameters
) -> None:
    """Write the operators for a traced recurrent layer: one for each of its layers, with all directions.

    What orders the gates as ONNX has them are nodes on constants: they run once, when the file is opened.

    Args:
        graph: What is written so far.
        node: The traced one.
        layer: Of torch.
        inputs: Names of what comes in, and of the states given.
        own: The layer's parameters.
    """
    (x, *given), (result, *ends), count = inputs, node.output, layer.num_layers
    ways = 1 + layer.bidirectional
    for at in range(count):
        states = [_rows(graph, each, at * ways, ways) if count > 1 else each for each in given]
        last = [f"{end}/{at}" if end and count > 1 else end for end in ends]
        names = [f"{RECURRENT}/{len(graph.nodes)}", *last]
        if layer.proj_size:
            _write_projected(graph, layer, at, own, x, names)
        else:
            _write(graph, layer, at, own, [x, *states], names)
        if result or at < count - 1:
            x = _flat(graph, names[0], ways, result if at == count - 1 else "")
    for end in filter(None, ends if count > 1 else ()):
        graph.emit("Concat", *(f"{end}/{at}" for at in range(count)), axis=0, result=end)


def _write(
    graph: Graph, layer: Any, at: int, own: Parameters, inputs: Sequence[str], names: Sequence[str]
) -> None:
    """Write one of the layers that run one after another."""
    ways = _ways(layer, at)
    weights = [[f"{part}_{way}" for way in ways] for part in ("weight_ih", "weight_hh")]
    bias = _bias(graph, layer, own, ways) if layer.bias else ""
    x, *states = inputs
    operator, domain, more = type(layer).__name__, "", ["", *states] if states else []
    if own.whole(weights[0][0]) is None:
        width = layer.input_size if at == 0 else len(ways) * (layer.proj_size or layer.hidden_size)
        recurrent = (
            _through_projections(graph, layer, own, ways) if layer.proj_size else own.values(weights[1])
        )
        pairs = (own.values(weights[0]), width), (recurrent, layer.hidden_size)
        found = [_ordered(graph, layer, names, each) for names, each in pairs]
    else:
        operator, domain = f"DynamicQuantize{operator}", MICROSOFT
        codes = [_codes(graph, layer, own, each) for each in weights]
        found = [each[0] for each in codes]
        more = ["", *(states or ("", "")), "", *(name for each in codes for name in each[1:])]
    given = [x, *found, bias, *more]
    graph.nodes.append(helper.make_node(operator, given, names, domain=domain, **_attributes(layer)))


def _write_projected(
    graph: Graph, layer: Any, at: int, own: Parameters, x: str, names: Sequence[str]
) -> None:
    """Write a layer whose answers are projected, R r of what it would answer itself.

    With W (R r) = (W R) r its steps are those of a layer without projections, and R comes once, behind them.
    """
    answers, end, memory = names
    bare = [f"{answers}/bare", f"{answers}/end" if end else "", memory]
    _write(graph, layer, at, own, [x], bare)
    ways = [
        graph.emit("Unsqueeze", graph.emit("Transpose", each, perm=[1, 0]), graph.integers(0))
        for each in own.values(f"{PROJECTION}_{way}" for way in _ways(layer, at))
    ]
    turned = ways[0] if len(ways) == 1 else graph.emit("Concat", *ways, axis=0)  # [D, h, P]
    for inner, outer in zip(bare[:2], names[:2], strict=True):
        if outer:
            graph.emit("MatMul", inner, turned, result=outer)


def _through_projections(graph: Graph, layer: Any, own: Parameters, ways: Sequence[str]) -> list[str]:
    """Write W R of each direction, [G h, h]: what a projected layer multiplies its bare states with."""
    return [
        graph.emit("MatMul", own.value(f"weight_hh_{way}"), own.value(f"{PROJECTION}_{way}")) for way in ways
    ]


def _ways(layer: Any, at: int) -> list[str]:
    """Return how the parameters of one layer end, of each direction."""
    return [f"l{at}{way}" for way in ("", "_reverse")[: 1 + layer.bidirectional]]


def _bias(graph: Graph, layer: Any, own: Parameters, ways: Sequence[str]) -> str:
    """Write the biases [D, 2 G h] of inputs and states; their sum stands in the file where both are added."""
    if type(layer) is nn.GRU:
        return _ordered(graph, layer, [own.value(f"{part}_{way}") for way in ways for part in BIASES])
    first, second = ([own.tensors[f"{part}_{way}"] for way in ways] for part in BIASES)
    sums = _stacked(layer, [one + other for one, other in zip(first, second, strict=True)])
    name = graph.constant(f"{own.names[f'{BIASES[0]}_{ways[0]}']}/sum", sums)
    return graph.emit("Pad", name, graph.integers(0, 0, 0, sums.shape[1]))


def _codes(graph: Graph, layer: Any, own: Parameters, parts: Sequence[str]) -> tuple[str, str, str]:
    """Write weights of integers [D, I, G h], their scales and their zero points [D, G h]."""
    name = f"{own.names[parts[0]]}/gates"  # a weight of several names may stand in the file as it is besides
    ways = [weight for part in parts if (weight := own.whole(part)) is not None]
    codes = graph.constant(name, _stacked(layer, [each.codes for each in ways]).mT)
    scales = _stacked(layer, [each.scale for each in ways])
    zero = graph.constant(f"{name}/zero", ways[0].zero_point[0])  # the same for all
    zeros = graph.emit("Expand", zero, graph.integers(*scales.shape))
    return codes, graph.constant(f"{name}/scale", scales), zeros


def _stacked(layer: Any, ways: Sequence[Tensor]) -> Tensor:
    """Return what gates of each direction have [G h, ...] as [D, G h, ...], ONNX's gates in their order."""
    order = list(GATES[type(layer)].order)
    return torch.stack([each.unflatten(0, (len(order), -1))[order].flatten(0, 1) for each in ways])


def _attributes(layer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {**GATES[type(layer)].attributes, "hidden_size": layer.hidden_size}
    if layer.bidirectional:
        found["direction"] = "bidirectional"
    if getattr(layer, "nonlinearity", "") == "relu":
        found["activations"] = ["Relu"] * (1 + layer.bidirectional)
    return found


def _ordered(graph: Graph, layer: Any, names: Sequence[str], *width: int) -> str:
    """Write what gates of D directions have, [G h, I] or twice [G h], as [D, G h, I] or [D, 2 G h]."""
    order = GATES[type(layer)].order
    joined = names[0] if len(names) == 1 else graph.emit("Concat", *names, axis=0)
    if len(order) > 1:
        gates = graph.emit("Reshape", joined, graph.integers(len(names), len(order), -1))
        joined = graph.emit("Gather", gates, graph.integers(*order), axis=1)
    return graph.emit("Reshape", joined, graph.integers(1 + layer.bidirectional, -1, *width))


def _rows(graph: Graph, name: str, start: int, count: int) -> str:
    """Write a part of the first dimension."""
    return graph.emit("Slice", name, graph.integers(start), graph.integers(start + count))


def _flat(graph: Graph, name: str, ways: int, result: str) -> str:
    """Write what all directions give [L, D, N, h] as [L, N, D h]."""
    if ways == 1:
        return graph.emit("Squeeze", name, graph.integers(1), result=result)
    turned = graph.emit("Transpose", name, perm=[0, 2, 1, 3])
    return graph.emit("Reshape", turned, graph.integers(0, 0, -1), result=result)
