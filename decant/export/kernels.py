"""A traced graph with a checkpoint's numbers, each layer in the form that ONNX Runtime has a kernel for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, InputGrid, RecurrentGrid
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import FREE
from decant.errors import DecantError
from decant.export.graph import MICROSOFT, Graph, read_within
from decant.export.inputs import (
    BYTE,
    cut,
    is_rounded,
    quantized,
    quantized_by_batch,
    quantized_by_rows,
    rounded,
)
from decant.export.matmul_nbits import WIDTH, packed
from decant.export.recurrent import LAYER, RECURRENT, Parameters, layer_of, write_recurrent
from decant.export.storage import looked_up, stored
from decant.export.trace import LINEAR, MARK
from decant.lowering.integers import MIDDLE, Whole, is_settled, unit, whole, with_bias
from decant.networks.calls import Weight
from decant.networks.record import record_of
from decant.networks.structure import observable
from decant.networks.ties import ties


class Form(StrEnum):
    """How a layer is multiplied."""

    INTEGERS = "integers"
    UNROUNDED = "integers, but nothing rounds what they come to, so that they are multiplied in float32"
    BATCH = "integers, inputs rounded to the range of each batch or row"
    PACKED = "weights of 4 bits, inputs in float32"
    FLOAT = "float32"  # or another type that the weight has


Forms = Mapping[str, Form]
"""By the layer's name; by the weight's where no layer of torch is called for it."""

IN_FLOAT = 1
"""The accuracy level of MatMulNBits that leaves the inputs alone; by others it rounds them to 8 bits."""


def called(weight: Weight) -> str:
    """Return the name under which a weight's form stands."""
    return weight.layer or weight.name


def fill_(model: onnx.ModelProto, checkpoint: Checkpoint) -> Forms:
    """Give the graph that was traced of a checkpoint its numbers, in place; return the form of each layer.

    Integers
        Layers whose inputs are rounded to one grid of at most 8 bits and whose weights are integers (so are
        signs): inputs, weights and biases stand between QuantizeLinear and DequantizeLinear, with the
        checkpoint's own scales, and ONNX Runtime makes one layer of integers of each.
    Unrounded
        The same of a convolution whose results are not rounded next: there is no integer kernel that gives
        float32, and ONNX Runtime takes the integers back into float32 at each run.
    Batch
        The like of a linear layer with the range of each batch: DynamicQuantizeLinear and MatMulInteger; and
        of a layer of an LSTM: DynamicQuantizeLSTM.
    Packed
        Linear layers with inputs in float32 and integers that 4 bits hold: MatMulNBits, which saves memory
        and multiplies in float32.
    Float
        All others, embeddings, transposed convolutions, attention and recurrences among them: ONNX Runtime
        has no kernel for their integers, or the network does not round what these would round. Their weights
        lie in the file as integers all the same, and are unpacked when it is opened; tables when they are
        read.
    """
    writer = _Writer(model.graph, checkpoint)
    for node in model.graph.node:
        writer.write(node)
    written = writer.graph
    # A layer that runs, and whose result is no part of the answer, is no part of the graph.
    unread = (record_of(checkpoint.module).weights.keys() - writer.read) & writer.named(model.graph)
    assert not unread, f"The exported graph has no place for {sorted(unread)}"
    returned = {each.name for each in model.graph.output}
    unrounded = {layer for layer, result in writer.sums if not is_rounded(written, result, returned)}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(written.nodes)
    model.graph.initializer.extend(written.read())
    opset = next(each.version for each in model.opset_import if each.domain == "")
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    if any(node.domain == MICROSOFT for node in written.nodes):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return writer.forms | dict.fromkeys(unrounded, Form.UNROUNDED)


class _Writer:
    """Writes a traced graph anew, node by node."""

    def __init__(self, traced: onnx.GraphProto, checkpoint: Checkpoint) -> None:
        self.graph, self.forms, self.read = Graph(), dict[str, Form](), set[str]()
        self.sums: list[
            tuple[str, str]
        ] = []  # convolutions in integers: the layer, and the name of the result
        self._checkpoint, self._tensors = checkpoint, state(checkpoint.module)
        self._first = {name: names[0] for names in ties(checkpoint.module).values() for name in names}
        self._weights, self._seen = record_of(checkpoint.module).weights, observable(checkpoint.module)
        self._weighing = {each.layer for each in self._weights.values()}
        self._traced = {initializer.name: initializer for initializer in traced.initializer}
        self._marks: dict[str, tuple[str, str]] = {}  # by the result: what is cut and rounded, and its layer
        self._stored: dict[str, str] = {}  # by the weight: the name of its numbers in float32

    def named(self, traced: onnx.GraphProto) -> set[str]:
        """Return all that the nodes of a traced graph read, each tensor by the first of its names."""
        return {self._first.get(name, name) for node in traced.node for name in node.input}

    def write(self, node: onnx.NodeProto) -> None:
        """Write one traced node, as it is or as what it stands for."""
        if node.op_type == MARK:
            self._marks[node.output[0]] = node.input[0], _layer(node)
            return
        if node.op_type == RECURRENT:
            self._recurrent(node)
            return
        weight = self._weight(node)
        if not weight:
            self._copy(node)
            return
        layer = self._weights[weight].layer
        self.read |= {weight, *(self._first.get(name, name) for name in node.input[2:])}
        self.forms[layer] = (
            self._integers(node, layer, weight)
            or self._batch_integers(node, layer, weight)
            or self._packed(node, layer, weight)
            or self._float(node)
        )

    def _recurrent(self, node: onnx.NodeProto) -> None:
        """Write a recurrent layer, and note its weights and how they are multiplied."""
        name = _layer(node)
        layer, grid = self._checkpoint.module.get_submodule(name), self._checkpoint.grids.get(name)
        own = {each: self._first[f"{name}.{each}".removeprefix(".")] for each, _ in layer.named_parameters()}
        self.forms |= {
            called(self._weights[each]): Form.FLOAT for each in own.values() if each in self._weights
        }

        def integers(part: str) -> Whole | None:
            if not isinstance(grid, RecurrentGrid) or layer_of(part) not in grid.layers:
                return None
            weight = whole(self._tensors[own[part]], self._checkpoint.constraints.get(own[part], FREE))
            if weight is None or bool(weight.zero_point.any()) or grid.bits != BYTE:
                raise DecantError(
                    f"{own[part]}: the states that it is multiplied with are rounded, for which ONNX Runtime "
                    "has a kernel of 8 bits and symmetric integers with a step for each output alone"
                )
            self.forms[called(self._weights[own[part]])] = Form.BATCH
            self.read.add(own[part])
            # ONNX Runtime's option for exact sums fails on int8 that two layers of its graph read.
            return weight.unsigned() if self._weights[own[part]].calls > 1 else weight

        inputs = [self._value(each) for each in node.input]
        numbers = {each: self._tensors[first] for each, first in own.items()}
        parameters = Parameters(own, numbers, lambda part: self._value(own[part]), integers)
        write_recurrent(self.graph, node, layer, inputs, parameters)

    def _copy(self, node: onnx.NodeProto) -> None:
        """Write a node that has one form, and note which weights it reads."""
        names = [self._first.get(name, "") for name in node.input]
        self.forms |= {called(self._weights[name]): Form.FLOAT for name in names if name in self._weights}
        if node.op_type == "Gather" and names[0] in self._tensors and self._look_up(node, names[0]):
            self.read.add(names[0])
        elif node.op_type == LINEAR:
            self._float(node)
        else:
            self._inner(node)
            self.graph.copy(node, *(self._value(name) for name in node.input))

    def _look_up(self, node: onnx.NodeProto, name: str) -> bool:
        """Write a look into a table of integers; say whether it is one."""
        held = self._checkpoint.constraints.get(name, FREE)
        if any(a.name == "axis" and a.i != 0 for a in node.attribute):
            return False
        return looked_up(
            self.graph, name, self._tensors[name], held, self._value(node.input[1]), node.output[0]
        )

    def _inner(self, node: onnx.NodeProto) -> None:
        """Write what a node reads in graphs of its own, under the names that these use."""
        for name in dict.fromkeys(read_within(node)):
            if (value := self._value(name)) != name:
                self.graph.emit("Identity", value, result=name)

    def _weight(self, node: onnx.NodeProto) -> str:
        """Return the weight that the node multiplies, if its layer is of a kind that has several forms."""
        if node.op_type not in ("Conv", "Gemm", LINEAR):
            return ""
        name = self._first.get(node.input[1], "")
        if name not in self._seen or not all(self._is_bias(name, each) for each in node.input[2:]):
            return ""
        layer = self._weights[name].layer
        source = self._marks.get(node.input[0])
        # A layer whose inputs are reshaped after they were rounded is not one that integer kernels know.
        return name if layer not in self._checkpoint.grids or (source and source[1] == layer) else ""

    def _is_bias(self, weight: str, name: str) -> bool:
        """Say whether this is the bias of the weight's layer."""
        return self._first.get(name) == self._bias_of(self._weights[weight].layer)

    def _bias_of(self, layer: str) -> str:
        """Return the first name of a layer's bias; a name that no tensor has where there is none."""
        return self._first.get(own := f"{layer}.bias".removeprefix("."), own)

    def _value(self, name: str) -> str:
        """Return a name to read in place of a traced one; writes what it stands for, at the first call."""
        if name in self._marks:
            source, layer = self._marks[name]
            grid = self._checkpoint.grids.get(layer)
            source = cut(self.graph, self._value(source), self._checkpoint.clamps.get(layer), grid)
            if layer not in self._weighing and isinstance(grid, InputGrid):
                return quantized(self.graph, source, grid)
            return rounded(self.graph, source, grid)
        if (first := self._first.get(name, name)) in self._tensors:
            self.read.add(first)
            if first not in self._stored:
                held = self._checkpoint.constraints.get(first, FREE)
                self._stored[first] = stored(self.graph, first, self._tensors[first], held)
            return self._stored[first]
        if name in self._traced:
            return self.graph.constant(name, numpy_helper.to_array(self._traced[name]))
        return name

    def _cut(self, node: onnx.NodeProto, layer: str) -> str:
        """Return what comes to a layer, cut to its range; the caller rounds it."""
        source, marked = self._marks.get(node.input[0], (node.input[0], ""))
        if marked != layer:  # what another layer, without weights, has rounded
            return self._value(node.input[0])
        clamp, grid = self._checkpoint.clamps.get(layer), self._checkpoint.grids.get(layer)
        return cut(self.graph, self._value(source), clamp, grid)

    def _whole(self, node: onnx.NodeProto, name: str) -> Whole | None:
        """Return a weight in integers that its layer's kernel takes."""
        weight = whole(self._tensors[name], self._checkpoint.constraints.get(name, FREE))
        # QLinearConv has one zero point for all channels.
        fits = weight is not None and (
            node.op_type != "Conv" or bool((weight.zero_point == weight.zero_point[0]).all())
        )
        if weight is None or not fits:
            return None
        # ONNX Runtime's option for exact sums fails on int8 that two layers of its graph read.
        return weight.unsigned() if self._weights[name].calls > 1 else weight

    def _integers(self, node: onnx.NodeProto, layer: str, name: str) -> Form | None:
        grid, weight = self._checkpoint.grids.get(layer), self._whole(node, name)
        if not isinstance(grid, InputGrid) or weight is None:
            return None
        fitting = with_bias(weight, self._bias(layer, weight), grid.scale)
        if fitting is None or not is_settled(*fitting, self._bias(layer, weight), grid.scale):
            return None
        weight, bias = fitting
        source = quantized(self.graph, self._cut(node, layer), grid)
        if node.op_type == LINEAR:
            self._product(node, "MatMul", source, self._dequantized(name, weight, turned=True))
            return Form.INTEGERS
        inputs = [source, self._dequantized(name, weight)]
        if len(node.input) > 2:
            codes = self.graph.constant(self._bias_of(layer), bias)
            step = self.graph.constant(f"{self._bias_of(layer)}/scale", unit(weight.scale, grid.scale))
            inputs.append(self.graph.emit("DequantizeLinear", codes, step, axis=0))
        self.graph.copy(node, *inputs)
        if node.op_type == "Conv":
            self.sums.append((layer, node.output[0]))
        return Form.INTEGERS

    def _dequantized(self, name: str, weight: Whole, *, turned: bool = False) -> str:
        codes = self.graph.constant(name, weight.codes.T if turned else weight.codes)
        scale = self.graph.constant(f"{name}/scale", weight.scale)
        # ONNX Runtime makes no QGemm of a weight whose zero point is left out, though that means 0.
        zero = self.graph.constant(f"{name}/zero", weight.zero_point)
        return self.graph.emit("DequantizeLinear", codes, scale, zero, axis=int(turned))

    def _product(self, node: onnx.NodeProto, operator: str, *inputs: str) -> None:
        """Write a product of rows with a matrix, and what a traced linear layer adds to it."""
        if len(node.input) == 2:
            self.graph.emit(operator, *inputs, result=node.output[0])
        else:
            product = self.graph.emit(operator, *inputs)
            self.graph.emit("Add", product, self._value(node.input[2]), result=node.output[0])

    def _batch_integers(self, node: onnx.NodeProto, layer: str, name: str) -> Form | None:
        grid, weight = self._checkpoint.grids.get(layer), self._whole(node, name)
        if node.op_type == "Conv" or not isinstance(grid, DynamicGrid) or grid.bits < BYTE or weight is None:
            return None  # ConvInteger takes 7 times as long as a convolution in float32, in ONNX Runtime 1.32
        if weight.codes.dtype != torch.int8 and not bool((weight.zero_point == MIDDLE).all()):
            return None
        multiply = self._product_by_rows if grid.rows else self._product_by_batch
        product = multiply(self._cut(node, layer), name, weight)
        bias = self.graph.constant(self._bias_of(layer), self._bias(layer, weight))
        self.graph.emit("Add", product, bias, result=node.output[0])
        return Form.BATCH

    def _product_by_batch(self, source: str, name: str, weight: Whole) -> str:
        codes, step, zero = quantized_by_batch(self.graph, source)
        matrix, steps, more = self._matrix(name, weight)
        sums = self.graph.emit("MatMulInteger", codes, matrix, zero, *more)
        return self.graph.emit(
            "Mul", self.graph.emit("Cast", sums, to=TensorProto.FLOAT), self.graph.emit("Mul", step, steps)
        )

    def _product_by_rows(self, source: str, name: str, weight: Whole) -> str:
        codes, largest = quantized_by_rows(self.graph, source)
        matrix, steps, more = self._matrix(name, weight)
        step, zero = self.graph.number(1 / (MIDDLE - 1)), self.graph.number(MIDDLE, np.uint8)
        # What ONNX Runtime makes of the operators above, where it recognizes them.
        rows = self.graph.emit(
            "MatMulIntegerToFloat", codes, matrix, step, steps, zero, *more, domain=MICROSOFT
        )
        return self.graph.emit("Mul", rows, largest)

    def _matrix(self, name: str, weight: Whole) -> tuple[str, str, list[str]]:
        """Write a weight [O, I] as integers [I, O], and its steps; return them, and its zero if any."""
        more = [] if weight.codes.dtype == torch.int8 else [self.graph.number(MIDDLE, np.uint8)]
        steps = self.graph.constant(f"{name}/scale", weight.scale)
        return self.graph.constant(name, weight.codes.T), steps, more

    def _bias(self, layer: str, weight: Whole) -> Tensor:
        return self._tensors.get(self._bias_of(layer), torch.zeros(len(weight.scale)))

    def _packed(self, node: onnx.NodeProto, layer: str, name: str) -> Form | None:
        if node.op_type == "Conv" or layer in self._checkpoint.grids:
            return None
        weight = packed(self._tensors[name], self._checkpoint.constraints.get(name, FREE))
        if weight is None:
            return None
        outputs, inputs = self._tensors[name].shape
        zeros = weight.zero_points
        self.graph.emit(
            "MatMulNBits",
            self._cut(node, layer),
            self.graph.constant(name, weight.codes),
            self.graph.constant(f"{name}/scale", weight.scale),
            "" if zeros is None else self.graph.constant(f"{name}/zero", zeros),
            "",
            *(self._value(bias) for bias in node.input[2:]),
            domain=MICROSOFT,
            result=node.output[0],
            N=outputs,
            K=inputs,
            bits=WIDTH,
            block_size=weight.block,
            accuracy_level=IN_FLOAT,
        )
        return Form.PACKED

    def _float(self, node: onnx.NodeProto) -> Form:
        if node.op_type == LINEAR:
            self._product(node, "MatMul", self._value(node.input[0]), self._turned(node.input[1]))
        else:
            self.graph.copy(node, *(self._value(name) for name in node.input))
        return Form.FLOAT

    def _turned(self, name: str) -> str:
        """Return a matrix [O, I] as [I, O]; floats lie in the file so, which others' quantizers look for."""
        value, weight = self._value(name), self._weights.get(self._first.get(name, ""))
        if weight is not None and weight.layer and value in self.graph.constants:
            return self.graph.constant(f"{value}/turned", self._tensors[weight.name].T)
        return self.graph.emit("Transpose", value, perm=[1, 0])


def _layer(node: onnx.NodeProto) -> str:
    """Return the name of the layer that a traced node stands for."""
    name: str = next(each.s for each in node.attribute if each.name == LAYER).decode()
    return name
